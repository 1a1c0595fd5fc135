"""Consistency distillation: two neighbouring points of a trajectory lead to one image.

Y. Song, P. Dhariwal, M. Chen, I. Sutskever: Consistency Models. ICML 2023, arXiv 2303.01469.
Z. Geng, A. Pokle, W. Luo, J. Lin, J. Z. Kolter: Consistency Models Made Easy (ECT). 2024, arXiv 2406.14548.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..integrate import Model
from ..processes import wide_per_image
from .learner import Learner
from .losses import loss_named
from .step import noised, step

HALVINGS = 8
"""How often the distance of the two points is halved in the course of a training."""

STEEP, FLAT = 8.0, 1.0  # k and b of ECT's n(t) = 1 + k sigmoid(-b t)


def lower_level(t: Tensor, share: float) -> Tensor:
    """r below t: r / t = 1 - n(t) / 2^a, at least 0, with n(t) = 1 + 8 sigmoid(-t), a = 1 at first and 8 in the end.

    ECT, section 3.2. The points are far apart at first, r = 0 for all t, and neighbours in the end.

    Args:
        t: levels in EDM space.
        share: of the training that is over, 0 to 1.
    """
    halvings = 1 + min(math.floor(share * HALVINGS), HALVINGS - 1)
    nearness = 1 + STEEP * torch.sigmoid(-FLAT * t)
    return t * (1 - nearness / 2**halvings).clamp(min=0)


class ConsistencyDistillation:
    """Trains a student that gives the end of a trajectory from any point of it.

    For an image x_0 and a level t, drawn for each image, with r below it:

        x_t = alpha_t x_0 + sigma_t noise
        x_r: one step of DDIM with the teacher
        loss = mean over images of  d( f(x_t; t) - f_stopped(x_r; r) ) (1 / t + 1) ,   f(x; 0) = x

    f is the student as it answers, and f_stopped the same without gradient. Song et al. distil so with the moving
    average in its place, which later work has left out. Levels are drawn with log t normal.

    Args:
        learner: the weights of the student.
        sigma_min, sigma_max: of the levels t, in EDM space; log t has the middle of their logarithms as its mean, and a
            quarter of their distance as its deviation.
        flow: whether the student and the teacher are of a rectified flow. A level t is then sigma = t / (1 + t).
        loss: of `LOSSES`.

    Raises:
        ValueError: naming the argument at fault.
    """

    def __init__(
        self, learner: Learner, sigma_min: float, sigma_max: float, *, flow: bool = False, loss: str = "pseudo_huber"
    ):
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"sigma_min = {sigma_min:g} and sigma_max = {sigma_max:g}: 0 < sigma_min < sigma_max")
        low, high = math.log(sigma_min), math.log(sigma_max)
        self._range, self._mean, self._deviation = (low, high), (low + high) / 2, (high - low) / 4
        self._learner, self._flow, self._loss = learner, flow, loss_named(loss)

    def learn(
        self,
        student: Model,
        teacher: Model,
        x0: Tensor,
        generator: torch.Generator,
        extra_args: Mapping[str, Any] | None = None,
        teacher_args: Mapping[str, Any] | None = None,
    ) -> float:
        """Train on one batch of images x_0, [B, C, ...]; level and noise of each are drawn. Gives the loss."""
        drawn = self._mean + self._deviation * torch.randn(len(x0), generator=generator, dtype=torch.float64)
        t = drawn.clamp(*self._range).exp()
        r = lower_level(t, self._learner.done / self._learner.updates)
        above, below = (t / (1 + t), r / (1 + r)) if self._flow else (t, r)
        x = noised(x0, torch.randn(x0.shape, generator=generator).to(x0), above, self._flow).to(x0.dtype)
        with torch.no_grad():
            lower = step(x, teacher(x, above.to(x), **(teacher_args or {})), above, below, self._flow)
            answer = student(lower, below.clamp(min=1e-6).to(x), **(extra_args or {}))
            target = torch.where(wide_per_image(below, x) > 0, answer, lower)
        weight = wide_per_image(1 / t + 1, x)
        with torch.enable_grad():
            error = student(x, above.to(x), **(extra_args or {})) - target
            loss = (weight * self._loss(error)).mean()
            self._learner.update(loss)
        return loss.item()
