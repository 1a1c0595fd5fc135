"""DPM-Solver and DPM-Solver++: exponential integrators of the noise and of the data prediction.

In terms of lambda = log(alpha / sigma) the probability-flow ODE is solved exactly by either of

    x_t = (sigma_t / sigma_s) x_s + sigma_t * integral from lambda_s to lambda_t of e^lambda D(lambda) dlambda
    x_t = (alpha_t / alpha_s) x_s - alpha_t * integral from lambda_s to lambda_t of e^-lambda eps(lambda) dlambda,

where D is the model's prediction of the clean sample and eps = (x - alpha D) / sigma that of the noise. Every
solver here puts a polynomial in the place of D (DPM-Solver++) or of eps (DPM-Solver). So the two families are one
set of functions, told apart by `DATA` and `NOISE`; solvers differ in which predictions the polynomial goes through.

    C. Lu, Y. Zhou, F. Bao, J. Chen, C. Li, J. Zhu: DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model
    Sampling in Around 10 Steps. 2022, arXiv 2206.00927.
    C. Lu, Y. Zhou, F. Bao, J. Chen, C. Li, J. Zhu: DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
    Probabilistic Models. 2022, arXiv 2211.01095.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

from ..levels import Level, Levels
from ..options import Bounds
from ..phi import Scalar, exp, expm1, phi, value
from ..plan import DENOISED, START, Combination, P, Stage, X
from ..sampler import sampler

# Options that several solvers have

R = Annotated[float, Bounds(0.05, 1.0), "Where in the step (in log-SNR) the second evaluation lies."]
R1 = Annotated[float, Bounds(0.05, 0.95), "Where in the step the second evaluation lies; smaller than r2."]
R2 = Annotated[float, Bounds(0.1, 1.0), "Where in the step the third evaluation lies. Order 3 needs 2/3."]
InnerPoints = Annotated[
    Literal["r", "schedule"],
    "Where a step is evaluated between its ends. r: at r (r1 and r2) of the step, so that n steps cost 2n or 3n "
    "evaluations. schedule: at the schedule's own levels, two or three of which are one step, so that n steps cost n "
    "evaluations; the levels that are left at the end are a step of lower order.",
]
Form = Annotated[Literal["midpoint", "heun"], "Form of the update; midpoint is the paper's."]
Curvature = Annotated[
    Literal["published", "exact"],
    "published: the formula of every implementation, with half of the term for curvature (order 2 in the limit of many "
    "steps); exact: with the whole term (order 3).",
]
LowerOrderFinal = Annotated[
    bool,
    "Lower the order in the last steps. More stable with few steps; no effect on the step to sigma 0, which always has "
    "order 1.",
]
CorrectedStart = Annotated[
    bool, "Take the first step again, with a higher order, once the second prediction is known. Costs no evaluation."
]


def taylor_data(
    x: Combination, s: Level, t: Level, d0: Combination, *derivatives: Combination, eta: float = 0.0
) -> Combination:
    """The exact step from s to t for D(lambda) = d0 + d1 rho + d2 rho^2 / 2 ..., rho = (lambda - lambda_s) / h:

        x_t = (sigma_t / sigma_s) e^(-eta h) x + alpha_t H (phi_1(-H) d0 + phi_2(-H) d1 + phi_3(-H) d2 ...)

    with H = (1 + eta) h. It is the mean of the SDE with noise eta (see sde.py), and the ODE's step for eta = 0.
    With d0 alone it holds for an infinite h, too: at sigma_t = 0, and at an alpha of 0.
    """
    if not finite_step(s, t):  # the same coefficients, without lambda
        kept = 0.0 if eta else t.sigma / s.sigma
        return kept * x + (t.alpha - s.alpha * kept) * d0
    h = t.lam - s.lam
    damped = (1 + eta) * h
    x_t = (t.sigma / s.sigma * exp(-eta * h)) * x + (t.alpha * -expm1(-damped)) * d0
    for k, d in enumerate(derivatives, start=2):
        x_t += (t.alpha * damped * phi(k, -damped)) * d
    return x_t


def taylor_noise(x: Combination, s: Level, t: Level, e0: Combination, *derivatives: Combination) -> Combination:
    """The exact step from s to t for eps(lambda) = e0 + e1 rho + e2 rho^2 / 2 ..., rho = (lambda - lambda_s) / h:

    x_t = (alpha_t / alpha_s) x - sigma_t h (phi_1(h) e0 + phi_2(h) e1 + phi_3(h) e2 ...).
    """
    h = t.lam - s.lam
    x_t = (t.alpha / s.alpha) * x - (t.sigma * expm1(h)) * e0
    for k, e in enumerate(derivatives, start=2):
        x_t -= (t.sigma * h * phi(k, h)) * e
    return x_t


def finite_step(s: Level, t: Level) -> bool:
    """Whether the step has a finite length in lambda: neither into sigma = 0 nor out of alpha = 0."""
    return math.isfinite(value(t.lam)) and math.isfinite(value(s.lam))


LARGEST_CORRECTION = 3.5
"""Of a step of order 1 by a step of higher order, in standard deviations of the data (see `noise_corrects`). At 4 steps
from the sigma_max of Stable Diffusion it comes to 3.3 at most; in a pair that spans the range, to 10."""

NOISIEST = 2.0**10
"""sigma / alpha above which a level is all noise to the noise prediction. D is there what it is at pure noise, to 2^-10
standard deviations, so that order 1 is exact but for what changes towards the end of the step, and float32, whose
rounding by 2^-24 a step magnifies by sigma / alpha, leaves no more digits than that."""


def noise_corrects(s: Level, u: Level, t: Level) -> bool:
    """Whether the noise predicted at u can correct a step of order 1 from s to t. If not, the step is too long for it.

    An order above 1 moves x_t by (1/2r) sigma_t (e^h - 1) (eps_s - eps_u), with r = (lambda_u - lambda_s) / h. Since
    x_u comes from a step of order 1, eps_s - eps_u = (alpha_u / sigma_u) (D_u - D_s). In units of alpha_t (1 - e^-h)
    it is therefore e^(rh) / (2r) times D_u - D_s: what the data prediction takes as it is, the noise prediction takes
    times an exponential of the step. For Gaussian data of unit variance, and s far out in the noise, D_u - D_s is
    alpha_u sigma_u / (alpha_u^2 + sigma_u^2) standard deviations. The product,

        (sigma_s / alpha_s) alpha_u^2 / (alpha_u^2 + sigma_u^2) / (2r),

    must not exceed `LARGEST_CORRECTION`. It is small for a short step, for one that starts near the image, and for one
    that ends in the noise; it grows like e^h for one that leads from the noise to the image.
    """
    if not finite_step(s, t) or (noise_at_s := value(s.sigma / s.alpha)) > NOISIEST:
        return False
    signal_at_u = value(u.alpha**2 / (u.alpha**2 + u.sigma**2))
    r = value((u.lam - s.lam) / (t.lam - s.lam))
    return noise_at_s * signal_at_u / (2 * r) <= LARGEST_CORRECTION


class Prediction(NamedTuple):
    """What a solver takes for a polynomial in lambda."""

    taylor: Callable[..., Combination]
    """The exact step for such a polynomial."""

    of: Callable[[Level], Combination]
    """The prediction in terms of the sample and the denoised one."""

    first_order: Callable[..., Combination] = taylor_data
    """The step for a constant, in terms of the denoised sample: the same for both kinds, and exact where the step is
    infinite in lambda."""

    corrects: Callable[[Level, Level, Level], bool] = lambda s, u, t: finite_step(s, t)
    """Whether a prediction at u can correct a step of order 1 from s to t."""


DATA = Prediction(taylor_data, lambda s: DENOISED)
NOISE = Prediction(taylor_noise, lambda s: (X - s.alpha * DENOISED) / s.sigma, corrects=noise_corrects)


def multistep_order(levels: Levels, i: int, order: int, lower_order_final: bool) -> int:
    """Order of step i: rising from 1 as predictions become known, falling to 1 at the end if asked.

    A step of infinite length in lambda is of order 1, its exact limit, and a prediction from lambda = -inf is of no
    use to a polynomial in lambda.
    """
    if not finite_step(levels[i], levels[i + 1]):
        return 1
    known = i + 1 if finite_step(levels[0], levels[1]) else i
    if known < order:
        return known
    return min(order, len(levels) - 1 - i) if lower_order_final else order


def singlestep_order(
    levels: Levels, i: int, order: int, lower_order_final: bool, kind: Prediction, last: Mapping[int, float]
) -> int:
    """Order of step i: as asked, falling 3, 2, 1 at the end if asked, 1 where the step is too long for the prediction.

    `last` says for each order where in the step its last evaluation lies.
    """
    s, t = levels[i], levels[i + 1]
    if lower_order_final:
        order = min(order, len(levels) - 1 - i)
    if not finite_step(s, t) or (order > 1 and not kind.corrects(s, levels.between(s, t, last[order]), t)):
        return 1
    return order


def step_1s(i: int, s: Level, t: Level, kind: Prediction) -> Iterator[Stage]:
    """Step i, from s to t, with order 1."""
    yield Stage(i, s.sigma, kind.first_order(X, s, t, DENOISED), kind.of(s))


def step_2s(
    i: int, points: Sequence[Level], kind: Prediction, solver_type: str, r: Scalar | None = None
) -> Iterator[Stage]:
    """Step i, from s over u to t, of `dpm_2s` or `dpmpp_2s`. `r`, where u lies, follows from them if not given."""
    s, u, t = points
    r = place(s, u, t) if r is None else r
    yield Stage(i, s.sigma, kind.taylor(X, s, u, P[0]), kind.of(s), completes=False)

    p_u, p_s = P[0], P[1]
    slope = (p_u - p_s) / r
    p = (p_s + slope / 2,) if solver_type == "midpoint" else (p_s, slope)
    yield Stage(i, u.sigma, kind.taylor(START, s, t, *p), kind.of(u))


def step_3s(
    i: int,
    points: Sequence[Level],
    kind: Prediction,
    solver_type: str,
    r1: Scalar | None = None,
    r2: Scalar | None = None,
) -> Iterator[Stage]:
    """Step i, from s over u and v to t, of `dpm_3s` or `dpmpp_3s`; `r1` and `r2` as `r` in `step_2s`."""
    s, u, v, t = points
    r1 = place(s, u, t) if r1 is None else r1
    r2 = place(s, v, t) if r2 is None else r2
    yield Stage(i, s.sigma, kind.taylor(X, s, u, P[0]), kind.of(s), completes=False)

    p_u, p_s = P[0], P[1]
    yield Stage(i, u.sigma, kind.taylor(START, s, v, p_s, (p_u - p_s) * (r2 / r1)), kind.of(u), completes=False)

    p_v, p_u, p_s = P[0], P[1], P[2]
    slope_u, slope_v = (p_u - p_s) / r1, (p_v - p_s) / r2
    if solver_type == "midpoint":
        derivatives = [slope_v]
    else:
        derivatives = [(r2 * slope_u - r1 * slope_v) / (r2 - r1), (slope_v - slope_u) * (2 / (r2 - r1))]
    yield Stage(i, v.sigma, kind.taylor(START, s, t, p_s, *derivatives), kind.of(v))


def place(s: Level, u: Level, t: Level) -> Scalar:
    """Where u lies on the way from s to t in lambda, 0 to 1."""
    return (u.lam - s.lam) / (t.lam - s.lam)


def steps_of_order(
    levels: Levels, first: int, orders: Sequence[int], kind: Prediction, solver_type: str
) -> Iterator[Stage]:
    """Steps of orders 1 to 3 from levels[first] on, each over as many levels as its order, which it is evaluated at.

    A step that is too long for the prediction is as many of order 1. Each evaluation has the number of its level.
    """
    i = first
    for order in orders:
        points = [levels[k] for k in range(i, i + order + 1)]
        stages: Iterator[Stage]
        if order > 1 and not kind.corrects(points[0], points[-2], points[-1]):
            substeps = itertools.pairwise(points)
            stages = itertools.chain.from_iterable(step_1s(0, a, b, DATA) for a, b in substeps)
        elif order == 3:
            stages = step_3s(i, points, kind, solver_type)
        elif order == 2:
            stages = step_2s(i, points, kind, solver_type)
        else:
            stages = step_1s(i, points[0], points[1], kind)
        for stage in stages:
            yield stage._replace(step=i)
            i += 1


def at_levels_of_schedule(
    levels: Levels, order: int, kind: Prediction, solver_type: str, lower_order_final: bool
) -> Iterator[Stage]:
    """Steps of the order that are evaluated at the schedule's own levels: n evaluations for n + 1 levels.

    What is left at the end is a step of lower order. With `lower_order_final` the last step is of order 1 or 2 in any
    case, as those of the official code's `singlestep`; without it those of `singlestep_fixed`, where n is a multiple.
    A step of infinite length in lambda (to sigma = 0, out of pure noise) has order 1 and an evaluation of its own.
    """
    n, first = len(levels) - 1, 0
    if not finite_step(levels[0], levels[1]):
        yield from step_1s(0, levels[0], levels[1], DATA)
        first = 1
    last = n if finite_step(levels[n - 1], levels[n]) else n - 1
    if last > first:
        count, left = divmod(last - first, order)
        orders = [order] * count + [left] * (left > 0)
        if lower_order_final and not left:
            orders[-1:] = [2, 1] if order == 3 else [1, 1]
        yield from steps_of_order(levels, first, orders, kind, solver_type)
    if first <= last < n:
        yield from step_1s(last, levels[last], levels[n], DATA)


@sampler(
    "DPM-Solver++ 2S",
    paper="Lu et al. 2022, arXiv 2211.01095",
    help="Second order, two evaluations a step. Keeps nothing from step to step, so it tolerates strong guidance.",
    order=2,
    curated=True,
)
def dpmpp_2s(
    levels: Levels,
    *,
    r: R = 0.5,
    solver_type: Form = "midpoint",
    lower_order_final: LowerOrderFinal = False,
    inner_points: InnerPoints = "r",
) -> Iterator[Stage]:
    """DPM-Solver++(2S): two evaluations a step, at s and at lambda_u = lambda_s + r h.

        x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - e^-h) ((1 - 1/(2r)) D_s + 1/(2r) D_u)      (midpoint)
        x_t = (sigma_t / sigma_s) x_s + alpha_t h (phi_1(-h) D_s + phi_2(-h) (D_u - D_s) / r)   (heun)

    Lu et al. 2022, arXiv 2211.01095, Algorithm 1 (midpoint). The official code calls the forms `dpmsolver` and
    `taylor`. With `lower_order_final` the last step has order 1. `inner_points`: see `at_levels_of_schedule`.
    """
    return _singlestep_2(levels, DATA, r, solver_type, lower_order_final, inner_points)


@sampler(
    "DPM-Solver 2S",
    paper="Lu et al. 2022, arXiv 2206.00927",
    help="Second order in the noise prediction, two evaluations a step. For low guidance.",
    order=2,
)
def dpm_2s(
    levels: Levels,
    *,
    r: R = 0.5,
    solver_type: Form = "midpoint",
    lower_order_final: LowerOrderFinal = False,
    inner_points: InnerPoints = "r",
) -> Iterator[Stage]:
    """DPM-Solver-2: two evaluations a step, at s and at lambda_u = lambda_s + r h.

        x_t = (alpha_t / alpha_s) x_s - sigma_t (e^h - 1) ((1 - 1/(2r)) eps_s + 1/(2r) eps_u)      (midpoint)
        x_t = (alpha_t / alpha_s) x_s - sigma_t h (phi_1(h) eps_s + phi_2(h) (eps_u - eps_s) / r)   (heun)

    Lu et al. 2022, arXiv 2206.00927, Algorithm 1 (midpoint, r = 1/2), and Algorithm 4 for other r.
    """
    return _singlestep_2(levels, NOISE, r, solver_type, lower_order_final, inner_points)


def _singlestep_2(
    levels: Levels, kind: Prediction, r: float, solver_type: str, lower_order_final: bool, inner_points: str
) -> Iterator[Stage]:
    if inner_points == "schedule":
        yield from at_levels_of_schedule(levels, 2, kind, solver_type, lower_order_final)
        return
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        if singlestep_order(levels, i, 2, lower_order_final, kind, {2: r}) == 2:
            yield from step_2s(i, (s, levels.between(s, t, r), t), kind, solver_type, r)
        else:
            yield from step_1s(i, s, t, kind)


@sampler(
    "DPM-Solver++ 3S",
    paper="Lu et al. 2022, arXiv 2211.01095",
    help="Third order, three evaluations a step. For exact results with many evaluations at low guidance.",
    order=3,
)
def dpmpp_3s(
    levels: Levels,
    *,
    r1: R1 = 1 / 3,
    r2: R2 = 2 / 3,
    solver_type: Form = "midpoint",
    lower_order_final: LowerOrderFinal = False,
    inner_points: InnerPoints = "r",
) -> Iterator[Stage]:
    """DPM-Solver++(3S): three evaluations a step, at s, at lambda_s + r1 h (u) and at lambda_s + r2 h (v).

        x_v = (sigma_v / sigma_s) x_s + alpha_v r2 h (phi_1(-r2 h) D_s + phi_2(-r2 h) (r2/r1) (D_u - D_s))
        x_t = (sigma_t / sigma_s) x_s + alpha_t h (phi_1(-h) D_s + phi_2(-h) (D_v - D_s) / r2)    (midpoint)

    `heun` puts the parabola through all three predictions into the last line. Both forms have order 3 for
    r2 = 2/3 only, where the prediction at u, whose sample has the largest error, drops out in the limit. Lu et al.
    2022, arXiv 2211.01095, appendix; the official code calls the forms `dpmsolver` and `taylor`. With
    `lower_order_final` the last two steps have order 2 (at r = 1/2) and 1, as there. `inner_points` = `schedule` puts
    u and v at levels of the schedule (`at_levels_of_schedule`); it has order 3 where these are uniform in lambda.

    Raises:
        ValueError: if r1 is not smaller than r2.
    """
    return _singlestep_3(levels, DATA, r1, r2, solver_type, lower_order_final, inner_points)


@sampler(
    "DPM-Solver 3S",
    paper="Lu et al. 2022, arXiv 2206.00927",
    help="Third order in the noise prediction, three evaluations a step. For many evaluations at low guidance.",
    order=3,
)
def dpm_3s(
    levels: Levels,
    *,
    r1: R1 = 1 / 3,
    r2: R2 = 2 / 3,
    solver_type: Form = "midpoint",
    lower_order_final: LowerOrderFinal = False,
    inner_points: InnerPoints = "r",
) -> Iterator[Stage]:
    """DPM-Solver-3: three evaluations a step, at s, at lambda_s + r1 h (u) and at lambda_s + r2 h (v).

        x_v = (alpha_v / alpha_s) x_s - sigma_v r2 h (phi_1(r2 h) eps_s + phi_2(r2 h) (r2/r1) (eps_u - eps_s))
        x_t = (alpha_t / alpha_s) x_s - sigma_t h (phi_1(h) eps_s + phi_2(h) (eps_v - eps_s) / r2)    (midpoint)

    Forms and options as in `dpmpp_3s`. Lu et al. 2022, arXiv 2206.00927, Algorithm 2 (midpoint).
    """
    return _singlestep_3(levels, NOISE, r1, r2, solver_type, lower_order_final, inner_points)


def _singlestep_3(
    levels: Levels, kind: Prediction, r1: float, r2: float, solver_type: str, lower_order_final: bool, inner_points: str
) -> Iterator[Stage]:
    if inner_points == "schedule":
        yield from at_levels_of_schedule(levels, 3, kind, solver_type, lower_order_final)
        return
    if r1 >= r2:
        raise ValueError(f"r1 = {r1:g} must be smaller than r2 = {r2:g}")
    for i in range(len(levels) - 1):
        order = singlestep_order(levels, i, 3, lower_order_final, kind, {2: 0.5, 3: r2})
        s, t = levels[i], levels[i + 1]
        if order == 3:
            u, v = levels.between(s, t, r1), levels.between(s, t, r2)
            yield from step_3s(i, (s, u, v, t), kind, solver_type, r1, r2)
        elif order == 2:
            yield from step_2s(i, (s, levels.between(s, t, 0.5), t), kind, solver_type, 0.5)
        else:
            yield from step_1s(i, s, t, kind)


@sampler(
    "DPM-Solver fast",
    paper="Lu et al. 2022, arXiv 2206.00927",
    help="Steps of order 3 that share the given number of evaluations, at levels of its own (uniform log-SNR). For "
    "low guidance.",
    order=2,
)
def dpm_fast(levels: Levels) -> Iterator[Stage]:
    """DPM-Solver-fast: n evaluations for n + 1 levels, in steps of order 3 with one or two of lower order at the end.

    It makes levels of its own: m + 1 of them, uniform in lambda between the first and the last of those given, where
    m = floor(n / 3) + 1, with orders 3 ... 3, 2, 1 if 3 divides n and 3 ... 3, (n mod 3) if not. A step that is
    infinite in lambda (to sigma = 0, out of pure noise) stays as it is and takes one evaluation of the n. One that is
    too long for its order is as many steps of order 1. Each evaluation counts as a step, for the callback and the
    progress bar.
    Lu et al. 2022, arXiv 2206.00927, section 3.4 and appendix D.3; k-diffusion, which leaves out the step to 0.
    """
    n, first = len(levels) - 1, 0
    if not finite_step(levels[0], levels[1]):
        yield from step_1s(0, levels[0], levels[1], DATA)
        first = 1
    last = n if finite_step(levels[n - 1], levels[n]) else n - 1
    budget, step = last - first, first
    if budget > 0:
        count = budget // 3 + 1
        orders = [3] * (count - 2) + [2, 1] if budget % 3 == 0 else [3] * (count - 1) + [budget % 3]
        start, end = levels[first], levels[last]
        ends = [start, *(levels.between(start, end, k / count) for k in range(1, count)), end]
        for order, s, t in zip(orders, ends[:-1], ends[1:], strict=True):
            stages: Iterator[Stage]
            inner = [levels.between(s, t, k / order) for k in range(1, order)]
            if inner and not noise_corrects(s, inner[-1], t):
                substeps = itertools.pairwise([s, *inner, t])
                stages = itertools.chain.from_iterable(step_1s(0, a, b, DATA) for a, b in substeps)
            elif order == 3:
                stages = step_3s(0, (s, *inner, t), NOISE, "midpoint", 1 / 3, 2 / 3)
            elif order == 2:
                stages = step_2s(0, (s, *inner, t), NOISE, "midpoint", 0.5)
            else:
                stages = step_1s(0, s, t, DATA)
            for stage in stages:
                yield stage._replace(step=step)
                step += 1
    if first <= last < n:
        yield from step_1s(last, levels[last], levels[n], DATA)


@sampler(
    "DPM-Solver++ 2M",
    paper="Lu et al. 2022, arXiv 2211.01095",
    help="Second order at one evaluation a step. A safe choice at 10 to 20 steps, even at strong guidance.",
    order=2,
    curated=True,
)
def dpmpp_2m(
    levels: Levels,
    *,
    solver_type: Form = "midpoint",
    lower_order_final: LowerOrderFinal = True,
    corrected_start: CorrectedStart = False,
) -> Iterator[Stage]:
    """DPM-Solver++(2M): one evaluation a step, a line through the last two predictions.

        x_t = (sigma_t / sigma_s) x_s + alpha_t (1 - e^-h) (D_0 + d / 2)                   (midpoint)
        x_t = (sigma_t / sigma_s) x_s + alpha_t h (phi_1(-h) D_0 + phi_2(-h) d)            (heun)

    with d = (h / h_1) (D_0 - D_1), h_1 the length of the step before. Lu et al. 2022, arXiv 2211.01095,
    Algorithm 2 (midpoint). The first step has order 1, see `multistep`.
    """
    return _multistep_2(levels, DATA, solver_type, lower_order_final, corrected_start)


@sampler(
    "DPM-Solver 2M",
    paper="Lu et al. 2022, arXiv 2211.01095",
    help="Second order in the noise prediction, one evaluation a step. For 8 to 12 steps at low guidance.",
    order=2,
    curated=True,
)
def dpm_2m(
    levels: Levels,
    *,
    solver_type: Form = "midpoint",
    lower_order_final: LowerOrderFinal = True,
    corrected_start: CorrectedStart = False,
) -> Iterator[Stage]:
    """DPM-Solver(2M): one evaluation a step, a line through the last two predictions of the noise.

        x_t = (alpha_t / alpha_s) x_s - sigma_t (e^h - 1) (eps_0 + e / 2)                  (midpoint)
        x_t = (alpha_t / alpha_s) x_s - sigma_t h (phi_1(h) eps_0 + phi_2(h) e)            (heun)

    with e = (h / h_1) (eps_0 - eps_1). Lu et al. 2022, arXiv 2211.01095, appendix and official code.
    """
    return _multistep_2(levels, NOISE, solver_type, lower_order_final, corrected_start)


def _multistep_2(
    levels: Levels, kind: Prediction, solver_type: str, lower_order_final: bool, corrected_start: bool
) -> Iterator[Stage]:
    return multistep(
        levels,
        kind,
        2,
        midpoint=solver_type == "midpoint",
        lower_order_final=lower_order_final,
        corrected_start=corrected_start,
    )


@sampler(
    "DPM-Solver++ 3M",
    paper="Lu et al. 2022, arXiv 2211.01095",
    help="Third order from the last three predictions, one evaluation a step. For 20 steps or more at low guidance.",
    order=3,
    curated=True,
)
def dpmpp_3m(
    levels: Levels,
    *,
    solver_type: Curvature = "published",
    lower_order_final: LowerOrderFinal = True,
    corrected_start: CorrectedStart = False,
) -> Iterator[Stage]:
    """DPM-Solver++(3M): one evaluation a step, a parabola through the last three predictions.

        x_t = (sigma_t / sigma_s) x_s + alpha_t h (phi_1(-h) D_0 + phi_2(-h) d_1 + phi_3(-h) d_2)

    with d_1 the slope and d_2 the curvature of the parabola at s, in units of the step h. Lu et al. 2022,
    arXiv 2211.01095, official code. That code, and every one after it (diffusers, k-diffusion, diff-sampler),
    takes half the curvature, which leaves a method of order 2 with a small error constant: `published`, the
    default, does the same and gives their images. `exact` takes all of it and has order 3; it is the better one
    from about 30 steps on. The order rises over the first two steps, see `multistep`.
    """
    return _multistep_3(levels, DATA, solver_type, lower_order_final, corrected_start)


@sampler(
    "DPM-Solver 3M",
    paper="Lu et al. 2022, arXiv 2211.01095",
    help="Third order in the noise prediction, one evaluation a step. For 15 steps or more at low guidance.",
    order=3,
    curated=True,
)
def dpm_3m(
    levels: Levels,
    *,
    solver_type: Curvature = "published",
    lower_order_final: LowerOrderFinal = True,
    corrected_start: CorrectedStart = False,
) -> Iterator[Stage]:
    """DPM-Solver(3M): one evaluation a step, a parabola through the last three predictions of the noise.

        x_t = (alpha_t / alpha_s) x_s - sigma_t h (phi_1(h) eps_0 + phi_2(h) e_1 + phi_3(h) e_2)

    Forms and options as in `dpmpp_3m`. Lu et al. 2022, arXiv 2211.01095, official code.
    """
    return _multistep_3(levels, NOISE, solver_type, lower_order_final, corrected_start)


def _multistep_3(
    levels: Levels, kind: Prediction, solver_type: str, lower_order_final: bool, corrected_start: bool
) -> Iterator[Stage]:
    published = solver_type == "published"
    return multistep(
        levels,
        kind,
        3,
        midpoint=published,
        half_curvature=published,
        lower_order_final=lower_order_final,
        corrected_start=corrected_start,
    )


def slope(levels: Levels, i: int) -> Combination:
    """The slope, per step h, of the line through the last two predictions."""
    s, t, s1 = levels[i], levels[i + 1], levels[i - 1]
    return (P[0] - P[1]) * ((t.lam - s.lam) / (s.lam - s1.lam))


def parabola(levels: Levels, i: int) -> tuple[Combination, Combination]:
    """Slope and curvature at s, per step h, of the parabola through the last three predictions."""
    s, h = levels[i], levels[i + 1].lam - levels[i].lam
    r1, r2 = (s.lam - levels[i - 1].lam) / h, (s.lam - levels[i - 2].lam) / h
    bend = ((P[0] - P[1]) / r1 - (P[1] - P[2]) / (r2 - r1)) / r2
    return (P[0] - P[1]) / r1 + r1 * bend, 2.0 * bend


def multistep(
    levels: Levels,
    kind: Prediction,
    order: int,
    *,
    midpoint: bool = False,
    half_curvature: bool = False,
    lower_order_final: bool = False,
    corrected_start: bool = False,
) -> Iterator[Stage]:
    """One evaluation a step; the order rises from 1 as predictions become known.

    `midpoint` is the form of the steps of order 2, `half_curvature` that of the steps of order 3 (see `dpmpp_3m`).

    The first step, of order 1, leaves an error of second order in its length, which then limits a run of order
    3. `corrected_start` mends that without another evaluation: when the second prediction is known the first
    step is taken again, with the line through both, and the run goes on from there (the corrector of UniPC,
    Zhao et al. 2023, arXiv 2302.04867, used once).
    """
    steps = len(levels) - 1
    corrected_start = corrected_start and steps > 1 and kind.corrects(levels[0], levels[1], levels[1])
    for i in range(steps):
        s, t = levels[i], levels[i + 1]
        x = kind.taylor(START, levels[0], s, P[1], P[0] - P[1]) if corrected_start and i == 1 else X

        now = multistep_order(levels, i, order, lower_order_final)
        if now == 1:
            x_t = kind.first_order(x, s, t, DENOISED)
        elif now == 2 and midpoint:
            x_t = kind.taylor(x, s, t, P[0] + slope(levels, i) / 2)
        elif now == 2:
            x_t = kind.taylor(x, s, t, P[0], slope(levels, i))
        else:
            d1, d2 = parabola(levels, i)
            x_t = kind.taylor(x, s, t, P[0], d1, d2 / 2 if half_curvature else d2)
        yield Stage(i, s.sigma, x_t, kind.of(s), completes=not (corrected_start and i == 0))
