"""What the quality benchmark measures, and how much of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.cells import Entry, Pair, Schedule

PROMPTS = (
    "cat face", "red apple", "penguin", "hamburger", "grinning face", "tulip", "octopus", "slice of pizza",
    "dog face", "strawberry", "frog face", "banana", "sparkling heart", "turtle", "angry face", "sushi",
    "black cat", "lemon", "smiling face with sunglasses", "mushroom", "whale", "birthday cake", "ghost", "rose",
    "pig face", "hot dog", "clown face", "watermelon", "koala", "cactus", "crying face", "doughnut",
    "unicorn face", "cherries", "sleeping face", "honeybee", "lady beetle", "ice cream", "skull", "maple leaf",
)  # fmt: skip
"""The first 8 belong to the choice of schedules, the rest to the report, as long as there are enough."""

VARIANTS: dict[str, Sequence[dict[str, Any]]] = {
    "dpmpp_2m": [{"corrected_start": True}],
    "dpmpp_3m": [{"corrected_start": True}, {"solver_type": "exact"}],
    "dpm_2m": [{"corrected_start": True}],
    "unipc": [{"order": 2}, {"solver_type": "bh1"}],
    "ipndm": [{"order": 2}],
    "deis": [{"order": 2}],
}
"""Options worth a row of their own."""

REFERENCE = Entry("ours", "dpmpp_2m"), Schedule("ours", "exponential")
"""Its 200 steps are 0.00012 from 1000 of Heun's method, and within 0.00002 of 200 of any method on its levels."""

CHECK = Entry("host", "dpmpp_2m"), Schedule("host", "karras")
"""Another way to the same limit: the distance of the two is the floor of all errors."""

MANY_STEPS = Entry("ours", "dpmpp_2m_sde"), Schedule("ours", "exponential")
MANY_STEPS_ODE = REFERENCE  # the limit without noise, which under guidance is another one


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

    @property
    def chosen_on(self) -> list[Pair]:
        """The pairs on which schedules are chosen."""
        return _pairs(0, self.choosing[1])

    @property
    def reported_on(self) -> list[Pair]:
        return _pairs(max(8, self.choosing[1]), self.pairs)


def _pairs(first: int, count: int) -> list[Pair]:
    return [Pair(PROMPTS[i % len(PROMPTS)], i) for i in range(first, first + count)]


FULL = Size(
    choosing=(16, 32), pairs=1000, samples=10000, sample_budgets=(8, 15, 30), sample_choosing=500, sample_schedules=6,
    batch=500, minutes=math.inf,
)  # fmt: skip
QUICK = Size(
    budgets=(4, 6), choosing=(1, 2), pairs=2, first_look=4, second_look=(4, 6), schedules=(2, 1), reference_steps=20,
    samples=0, sample_budgets=(4,), many_steps=6, sample_choosing=4, sample_schedules=1, borrowers=1, batch=4,
    minutes=math.inf,
)  # fmt: skip
