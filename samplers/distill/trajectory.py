"""Simple and fast distillation: the student follows a teacher's trajectory, and learns at its own few levels only.

Z. Zhou, D. Chen, C. Wang, C. Chen, S. Lyu: Simple and Fast Distillation of Diffusion Models. NeurIPS 2024,
arXiv 2409.19681.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import counted
from ..integrate import Model, non_finite
from .learner import Learner
from .losses import loss_named
from .step import coefficients, read_student_levels, step

Teacher = Callable[..., Tensor]
"""`teacher(x, callback=...)` samples x through to the last level of the student, and calls back before each step with
`x`, as all samplers here do. For example `partial(SAMPLERS["dpmpp_3m"].function, model, sigmas=inserted(sigmas, 3))`,
or the `function` of a calibrated plan."""


class TrajectoryDistillation:
    """Trains a student for the steps between some levels.

    From starting noise x_0 at sigma_0 on, for each step k, with a_k and c_k those of DDIM,

        y_k     = a_k x_k + c_k D_student(x_k; sigma_k)
        loss_k  = d( (y_k - x*_{k+1}) / c_k )
        x_{k+1} = y_k, through which no gradient goes back

    x*_{k+1} is the teacher's sample at sigma_{k+1} from the same noise. Divided by c_k the error is that of the
    prediction, so that steps of any length weigh alike. The student learns on samples of its own, and so to undo its
    own errors. Nothing is learned at other levels. That is why it is fast, and why a student is of use at its levels
    only.

    Args:
        learner: the weights of the student.
        sigmas: its levels, [n + 1], which descend; n is the evaluations that it will need.
        flow: levels of a rectified flow.
        every: how many steps the teacher makes for each of the student: 1 + `extra` of `inserted`.
        loss: of `LOSSES`.

    Raises:
        ValueError: naming the argument at fault.
    """

    def __init__(
        self,
        learner: Learner,
        sigmas: Tensor | Sequence[float],
        *,
        flow: bool = False,
        every: int = 1,
        loss: str = "pseudo_huber",
    ):
        self.sigmas = read_student_levels(torch.as_tensor(sigmas, dtype=torch.float64), flow)
        if every < 1:
            raise ValueError(f"every = {every} must be at least 1")
        self._learner, self._flow, self._every, self._loss = learner, flow, every, loss_named(loss)

    @torch.no_grad()
    def teach(self, teacher: Teacher, x: Tensor) -> list[Tensor]:
        """The teacher's samples at each level of the student but the first, from the noise x at that, [B, C, ...].

        Raises:
            ValueError: if the teacher makes another number of steps.
        """
        wanted = range(self._every, self._every * (len(self.sigmas) - 1), self._every)
        found: dict[int, Tensor] = {}

        def keep(seen: Mapping[str, Any]) -> None:
            if seen["i"] in wanted:
                found[seen["i"]] = seen["x"].clone()
            found[-1] = torch.tensor(seen["i"] + 1)

        last = teacher(x, callback=keep)
        steps, made = self._every * (len(self.sigmas) - 1), int(found[-1])
        if made != steps:
            raise ValueError(
                f"the teacher made {counted(made, 'step')}; {self._every} for each step of the student are {steps}"
            )
        return [*(found[k] for k in wanted), last]

    def learn(
        self, student: Model, x: Tensor, goals: Sequence[Tensor], extra_args: Mapping[str, Any] | None = None
    ) -> list[float]:
        """Train on one batch, with an update for each step.

        Args:
            student: a denoiser with gradients for the weights of the learner.
            x: starting noise at the first level; goals: what `teach` gave for it.

        Returns:
            The loss of each step.

        Raises:
            ValueError: if there is not one goal for each step.
            NonFiniteError: if the student's answer is not finite.
        """
        if len(goals) != len(self.sigmas) - 1:
            raise ValueError(
                f"goals = {len(goals)} must be as many as the steps of the student, {len(self.sigmas) - 1}"
            )
        losses = []
        for k, goal in enumerate(goals):
            loss, x = self.loss(k, student, x, goal, extra_args)
            self._learner.update(loss)
            losses.append(loss.item())
        return losses

    @torch.enable_grad()
    def loss(
        self, k: int, student: Model, x: Tensor, goal: Tensor, extra_args: Mapping[str, Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """That of one step, with its gradient, and the sample that the step leads to, without.

        Args:
            k: which step.
            x: the student's own sample at its beginning; goal: the teacher's at its end.

        Raises:
            NonFiniteError: if the student's answer is not finite.
        """
        s, t = (torch.full(x.shape[:1], level, dtype=torch.float64) for level in self.sigmas[k : k + 2])
        y = step(x, student(x, s.to(x), **(extra_args or {})), s, t, self._flow)
        _, weight = coefficients(s, t, self._flow)
        loss = self._loss((y - goal) / float(weight[0])).mean()
        if not torch.isfinite(loss):
            raise non_finite(k, len(self.sigmas) - 1, self.sigmas[k])
        return loss, y.detach()
