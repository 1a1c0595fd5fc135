"""Training of AMED's predictor, as in the paper: each step of the student is to end where the teacher's does.

The predictor gives three numbers per image and step, so the gradient of the loss goes through three derivatives of the
sample: that in scale_dir is a difference of two combinations, those in r and scale_time are differences of two
evaluations. Nothing is traced through the network. It may be quantised, offloaded or compiled, memory is that of
sampling, and, what matters more, the differences see the time steps to which a discrete model rounds its levels: a
gradient through the network would see none of scale_time, and of r only a part.

    Z. Zhou, D. Chen, C. Wang, C. Chen: Fast ODE-based Sampling for Diffusion Models in Around 5 Steps. CVPR 2024,
    arXiv 2312.00094.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from .amed import Middle, Pairs, end_of_step
from .dpm_solver import finite_step
from .integrate import Model, combine, history_length, level_tensor, non_finite
from .levels import Levels, read_levels
from .phi import value
from .plan import DENOISED, P, Stage
from .predictor import Predictor, pooled_for
from .recipe import Recipe
from .registry import SAMPLERS

SINGLESTEP = ("amed", "amed_dpm_2s", "ddim", "euler")
"""Bases that remember nothing: each of their steps starts from the teacher's sample."""

R, SCALE_DIR, SCALE_TIME = range(3)
"""The columns of a predictor's numbers."""

STEPS = 0.03, 0.01, 0.03
"""By how much r, scale_dir and scale_time are moved to take a difference."""

Evaluate = Callable[[Tensor, Tensor], Tensor]
"""The model with its arguments filled in."""

Operands = tuple[Tensor, ...]
"""(*predictions, denoised, start, x), what combinations are made of."""


class Trainer:
    """Trains a predictor for the steps of a recipe.

    Args:
        predictor: is trained in place.
        recipe: the base solver and its levels, of which every second one is learned; its tunings are left out.
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

    @property
    def evaluations(self) -> int:
        """Of the model, for one batch.

        A step has those at its start and in its middle, and the second again for r, and for scale_time if it is
        learned. A step out of pure noise has no middle to learn.
        """
        learned = 3 + (self.predictor.bounds[SCALE_TIME - 1] > 0)
        teacher = sum(stage.sigma is not None for stage in self._teacher)
        steps = (learned if finite_step(self.levels[i], end_of_step(self.levels, i)) else 2 for i in self.starts)
        return teacher + sum(steps) - self.recipe.afs

    @torch.no_grad()
    def learn(
        self,
        model: Model,
        x: Tensor,
        bottleneck: Callable[[], Tensor | None],
        extra_args: Mapping[str, Any] | None = None,
        *,
        batch: int | None = None,
    ) -> list[float]:
        """Train on one batch of starting noise; the predictor is updated after each step.

        Args:
            model: a k-diffusion denoiser, x its starting noise [B, C, ...] at the recipe's first level.
            bottleneck: gives that of the last evaluation, or None.
            batch: images of all processes together, where torch.distributed shares the work; else B.

        Returns:
            The loss of each step that has a middle: the squared distance to the teacher, mean over images.

        Raises:
            NonFiniteError: if a step came to NaN or infinity, from which the predictor has learned nothing.
        """
        evaluate = partial(model, **(extra_args or {}))
        goals = self.teach(evaluate, x)
        pairs = Pairs(self.recipe.stages, self.levels, x)
        operands: Operands = (x, x, x)
        losses = []
        for i, goal in zip(self.starts, goals, strict=True):
            operands = evaluated(pairs.stage(i), operands, evaluate)
            if pairs.has_middle(i):
                seen = None if pairs.stage(i).sigma is None else bottleneck()
                operands, loss = self._step(pairs, i, operands, goal, seen, evaluate, batch or len(x))
                losses.append(loss)
            else:
                operands = updated(pairs.stage(i + 1), _to_middle(pairs, i, operands, evaluate))
            if self.recipe.base in SINGLESTEP:
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
    ) -> float:
        """Train on one batch for the last sample alone, which the paper does not do: matching the teacher at every step
        is not the same as ending right. The predictor is updated once.

        The loss is the mean over images of the logarithm of the root mean square error. What a later step sees in the
        bottleneck is taken as it is: its change with earlier numbers is left out of the gradient.

        Args:
            target: what the samples should be, [B, C, ...].
            batch: as in `learn`, as the others.

        Returns:
            The loss.
        """
        evaluate = partial(model, **(extra_args or {}))
        pairs = Pairs(self.recipe.stages, self.levels, x)
        seen: list[tuple[int, Operands, Tensor]] = []

        def predict(i: int, operands: Operands) -> None:
            numbers = self._numbers(i, bottleneck() if pairs.stage(i).sigma is not None else None, len(x))
            pairs.insert(i, _middles(numbers))
            seen.append((i, operands, numbers))

        end = self._follow(pairs, 0, (x, x, x), evaluate, predict)
        difference = (end - target).flatten(1).double().cpu()
        squares = difference.square().sum(dim=1)
        loss = float((squares / difference.shape[1]).log().sum()) / 2 / (batch or len(x))
        if not math.isfinite(loss):
            raise non_finite(0, len(self.levels) - 1, self.levels[0].sigma)
        self.optimizer.zero_grad()
        for i, operands, numbers in seen:
            rows = numbers.detach().double().cpu()
            gradient = torch.zeros_like(rows)
            for k, h in self._moves(rows):
                there = rows.clone()
                there[:, k] += h
                pairs.insert(i, _middles(there))
                change = (self._follow(pairs, i, operands, evaluate) - end).flatten(1).double().cpu()
                gradient[:, k] = (difference * change).sum(dim=1) / h / squares
            pairs.insert(i, _middles(rows))
            numbers.backward((gradient / (batch or len(x))).to(numbers))
        _share([p.grad for p in self.predictor.parameters() if p.grad is not None])
        self.optimizer.step()
        return loss

    def _follow(
        self,
        pairs: Pairs,
        first: int,
        operands: Operands,
        evaluate: Evaluate,
        predict: Callable[[int, Operands], None] | None = None,
    ) -> Tensor:
        """The last sample of a run that has been evaluated at levels[first], or of a whole one, whose numbers `predict`
        then gives in each step."""
        for i in range(first, len(self.levels) - 1, 2):
            if i > first or predict:
                operands = evaluated(pairs.stage(i), operands, evaluate)
            if predict and pairs.has_middle(i):
                predict(i, operands)
            if i + 2 < len(self.levels):
                operands = _to_middle(pairs, i, operands, evaluate)
                operands = updated(pairs.stage(i + 1), operands)
            else:
                operands = updated(pairs.stage(i), operands)
        return operands[-1]

    def _numbers(self, i: int, seen: Tensor | None, batch: int) -> Tensor:
        """What the predictor gives for the step that begins at levels[i], [B, 3], with gradients."""
        s, end = value(self.levels[i].sigma), value(end_of_step(self.levels, i).sigma)
        pooled = pooled_for(self.predictor, seen, batch)
        with torch.inference_mode(False), torch.enable_grad():
            return cast(Tensor, self.predictor(pooled.clone(), s, end))  # of what was made in inference mode

    def _moves(self, rows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The numbers that are learned, and by how much each image's is moved to take a difference."""
        for k in (R, *(k for k, bound in enumerate(self.predictor.bounds, SCALE_DIR) if bound)):
            h = torch.full_like(rows[:, k], STEPS[k])
            yield k, torch.where(rows[:, R] + h < 1, h, -h) if k == R else h

    def teach(self, evaluate: Evaluate, x: Tensor) -> list[Tensor]:
        """The teacher's samples at the ends of the steps, [B, C, ...] each."""
        operands: Operands = (x, x, x)
        memory = history_length(self._teacher, 0)
        ends = {}
        for stage in self._teacher:
            operands = updated(stage, evaluated(stage, operands, evaluate, memory))
            ends[stage.step] = operands[-1]  # of the last stage of a step
        return [ends[step] for step in self._goals]

    def _step(
        self,
        pairs: Pairs,
        i: int,
        operands: Operands,
        goal: Tensor,
        seen: Tensor | None,
        evaluate: Evaluate,
        batch: int,
    ) -> tuple[Operands, float]:
        """One step of the student, and of Adam. Gives the operands at its end, and the loss."""
        numbers = self._numbers(i, seen, len(goal))
        rows = numbers.detach().double().cpu()

        def insert(there: Tensor) -> None:
            pairs.insert(i, _middles(there))

        insert(rows)
        reached = _to_middle(pairs, i, operands, evaluate)
        ended = updated(pairs.stage(i + 1), reached)
        difference = (ended[-1] - goal).flatten(1).double().cpu()
        loss = float(difference.square().sum()) / batch
        if not math.isfinite(loss):
            raise non_finite(i, len(self.levels) - 1, self.levels[i].sigma)
        gradient = torch.zeros_like(rows)
        for k, h in self._moves(rows):
            there = rows.clone()
            there[:, k] += h
            insert(there)
            again = reached if k == SCALE_DIR else _to_middle(pairs, i, operands, evaluate)
            moved = updated(pairs.stage(i + 1), again)[-1] - ended[-1]
            gradient[:, k] = 2 * (difference * moved.flatten(1).double().cpu()).sum(dim=1) / h
        self.optimizer.zero_grad()
        numbers.backward((gradient / batch).to(numbers))
        _share([p.grad for p in self.predictor.parameters() if p.grad is not None])
        self.optimizer.step()
        insert(rows)
        return ended, loss


def _middles(rows: Tensor) -> list[Middle]:
    return [Middle(*row) for row in rows.detach().double().tolist()]


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


def evaluated(stage: Stage, operands: Operands, evaluate: Evaluate, memory: int = len(P)) -> Operands:
    """The operands after the evaluation of a stage, as `integrate` keeps them; so many predictions at most."""
    *predictions, denoised, start, x = operands
    if stage.sigma is not None:
        denoised = evaluate(x, level_tensor(stage.sigma, x, torch.promote_types(x.dtype, torch.float32)))
    if stage.remembers:
        new = denoised if stage.prediction is DENOISED else combine(stage.prediction, (denoised, start, x))
        predictions = [new, *predictions][:memory]
    return (*predictions, denoised, start, x)


def updated(stage: Stage, operands: Operands) -> Operands:
    """The operands after the update of a stage."""
    x = combine(stage.update, operands)
    return (*operands[:-2], x if stage.completes else operands[-2], x)


def _to_middle(pairs: Pairs, i: int, operands: Operands, evaluate: Evaluate) -> Operands:
    """From the evaluation at levels[i] over that at the inserted level; its update is still to come."""
    return evaluated(pairs.stage(i + 1), updated(pairs.stage(i), operands), evaluate)


def _share(gradients: Sequence[Tensor]) -> None:
    """Add up those of all processes, if there are several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for gradient in gradients:
            torch.distributed.all_reduce(gradient)
