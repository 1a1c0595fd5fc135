"""Restart: the noise of an interval is added again, and taken away again, with a deterministic solver.

Noise contracts the errors that a run has accumulated, and the solver in between makes none of those that an SDE makes
in every step.

    Y. Xu, M. Deng, X. Cheng, Y. Tian, Z. Liu, T. Jaakkola: Restart Sampling for Improving Generative Processes. 2023,
    arXiv 2306.14878.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, get_args

from ..levels import Levels
from ..options import Bounds
from ..phi import value
from ..plan import Stage, X
from ..sampler import sampler
from .adams import deis, gradient_estimation, ipndm, ipndm_v, lms
from .ancestral import added_noise
from .dpm_solver import dpm_2m, dpm_2s, dpm_3m, dpm_3s, dpmpp_2m, dpmpp_2s, dpmpp_3m, dpmpp_3s
from .exponential import exp_heun_2_x0, res_2s, res_3s, res_5s, res_6s, res_multistep
from .runge_kutta import euler, heun, heunpp2, rk4
from .unipc import unipc

Base = Literal[
    "heun", "euler", "dpmpp_2s", "dpmpp_2m", "ipndm_v", "dpmpp_3s", "dpmpp_3m", "dpm_2s", "dpm_3s", "dpm_2m", "dpm_3m",
    "unipc", "deis", "ipndm", "lms", "rk4", "res_2s", "res_3s", "res_5s", "res_6s", "res_multistep",
    "exp_heun_2_x0", "heunpp2", "gradient_estimation",
]  # fmt: skip

_ALL: tuple[Callable[..., Iterator[Stage]], ...] = (
    heun, euler, dpmpp_2s, dpmpp_2m, ipndm_v, dpmpp_3s, dpmpp_3m, dpm_2s, dpm_3s, dpm_2m, dpm_3m, unipc, deis, ipndm,
    lms, rk4, res_2s, res_3s, res_5s, res_6s, res_multistep, exp_heun_2_x0, heunpp2, gradient_estimation,
)  # fmt: skip


def _whole(solver: Callable[..., Iterator[Stage]]) -> Callable[[Levels], Iterator[Stage]]:
    """The solver without lower orders at the end: that of a part is in the middle of the run."""
    lowers = "lower_order_final" in inspect.signature(solver).parameters
    return functools.partial(solver, lower_order_final=False) if lowers else solver


BASES = {name: _whole(solver) for name, solver in zip(get_args(Base), _ALL, strict=True)}
"""All deterministic solvers that go through the levels they are given; not plms, whose start every part would pay."""


@sampler(
    "Restart",
    paper="Xu et al. 2023, arXiv 2306.14878",
    help="A deterministic solver that goes through a part of the run again, from added noise. It corrects "
    "earlier errors, at the price of more evaluations. For many steps.",
    order=2,
)
def restart(
    levels: Levels,
    *,
    restarts: Annotated[
        int, Bounds(0, 20), "How many times noise is added again and the interval sampled anew. 0: never."
    ] = 1,
    restart_max: Annotated[float, Bounds(0.0, 1000.0), "Noise level, sigma / alpha, up to which noise is added."] = 2.0,
    restart_min: Annotated[float, Bounds(0.0, 1000.0), "Noise level, sigma / alpha, at which the interval ends."] = 0.1,
    base: Annotated[Base, "The solver of all steps."] = "heun",
) -> Iterator[Stage]:
    """Restart sampling: from level m, near `restart_min`, noise up to level M, near `restart_max`, and down again.

        x_M = (alpha_M / alpha_m) x_m + sqrt(sigma_M^2 - (alpha_M sigma_m / alpha_m)^2) z

    as often as `restarts` says, over the levels of the schedule between the two, then on to the end. M and m are the
    levels of the schedule that are nearest to the two numbers in lambda; where it has no two between which to go there
    is no restart. What a restart evaluates counts to the step that ends at m. Each draw of noise is labelled with a
    part of its own of the interval, so that they are independent. Xu et al. 2023, arXiv 2306.14878, Algorithm 1.

    The paper has a list of intervals. Here a run with several is a chain (chain.py) of `restart` with one each, so that
    every interval has its own numbers and base; the base has its default options, since names such as `order` and
    `solver_type` mean other choices in each.
    """
    solve = BASES[base]
    top, low = _interval(levels, restart_max, restart_min)
    times = int(restarts) if top < low else 0
    if restarts and value(levels[1].sigma) > value(levels[0].sigma):
        added_noise(1.0, levels[0], levels[1])  # an error that says what to do
    if not times:
        yield from solve(levels)
        return
    yield from solve(levels.part(0, low))
    high, m = levels[top], levels[low]
    rescale = high.alpha / m.alpha
    kept = rescale * m.sigma
    for k in range(times):
        a, b = (levels.between(high, m, part / times) for part in (k, k + 1))
        noise = added_noise((high.sigma - kept) * (high.sigma + kept), a, b)
        yield Stage(low - 1, None, rescale * X, noise=noise)
        for stage in solve(levels.part(top, low if k < times - 1 else len(levels) - 1)):
            yield stage._replace(step=max(top + stage.step, low - 1))


def _interval(levels: Levels, high: float, low: float) -> tuple[int, int]:
    """The numbers of the levels nearest to these; the same number twice where there are no two."""
    inner = [i for i in range(len(levels)) if math.isfinite(value(levels[i].lam))]

    def nearest(level: float, candidates: list[int]) -> int:
        place = math.inf if level == 0 else -math.log(level)
        return min(candidates, key=lambda i: abs(value(levels[i].lam) - min(place, 1e9)))

    if not inner:
        return 0, 0
    top = nearest(high, inner)
    return top, nearest(low, [i for i in inner if i >= top])
