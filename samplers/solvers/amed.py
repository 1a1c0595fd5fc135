"""AMED: between two levels the sample is evaluated once more, at a place that is learned, and its direction is scaled.

Trajectories of the probability-flow ODE lie nearly in a plane. By the mean value theorem for such curves there is a
level between t_cur and t_next whose direction leads from one to the other almost exactly; a small network that has
seen the model's bottleneck, or a fixed list of numbers, says where.

The levels of a run are all those it visits, in turn one that a step starts from and one that was inserted:
s, m, t = s', m', t' ... So n levels above 0 cost n evaluations, like those of any multistep solver, and AMED-Plugin
over such a solver is the solver itself on these levels, with scales. An odd last step has no middle.

    Z. Zhou, D. Chen, C. Wang, C. Chen: Fast ODE-based Sampling for Diffusion Models in Around 5 Steps. CVPR 2024,
    arXiv 2312.00094.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from ..levels import Levels
from ..plan import START, P, Solver, Stage, X, analytical_first_step
from ..sampler import sampler
from .dpm_solver import NOISE, dpm_2m, finite_step, step_1s
from .runge_kutta import derivative, euler_step, slope_corrects

# Options

Middle = Annotated[
    Literal["midpoint", "given"],
    "Where every second level lies. midpoint: halfway (in log-SNR) between its neighbours; given: where the schedule "
    "put it.",
]
Afs = Annotated[
    bool, "Analytical first step: uses the starting noise as the first prediction, which saves one evaluation."
]


# Where the inserted levels lie


def with_midpoints(levels: Levels) -> Levels:
    """Every second level moved to the middle in lambda (the geometric mean in EDM) of its neighbours.

    One beside a level of infinite lambda (sigma = 0, or pure noise in rectified flow) stays where it is.
    """
    sigmas = list(levels.sigmas)
    for i in range(0, len(levels) - 2, 2):
        if finite_step(levels[i], levels[i + 2]):
            sigmas[i + 1] = levels.between(levels[i], levels[i + 2], 0.5).sigma
    return Levels(tuple(sigmas), levels.flow, levels.shift)


# Solvers that know of the inserted levels


@sampler(
    "AMED-Solver",
    paper="Zhou et al. 2024, arXiv 2312.00094",
    help="Pairs of evaluations, the second of which gives the direction of the whole step. For 4 to 6 evaluations, "
    "with a plan that was trained for the model.",
    order=2,
)
def amed(levels: Levels, *, middle: Middle = "midpoint", afs: Afs = False) -> Iterator[Stage]:
    """AMED-Solver: two evaluations from s to t, and the direction at the level m between them for all of the way:

        x_m = x_s + (sigma_m - sigma_s) d_s,    x_t = x_s + scale_dir (sigma_t - sigma_s) d_m,    d = (x - D) / sigma

    The levels are s, m, t, and so on; see `with_midpoints` for `middle` and `analytical_first_step` for `afs`. The
    scales come with a calibrated plan, here they are 1. To sigma_t = 0, or where the way is too long for one
    direction, it leads over m in two Euler steps; an odd last step is one.
    Zhou et al. 2024, arXiv 2312.00094, Algorithm 2.
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


@sampler(
    "AMED-Plugin, DPM-Solver-2",
    paper="Zhou et al. 2024, arXiv 2312.00094",
    help="DPM-Solver-2 on pairs of levels, for a plan that was trained for the model.",
    order=2,
)
def amed_dpm_2s(levels: Levels, *, middle: Middle = "midpoint", afs: Afs = False) -> Iterator[Stage]:
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


@sampler(
    "AMED-Plugin, DPM-Solver 2M",
    paper="Zhou et al. 2024, arXiv 2312.00094",
    help="In 10 steps from full noise on SD1.5 it follows the plan that its authors trained, whatever the schedule. "
    "Otherwise it is DPM-Solver 2M with every second level halfway between its neighbours.",
    order=2,
    curated=True,
)
def amed_dpm_2m(levels: Levels, *, middle: Middle = "midpoint", afs: Afs = False) -> Iterator[Stage]:
    """AMED-Plugin over DPM-Solver(2M): that solver on levels of which every second is an inserted one.

    Options as in `amed`. Any other solver of one evaluation a step is a base in the same way, see `Recipe`.
    """
    return _on_levels(dpm_2m, levels, middle, afs)


def _on_levels(solver: Solver, levels: Levels, middle: str, afs: bool) -> Iterator[Stage]:
    levels = with_midpoints(levels) if middle == "midpoint" else levels
    stages = solver(levels)
    return analytical_first_step(stages, levels) if afs else stages
