"""ER-SDE-Solver: multistep exponential integrators of SDEs whose noise is a function of the level.

With v = sigma / alpha and y = x / alpha, every SDE with the marginals of the diffusion belongs to a noise scale phi(v):

    y_t = (phi(v_t) / phi(v_s)) y_s + phi(v_t) * integral from v_t to v_s of (phi'(v) / phi(v)^2) D(v) dv + noise of
    variance
          v_t^2 - v_s^2 (phi(v_t) / phi(v_s))^2.

phi(v) = v is the ODE, v^2 the reverse SDE, v^(1 + eta) that of sde.py. A solver puts a polynomial in v in the place of
D.

    Q. Cui, X. Zhang, Q. Bao, Q. Liao: Elucidating the Solution Space of Extended Reverse-Time SDE for Diffusion Models.
    2023, arXiv 2309.06169.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from ..levels import Level, Levels
from ..options import Bounds
from ..phi import Scalar, exp, expm1, log1p
from ..plan import Combination, P, Stage, X
from ..sampler import sampler
from .adams import gauss_legendre
from .ancestral import Eta, added_noise
from .dpm_solver import Curvature, finite_step, multistep_order


class NoiseScale:
    """phi(v) = v psi(v)^eta, with psi(v) = e^(v^0.3) + 10 (er, the paper's) or v (sde); v = e^-lambda."""

    def __init__(self, kind: str, eta: float):
        self._er, self._eta = kind == "er", eta

    def log_psi(self, lam: Scalar) -> Scalar:
        """eta log psi."""
        if self._eta == 0:
            return 0.0
        if not self._er:
            return -self._eta * lam
        power = exp(-0.3 * lam)
        return self._eta * (power + log1p(10 * exp(-power)))

    def growth(self, lam: Scalar) -> Scalar:
        """d log phi / d log v."""
        if not self._er:
            return 1.0 + self._eta
        power = exp(-0.3 * lam)
        return 1 + self._eta * 0.3 * power / (1 + 10 * exp(-power))

    def moments(self, s: Level, t: Level, count: int) -> list[Scalar]:
        """What the k-th derivative of D by v, at s, adds to x_t, for k = 1 ... count:

            alpha_t phi(v_t) * integral from v_t to v_s of (phi'(v) / phi(v)^2) (v - v_s)^k / k! dv

        by Gauss-Legendre quadrature in log v, where the integrand is smooth.
        """
        totals: list[Scalar] = [0.0] * count
        h, v_s, end = t.lam - s.lam, exp(-s.lam), self.log_psi(t.lam)
        for place, weight in gauss_legendre():
            back = place * h  # of lambda, from t
            lam = t.lam - back
            term = weight * h * t.alpha * self.growth(lam) * exp(-back + end - self.log_psi(lam))
            for k in range(count):
                term = term * (v_s * expm1(s.lam - lam)) / (k + 1)
                totals[k] = totals[k] + term
        return totals


@sampler(
    "ER-SDE",
    paper="Cui et al. 2023, arXiv 2309.06169",
    help="Up to third order with added noise, one evaluation a step; near the image it adds less noise than "
    "dpmpp_2m_sde. Lively detail.",
    order=3,
    curated=True,
)
def er_sde(
    levels: Levels,
    *,
    eta: Eta = 1.0,
    noise_scaler: Annotated[
        Literal["er", "sde"],
        "How much noise is added along the run. er: as in the paper, little at the end; sde: as in dpmpp_2m_sde.",
    ] = "er",
    order: Annotated[int, Bounds(1, 3), "Number of predictions used."] = 3,
    solver_type: Curvature = "published",
) -> Iterator[Stage]:
    """ER-SDE-Solver-3: one evaluation a step, a parabola in v through the last three predictions.

        x_t = (sigma_t / sigma_s) (psi(v_t) / psi(v_s))^eta x_s + ... D_0 + m_1 D' + m_2 D'' + noise

    with phi(v) = v psi(v)^eta and the integrals m_k of the module's formula. The order rises over the first two steps.
    The paper takes the backward difference for D', which leaves a method of order 2: `published`; `exact` takes the
    slope of the parabola at s and has order 3. The paper sums 200 points for the integrals, we take them to rounding.
    eta = 1 and `er` are the paper's ER-SDE 5, eta = 0.5 and `sde` its phi = v^1.5, eta = 0 is the ODE.
    Cui et al. 2023, arXiv 2309.06169, Algorithm 3 and appendix A.8.
    """
    scale = NoiseScale(noise_scaler, eta)
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        change = scale.log_psi(t.lam) - scale.log_psi(s.lam)  # of eta log psi, downwards
        kept = t.sigma / s.sigma * exp(change)
        x_t = kept * X + (t.alpha - s.alpha * kept) * P[0]
        if (now := multistep_order(levels, i, order, False)) > 1 and finite_step(s, t):
            moments = scale.moments(s, t, now - 1)
            derivatives = _derivatives(levels, i, now, exact=solver_type == "exact")
            x_t += sum((m * d for m, d in zip(moments, derivatives, strict=True)), start=0.0 * X)
        yield Stage(i, s.sigma, x_t, noise=added_noise(t.sigma**2 * -expm1(2 * change), s, t))


def _derivatives(levels: Levels, i: int, order: int, *, exact: bool) -> list[Combination]:
    """Those of D by v at level i, from the last `order` predictions."""
    v = [exp(-levels[i - k].lam) for k in range(order)]
    slope = (P[0] - P[1]) / (v[0] - v[1])
    if order == 2:
        return [slope]
    bend = (slope - (P[1] - P[2]) / (v[1] - v[2])) / (v[0] - v[2])
    return [slope + (v[0] - v[1]) * bend if exact else slope, 2.0 * bend]
