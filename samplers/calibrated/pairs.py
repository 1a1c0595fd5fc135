"""A run in which every image has levels and scales of its own, as AMED's network predicts them.

Z. Zhou, D. Chen, C. Wang, C. Chen: Fast ODE-based Sampling for Diffusion Models in Around 5 Steps. CVPR 2024,
arXiv 2312.00094.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..integrate import AdaptiveSolver, State
from ..levels import Level, Levels
from ..phi import Scalar
from ..plan import DENOISED, Combination, Solver, Stage, X
from ..solvers.dpm_solver import finite_step
from .tuning import PLAIN, Tuning, tuned

Predict = Callable[[State, Level, Level], Sequence["IntermediatePoint"]]
"""predict(state, s, t) -> the numbers of the step from s to t, for each image of the batch."""


class IntermediatePoint(NamedTuple):
    """The predicted numbers of one step from s to t."""

    r: Scalar = 0.5
    """Where the inserted level lies: lambda_m = lambda_s + r (lambda_t - lambda_s), sigma_t^r sigma_s^(1-r) in EDM."""

    scale_dir: Scalar = 1.0
    """Factor of what the prediction at m moves the sample by."""

    scale_time: Scalar = 1.0
    """Factor of the sigma passed to the model at m."""

    def over(self, tuning: Tuning) -> Tuning:
        """That of the inserted level with these scales."""
        return tuning._replace(scale_dir=self.scale_dir, scale_time=self.scale_time)


def end_of_step(levels: Levels, i: int) -> Level:
    """The level that the inserted levels[i + 1] lies in front of: levels[i + 2], or where that is 0 a level as far
    below the inserted one, in lambda, as that is below levels[i]."""
    s, m, t = levels[i], levels[i + 1], levels[i + 2]
    return t if finite_step(m, t) else levels.at_lambda(2 * m.lam - s.lam)


class Pairs:
    """A run in which every image has inserted levels and scales of its own.

    Coefficients are one tensor per symbol, [B, 1, ...]. Whatever the base, they come from its own coefficient
    functions, once for each image. `tunings` hold what is not predicted, for all images.
    """

    def __init__(self, solver: Solver, levels: Levels, x: Tensor, tunings: Sequence[Tuning] = ()):
        self.levels, self._solver, self._like = levels, solver, x
        self._sigmas = [list(levels.sigmas) for _ in range(len(x))]
        self._tunings = [list(tunings) or [PLAIN] * (len(levels) - 1) for _ in range(len(x))]

    def has_point(self, i: int) -> bool:
        """Whether numbers are predicted for the step that begins at levels[i]: it has a second evaluation, and begins
        neither at pure noise in rectified flow nor with it."""
        return i + 2 < len(self.levels) and finite_step(self.levels[i], end_of_step(self.levels, i))

    def insert(self, i: int, points: Sequence[IntermediatePoint]) -> None:
        """Give the step that begins at levels[i] these numbers, one `IntermediatePoint` per image."""
        s, end = self.levels[i], end_of_step(self.levels, i)
        for sigmas, tunings, point in zip(self._sigmas, self._tunings, points, strict=True):
            sigmas[i + 1] = self.levels.between(s, end, point.r).sigma
            tunings[i + 1] = point.over(tunings[i + 1])

    def stage(self, i: int) -> Stage:
        """The stage that evaluates at level i."""
        runs = (Levels(tuple(sigmas), self.levels.flow) for sigmas in self._sigmas)
        pairs = zip(runs, self._tunings, strict=True)
        each = [next(itertools.islice(tuned(self._solver(run), run, mine), i, None)) for run, mine in pairs]
        return stacked(each, self._like)


def predicted(
    solver: Solver, levels: Levels, predict: Predict, x: Tensor, tunings: Sequence[Tuning] = ()
) -> AdaptiveSolver:
    """A solver whose inserted levels and scales are predicted image by image, once a step has been evaluated at s.

    `levels` are those of `amed`, of which the inserted ones are replaced, see `Pairs`; x is the batch to be sampled.
    """
    pairs = Pairs(solver, levels, x, tunings)
    for i in range(0, len(levels) - 1, 2):
        state = yield pairs.stage(i)._replace(update=X, completes=False)
        if pairs.has_point(i):
            pairs.insert(i, predict(state, levels[i], end_of_step(levels, i)))
        yield pairs.stage(i)._replace(sigma=None, prediction=DENOISED)
        if i + 2 < len(levels):
            yield pairs.stage(i + 1)
    return {}


def stacked(stages: Sequence[Stage], x: Tensor) -> Stage:
    """The same stage of each image as one, with coefficients shaped [B, 1, ...] for x, and sigma [B]."""

    def stack(values: Sequence[Scalar]) -> Tensor:
        return torch.stack([torch.as_tensor(c, dtype=torch.float64) for c in values])

    def combination(each: Sequence[Combination]) -> Combination:
        if all(one is DENOISED for one in each):
            return DENOISED
        keys = dict.fromkeys(key for one in each for key in one.terms)
        columns = {key: stack([one.terms.get(key, 0.0) for one in each]) for key in keys}
        return Combination({key: column.to(x).reshape(-1, *[1] * (x.ndim - 1)) for key, column in columns.items()})

    first = stages[0]
    return first._replace(
        sigma=first.sigma if first.sigma is None else stack([stage.sigma or 0.0 for stage in stages]),
        update=combination([stage.update for stage in stages]),
        prediction=combination([stage.prediction for stage in stages]),
    )
