"""Training of AMED's predictor, as in the paper: each step of the student is to end where the teacher's does.

The predictor gives an `IntermediatePoint`, three numbers, per image and step, so the gradient of the loss goes through
three derivatives of the sample: that in scale_dir is a difference of two combinations, those in r and scale_time are
differences of two evaluations. Nothing is traced through the network. It may be quantised, offloaded or compiled,
memory is that of sampling, and, what matters more, the differences see the time steps to which a discrete model rounds
its levels: a gradient through the network would see none of scale_time, and of r only a part.

For the last sample an image costs the evaluations of a teacher of many steps and those of the differences, and gives a
few dozen numbers: its error, and how that changes with the points of its run, to first order. These are kept, and the
predictor learns from them again and again (Gauss-Newton, as in `calibrate`). On the demo model 128 images lower the
error of others by 4 % in this way, and by nothing that can be seen if each is used once.

    Z. Zhou, D. Chen, C. Wang, C. Chen: Fast ODE-based Sampling for Diffusion Models in Around 5 Steps. CVPR 2024,
    arXiv 2312.00094.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..distributed import add_over_processes
from ..integrate import Evaluations, Model, Operands, evaluated, history_length, non_finite, updated
from ..levels import Levels, read_levels
from ..phi import value
from ..solvers import SAMPLERS
from ..solvers.dpm_solver import finite_step
from .pairs import IntermediatePoint, Pairs, end_of_step
from .predictor import Predictor, pooled_for
from .recipe import Recipe

R, SCALE_DIR, SCALE_TIME = range(3)
"""The columns of points, [B, 3]."""

STEPS = 0.03, 0.01, 0.03
"""By how much r, scale_dir and scale_time are moved to take a difference."""

KEPT = 512
"""The newest images that training for the last sample goes through again."""

ROUNDS = 10
"""How often it does so after each batch."""

FLOOR = 0.01
"""The share of its squared error below which an image's change to first order is not believed."""

SetGuidance = Callable[[float], None]
"""Multiplies the guidance scale of the evaluations that follow."""


class Trainer:
    """Trains a predictor for the steps of a recipe.

    Args:
        predictor: is trained in place.
        recipe: the base solver, its levels and tunings: every second level and its scales are learned, the others stay.
        extra: M, the levels that the teacher has more in each step.
        teacher: the solver of the teacher, deterministic.
        learning_rate: of Adam.

    Raises:
        ValueError: naming the argument at fault.
    """

    def __init__(
        self,
        predictor: Predictor,
        recipe: Recipe,
        *,
        extra: int = 3,
        teacher: str = "dpmpp_2m",
        learning_rate: float = 5e-3,
    ):
        if extra < 1:
            raise ValueError(f"extra = {extra} must be at least 1: the teacher needs more levels than the student")
        if SAMPLERS[teacher].stochastic or SAMPLERS[teacher].adaptive:
            raise ValueError(f"teacher = {teacher!r} must be a sampler with a plan and without noise")
        self.predictor, self.recipe = predictor.train().requires_grad_(True), recipe
        self.levels = read_levels(recipe.sigmas, recipe.flow)
        self.starts = list(range(0, len(self.levels) - 2, 2))
        self.optimizer = torch.optim.Adam(predictor.parameters(), lr=learning_rate)
        if not self.starts:
            raise ValueError("recipe has one evaluation only: a step to learn needs two")
        self._goals = [i // 2 * (extra + 1) + extra for i in self.starts]  # the teacher's steps that end where ours do
        plan = SAMPLERS[teacher].plan(teacher_levels(self.levels, extra), flow=self.levels.flow)
        self._teacher = tuple(stage for stage in plan if stage.step <= self._goals[-1])
        self._kept: deque[_Linear] = deque()

    @property
    def evaluations(self) -> int:
        """Of the model, for one batch of `learn`.

        A step has those at its start and at its intermediate point, and the second again for r, and for scale_time if
        it is learned. A step out of pure noise has no point to learn.
        """
        calibrated = 3 + (self.predictor.bounds[SCALE_TIME - 1] > 0)
        teacher = sum(stage.sigma is not None for stage in self._teacher)
        steps = (calibrated if finite_step(self.levels[i], end_of_step(self.levels, i)) else 2 for i in self.starts)
        return teacher + sum(steps) - self.recipe.afs

    @property
    def evaluations_to_end(self) -> int:
        """Of the model, for one batch of `learn_end`, beside those of its target: those of a run, and once more those
        from each intermediate point on for each number of it; scale_dir is not seen before the end of its step."""
        whole = len(self.levels) - 1
        points = (i for i in self.starts if finite_step(self.levels[i], end_of_step(self.levels, i)))
        after = [whole - i - 2 for i in points]  # evaluations after a step's own two
        direction, time = (bound > 0 for bound in self.predictor.bounds)
        return whole - self.recipe.afs + sum((1 + time) * (left + 1) + direction * left for left in after)

    @torch.no_grad()
    def learn(
        self,
        model: Model,
        x: Tensor,
        bottleneck: Callable[[], Tensor | None],
        extra_args: Mapping[str, Any] | None = None,
        *,
        batch: int | None = None,
        set_guidance: SetGuidance | None = None,
    ) -> list[float]:
        """Train on one batch of starting noise; the predictor is updated after each step.

        Args:
            model: a k-diffusion denoiser, x its starting noise [B, C, ...] at the recipe's first level.
            bottleneck: gives that of the last evaluation, or None.
            batch: images of all processes together, where torch.distributed shares the work; else B.
            set_guidance: as in `Recipe.function`.

        Returns:
            The loss of each step that has an intermediate point: the squared distance to the teacher, mean over images.

        Raises:
            NonFiniteError: if a step came to NaN or infinity, from which the predictor has learned nothing.
            ValueError: if the recipe changes the guidance and there is nothing to set it with.
        """
        if set_guidance is not None:
            set_guidance(1.0)
        goals = self.teach(model, x, extra_args)
        student = _Student(self.recipe, self.levels, x, Evaluations(model, x, extra_args), set_guidance)
        operands: Operands = (x, x, x)
        losses = []
        for i, goal in zip(self.starts, goals, strict=True):
            operands = student.begin(i, operands)
            if student.has_point(i):
                points = self._points(i, self._pooled(i, student, bottleneck))
                operands, loss = self._step(student, i, operands, goal, points, batch or len(x))
                losses.append(loss)
            else:
                operands = student.finish(i, operands)
            if SAMPLERS[self.recipe.base].singlestep:  # each step starts from the teacher's sample
                operands = (*operands[:-2], goal, goal)
        return losses

    @torch.no_grad()
    def learn_end(
        self,
        model: Model,
        x: Tensor,
        target: Tensor,
        bottleneck: Callable[[], Tensor | None],
        extra_args: Mapping[str, Any] | None = None,
        *,
        batch: int | None = None,
        set_guidance: SetGuidance | None = None,
    ) -> float:
        """Train on one batch for the last sample alone, which the paper does not do: matching the teacher at every step
        is not the same as ending right. The predictor is updated `ROUNDS` times by this batch and each that is kept.

        The loss is the mean over images of the logarithm of the root mean square error. What a later step sees in the
        bottleneck is taken as it is: its change with earlier points is left out of the gradient.

        Args:
            target: what the samples should be, [B, C, ...].
            batch, set_guidance: as in `learn`, as the others.

        Returns:
            The loss, before the predictor has learned from it.
        """
        student = _Student(self.recipe, self.levels, x, Evaluations(model, x, extra_args), set_guidance)
        batch = batch or len(x)
        linear = self._linear(student, (x, x, x), target, bottleneck)
        loss = float((linear.squares / target[0].numel()).log().sum()) / 2 / batch
        if not math.isfinite(loss):
            raise non_finite(0, len(self.levels) - 1, self.levels[0].sigma)
        self._kept.append(linear)
        while (len(self._kept) - 1) * batch >= KEPT:
            self._kept.popleft()
        for _ in range(ROUNDS):
            for kept in self._kept:
                self._learn_linear(kept, batch)
        return loss

    def _linear(
        self, student: _Student, operands: Operands, target: Tensor, bottleneck: Callable[[], Tensor | None]
    ) -> _Linear:
        """By a run, and one more from each step on for each number of its point."""
        seen: list[tuple[int, Operands, Operands, Tensor, Tensor]] = []
        for i in range(0, len(self.levels) - 1, 2):
            operands = student.begin(i, operands)
            if not student.has_point(i):
                operands = student.finish(i, operands)
                continue
            pooled = self._pooled(i, student, bottleneck)
            rows = self._points(i, pooled).detach().double().cpu()
            student.insert(i, rows)
            reached = student.to_point(i, operands)
            seen.append((i, operands, reached, pooled, rows))
            operands = student.from_point(i, reached)
        end = operands[-1]
        changes = torch.zeros(len(seen), 3, *end.flatten(1).shape)
        for step, (i, operands, reached, _, rows) in zip(changes, seen, strict=True):
            for k, h, there in self._moves(rows):
                student.insert(i, there)
                again = reached if k == SCALE_DIR else student.to_point(i, operands)
                step[k] = (student.go_on(i, again) - end).flatten(1).cpu() / h[:, None]
            student.insert(i, rows)
        inputs = {i: pooled for i, _, _, pooled, _ in seen}
        points = torch.cat([rows for *_, rows in seen], dim=1) if seen else torch.zeros(len(end), 0)
        return _Linear.of(inputs, points, (end - target).flatten(1).cpu(), changes.flatten(0, 1))

    def _learn_linear(self, linear: _Linear, batch: int) -> None:
        """One update by a batch that is kept."""
        self.optimizer.zero_grad()
        if linear.inputs:
            points = [self._points(i, pooled) for i, pooled in linear.inputs.items()]
            with torch.inference_mode(False), torch.enable_grad():
                squares = linear.squares_at(torch.cat(points, dim=1).double().cpu())
                (squares.log().sum() / 2 / batch).backward()
        self._update()

    def _pooled(self, i: int, student: _Student, bottleneck: Callable[[], Tensor | None]) -> Tensor:
        """What the predictor sees at levels[i], [B, 8, 8]."""
        pooled = pooled_for(self.predictor, bottleneck() if student.evaluates(i) else None, student.batch)
        with torch.inference_mode(False):
            return pooled.clone()  # of what was made in inference mode

    def _points(self, i: int, pooled: Tensor) -> Tensor:
        """What the predictor gives for the step that begins at levels[i], [B, 3], with gradients."""
        s, end = value(self.levels[i].sigma), value(end_of_step(self.levels, i).sigma)
        with torch.inference_mode(False), torch.enable_grad():
            return cast(Tensor, self.predictor(pooled, s, end))

    def _moves(self, rows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The numbers that are learned, by how much each image's is moved to take a difference, and all then."""
        for k in (R, *(k for k, bound in enumerate(self.predictor.bounds, SCALE_DIR) if bound)):
            h = torch.full_like(rows[:, k], STEPS[k])
            h = torch.where(rows[:, R] + h < 1, h, -h) if k == R else h
            there = rows.clone()
            there[:, k] += h
            yield k, h, there

    def _update(self) -> None:
        add_over_processes([p.grad for p in self.predictor.parameters() if p.grad is not None])
        self.optimizer.step()

    def teach(self, model: Model, x: Tensor, extra_args: Mapping[str, Any] | None = None) -> list[Tensor]:
        """The teacher's samples at the ends of the steps, [B, C, ...] each."""
        evaluate = Evaluations(model, x, extra_args)
        operands: Operands = (x, x, x)
        memory = history_length(self._teacher, 0)
        ends = {}
        for stage in self._teacher:
            operands = updated(stage, evaluated(stage, operands, evaluate, memory))
            ends[stage.step] = operands[-1]  # of the last stage of a step
        return [ends[step] for step in self._goals]

    def _step(
        self, student: _Student, i: int, operands: Operands, goal: Tensor, points: Tensor, batch: int
    ) -> tuple[Operands, float]:
        """One step of the student, and of Adam. Gives the operands at its end, and the loss."""
        rows = points.detach().double().cpu()
        student.insert(i, rows)
        reached = student.to_point(i, operands)
        ended = student.from_point(i, reached)
        residuals = (ended[-1] - goal).flatten(1).double().cpu()
        loss = float(residuals.square().sum()) / batch
        if not math.isfinite(loss):
            raise non_finite(i, len(self.levels) - 1, self.levels[i].sigma)
        gradient = torch.zeros_like(rows)
        for k, h, there in self._moves(rows):
            student.insert(i, there)
            again = reached if k == SCALE_DIR else student.to_point(i, operands)
            moved = student.from_point(i, again)[-1] - ended[-1]
            gradient[:, k] = 2 * (residuals * moved.flatten(1).double().cpu()).sum(dim=1) / h
        student.insert(i, rows)
        self.optimizer.zero_grad()
        points.backward((gradient / batch).to(points))
        self._update()
        return ended, loss


class _Linear(NamedTuple):
    """The residuals r of a batch of last samples, [B, M], to first order in the points of their runs: r + J d."""

    inputs: dict[int, Tensor]
    """What the predictor saw, [B, 8, 8], by the level that a step begins at."""

    points: Tensor
    """What it gave, [B, 3 steps]."""

    squares: Tensor
    """r . r, [B]."""

    slope: Tensor
    """J^T r, [B, 3 steps]."""

    gram: Tensor
    """J^T J, [B, 3 steps, 3 steps]."""

    @classmethod
    def of(cls, inputs: dict[int, Tensor], points: Tensor, residuals: Tensor, changes: Tensor) -> _Linear:
        """From r and J^T, [3 steps, B, M]. What came to nothing finite is taken for no change."""
        with torch.inference_mode(False):
            residuals = residuals.clone().double()
            columns = changes.clone().nan_to_num(0, 0, 0)
            images = [(columns[:, k].double(), residual) for k, residual in enumerate(residuals)]
            gram = torch.stack([rows @ rows.T for rows, _ in images])
            slope = torch.stack([rows @ residual for rows, residual in images])
            return cls(inputs, points.clone().double(), residuals.square().sum(dim=1), slope, gram)

    def squares_at(self, points: Tensor) -> Tensor:
        """r . r for other points, [B]."""
        d = points - self.points
        squares = self.squares + 2 * (self.slope * d).sum(dim=1) + (d * (self.gram @ d[..., None])[..., 0]).sum(dim=1)
        return torch.maximum(squares, FLOOR * self.squares)


class _Student:
    """A run whose inserted levels and scales can be changed, and that can be gone on with from any step.

    A step begins with the evaluation at levels[i], leads over that at the inserted levels[i + 1], and ends there.
    """

    def __init__(
        self, recipe: Recipe, levels: Levels, x: Tensor, evaluate: Evaluations, set_guidance: SetGuidance | None
    ):
        self.batch = len(x)
        self._pairs, self._levels = Pairs(recipe.stages, levels, x, recipe.tunings), levels
        self._evaluate, self._set_guidance = evaluate, recipe.guidance_setter(set_guidance)
        self._guidance = [tuning.guidance for tuning in recipe.tunings]

    def has_point(self, i: int) -> bool:
        return self._pairs.has_point(i)

    def evaluates(self, i: int) -> bool:
        """Whether the model is asked at levels[i]: it is not at an analytical first step."""
        return self._pairs.stage(i).sigma is not None

    def insert(self, i: int, rows: Tensor) -> None:
        """Give the step that begins at levels[i] these points, [B, 3]."""
        self._pairs.insert(i, [IntermediatePoint(*row) for row in rows.detach().double().tolist()])

    def begin(self, i: int, operands: Operands) -> Operands:
        """The evaluation at levels[i]."""
        self._set_guidance(self._guidance[i])
        return evaluated(self._pairs.stage(i), operands, self._evaluate)

    def to_point(self, i: int, operands: Operands) -> Operands:
        """From there over the evaluation at the inserted level; its update is still to come."""
        return self.begin(i + 1, updated(self._pairs.stage(i), operands))

    def from_point(self, i: int, operands: Operands) -> Operands:
        """From there to the end of the step."""
        return updated(self._pairs.stage(i + 1), operands)

    def finish(self, i: int, operands: Operands) -> Operands:
        """From the evaluation at levels[i] to the end of the step; the last one may be without an inserted level."""
        if i + 2 < len(self._levels):
            return self.from_point(i, self.to_point(i, operands))
        return updated(self._pairs.stage(i), operands)

    def go_on(self, i: int, operands: Operands) -> Tensor:
        """From the evaluation at the inserted levels[i + 1] to the last sample."""
        operands = self.from_point(i, operands)
        for k in range(i + 2, len(self._levels) - 1, 2):
            operands = self.finish(k, self.begin(k, operands))
        return operands[-1]


def teacher_levels(levels: Levels, extra: int) -> tuple[float, ...]:
    """The levels of the steps, with `extra` more in each, at equal distances in lambda; out of pure noise in sigma."""
    sigmas = [value(levels[0].sigma)]
    for i in range(0, len(levels) - 1, 2):
        s, t = levels[i], levels[min(i + 2, len(levels) - 1)]
        for k in range(1, extra + 1):
            share = k / (extra + 1)
            if value(s.alpha) == 0 or i + 2 >= len(levels):
                inner = s.sigma + share * (t.sigma - s.sigma)
            else:
                inner = levels.between(s, end_of_step(levels, i), share).sigma
            sigmas.append(value(inner))
        sigmas.append(value(t.sigma))
    return tuple(sigmas)
