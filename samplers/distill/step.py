"""The levels of students, and the step that all of them make: DDIM, for levels that may differ from image to image."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import shortened
from ..levels import Levels, read_sigmas
from ..phi import value
from ..processes import wide_per_image


def alpha_of(sigma: Tensor, flow: bool) -> Tensor:
    """Of the process x_t = alpha x_0 + sigma noise: 1, or 1 - sigma in rectified flow."""
    return 1 - sigma if flow else sigma.new_ones(()).expand(sigma.shape)


def noised(x0: Tensor, noise: Tensor, sigma: Tensor, flow: bool) -> Tensor:
    """alpha x_0 + sigma noise; sigma [B]."""
    return wide_per_image(alpha_of(sigma, flow), x0) * x0 + wide_per_image(sigma, x0) * noise


def coefficients(s: Tensor, t: Tensor, flow: bool) -> tuple[Tensor, Tensor]:
    """a and c of the step x_t = a x_s + c D(x_s; s) from the level s to t, both [B]:

        a = sigma_t / sigma_s,  c = alpha_t - alpha_s sigma_t / sigma_s

    Song, Meng, Ermon 2020 (DDIM), arXiv 2010.02502. c is the weight that an error of D has in x_t.
    """
    ratio = t / s
    return ratio, alpha_of(t, flow) - alpha_of(s, flow) * ratio


def step(x: Tensor, denoised: Tensor, s: Tensor, t: Tensor, flow: bool) -> Tensor:
    """The sample at t, [B, C, ...], from that at s and the denoised sample there."""
    a, c = (wide_per_image(number, x) for number in coefficients(s, t, flow))
    return (a * x + c * denoised).to(x.dtype)


def read_student_levels(sigmas: Tensor, flow: bool) -> tuple[float, ...]:
    """The levels of a student, which descend strictly; the last may be 0.

    Raises:
        ValueError: saying what is wrong with them.
    """
    values = read_sigmas(sigmas)
    if len(values) < 2:
        raise ValueError(f"sigmas = {shortened(values)}: a student needs two levels or more")
    if any(not t < s for s, t in itertools.pairwise(values)) or not values[-1] >= 0:
        raise ValueError(f"sigmas = {shortened(values)} must descend, to 0 at the lowest")
    if flow and values[0] > 1:
        raise ValueError(f"sigmas = {shortened(values)}: the levels of a rectified-flow model end at 1")
    return values


def inserted(sigmas: Sequence[float], extra: int, flow: bool = False) -> tuple[float, ...]:
    """The levels of a student with `extra` more in each step, for its teacher.

    They lie at equal distances in lambda; in sigma where a step comes out of pure noise or leads to 0.

    Raises:
        ValueError: naming the argument at fault.
    """
    if extra < 0:
        raise ValueError(f"extra = {extra} must be at least 0")
    levels = Levels(read_student_levels(torch.tensor(sigmas, dtype=torch.float64), flow), flow)
    found = [value(levels[0].sigma)]
    for k in range(len(levels) - 1):
        s, t = levels[k], levels[k + 1]
        for share in (j / (extra + 1) for j in range(1, extra + 1)):
            straight = value(s.alpha) == 0 or value(t.sigma) == 0
            inner = s.sigma + share * (t.sigma - s.sigma) if straight else levels.between(s, t, share).sigma
            found.append(value(inner))
        found.append(value(t.sigma))
    return tuple(found)
