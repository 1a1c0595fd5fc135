"""UniPC: a predictor and a corrector of any order on the predictions that are there.

W. Zhao, L. Bai, Y. Rao, J. Zhou, J. Lu: UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of
Diffusion Models. 2023, arXiv 2302.04867.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from ..levels import Levels
from ..options import Bounds
from ..phi import Scalar, expm1, phi, value
from ..plan import DENOISED, START, Combination, P, Stage, X
from ..sampler import sampler
from .dpm_solver import DATA, NOISE, LowerOrderFinal, Prediction, finite_step, multistep_order, taylor_data

LARGEST_MAGNIFICATION = 250.0
"""Of a step: the sum of the sizes of the coefficients of its predictions over the size of their sum, so that a
difference of one standard deviation among them moves the sample by so many. On the usual schedules it comes to 180 at
most (`linear_quadratic` in 6 steps), on levels whose steps differ by a factor of 100 to thousands."""


@sampler(
    "UniPC",
    paper="Zhao et al. 2023, arXiv 2302.04867",
    help="Predictor and corrector at one evaluation a step. A good alternative to dpmpp_2m.",
    order=3,
    curated=True,
)
def unipc(
    levels: Levels,
    *,
    order: Annotated[int, Bounds(1, 3), "Number of predictions that the predictor uses."] = 3,
    solver_type: Annotated[Literal["bh1", "bh2"], "The function B(h) of the paper; bh2 is the usual one."] = "bh2",
    prediction: Annotated[
        Literal["data", "noise"],
        "What is extrapolated. data: for images with guidance; noise: for low guidance.",
    ] = "data",
    corrector: Annotated[bool, "Correct each step with the next prediction; costs no evaluation."] = True,
    lower_order_final: LowerOrderFinal = True,
) -> Iterator[Stage]:
    """UniPC-p, one evaluation a step. With the last p predictions m_0, m_1 ... at r_k = (lambda_k - lambda_s) / h,

        predictor   x_t = (exact step for m_0) - w_t B(h) sum over k = 1 ... p-1 of rho_k (m_k - m_0) / r_k
        corrector   the same with m_t, evaluated at the predictor's x_t, as one more prediction at r = 1,

    where w_t = alpha_t and z = -h for data, w_t = sigma_t and z = h for noise prediction, B = z (bh1) or e^z - 1
    (bh2), and rho solves sum_k rho_k r_k^(i-1) = i! z phi_(i+1)(z) / B for i = 1 ... The predictor of order 2 and
    the corrector of order 1 take rho = 1/2. The prediction at the corrected sample is the one at the predicted:
    the corrector costs no evaluation. The last step, at whose end there is none, has no corrector, and neither has one
    that is too long for it. A step so much longer than those before it that its coefficients magnify the predictions
    more than `LARGEST_MAGNIFICATION` has the highest order at which they do not.
    Zhao et al. 2023, arXiv 2302.04867, Algorithms 5 to 8.
    """
    kind = DATA if prediction == "data" else NOISE
    steps = len(levels) - 1
    orders = [multistep_order(levels, i, order, lower_order_final) for i in range(steps)]
    ends = list(itertools.pairwise(levels))
    corrected = [corrector and i < steps - 1 and kind.corrects(s, t, t) for i, (s, t) in enumerate(ends)]
    for i in range(steps):
        s = levels[i]
        predict = _step(X, levels, i, orders[i], kind, solver_type)
        if i > 0 and corrected[i - 1]:
            correct = _step(START, levels, i - 1, orders[i - 1], kind, solver_type, corrects=True)
            yield Stage(i, s.sigma, correct, kind.of(s))
            yield Stage(i, None, predict, completes=not corrected[i])
        else:
            yield Stage(i, s.sigma, predict, kind.of(s), completes=not corrected[i])


def _step(
    x: Combination, levels: Levels, i: int, order: int, kind: Prediction, solver_type: str, corrects: bool = False
) -> Combination:
    """The step from levels[i] to levels[i + 1]; as a corrector it knows the prediction at its end, P[0]."""
    if not finite_step(levels[i], levels[i + 1]):
        return taylor_data(x, levels[i], levels[i + 1], DENOISED)
    while True:
        step = _step_of_order(x, levels, i, order, kind, solver_type, corrects)
        if order == 1 or _magnification(step) <= LARGEST_MAGNIFICATION:
            return step
        order -= 1


def _magnification(step: Combination) -> float:
    """How much more the predictions count one by one than together."""
    counts = [value(c) for key, c in step.terms.items() if key >= 0]
    return sum(map(abs, counts)) / abs(sum(counts)) if sum(counts) else math.inf


def _step_of_order(
    x: Combination, levels: Levels, i: int, order: int, kind: Prediction, solver_type: str, corrects: bool
) -> Combination:
    s, t = levels[i], levels[i + 1]
    h = t.lam - s.lam
    z = -h if kind is DATA else h
    m = P[1:] if corrects else P
    nodes = [(levels[i - k].lam - s.lam) / h for k in range(1, order)]
    differences = [(m[k] - m[0]) / r for k, r in enumerate(nodes, start=1)]
    if corrects:
        nodes.append(1.0)
        differences.append(P[0] - m[0])

    scale = z if solver_type == "bh1" else expm1(z)
    if len(nodes) == 1:
        rho: Sequence[Scalar] = (0.5,)
    else:
        moments = [math.factorial(k) * z * phi(k + 1, z) / scale for k in range(1, len(nodes) + 1)]
        rho = solve([[r**power for r in nodes] for power in range(len(nodes))], moments)

    x_t = kind.taylor(x, s, t, m[0])
    weight = t.alpha if kind is DATA else t.sigma
    for c, difference in zip(rho, differences, strict=True):
        x_t -= (weight * scale * c) * difference
    return x_t


def solve(matrix: list[list[Scalar]], right: list[Scalar]) -> list[Scalar]:
    """The solution of a small linear system by elimination, on floats or scalars of torch alike."""
    rows = [[*row, b] for row, b in zip(matrix, right, strict=True)]
    for j in range(len(rows)):
        pivot = max(range(j, len(rows)), key=lambda i: abs(value(rows[i][j])))
        rows[j], rows[pivot] = rows[pivot], rows[j]
        rows[j] = [c / rows[j][j] for c in rows[j]]
        for i in range(len(rows)):
            if i != j:
                rows[i] = [a - rows[i][j] * b for a, b in zip(rows[i], rows[j], strict=True)]
    return [row[-1] for row in rows]
