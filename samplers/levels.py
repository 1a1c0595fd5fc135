"""Noise levels: x_t = alpha x_0 + sigma noise, and lambda = log(alpha / sigma), half the log-SNR."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .checks import shortened
from .phi import Scalar, exp, log, value

SAME_LEVEL = 1e-4
"""Levels that differ by less than this share are one: float32 in the host, rounded numbers in a workflow."""

_LARGEST = torch.finfo(torch.float32).max  # of the sigma passed to the model


@dataclass(frozen=True, slots=True)
class Level:
    """One noise level. `lam` is lambda = log(alpha / sigma): +inf on clean data, -inf on pure noise."""

    alpha: Scalar
    sigma: Scalar
    lam: Scalar


@dataclass(frozen=True, slots=True)
class Levels(Sequence[Level]):
    """The levels of a run, first to last, in Karras/EDM space (alpha = 1) or rectified flow (alpha = 1 - sigma).

    Indexing gives a `Level`; `between` gives a level that no step ends on. `shift` is the time shift s of a flow model,
    sigma(t) = s t / (1 + (s - 1) t), for solvers that place something by the model's time.
    """

    sigmas: tuple[Scalar, ...]
    flow: bool = False
    shift: float = 1.0
    _levels: tuple[Level, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_levels", tuple(self.at_sigma(sigma) for sigma in self.sigmas))

    def __len__(self) -> int:
        return len(self._levels)

    def __getitem__(self, i: int) -> Level:  # type: ignore[override]  # no slices
        return self._levels[i]

    def part(self, first: int, last: int) -> Levels:
        """The levels of the same model from number `first` to number `last`, both within."""
        return Levels(self.sigmas[first : last + 1], self.flow, self.shift)

    def at_sigma(self, sigma: Scalar) -> Level:
        alpha = 1 - sigma if self.flow else 1.0
        return Level(alpha, sigma, log(alpha) - log(sigma))

    def at_lambda(self, lam: Scalar) -> Level:
        """The level with log(alpha / sigma) = lam: sigma = e^-lam, or 1 / (1 + e^lam) in flow space."""
        sigma = 1 / (1 + exp(lam)) if self.flow else exp(-lam)
        return Level(1 - sigma if self.flow else 1.0, sigma, lam)

    def between(self, s: Level, t: Level, r: Scalar) -> Level:
        """The level at lambda_s + r (lambda_t - lambda_s)."""
        return self.at_lambda(s.lam + r * (t.lam - s.lam))


def first_below(sigmas: Sequence[float], boundary: float) -> int:
    """The number of the first of some descending levels below a boundary, or of the last if none is: the steps that
    begin at the boundary or above come before it. A level that is the boundary but for rounding is at it."""
    below = (i for i, sigma in enumerate(sigmas) if sigma < boundary * (1 - SAME_LEVEL))
    return next(below, max(0, len(sigmas) - 1))


def read_sigmas(sigmas: torch.Tensor | Sequence[float]) -> tuple[float, ...]:
    """The sigmas as floats on the host: the only read from the device before a run.

    Raises:
        ValueError: if they are not a 1-D tensor or sequence of numbers.
    """
    if isinstance(sigmas, torch.Tensor):
        if sigmas.ndim != 1:
            raise ValueError(f"sigmas must be a 1-D tensor, got shape {list(sigmas.shape)}")
        if sigmas.is_complex():
            raise ValueError(f"sigmas must be numbers, got a tensor of {sigmas.dtype}")
        return tuple(map(float, sigmas.tolist()))
    try:
        return tuple(float(sigma) for sigma in sigmas)
    except TypeError:
        raise ValueError(f"sigmas must be a 1-D tensor or a sequence of numbers, got {shortened(sigmas)}") from None
    except (ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"sigmas must be numbers: {error}") from None


_ROUNDED = 102 * 2.0**-24
"""How far float32 can take s t / (1 + (s - 1) t) from 1 at t = 1, the time shift that gives a model its sigma_max: s,
s - 1, the sum and the quotient are each rounded by a share of 2^-24 at most, s - 1 being |s - 1| / s of the sum. Over
s >= 0.01, the smallest that a node can be set to, that is 3 + 99 times 2^-24."""


def pure_noise(sigma: float) -> float:
    """A level of a rectified-flow model, 1 where it differs from 1 by no more than float32 rounds.

    Models have a sigma_max of 1.0000001 or 0.99999994 for some shifts s. That alpha = 6e-8 is all rounding, and its
    lambda = -17 is no place for a step to start from.
    """
    return 1.0 if abs(sigma - 1) <= _ROUNDED else sigma


REPEATS = "some of the sigmas repeat the one before; such steps change nothing and are left out"
"""What the log says of it."""


def without_repeats(values: Sequence[float]) -> tuple[int, ...]:
    """The places of levels that are not those after them too."""
    last = len(values) - 1
    return tuple(i for i, sigma in enumerate(values) if i == last or sigma != values[i + 1])


class GivenLevels(NamedTuple):
    """The levels of a run, and what the caller knows them by."""

    levels: Levels
    """All different, as the mathematics takes them. Fewer than two: there is no step."""

    given: tuple[float, ...]
    """The same as they were given, which is the sigma passed to the model."""

    numbers: tuple[int, ...]
    """Where they stand among those given. The step from levels[k] is that from sigmas[numbers[k]]."""

    @property
    def repeats(self) -> bool:
        """Whether a level was given twice in a row, and one of the two left out."""
        return self.numbers != tuple(range(len(self.numbers)))

    @property
    def as_given(self) -> bool:
        """Whether the levels are just those that were given."""
        same = all(value(level.sigma) == given for level, given in zip(self.levels, self.given, strict=True))
        return same and not self.repeats


def read_run(sigmas: torch.Tensor | Sequence[float], flow: bool = False, shift: float = 1.0) -> GivenLevels:
    """The checked levels of a run, in float64.

    `sigmas` is a 1-D tensor (or sequence), descending for sampling or ascending for inversion; only the last of a
    descending run may be 0. A level that repeats the one before is no step and is left out. A tensor that requires
    gradients is kept as scalars of torch, so that the plan made from it is differentiable in the levels.

    Raises:
        ValueError: naming the sigma at fault.
    """
    run = check_run(read_sigmas(sigmas), flow, shift)
    if isinstance(sigmas, torch.Tensor) and sigmas.requires_grad:
        scalars = sigmas.to("cpu", torch.float64)
        exact = torch.tensor([value(level.sigma) for level in run.levels], dtype=torch.float64)
        mine = scalars[list(run.numbers)]
        levels = torch.where(mine == exact, mine, exact).unbind()  # 1 to rounding has no gradient
        return run._replace(levels=Levels(tuple(levels), flow, shift))
    return run


def check_run(given: tuple[float, ...], flow: bool = False, shift: float = 1.0) -> GivenLevels:
    """The levels of `read_run`, of sigmas that are read.

    Raises:
        ValueError: naming the sigma at fault, or the shift.
    """
    if not 0 < shift < math.inf:
        raise ValueError(f"model_shift = {shift:g} must be positive and finite")
    values = tuple(map(pure_noise, given)) if flow else given
    for i, sigma in enumerate(values):
        if not 0 <= sigma <= _LARGEST:  # NaN as well
            raise ValueError(f"sigmas[{i}] = {sigma}: noise levels must be finite and not negative")
        if flow and sigma > 1:
            raise ValueError(
                f"sigmas[{i}] = {sigma}: a rectified-flow model has levels between 0 and 1; "
                "was this schedule made for another model?"
            )
    numbers = without_repeats(values)
    ascending = len(numbers) > 1 and values[numbers[1]] > values[numbers[0]]
    for i, j in itertools.pairwise(numbers):
        if (values[j] > values[i]) != ascending:
            raise ValueError(
                f"sigmas[{i}] = {values[i]:g} and sigmas[{j}] = {values[j]:g}: levels must run in one direction, "
                "descending to sample or ascending to invert"
            )
    if ascending and values[numbers[0]] == 0:
        raise ValueError("ascending sigmas cannot start at 0, where there is no noise to follow: start above it")
    levels = Levels(tuple(values[i] for i in numbers), flow, shift)
    return GivenLevels(levels, tuple(given[i] for i in numbers), numbers)


def read_levels(sigmas: torch.Tensor | Sequence[float], flow: bool = False) -> Levels:
    """The levels of `read_run` where each of them must be a step: two or more, strictly descending or ascending.

    Raises:
        ValueError: naming the sigma at fault.
    """
    run = read_run(sigmas, flow)
    if run.repeats:
        i = next(i for i, number in enumerate(run.numbers) if i != number)
        a = value(run.levels[i].sigma)
        raise ValueError(f"sigmas[{i}] and sigmas[{i + 1}] are equal ({a:g}): a step needs two different levels")
    if len(run.levels) < 2:
        raise ValueError(
            f"sigmas must hold at least two levels (one step), got {list(run.given)}: raise the number of steps"
        )
    return run.levels
