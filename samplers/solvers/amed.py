"""AMED: between two levels the sample is evaluated once more, at a place that is learned, and its direction is scaled.

Trajectories of the probability-flow ODE lie nearly in a plane. By the mean value theorem for such curves there is a
level between t_cur and t_next whose direction leads from one to the other almost exactly; a small network that has
seen the model's bottleneck, or a fixed list of numbers, says where.

The levels of a run are all those it visits, in turn one that a step starts from and one that was inserted:
s, m, t = s', m', t' ... So n levels above 0 cost n evaluations, like those of any multistep solver, and AMED-Plugin
over such a solver is the solver itself on these levels, with scales (`tuned`). An odd last step has no middle.

    Z. Zhou, D. Chen, C. Wang, C. Chen: Fast ODE-based Sampling for Diffusion Models in Around 5 Steps. CVPR 2024,
    arXiv 2312.00094.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..calibrated.tuning import PLAIN, Tuning, analytical_first_step, tuned
from ..integrate import AdaptiveSolver, State
from ..levels import Level, Levels
from ..phi import Scalar
from ..plan import DENOISED, START, Combination, P, Stage, X
from .dpm_solver import NOISE, dpm_2m, finite_step, step_1s
from .runge_kutta import derivative, euler_step, slope_corrects

Solver = Callable[[Levels], Iterator[Stage]]
"""A solver with one stage per level, its options filled in."""

Predict = Callable[[State, Level, Level], Sequence["IntermediatePoint"]]
"""predict(state, s, t) -> the numbers of the step from s to t, for each image of the batch."""


class IntermediatePoint(NamedTuple):
    """The learned numbers of one step from s to t."""

    r: Scalar = 0.5
    """Where the inserted level lies: lambda_m = lambda_s + r (lambda_t - lambda_s), sigma_t^r sigma_s^(1-r) in EDM."""

    scale_dir: Scalar = 1.0
    """Factor of what the prediction at m moves the sample by."""

    scale_time: Scalar = 1.0
    """Factor of the sigma that the model is told at m."""

    @property
    def tuning(self) -> Tuning:
        return self.over(PLAIN)

    def over(self, tuning: Tuning) -> Tuning:
        """That of the inserted level with these scales."""
        return tuning._replace(scale_dir=self.scale_dir, scale_time=self.scale_time)


# Where the inserted levels lie


def insert(outer: Levels, middles: Sequence[IntermediatePoint]) -> tuple[Levels, list[Tuning]]:
    """The levels of the steps with their inserted ones in between, and the numbers of all of them.

    A step that is infinite in lambda gets no middle, and must be the last for the levels to alternate.
    """
    sigmas, tunings = [outer[0].sigma], []
    for i, numbers in enumerate(middles):
        s, t = outer[i], outer[i + 1]
        if finite_step(s, t):
            sigmas.append(outer.between(s, t, numbers.r).sigma)
            tunings.append(PLAIN)
            tunings.append(numbers.tuning)
        else:
            tunings.append(PLAIN)
        sigmas.append(t.sigma)
    return Levels(tuple(sigmas), outer.flow), tunings


def end_of_step(levels: Levels, i: int) -> Level:
    """The level that the inserted levels[i + 1] lies in front of: levels[i + 2], or where that is 0 a level as far
    below the inserted one, in lambda, as that is below levels[i]."""
    s, m, t = levels[i], levels[i + 1], levels[i + 2]
    return t if finite_step(m, t) else levels.at_lambda(2 * m.lam - s.lam)


def with_midpoints(levels: Levels) -> Levels:
    """Every second level moved to the middle in lambda (the geometric mean in EDM) of its neighbours.

    One beside a level of infinite lambda (sigma = 0, or pure noise in rectified flow) stays where it is.
    """
    sigmas = list(levels.sigmas)
    for i in range(0, len(levels) - 2, 2):
        if finite_step(levels[i], levels[i + 2]):
            sigmas[i + 1] = levels.between(levels[i], levels[i + 2], 0.5).sigma
    return Levels(tuple(sigmas), levels.flow)


# Solvers that know of the inserted levels


def amed(levels: Levels, *, middle: str = "midpoint", afs: bool = False) -> Iterator[Stage]:
    """AMED-Solver: two evaluations from s to t, and the direction at the level m between them for all of the way:

        x_m = x_s + (sigma_m - sigma_s) d_s,    x_t = x_s + scale_dir (sigma_t - sigma_s) d_m,    d = (x - D) / sigma

    The levels are s, m, t, and so on; see `with_midpoints` for `middle` and `analytical_first_step` for `afs`. The
    scales come with `tuned`. To sigma_t = 0, or where the way is too long for one direction, it leads over m in two
    Euler steps; an odd last step is one. Zhou et al. 2024, arXiv 2312.00094, Algorithm 2.
    """
    return _on_levels(_amed, levels, middle, afs)


def _amed(levels: Levels) -> Iterator[Stage]:
    for i in range(0, len(levels) - 2, 2):
        s, m, t = levels[i], levels[i + 1], levels[i + 2]
        if t.sigma == 0:
            yield from euler_step(i, s, m)
            yield from euler_step(i + 1, m, t)
            continue
        way = (t.sigma - s.sigma) * derivative(m)
        if not slope_corrects(s, m, 1.0):
            way = (m.sigma - s.sigma) * P[1] + (t.sigma - m.sigma) * derivative(m)
        yield Stage(i, s.sigma, X + (m.sigma - s.sigma) * derivative(s), derivative(s), completes=False)
        yield Stage(i + 1, m.sigma, START + way, derivative(m))
    if len(levels) % 2 == 0:
        yield from euler_step(len(levels) - 2, levels[len(levels) - 2], levels[len(levels) - 1])


def amed_dpm_2s(levels: Levels, *, middle: str = "midpoint", afs: bool = False) -> Iterator[Stage]:
    """AMED-Plugin over DPM-Solver-2, whose own second evaluation is the inserted one, r = (lambda_m - lambda_s) / h:

        x_t = (alpha_t / alpha_s) x_s - scale_dir sigma_t (e^h - 1) ((1 - 1/(2r)) eps_s + 1/(2r) eps_m)

    Levels and options as in `amed`. Steps that are too long for it are two of order 1, each with its own direction.
    """
    return _on_levels(_amed_dpm_2s, levels, middle, afs)


def _amed_dpm_2s(levels: Levels) -> Iterator[Stage]:
    for i in range(0, len(levels) - 2, 2):
        s, m, t = levels[i], levels[i + 1], levels[i + 2]
        if not finite_step(s, t):
            yield from step_1s(i, s, m, NOISE)
            yield from step_1s(i + 1, m, t, NOISE)
            continue
        r = (m.lam - s.lam) / (t.lam - s.lam)
        yield Stage(i, s.sigma, NOISE.taylor(X, s, m, P[0]), NOISE.of(s), completes=False)
        if NOISE.corrects(s, m, t):
            x_t = NOISE.taylor(START, s, t, P[1] + (P[0] - P[1]) / (2 * r))
        else:
            x_t = NOISE.taylor(NOISE.taylor(START, s, m, P[1]), m, t, P[0])
        yield Stage(i + 1, m.sigma, x_t, NOISE.of(m))
    if len(levels) % 2 == 0:
        yield from step_1s(len(levels) - 2, levels[len(levels) - 2], levels[len(levels) - 1], NOISE)


def amed_dpm_2m(levels: Levels, *, middle: str = "midpoint", afs: bool = False) -> Iterator[Stage]:
    """AMED-Plugin over DPM-Solver(2M): that solver on levels of which every second is an inserted one.

    Options as in `amed`. Any other solver of one evaluation a step is a base in the same way, see `Recipe`.
    """
    return _on_levels(dpm_2m, levels, middle, afs)


def _on_levels(solver: Solver, levels: Levels, middle: str, afs: bool) -> Iterator[Stage]:
    levels = with_midpoints(levels) if middle == "midpoint" else levels
    stages = solver(levels)
    return analytical_first_step(stages, levels) if afs else stages


# Numbers that are predicted, image by image


class Pairs:
    """A run in which every image has inserted levels and scales of its own.

    Coefficients are one tensor per symbol, [B, 1, ...]. Whatever the base, they come from its own coefficient
    functions, once for each image. `tunings` hold what is not predicted, for all images.
    """

    def __init__(self, solver: Solver, levels: Levels, x: Tensor, tunings: Sequence[Tuning] = ()):
        self.levels, self._solver, self._like = levels, solver, x
        self._sigmas = [list(levels.sigmas) for _ in range(len(x))]
        self._tunings = [list(tunings) or [PLAIN] * (len(levels) - 1) for _ in range(len(x))]

    def has_middle(self, i: int) -> bool:
        """Whether numbers are predicted for the step that begins at levels[i]: it has a second evaluation, and begins
        neither at pure noise in rectified flow nor with it."""
        return i + 2 < len(self.levels) and finite_step(self.levels[i], end_of_step(self.levels, i))

    def insert(self, i: int, middles: Sequence[IntermediatePoint]) -> None:
        """Give the step that begins at levels[i] these numbers, one `IntermediatePoint` per image."""
        s, end = self.levels[i], end_of_step(self.levels, i)
        for sigmas, tunings, middle in zip(self._sigmas, self._tunings, middles, strict=True):
            sigmas[i + 1] = self.levels.between(s, end, middle.r).sigma
            tunings[i + 1] = middle.over(tunings[i + 1])

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
        if pairs.has_middle(i):
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
