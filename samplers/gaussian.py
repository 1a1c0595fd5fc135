"""Runs on data that are normally distributed, where the exact answer is known: whether a step is too long."""

from __future__ import annotations

import itertools
import math

from .levels import Levels, pure_noise
from .phi import value
from .plan import DENOISED, UNCONDITIONAL, Combination, Plan

FARTHEST = 0.5
"""A run that misses Gaussian data by no more standard deviations is not warned of."""

MULTIPLE = 1.5
"""Neither is one that misses them by no more than this many times what steps of order 1 do."""


def too_long(plan: Plan, levels: Levels) -> float | None:
    """By how many standard deviations a plan misses Gaussian data, where that is much and steps of order 1 do better;
    None where not, where float64 cannot hold it, and for a plan with noise.

    A step that is too long for the order of a sampler throws the sample away from the trajectory, whatever the data.
    """
    if len(levels) < 2 or any(stage.noise for stage in plan):
        return None
    error = gaussian_error(plan, levels)
    if math.isinf(error):  # nothing is known, and the run itself says that its sample overflows
        return None
    much = error > FARTHEST and error > MULTIPLE * first_order_error(levels)
    return error if much else None


def gaussian_error(plan: Plan, levels: Levels) -> float:
    """How far a plan without noise misses data of mean 1 and variance 1, in standard deviations.

    For those data D(x; t) = (alpha_t x + sigma_t^2) / (alpha_t^2 + sigma_t^2), and a trajectory of the ODE is

        x_t = alpha_t + sqrt(alpha_t^2 + sigma_t^2) z,    z ~ N(0, 1).

    A plan is linear, so that a complex number can carry both parts of a sample: the real part the factor of z, the
    imaginary part the rest. The prediction without the prompt is taken to be that with it.
    """
    predictions: list[complex] = []
    keep = max((stage.update.reach for stage in plan), default=0)
    denoised = 0j
    x = start = _on_trajectory(levels, 0)
    for stage in plan:
        if stage.sigma is not None:
            denoised = _denoised(x, value(stage.sigma), levels.flow)
        if stage.remembers:
            guided = DENOISED if stage.prediction is UNCONDITIONAL else stage.prediction
            predictions = [_total(guided, (denoised, start, x)), *predictions[: keep - 1]]
        x = _total(stage.update, (*predictions, denoised, start, x))
        start = x if stage.completes else start
    return _distance(x, levels)


def first_order_error(levels: Levels) -> float:
    """The same of DDIM, x_t = (sigma_t / sigma_s) x_s + (alpha_t - alpha_s sigma_t / sigma_s) D."""
    x = _on_trajectory(levels, 0)
    for s, t in itertools.pairwise(levels):
        ratio = value(t.sigma / s.sigma)
        x = ratio * x + (value(t.alpha) - value(s.alpha) * ratio) * _denoised(x, value(s.sigma), levels.flow)
    return _distance(x, levels)


def _on_trajectory(levels: Levels, i: int) -> complex:
    alpha, sigma = value(levels[i].alpha), value(levels[i].sigma)
    return complex(math.hypot(alpha, sigma), alpha)


def _distance(x: complex, levels: Levels) -> float:
    """Of the last sample from its trajectory, in units of its standard deviation; inf where float64 cannot hold it."""
    end = _on_trajectory(levels, -1)
    distance = math.hypot(x.real - end.real, x.imag - end.imag) / end.real  # of a complex number, abs may overflow
    return math.inf if math.isnan(distance) else distance


def _denoised(x: complex, sigma: float, flow: bool) -> complex:
    sigma = pure_noise(sigma) if flow else sigma
    alpha = 1 - sigma if flow else 1.0
    return (alpha * x + sigma**2 * 1j) / (alpha**2 + sigma**2)


def _total(formula: Combination, operands: tuple[complex, ...]) -> complex:
    return sum((value(c) * operands[key] for key, c in formula.terms.items()), start=0j)
