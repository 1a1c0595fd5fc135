"""Noise levels: x_t = alpha x_0 + sigma noise, and lambda = log(alpha / sigma), half the log-SNR."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from .phi import Scalar, exp, log

SAME_LEVEL = 1e-4
"""Levels that differ by less than this share are one: float32 in the host, rounded numbers in a workflow."""


@dataclass(frozen=True, slots=True)
class Level:
    """One noise level. `lam` is lambda = log(alpha / sigma): +inf on clean data, -inf on pure noise."""

    alpha: Scalar
    sigma: Scalar
    lam: Scalar


@dataclass(frozen=True, slots=True)
class Levels(Sequence[Level]):
    """The levels of a run, first to last, in Karras/EDM space (alpha = 1) or rectified flow (alpha = 1 - sigma).

    Indexing gives a `Level`; `between` gives a level that no step ends on.
    """

    sigmas: tuple[Scalar, ...]
    flow: bool = False
    _levels: tuple[Level, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_levels", tuple(self.at_sigma(sigma) for sigma in self.sigmas))

    def __len__(self) -> int:
        return len(self._levels)

    def __getitem__(self, i: int) -> Level:  # type: ignore[override]  # no slices
        return self._levels[i]

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


def read_sigmas(sigmas: torch.Tensor | Sequence[float]) -> tuple[float, ...]:
    """The sigmas as floats on the host: the only read from the device before a run.

    Raises:
        ValueError: if they are not a 1-D tensor or sequence of numbers.
    """
    if isinstance(sigmas, torch.Tensor):
        if sigmas.ndim != 1:
            raise ValueError(f"sigmas must be a 1-D tensor, got shape {list(sigmas.shape)}")
        return tuple(sigmas.tolist())
    try:
        return tuple(float(sigma) for sigma in sigmas)
    except TypeError:
        raise ValueError(f"sigmas must be a 1-D tensor or a sequence of numbers, got {sigmas!r}") from None
    except ValueError as error:
        raise ValueError(f"sigmas must be numbers: {error}") from None


def pure_noise(sigma: float) -> float:
    """A level of a rectified-flow model, 1 where it exceeds 1 by no more than float32 rounds.

    The time shift of a model, s t / (1 + (s - 1) t) in float32, gives 1.0000001 at t = 1 for some s.
    """
    return 1.0 if 1 < sigma <= 1 + 1e-6 else sigma


def read_levels(sigmas: torch.Tensor | Sequence[float], flow: bool = False) -> Levels:
    """The checked levels of a run, in float64.

    `sigmas` is a 1-D tensor (or sequence) of two or more levels, strictly descending for sampling or strictly
    ascending for inversion; only the last of a descending run may be 0. A tensor that requires gradients is
    kept as scalars of torch, so that the plan made from it is differentiable in the levels.

    Raises:
        ValueError: naming the sigma at fault.
    """
    values = read_sigmas(sigmas)
    if flow:
        values = tuple(pure_noise(value) for value in values)
    if len(values) < 2:
        raise ValueError(
            f"sigmas must hold at least two levels (one step), got {list(values)}: raise the number of steps"
        )
    for i, value in enumerate(values):
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"sigmas[{i}] = {value}: noise levels must be finite and not negative")
        if flow and value > 1:
            raise ValueError(
                f"sigmas[{i}] = {value}: a rectified-flow model has levels between 0 and 1; "
                "was this schedule made for another model?"
            )
    ascending = values[1] > values[0]
    for i, (a, b) in enumerate(itertools.pairwise(values)):
        if a == b:
            raise ValueError(f"sigmas[{i}] and sigmas[{i + 1}] are equal ({a:g}): a step needs two different levels")
        if (b > a) != ascending:
            raise ValueError(
                f"sigmas[{i}] = {a:g} and sigmas[{i + 1}] = {b:g}: levels must run in one direction, "
                "descending to sample or ascending to invert"
            )
    if ascending and values[0] == 0:
        raise ValueError("ascending sigmas cannot start at 0, where there is no noise to follow: start above it")
    if isinstance(sigmas, torch.Tensor) and sigmas.requires_grad:
        scalars = sigmas.to("cpu", torch.float64)
        return Levels(tuple((scalars.clamp(max=1) if flow else scalars).unbind()), flow)
    return Levels(values, flow)
