"""A schedule: its formula, what it is called, and what every schedule does around its formula."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from .checks import counted, shortened
from .levels import pure_noise
from .options import Option, options_of
from .spec import Spec, declare

SigmaT = TypeVar("SigmaT", float, Tensor)

DISCARD_PENULTIMATE = Option(
    "discard_penultimate",
    False,
    "Leave out the last level above 0, so that the final step starts one level higher. Saves a step that does "
    "little: often better below 10 steps.",
)
SHIFT = Option(
    "shift",
    0.0,
    "Time shift of rectified-flow models. Above 1 moves the steps to higher noise; 1 is no shift. 0 is automatic: the "
    "model's own shift if the schedule runs in its time (time_uniform, simple, beta and others), otherwise no shift.",
    0.0,
    100.0,
)
START_STEP = Option("start_step", 0, "Leave out the steps before this one, as in KSampler (Advanced).", 0, 10000)
END_STEP = Option(
    "end_step", 10000, "Stop before this step, as in KSampler (Advanced): the noise of this level is left.", 1, 10000
)


_MOST_STEPS = 1_000_000  # the host's 10,000 at its lowest denoise, 0.01


def shifted(sigma: SigmaT, shift: float) -> SigmaT:
    """The time shift of rectified flow, sigma / (1 - sigma) times `shift`. That by 1 / shift undoes it.

    Esser et al. 2024 (SD3), arXiv 2403.03206, section 5.3.2.
    """
    return sigma / (sigma + (1 - sigma) / shift)  # 1 stays 1 exactly


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec(Spec):
    """A schedule of noise levels.

    Beside its own options each has `discard_penultimate`, `shift`, `start_step` and `end_step`.
    """

    levels: Callable[..., Tensor]
    """The mathematics: n levels from sigma_max to sigma_min."""

    starts_at_sigma_max: bool = True
    """Whether the first of them is sigma_max. If not, it is a level of the schedule's own."""

    ends_at_sigma_min: bool = True
    """Whether the last of them is sigma_min. If not, it is a level of the schedule's own."""

    in_time: bool = False
    """Whether it runs in the time of a flow model, to which the model's own shift belongs."""

    any_steps: bool = True
    """Whether it has levels for every number of steps. If not, it refuses those for which it has none."""

    @cached_property
    def options(self) -> tuple[Option, ...]:
        return *options_of(self.levels, filled_in=("flow",)), *self.common

    @property
    def common(self) -> tuple[Option, ...]:
        return DISCARD_PENULTIMATE, SHIFT, START_STEP, END_STEP

    def function(
        self,
        n: int,
        sigma_min: float,
        sigma_max: float,
        *,
        flow: bool = False,
        model_shift: float = 1.0,
        denoise: float = 1.0,
        **options: Any,
    ) -> Tensor:
        """n + 1 descending sigmas, [n + 1] in float64, from sigma_max (exactly) over sigma_min to 0.

        With n = 1 they are sigma_max and 0. A schedule with levels of its own may begin below sigma_max, or end with
        another level than sigma_min (`starts_at_sigma_max`, `ends_at_sigma_min`).

        Args:
            n: number of steps.
            sigma_min: lowest level of the model above 0.
            sigma_max: its highest level.
            flow: levels of a rectified-flow model, at most 1.
            model_shift: the time shift of that model, s sigma / (1 + (s - 1) sigma).
            denoise: above 0, at most 1: the last n steps of a schedule of n / denoise steps.
            options: those of this schedule. With `discard_penultimate` it is the schedule of n + 1 steps without its
                last level above 0. `start_step` and `end_step` cut what the others give.

        Raises:
            ValueError: naming the argument at fault.
        """
        try:
            steps = operator.index(n)
        except TypeError:
            raise ValueError(f"{self.id}: steps = {shortened(n)} must be a whole number") from None
        if not 1 <= steps <= _MOST_STEPS:
            raise ValueError(f"{self.id}: steps = {shortened(steps)} must be at least 1 and at most {_MOST_STEPS:,}")
        low, given_high = self._float("sigma_min", sigma_min), self._float("sigma_max", sigma_max)
        denoise, model_shift = self._float("denoise", denoise), self._float("model_shift", model_shift)
        high = pure_noise(given_high) if flow else given_high
        if not 0 < low < high < math.inf:
            raise ValueError(
                f"{self.id}: sigma_min = {low:g} and sigma_max = {high:g} must be finite with 0 < sigma_min < sigma_max"
            )
        if flow and high > 1:
            raise ValueError(f"{self.id}: sigma_max = {high}: the levels of a rectified-flow model end at 1")
        if not 0 < denoise <= 1:
            raise ValueError(f"{self.id}: denoise = {denoise:g} must be above 0 and at most 1")
        if not 0 < model_shift < math.inf:
            raise ValueError(f"{self.id}: model_shift = {model_shift:g} must be positive and finite")
        options = self.check_options(options)
        discard, shift, start, end = (options.pop(option.name) for option in self.common)
        if not flow and shift not in (0, 1):
            raise ValueError(f"{self.id}: option shift = {shift:g} is for rectified-flow models: leave it at 0")
        end = steps if end == END_STEP.default else min(end, steps)
        if start >= end:
            raise ValueError(f"{self.id}: options start_step = {start} and end_step = {end} leave no step of {steps}")
        shift = shift or (model_shift if flow and self.in_time else 1.0)
        if steps / denoise > _MOST_STEPS:
            raise ValueError(
                f"{self.id}: steps / denoise = {steps / denoise:g}, the steps of the whole schedule, must be at most "
                f"{_MOST_STEPS:,}: raise denoise, or use fewer steps"
            )
        total = max(int(steps / denoise), steps)
        if shift == 1:
            sigmas = self.levels(total + discard, low, high, flow=flow, **options)
        else:
            ends = shifted(low, 1 / shift), shifted(high, 1 / shift)
            sigmas = shifted(self.levels(total + discard, *ends, flow=flow, **options), shift)
        if self.ends_at_sigma_min:
            sigmas[-1] = low  # exact, as is the first: rounding must not leave the model's range
        if self.starts_at_sigma_max or sigmas[0] >= high:
            sigmas[0] = given_high  # 1 to rounding, as the model has it
        sigmas = torch.cat([sigmas[:total], sigmas.new_zeros(1)])[-(steps + 1) :]
        self._check_descent(sigmas)
        return sigmas[start : end + 1]

    def _float(self, name: str, given: Any) -> float:
        """Raises ValueError, naming it, if it is no number."""
        try:
            return float(given)
        except OverflowError:  # a whole number of more digits than a float holds
            return math.inf if given > 0 else -math.inf
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{self.id}: {name} = {shortened(given)} must be a number") from None

    def _check_descent(self, sigmas: Tensor) -> None:
        """Raises ValueError if two levels are one in float32, the precision in which the host hands them on."""
        levels = sigmas.float().tolist()
        for i, (a, b) in enumerate(itertools.pairwise(levels)):
            if not a > b:
                raise ValueError(
                    f"{self.id}: with {counted(len(levels) - 1, 'step')}, levels {i} and {i + 1} are both {b:g} in "
                    "float32: use "
                    "fewer steps, or options closer to their defaults"
                )


DECLARED: dict[str, ScheduleSpec] = {}
"""Every schedule that a decorator has declared, by id."""

LevelsT = TypeVar("LevelsT", bound=Callable[..., Tensor])


def schedule(
    label: str,
    *,
    paper: str,
    help: str,
    curated: bool = False,
    starts_at_sigma_max: bool = True,
    ends_at_sigma_min: bool = True,
    in_time: bool = False,
    any_steps: bool = True,
) -> Callable[[LevelsT], LevelsT]:
    """Declare a function to be a schedule; see `ScheduleSpec`. Its name is the id, its keyword arguments are options.

    It stays the function that it is. `SCHEDULES` lists the id as well, in its place.
    """

    def declared(levels: LevelsT) -> LevelsT:
        spec = ScheduleSpec(
            id=levels.__name__,
            label=label,
            paper=paper,
            help=help,
            curated=curated,
            levels=levels,
            starts_at_sigma_max=starts_at_sigma_max,
            ends_at_sigma_min=ends_at_sigma_min,
            in_time=in_time,
            any_steps=any_steps,
        )
        declare(spec, DECLARED)
        return levels

    return declared
