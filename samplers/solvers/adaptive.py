"""DPM-Solver with adaptive step size: a solver that decides as it goes.

C. Lu, Y. Zhou, F. Bao, J. Chen, C. Li, J. Zhu: DPM-Solver. 2022, arXiv 2206.00927, appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor

from ..integrate import AdaptiveSolver, non_finite
from ..levels import Level, Levels
from ..options import Bounds
from ..phi import value
from ..plan import START, Combination, P, Stage, X
from ..sampler import sampler
from .dpm_solver import DATA, NOISE, finite_step, step_1s, step_2s, step_3s

_CLOSE = 1e-5  # of lambda: nearer than this to the end is there
_MOST_TRIES = 1000
_SETTLED = 40  # tries after which the step is what the tolerances ask for, and no longer what the run began with
_UNEVEN = 5  # how many times longer than now the steps may become yet


@sampler(
    "DPM-Solver adaptive",
    paper="Lu et al. 2022, arXiv 2206.00927",
    help="Chooses its own steps by their error: rtol sets the quality, and steps has no effect. For low guidance.",
    order=3,
)
def dpm_adaptive(
    levels: Levels,
    *,
    order: Annotated[
        int, Bounds(2, 3), "Evaluations in each attempt at a step. 2: DPM-Solver-12; 3: DPM-Solver-23."
    ] = 3,
    rtol: Annotated[
        float,
        Bounds(1e-5, 1.0, step=1e-4),
        "Relative tolerance. Smaller: more evaluations, closer to the exact result.",
    ] = 0.05,
    atol: Annotated[
        float, Bounds(1e-6, 1.0, step=1e-4), "Absolute tolerance, for latents or images of size 1."
    ] = 0.0078,
    h_init: Annotated[float, Bounds(1e-3, 10.0, step=1e-3), "Length of the first step, in log-SNR / 2."] = 0.05,
    accept_safety: Annotated[
        float,
        Bounds(0.01, 1.0),
        "A step is tried again if its error asks for a step that is shorter than this share of its length.",
    ] = 0.81,
    pcoeff: Annotated[float, Bounds(0.0, 5.0), "Proportional term of the step size controller."] = 0.0,
    icoeff: Annotated[float, Bounds(0.0, 5.0), "Integral term of the step size controller."] = 1.0,
    dcoeff: Annotated[float, Bounds(0.0, 5.0), "Derivative term of the step size controller."] = 0.0,
) -> AdaptiveSolver:
    """DPM-Solver-12 and -23: steps of lambda as long as the embedded error allows. `order` evaluations an attempt.

        E = || (x_low - x_high) / max(atol, rtol max(|x_low|, |x_low of the step before|)) ||, root mean square

    with x_low of order 1 and x_high of order 2 (r = 1/2), or 2 (r = 1/3) and 3, from the same evaluations. After each
    try h is multiplied by 1 + atan(f - 1), where f = E^(-1 / order) for the default coefficients (a PID controller in
    general), and the try is accepted if that is at least `accept_safety`. The defaults are those for images in [-1, 1].

    Of the given levels only the first and the last count; the steps between number the progress. A step to sigma = 0 or
    out of pure noise is infinite in lambda and stays as it is. E is over the whole batch. Reports `n_accept` and
    `n_reject`. Lu et al. 2022, arXiv 2206.00927, appendix C; k-diffusion.

    Raises:
        ValueError: if the tolerances ask for more than 1000 tries, as soon as that can be seen from the steps.
        NonFiniteError: if the model returned NaN or infinity.
    """
    n = len(levels) - 1
    first, last = 0, n
    if not finite_step(levels[0], levels[1]):
        yield from step_1s(0, levels[0], levels[1], DATA)
        first = 1
    if first < n and not finite_step(levels[n - 1], levels[n]):
        last = n - 1

    controller = StepSize(h_init, order, accept_safety, pcoeff, icoeff, dcoeff)
    tries = {True: 0, False: 0}
    s, end = levels[first], levels[last]
    length = abs(distance(s, end))
    way = math.copysign(1, distance(s, end))
    x_prev: Tensor | None = None
    while (left := abs(distance(s, end))) > _CLOSE:
        t = levels.at_lambda(s.lam + way * controller.h) if controller.h < left else end
        step = min(first + int((1 - left / length) * (last - first)), last - 1)
        for stage in _try(levels, step, s, t, order):
            state = yield stage
        x_low, x_high = state.value(_low(levels, s, t, order)), state.value(X)
        x_prev = state.value(START) if x_prev is None else x_prev
        tolerance = torch.maximum(x_low.abs(), x_prev.abs()).mul_(rtol).clamp_(min=atol)
        error = float(((x_low - x_high) / tolerance).square().mean().sqrt())
        if not math.isfinite(error):
            raise non_finite(step, n, s.sigma)

        accepted = controller.accepts(error)
        tries[accepted] += 1
        yield Stage(step, None, X if accepted else START)
        if accepted:
            s, x_prev = t, x_low
        made, left = sum(tries.values()), abs(distance(s, end))
        hopeless = made >= _SETTLED and left / controller.h > _UNEVEN * _MOST_TRIES
        if hopeless or made >= _MOST_TRIES:
            raise ValueError(
                f"dpm_adaptive cannot meet rtol = {rtol:g} and atol = {atol:g} in {_MOST_TRIES} steps: after "
                f"{made} it is at sigma = {value(s.sigma):g}. Raise rtol and atol, or take a sampler with fixed steps"
            )

    if first <= last < n:
        yield from step_1s(last, levels[last], levels[n], DATA)
    return {"n_accept": tries[True], "n_reject": tries[False]}


def distance(s: Level, t: Level) -> float:
    return value(t.lam) - value(s.lam)


def _try(levels: Levels, step: int, s: Level, t: Level, order: int) -> Iterator[Stage]:
    """The step from s to t with the higher order, not yet completed."""
    if order == 2:
        higher = step_2s(step, (s, levels.between(s, t, 0.5), t), NOISE, "midpoint", 0.5)
    else:
        u, v = levels.between(s, t, 1 / 3), levels.between(s, t, 2 / 3)
        higher = step_3s(step, (s, u, v, t), NOISE, "midpoint", 1 / 3, 2 / 3)
    for stage in higher:
        yield stage._replace(completes=False)


def _low(levels: Levels, s: Level, t: Level, order: int) -> Combination:
    """The step of the lower order, from predictions that the higher one has made."""
    if order == 2:
        return NOISE.taylor(START, s, t, P[1])
    eps_u, eps_s = P[1], P[2]  # at r = 1/3, and at s
    return NOISE.taylor(START, s, t, eps_s + (eps_u - eps_s) * (3 / 2))


class StepSize:
    """A PID controller of the step h, on the inverse errors of this try and the last two accepted steps.

    G. Soederlind: Digital filters in adaptive time-stepping. ACM Transactions on Mathematical Software 2003.
    """

    def __init__(self, h: float, order: int, accept_safety: float, pcoeff: float, icoeff: float, dcoeff: float):
        self.h = h
        self._accept_safety = accept_safety
        self._exponents = (
            (pcoeff + icoeff + dcoeff) / order,
            -(pcoeff + 2 * dcoeff) / order,
            dcoeff / order,
        )
        self._accepted: tuple[float, ...] = ()

    def accepts(self, error: float) -> bool:
        """Whether a try with this error is good enough; sets the next step."""
        inverse = 1 / (min(error, 1e12) + 1e-8)  # so that no power of it overflows
        past = self._accepted or (inverse, inverse)
        factor = math.prod(e**b for e, b in zip((inverse, *past), self._exponents, strict=True))
        factor = 1 + math.atan(factor - 1)
        self.h *= factor
        accepted = factor >= self._accept_safety
        if accepted:
            self._accepted = (inverse, past[0])
        elif not self._accepted:
            self._accepted = past
        return accepted
