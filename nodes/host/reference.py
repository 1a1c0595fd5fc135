"""What plans are measured against: runs of many steps, and the samples that are used for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ...samplers import SAMPLERS, SCHEDULES, ScheduleSpec
from ...samplers.calibrated import CalibratedPlan
from ...samplers.checks import read_number
from .model import is_flow
from .protocols import ModelSampling
from .sampling import plan_function, sampler_function, schedule_sigmas
from .session import Sample, Session

MANY_STEPS = "dpmpp_2m"
"""The sampler whose runs of many steps others are measured against."""


def many_steps_schedule(model_sampling: ModelSampling) -> ScheduleSpec:
    """The schedule of such runs."""
    return SCHEDULES["time_uniform" if is_flow(model_sampling) else "exponential"]


class Teacher:
    """A run of many steps, whose final latents are to be matched."""

    def __init__(self, session: Session, steps: int, evaluations: int):
        if steps <= evaluations:
            raise ValueError(f"teacher_steps = {steps} must be more than evaluations = {evaluations}")
        self._session, self.steps = session, steps
        schedule = many_steps_schedule(session.sampling)
        self.about: dict[str, Any] = {"sampler": MANY_STEPS, "schedule": schedule.id, "steps": steps}
        self.function = sampler_function(SAMPLERS[MANY_STEPS])
        self.sigmas = schedule_sigmas(schedule, session.sampling, steps)

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        """Final latents [N, ...]."""
        return self._session.run(self.function, self.sigmas, samples)


def final_samples(session: Session, plan: CalibratedPlan, samples: Sequence[Sample]) -> Tensor:
    """Final latents [N, ...] of a plan."""
    return session.run(plan_function(plan), plan.recipe.sigmas, samples)


_LARGEST_SEED = 2.0**62  # of the first image; each other one has the next


def split(prompts: int, seed: int, training: int, validation: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to fit to, and others for validation: no noise in common, and from 4 prompts on no prompt either.

    Raises:
        ValueError: if the seed is one that no generator of torch takes.
    """
    read_number("seed", seed, -_LARGEST_SEED, _LARGEST_SEED)
    everyone = range(prompts)
    kept = [p for p in everyone if p % 4 == 3] or list(everyone)
    others = [p for p in everyone if p not in kept] or list(everyone)
    return (
        [Sample(others[k % len(others)], seed + validation + k) for k in range(training)],
        [Sample(kept[k % len(kept)], seed + k) for k in range(validation)],
    )
