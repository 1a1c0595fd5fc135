"""Progressive distillation: one step of the student does what two of its teacher do; the student is the next teacher.

T. Salimans, J. Ho: Progressive Distillation for Fast Sampling of Diffusion Models. ICLR 2022, arXiv 2202.00512.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..integrate import Model
from ..processes import wide_per_image
from .learner import Learner
from .losses import loss_named
from .step import coefficients, inserted, noised, read_student_levels, step


class ProgressiveDistillation:
    """Trains a student whose steps are twice as long as those of its teacher.

    For an image x_0 and a step of the student from s to t, drawn for each image, with the level u in their middle:

        x_s = alpha_s x_0 + sigma_s noise
        x_u, x_t: two steps of DDIM with the teacher
        loss = d( D_student(x_s; s) - (x_t - a x_s) / c ),   a and c those of DDIM from s to t

    The target is the denoised sample with which one step leads where two of the teacher do. After a round the student
    is the teacher of the next, of half as many steps.

    Args:
        learner: the weights of the student.
        sigmas: its levels, [n + 1]. The teacher has one more in the middle of each step, in lambda; of the last, to 0,
            and of one out of pure noise, in sigma.
        flow: levels of a rectified flow.
        loss: of `LOSSES`.

    Raises:
        ValueError: naming the argument at fault.
    """

    def __init__(
        self, learner: Learner, sigmas: Tensor | Sequence[float], *, flow: bool = False, loss: str = "pseudo_huber"
    ):
        self.sigmas = read_student_levels(torch.as_tensor(sigmas, dtype=torch.float64), flow)
        self._learner, self._flow, self._loss = learner, flow, loss_named(loss)
        fine = torch.tensor(inserted(self.sigmas, 1, flow), dtype=torch.float64)
        self._steps = fine.unfold(0, 3, 2)  # [n, s u t]

    def learn(
        self,
        student: Model,
        teacher: Model,
        x0: Tensor,
        generator: torch.Generator,
        extra_args: Mapping[str, Any] | None = None,
        teacher_args: Mapping[str, Any] | None = None,
    ) -> float:
        """Train on one batch of images x_0, [B, C, ...]; the step of each and its noise are drawn. Gives the loss."""
        chosen = torch.randint(len(self._steps), x0.shape[:1], generator=generator)
        s, u, t = self._steps[chosen].T
        x = noised(x0, torch.randn(x0.shape, generator=generator).to(x0), s, self._flow).to(x0.dtype)
        with torch.no_grad():
            middle = step(x, teacher(x, s.to(x), **(teacher_args or {})), s, u, self._flow)
            end = step(middle, teacher(middle, u.to(x), **(teacher_args or {})), u, t, self._flow)
            a, c = (wide_per_image(number, x) for number in coefficients(s, t, self._flow))
            target = ((end - a * x) / c).to(x.dtype)
        with torch.enable_grad():
            loss = self._loss(student(x, s.to(x), **(extra_args or {})) - target).mean()
            self._learner.update(loss)
        return loss.item()
