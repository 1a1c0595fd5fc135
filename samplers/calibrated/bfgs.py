"""BFGS on the parameters of a recipe, with gradients by backpropagation through its run.

The other way than `gauss_newton`, where a network can be differentiated and is given its levels exactly: the gradient
of the same objective in all parameters at once.

    J. Nocedal, S. Wright: Numerical Optimization. 2006, algorithm 6.1 and eq. 6.20.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..integrate import NonFiniteError
from .objective import ENOUGH, PENALTY, Differentiable, Trial, geometric_mean, penalty, weights_for
from .parameters import Space
from .recipe import Recipe

STEPS_PER_ROUND = 10
LONGEST = 0.5  # step, in units of the scales
HALVINGS = 12  # of a step, at most
SUFFICIENT = 1e-4  # share of the fall that the slope promises (Armijo 1966)


class Point(NamedTuple):
    """The objective at some parameters."""

    u: Tensor
    cost: float
    slope: Tensor
    """The gradient in u."""

    squares: Tensor
    """Squared errors of the samples, [N]."""


class InverseHessian:
    """An estimate of it, from the steps that were made and how the slope changed along them."""

    def __init__(self, count: int):
        self._identity = torch.eye(count, dtype=torch.float64)
        self.reset()

    def reset(self) -> None:
        self._matrix, self.fresh = self._identity, True

    def direction(self, slope: Tensor) -> Tensor:
        """Where the minimum is expected, in a step of length `LONGEST` at most."""
        direction = -self._matrix @ slope
        return direction * min(1.0, LONGEST / max(float(direction.norm()), 1e-12))

    def update(self, step: Tensor, change: Tensor) -> None:
        product = float(step @ change)
        if product <= 1e-10:
            return
        if self.fresh:
            self._matrix = self._matrix * (product / float(change @ change))
        mixing = self._identity - torch.outer(step, change) / product
        self._matrix = mixing @ self._matrix @ mixing.T + torch.outer(step, step) / product
        self.fresh = False


class BFGS:
    """Minimises the error of a recipe's samples from u = 0 on, where it is `error`. The weights of the samples stay for
    a round."""

    def __init__(self, goal: Differentiable, space: Space, error: float):
        self._goal, self._space = goal, space
        self._u, self._error = space.origin(), error
        self._inverse = InverseHessian(len(space.parameters))

    def run(self, rounds: int) -> Iterator[Trial]:
        """At most so many rounds, of at most `STEPS_PER_ROUND` steps."""
        for round_ in range(rounds if self._space.parameters else 0):
            stage, before = f"round {round_ + 1} of {rounds}", self._error
            point = self._evaluate(self._u, None)
            yield Trial(stage)
            if point is None:
                return
            weights = weights_for(point.squares)
            for _ in range(STEPS_PER_ROUND):
                accepted = yield from self._line_search(point, weights, stage)
                if accepted is None:
                    if self._inverse.fresh:  # not even down the slope
                        break
                    self._inverse.reset()
                    continue
                there, recipe = accepted
                self._inverse.update(there.u - point.u, there.slope - point.slope)
                point = there
                self._u, self._error = there.u, geometric_mean(there.squares.sqrt())
                yield Trial(stage, recipe, self._error)
            if self._error > (1 - ENOUGH) * before:
                return

    def _line_search(
        self, point: Point, weights: Tensor, stage: str
    ) -> Generator[Trial, None, tuple[Point, Recipe] | None]:
        """The step, halved until the cost falls enough; None where it never does."""
        direction = self._inverse.direction(point.slope)
        for share in (2.0**-k for k in range(HALVINGS)):
            u = point.u + share * direction
            recipe = self._space.recipe(u)
            if recipe is None:
                continue
            there = self._evaluate(u, weights)
            yield Trial(stage)
            if there is not None and there.cost < point.cost + SUFFICIENT * share * float(direction @ point.slope):
                return there, recipe
        return None

    def _evaluate(self, u: Tensor, weights: Tensor | None) -> Point | None:
        """By one run there and back; None where it comes to something that is not finite.

        Without weights they are the inverse of the squared errors.
        """
        scales = self._space.scales
        try:
            squares, slope = self._goal.slope(self._space.base, self._space.parameters, u * scales, weights)
        except NonFiniteError:
            return None
        weights = weights_for(squares) if weights is None else weights
        slope = slope * scales + 2 * PENALTY * u
        if not slope.isfinite().all():
            return None
        return Point(u, float((weights * squares).mean() + penalty(u)), slope, squares)
