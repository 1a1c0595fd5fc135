"""Distribution matching: samples of the student are to be as likely as those of the teacher, not equal to them.

T. Yin, M. Gharbi, R. Zhang, E. Shechtman, F. Durand, W. T. Freeman, T. Park: One-step Diffusion with Distribution
Matching Distillation. CVPR 2024, arXiv 2311.18828.
T. Yin, M. Gharbi, T. Park, R. Zhang, E. Shechtman, F. Durand, W. T. Freeman: Improved Distribution Matching
Distillation for Fast Image Synthesis (DMD2). NeurIPS 2024, arXiv 2405.14867.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..integrate import Model
from ..processes import wide_per_image
from .learner import Learner
from .step import alpha_of, noised

FAKE_UPDATES = 2
"""Of the network that knows the student's samples, for each of the student."""


class DistributionMatching:
    """Sharpens a student by the distribution of its samples.

    A second network, `fake`, is trained to denoise the student's samples y, as diffusion models are. Where it and the
    teacher would denoise a noised sample differently, the student's samples are not distributed as the teacher's:

        y_t = alpha_t y + sigma_t noise
        g   = ( D_fake(y_t; t) - D_teacher(y_t; t) ) / mean |y - D_teacher(y_t; t)|
        loss of the student = |y - (y - g)_stopped|^2 / 2, whose gradient by y is g

    Args:
        learner: the weights of the student; fake_learner: those of the fake network.
        sigma_min, sigma_max: of the levels t, in EDM space; log t is uniform.
        flow: whether the networks are of a rectified flow. A level t is then sigma = t / (1 + t).

    Raises:
        ValueError: naming the argument at fault.
    """

    def __init__(
        self, learner: Learner, fake_learner: Learner, sigma_min: float, sigma_max: float, *, flow: bool = False
    ):
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(f"sigma_min = {sigma_min:g} and sigma_max = {sigma_max:g}: 0 < sigma_min < sigma_max")
        self._learner, self._fake_learner, self._flow = learner, fake_learner, flow
        self._range = math.log(sigma_min), math.log(sigma_max)

    def learn(
        self,
        sample: Callable[[], Tensor],
        fake: Model,
        teacher: Model,
        generator: torch.Generator,
        fake_args: Mapping[str, Any] | None = None,
        teacher_args: Mapping[str, Any] | None = None,
    ) -> tuple[float, float]:
        """`FAKE_UPDATES` of the fake network and one of the student.

        Args:
            sample: gives new samples of the student, [B, C, ...], with gradients for its weights.

        Returns:
            The loss of the fake network, and the root mean square of g.
        """
        for _ in range(FAKE_UPDATES):
            with torch.no_grad():
                y = sample()
            y_t, t = self._noised(y, generator)
            with torch.enable_grad():
                error = fake(y_t, t.to(y), **(fake_args or {})) - y
                weight = wide_per_image(1 + (alpha_of(t, self._flow) / t).square(), y)  # as for a prediction of v
                loss = (weight * error.square()).mean()
                self._fake_learner.update(loss)
        with torch.enable_grad():
            y = sample()
            with torch.no_grad():
                y_t, t = self._noised(y, generator)
                real = teacher(y_t, t.to(y), **(teacher_args or {}))
                scale = (y - real).abs().flatten(1).mean(1).clamp(min=1e-6)
                g = (fake(y_t, t.to(y), **(fake_args or {})) - real) / wide_per_image(scale, y).to(y)
            self._learner.update((y - (y - g).detach()).square().mean() / 2)
        return loss.item(), float(g.square().mean().sqrt())

    def _noised(self, y: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Samples with noise, and the level of each."""
        low, high = self._range
        t = (low + (high - low) * torch.rand(len(y), generator=generator, dtype=torch.float64)).exp()
        sigma = t / (1 + t) if self._flow else t
        noise = torch.randn(y.shape, generator=generator).to(y)
        return noised(y, noise, sigma, self._flow).to(y.dtype), sigma
