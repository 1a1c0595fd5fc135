"""Gauss-Newton on the parameters of a recipe, with derivatives by differences of whole runs.

The residuals are the differences of final samples to the teacher's, and the parameters are some dozens: a least-squares
problem with many equations and few parameters. Gauss-Newton with the Jacobian taken by differences (Levenberg 1944,
Marquardt 1963), and updated by Broyden's rule (1965) between two full ones, needs a hundred runs or so where a search
that only compares errors needs thousands.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator

import torch
from torch import Tensor

from .objective import ENOUGH, PENALTY, Goal, Trial, geometric_mean, penalty, rmse
from .parameters import FITTABLE, Space

TRIALS = 4  # of a step, each damped more


class GaussNewton:
    """Minimises the error of a recipe's samples from u = 0 on.

    Args:
        residuals: those of the base.
    """

    def __init__(self, goal: Goal, space: Space, residuals: Tensor):
        self._goal, self._space = goal, space
        self._u, self._residuals = space.origin(), residuals
        self._error = geometric_mean(rmse(residuals))
        self._damping = 1e-2

    def run(self, rounds: int) -> Iterator[Trial]:
        """At most so many rounds. Each begins with a new Jacobian and lasts as long as the updated one helps."""
        for round_ in range(rounds if self._space.parameters else 0):
            stage = f"round {round_ + 1} of {rounds}"
            jacobian = yield from self._jacobian(stage)
            exact, gained = True, math.inf
            while gained >= 3 * ENOUGH:
                gained = yield from self._step(jacobian, stage)
                if exact and gained < ENOUGH:
                    return
                exact = False

    def _step(self, jacobian: Tensor, stage: str) -> Generator[Trial, None, float]:
        """One step, damped until the cost falls, and Broyden's update of the Jacobian. Gives the relative gain."""
        weights = 1 / rmse(self._residuals).clamp(min=1e-9) / math.sqrt(self._residuals.numel())
        gram, gradient = _normal_equations(jacobian, self._residuals, weights)
        cost = _cost(self._residuals, weights, self._u)
        identity = torch.eye(len(self._u), dtype=torch.float64)
        for _ in range(TRIALS):
            damped = gram + (PENALTY + self._damping) * identity
            step = torch.linalg.solve(damped, -(gradient + PENALTY * self._u))
            recipe = self._space.recipe(self._u + step)
            if recipe is not None:
                residuals = self._goal.residuals(recipe)
                yield Trial(stage)
                if _cost(residuals, weights, self._u + step) < cost:
                    break
            self._damping *= 5
        else:
            return 0.0
        missed = residuals - self._residuals - torch.einsum("k,kij->ij", step.float(), jacobian)
        jacobian += torch.einsum("k,ij->kij", (step / step.square().sum()).float(), missed)
        error = geometric_mean(rmse(residuals))
        gained = 1 - error / self._error
        self._u, self._residuals, self._error = self._u + step, residuals, error
        self._damping = max(self._damping / 5, 1e-6)
        yield Trial(stage, recipe, error)
        return gained

    def _jacobian(self, stage: str) -> Generator[Trial, None, Tensor]:
        """The derivatives of the residuals in u, [K, N, M]."""
        jacobian = torch.empty(len(self._u), *self._residuals.shape)
        for k in range(len(self._u)):
            jacobian[k] = yield from self._derivative(k, stage)
        return jacobian

    def _derivative(self, k: int, stage: str) -> Generator[Trial, None, Tensor]:
        """That in u_k, by a run on one side."""
        space = self._space
        for sign in (1, -1):
            step = sign * FITTABLE[space.parameters[k].name].step / float(space.scales[k])
            there = self._u.clone()
            there[k] += step
            recipe = space.recipe(there)
            if recipe is None:
                continue
            residuals = self._goal.residuals(recipe)
            yield Trial(stage)
            if residuals.isfinite().all():
                return (residuals - self._residuals) / step
        return torch.zeros_like(self._residuals)  # neither side is possible: it stays where it is


def _cost(residuals: Tensor, weights: Tensor, u: Tensor) -> float:
    return float((residuals * weights[:, None]).square().sum()) + float(penalty(u))


def _normal_equations(jacobian: Tensor, residuals: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """J W^2 J^T and J W^2 r, sample by sample, in float64."""
    gram = torch.zeros(len(jacobian), len(jacobian), dtype=torch.float64)
    gradient = torch.zeros(len(jacobian), dtype=torch.float64)
    for i, weight in enumerate(weights.double()):
        rows = jacobian[:, i].double() * weight
        gram += rows @ rows.T
        gradient += rows @ (residuals[i].double() * weight)
    return gram, gradient
