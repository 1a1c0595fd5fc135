"""What the quality benchmark measures, and how much of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.cells import Entry, Pair, Schedule
from bench.subjects import Subject

VARIANTS: dict[str, Sequence[dict[str, Any]]] = {
    "dpmpp_2m": [{"corrected_start": True}],
    "dpmpp_3m": [{"corrected_start": True}, {"solver_type": "exact"}],
    "dpm_2m": [{"corrected_start": True}],
    "unipc": [{"order": 2}, {"solver_type": "bh1"}],
    "ipndm": [{"order": 2}],
    "deis": [{"order": 2}],
}
"""Options worth a row of their own."""

Way = tuple[Entry, Schedule]
"""A sampler on a schedule, for any number of steps."""


class Limits(NamedTuple):
    """What samplers are held against: runs of many steps."""

    reference: Way
    check: Way
    """Another way to the same limit: the distance of the two is the floor of all errors."""

    many_steps: Way
    """Of the stochastic samplers. Their limit, under guidance, is another one than that without noise."""


LIMITS = {
    False: Limits(
        # 200 steps are 0.00012 from 1000 of Heun's method, and within 0.00002 of 200 of any method on these levels
        (Entry("ours", "dpmpp_2m"), Schedule("ours", "exponential")),
        (Entry("host", "dpmpp_2m"), Schedule("host", "karras")),
        (Entry("ours", "dpmpp_2m_sde"), Schedule("ours", "exponential")),
    ),
    True: Limits(
        # 200 steps are 0.00017 from the check and from Heun's method on `simple`; third order on `time_uniform`: 0.0006
        (Entry("ours", "dpmpp_2m"), Schedule("ours", "beta")),
        (Entry("host", "heun"), Schedule("host", "beta")),
        (Entry("ours", "dpmpp_2m_sde"), Schedule("ours", "time_uniform")),
    ),
}
"""By whether the model is a rectified flow."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    budgets: tuple[int, ...] = (4, 5, 6, 8, 10, 12, 15, 20, 30)
    choosing: tuple[int, int] = (2, 4)
    """Pairs for the first look at a schedule, and for the later ones."""

    pairs: int = 32
    first_look: int = 8
    """Evaluations at which all schedules are tried."""

    second_look: tuple[int, int] = (6, 15)
    """Those at which the better schedules are."""

    schedules: tuple[int, int] = (8, 3)
    """Schedules kept after the first look, and after the second."""

    reference_steps: int = 200

    samples: int = 1000
    """Of each stochastic sampler; 0: leave them out."""

    sample_budgets: tuple[int, ...] = (8, 15)
    many_steps: int = 50
    sample_choosing: int = 64
    """Samples on which a stochastic sampler's schedule is chosen."""

    sample_schedules: int = 2
    """Schedules that are tried with it: those that suit the deterministic samplers best."""

    borrowers: int = 3
    """Host samplers that are tried on our schedules."""

    batch: int = 16
    minutes: float = 37.0

    def chosen_on(self, subject: Subject) -> list[Pair]:
        """The pairs on which schedules are chosen: with the first prompts, as many as there are pairs."""
        return _pairs(subject, 0, self.choosing[1])

    def reported_on(self, subject: Subject) -> list[Pair]:
        """The pairs of the report: with the prompts after these, and after the first 8, as long as there are enough."""
        return _pairs(subject, max(8, self.choosing[1]), self.pairs)


def _pairs(subject: Subject, first: int, count: int) -> list[Pair]:
    return [Pair(subject.prompts[i % len(subject.prompts)], i) for i in range(first, first + count)]


FULL = Size(
    choosing=(16, 32), pairs=1000, samples=10000, sample_budgets=(8, 15, 30), sample_choosing=500, sample_schedules=6,
    batch=500, minutes=math.inf,
)  # fmt: skip
OWN = Size(
    budgets=(5, 6, 8, 10, 15, 20), choosing=(1, 2), pairs=8, first_look=6, second_look=(6, 15), schedules=(3, 2),
    reference_steps=100, samples=0, batch=4, minutes=math.inf,
)  # fmt: skip
"""For a checkpoint of one's own."""

OWN_SAMPLERS = (
    "euler", "ddim", "heun", "dpm_2", "lms", "dpmpp_2m", "dpmpp_3m", "dpm_2m", "dpm_3m", "ipndm", "ipndm_v", "deis",
    "uni_pc", "unipc", "res_multistep", "gradient_estimation",
)  # fmt: skip
"""Those that are measured on it unless others are named, of ours and of the host."""

OWN_SCHEDULES = (
    "karras", "exponential", "simple", "normal", "sgm_uniform", "beta", "kl_optimal", "linear_quadratic", "cosine",
    "time_uniform", "polyexponential", "align_your_steps", "flux",
)  # fmt: skip
"""Likewise."""

QUICK = Size(
    budgets=(4, 6), choosing=(1, 2), pairs=2, first_look=4, second_look=(4, 6), schedules=(2, 1), reference_steps=20,
    samples=0, sample_budgets=(4,), many_steps=6, sample_choosing=4, sample_schedules=1, borrowers=1, batch=4,
    minutes=math.inf,
)  # fmt: skip
