"""AMED: between two levels the sample is evaluated once more, at a place that is learned, and its direction is scaled.

Trajectories of the probability-flow ODE lie nearly in a plane. By the mean value theorem for such curves there is a
level between t_cur and t_next whose direction leads from one to the other almost exactly; a small network that has
seen the model's bottleneck, or a fixed list of numbers, says where.

    Z. Zhou, D. Chen, C. Wang, C. Chen: Fast ODE-based Sampling for Diffusion Models in Around 5 Steps. CVPR 2024,
    arXiv 2312.00094.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .classic import derivative, euler_step
from .dpm_solver import NOISE, finite_step
from .integrate import Decisions, State
from .levels import Level, Levels
from .phi import Scalar, value
from .plan import DENOISED, START, Combination, P, Stage, X

Predict = Callable[[State, Level, Level], Sequence["Middle"]]
"""predict(state, s, t) -> the numbers of the step from s to t, for each image of the batch."""


class Middle(NamedTuple):
    """The learned numbers of one step from s to t."""

    r: Scalar = 0.5
    """Where the inserted level lies: lambda_m = lambda_s + r (lambda_t - lambda_s), sigma_t^r sigma_s^(1-r) in EDM."""

    scale_dir: Scalar = 1.0
    """Factor of what the prediction at m moves the sample by."""

    scale_time: Scalar = 1.0
    """Factor of the sigma that the model is told at m."""


def middle(levels: Levels, s: Level, t: Level, numbers: Middle) -> tuple[Level, Scalar]:
    """The inserted level, and the sigma that the model is told there."""
    m = levels.between(s, t, numbers.r)
    told = numbers.scale_time * m.sigma
    return m, min(told, 1.0) if levels.flow and value(told) > 1 else told


def amed(levels: Levels, middles: Sequence[Middle]) -> Iterator[Stage]:
    """AMED-Solver: two evaluations a step, and the direction at the inserted level m for the whole step:

        x_m = x_s + (sigma_m - sigma_s) d_s,    x_t = x_s + scale_dir (sigma_t - sigma_s) d_m

    with d = (x - D) / sigma; D at m is evaluated at scale_time sigma_m, and d_m divides by sigma_m. A step that is
    infinite in lambda has no middle and is an Euler step.
    Zhou et al. 2024, arXiv 2312.00094, Algorithm 2.
    """
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        if not finite_step(s, t):
            yield from euler_step(i, s, t)
            continue
        m, told = middle(levels, s, t, middles[i])
        yield Stage(i, s.sigma, X + (m.sigma - s.sigma) * derivative(s), derivative(s), completes=False)
        yield Stage(i, told, START + (middles[i].scale_dir * (t.sigma - s.sigma)) * derivative(m), derivative(m))


def amed_2s(levels: Levels, middles: Sequence[Middle]) -> Iterator[Stage]:
    """AMED-Plugin over DPM-Solver-2: r is that of `dpm_2s`.

    x_t = (alpha_t / alpha_s) x_s - scale_dir sigma_t (e^h - 1) ((1 - 1/(2r)) eps_s + 1/(2r) eps_m)
    """
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        if not finite_step(s, t):
            yield from euler_step(i, s, t)
            continue
        m, told = middle(levels, s, t, middles[i])
        yield Stage(i, s.sigma, NOISE.taylor(X, s, m, P[0]), NOISE.of(s), completes=False)
        eps = P[1] + (P[0] - P[1]) / (2 * middles[i].r)
        yield scaled(Stage(i, told, NOISE.taylor(START, s, t, eps), NOISE.of(m)), middles[i].scale_dir)


def plugin(
    base: Callable[..., Iterator[Stage]], levels: Levels, middles: Sequence[Middle], **options: object
) -> Iterator[Stage]:
    """AMED-Plugin over a solver with one evaluation a step: it runs over the levels with the middles inserted.

    Its own coefficients are those of the levels as they are; at m the model is told scale_time sigma_m, and the part
    of the update that comes from predictions is multiplied by scale_dir.
    Zhou et al. 2024, arXiv 2312.00094, section 3.4.
    """
    sigmas: list[Scalar] = [levels[0].sigma]
    inserted: dict[int, tuple[Scalar, Scalar]] = {}  # by index of the level: sigma told, scale_dir
    steps: list[int] = []
    for i, numbers in enumerate(middles):
        s, t = levels[i], levels[i + 1]
        if finite_step(s, t):
            m, told = middle(levels, s, t, numbers)
            inserted[len(sigmas)] = told, numbers.scale_dir
            sigmas.append(m.sigma)
            steps.append(i)
        sigmas.append(t.sigma)
        steps.append(i)
    for stage in base(Levels(tuple(sigmas), levels.flow), **options):
        here = stage._replace(step=steps[stage.step])
        if stage.step in inserted and stage.sigma is not None:
            told, scale_dir = inserted[stage.step]
            here = scaled(here, scale_dir)._replace(sigma=told)
        yield here


def scaled(stage: Stage, scale: Scalar) -> Stage:
    """The stage with that part of its update which comes from predictions multiplied by `scale`."""
    (denoised,) = DENOISED.terms
    inverse = P[0]  # the denoised sample in terms of what is remembered of it
    if stage.prediction is not DENOISED:
        share = stage.prediction.terms[denoised]
        inverse = (P[0] - stage.prediction.replace(denoised, Combination({}))) / share
    update = stage.update.replace(denoised, inverse)
    return stage._replace(update=Combination({key: scale * c if key >= 0 else c for key, c in update.terms.items()}))


def predicted(
    solver: Callable[[Levels, Sequence[Middle]], Iterator[Stage]], levels: Levels, predict: Predict, batch: int
) -> Decisions:
    """A solver of this module whose numbers are predicted image by image, when the step has been evaluated at s.

    The coefficients of a step are then one tensor per symbol, [B, 1, ...]. Whatever the base, they come from its own
    coefficient functions, once for each image.
    """
    middles = [[Middle()] * (len(levels) - 1) for _ in range(batch)]
    for i in range(len(levels) - 1):
        first, *more = step_of(solver(levels, middles[0]), i)
        if not more:  # no middle
            yield first
            continue
        state = yield first._replace(update=X, completes=False)
        for mine, numbers in zip(middles, predict(state, levels[i], levels[i + 1]), strict=True):
            mine[i] = numbers
        to_middle, to_end = zip(*(step_of(solver(levels, mine), i) for mine in middles), strict=True)
        x = state.value(X)
        yield stacked(to_middle, x)._replace(sigma=None, prediction=DENOISED)
        yield stacked(to_end, x)
    return {}


def step_of(stages: Iterator[Stage], i: int) -> list[Stage]:
    return [stage for stage in stages if stage.step == i]


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
