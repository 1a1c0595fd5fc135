"""SA-Solver: Adams methods of the SDE, predictor and corrector, with noise that varies along the run.

The SDE of sde.py with eta = tau(t)^2, tau constant within a step. The predictor puts the polynomial through the last
predictions in the place of D, the corrector that through the prediction at the end of the step as well, with the same
noise.

    S. Xue, M. Yi, W. Luo, S. Zhang, J. Sun, Z. Li, Z.-M. Ma: SA-Solver: Stochastic Adams Solver for Fast Sampling of
    Diffusion Models. 2023, arXiv 2309.05019.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated

from ..levels import Level, Levels
from ..options import Bounds
from ..phi import value
from ..plan import START, Combination, Stage, X
from ..processes import stable_diffusion_time
from ..sampler import sampler
from ..schedule import shifted
from .adams import lagrange_polynomials
from .dpm_solver import LowerOrderFinal, finite_step, taylor_data
from .sde import sde_noise


@sampler(
    "SA-Solver",
    paper="Xue et al. 2023, arXiv 2309.05019",
    help="Third order with a corrector, one evaluation a step, and added noise in the middle of the run only. For "
    "detail with many steps.",
    order=3,
    curated=True,
)
def sa_solver(
    levels: Levels,
    *,
    eta: Annotated[
        float, Bounds(0.0, 10.0), "Amount of added noise, the tau of the paper. 0: none; 1: the full noise of the SDE."
    ] = 1.0,
    predictor_order: Annotated[int, Bounds(1, 4), "Number of predictions that the predictor uses."] = 3,
    corrector_order: Annotated[int, Bounds(0, 4), "Number of predictions that the corrector uses. 0: none."] = 4,
    pece: Annotated[bool, "Evaluate the corrected sample again: steadier, two evaluations a step."] = False,
    sde_start: Annotated[float, Bounds(0.0, 1.0), "Share of the model's time after which noise is added."] = 0.2,
    sde_end: Annotated[float, Bounds(0.0, 1.0), "Share of the model's time after which no noise is added."] = 0.8,
    lower_order_final: LowerOrderFinal = True,
) -> Iterator[Stage]:
    """SA-Solver, PEC (one evaluation a step) or PECE (two).

        x_t = (sigma_t / sigma_s) e^(-eta^2 h) x_s + sum of b_j D_j + sigma_t sqrt(1 - e^(-2 eta^2 h)) z

    with b_j the integral of the Lagrange polynomial l_j in lambda against the kernel of the SDE. The predictor uses the
    last p predictions; the corrector of order c that at its end, the last c - 1, and the z of the predictor. So it has
    order min(p + 1, c) at eta = 0. tau = eta where the time of t, 1 at pure noise, is within 1 - sde_start and 1 -
    sde_end, and 0 elsewhere: the time of Stable Diffusion, or in rectified flow that of the model, which is sigma
    before its shift (`levels.shift`). Where a run ends at sigma = 0 its last step but one has order 1 with
    `lower_order_final`, as in ComfyUI. Xue et al. 2023, arXiv 2309.05019, Algorithm 1, eq. 15 and 18.
    """
    steps = len(levels) - 1
    finite = steps if value(levels[steps].sigma) else steps - 1

    low, high = 1 - sde_end, 1 - sde_start
    if levels.flow:
        low, high = shifted(low, levels.shift), shifted(high, levels.shift)

    def tau(t: Level) -> float:
        place = value(t.sigma) if levels.flow else value(stable_diffusion_time(t.sigma)) / 1000
        return eta if low <= place <= high else 0.0

    def most(i: int, order: int) -> int:
        return min(order, finite - i) if lower_order_final else order

    def step(x: Combination, i: int, points: Sequence[tuple[int, int]], evaluated: int) -> Combination:
        """The mean of step i, for the polynomial through the predictions of `points`."""
        s, t = levels[i], levels[i + 1]
        predictions = [Combination({evaluated - 1 - number: 1.0}) for _, number in points]
        nodes = [(levels[k].lam - s.lam) / (t.lam - s.lam) for k, _ in points] if len(points) > 1 else [0.0]
        basis = lagrange_polynomials(nodes)
        derivatives = [
            sum((p[k] * prediction for p, prediction in zip(basis, predictions, strict=True)), start=0.0 * X)
            for k in range(len(points))
        ]
        scaled = (math.factorial(k) * d for k, d in enumerate(derivatives))
        return taylor_data(x, s, t, *scaled, eta=tau(t) ** 2)

    past: list[tuple[int, int]] = []  # level and number of each prediction, newest first
    used: list[tuple[int, int]] = []  # by the predictor of the step before
    evaluated, corrected = 0, False
    for i in range(steps):
        s, t = levels[i], levels[i + 1]
        past.insert(0, (i, evaluated))
        evaluated += 1
        if corrected:
            known = [point for point in past if math.isfinite(value(levels[point[0]].lam))]
            correct = step(START, i - 1, known[: max(most(i - 1, corrector_order), 1)], evaluated)
            if tau(s):  # the noise of the predictor
                correct += X - step(START, i - 1, used, evaluated)
            yield Stage(i, s.sigma, correct)
            if pece:
                past[0] = (i, evaluated)
                evaluated += 1
        known = [point for point in past if math.isfinite(value(levels[point[0]].lam))]
        used = known[: max(most(i, predictor_order), 1)] if finite_step(s, t) else past[:1]
        at_prediction, corrected = (
            not corrected or pece,
            (corrector_order > 0 and i < steps - 1 and finite_step(s, t) and (pece or i + 1 < finite)),
        )
        predict = step(X, i, used, evaluated)
        noise = sde_noise(tau(t) ** 2, s, t)
        yield Stage(i, s.sigma if at_prediction else None, predict, completes=not corrected, noise=noise)
