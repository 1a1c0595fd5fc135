"""Exponential Runge-Kutta methods, of the ODE (RES) and of the SDE (SEEDS), from their tableaus.

In lambda, and in units of the data, y = x / alpha follows y' = D - y. A method with the nodes c_i takes

    y_i = e^(-c_i h) y_s + h (c_i phi_1(-c_i h) D_1 + sum over j = 2 ... i - 1 of a_ij(-h) (D_j - D_1))

at lambda_s + c_i h, evaluates D_i there, and ends with a line of the same form, c = 1 and b_j in the place of a_ij. Its
order does not depend on how stiff the equation is, that is on how long a step in lambda is, if the functions a_ij and
b_j fulfil the stiff order conditions. Under the SDE with noise eta (see sde.py) h is H = (1 + eta) h in all of them,
and what noise has moved the sample at one node is carried on to the next.

    M. Hochbruck, A. Ostermann: Explicit Exponential Runge-Kutta Methods for Semilinear Parabolic Problems. SIAM Journal
    on Numerical Analysis 43, 2005.
    Q. Zhang, J. Song, Y. Chen: Improved Order Analysis and Design of Exponential Integrator for Diffusion Models
    Sampling (RES). 2023, arXiv 2308.02157.
    M. Gonzalez, N. Fernandez, T. Tran, E. Gherbi, H. Hajri, N. Masmoudi: SEEDS: Exponential SDE Solvers for Fast
    High-Quality Sampling from Diffusion Models. 2023, arXiv 2305.14267.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, NamedTuple

from ..levels import Level, Levels
from ..options import Bounds
from ..phi import Scalar, exp, phi, value
from ..plan import DENOISED, START, Combination, P, Stage, X
from ..sampler import sampler
from .ancestral import SIGMA_DOWN, AncestralStep, Eta, ancestral
from .dpm_solver import DATA, R1, R2, Form, LowerOrderFinal, R, finite_step, multistep, taylor_data
from .sde import sde_noise

C2 = Annotated[float, Bounds(0.05, 1.0), "Where in the step (in log-SNR) the second evaluation lies."]
C3 = Annotated[float, Bounds(0.05, 1.0), "Where in the step the third evaluation lies. It must differ from c2."]


class Tableau(NamedTuple):
    """The coefficients of an explicit exponential Runge-Kutta method."""

    nodes: tuple[float, ...]
    """c_2, c_3 ... Under an SDE they must ascend."""

    weights: Callable[[Callable[..., Scalar]], Sequence[Sequence[Scalar]]]
    """From p(k) = phi_k(z) and p(k, c) = phi_k(c z): the rows (a_32), (a_42, a_43) ... and at last (b_2, b_3 ...)."""


def tableau_2(c2: float) -> Tableau:
    """Order 2, two stages. Hochbruck and Ostermann 2005, eq. 5.3."""
    return Tableau((c2,), lambda p: ((p(2) / c2,),))


def tableau_2_weak(c2: float) -> Tableau:
    """Order 2 with phi_1 alone: b_2 = phi_1 / (2 c_2). Eq. 5.4 there; `midpoint` of DPM-Solver++."""
    return Tableau((c2,), lambda p: ((p(1) / (2 * c2),),))


def tableau_3(c2: float, c3: float) -> Tableau:
    """Order 3, three stages. Hochbruck and Ostermann 2005, eq. 5.8, with 2 (g c_2 + c_3) = 3 (g c_2^2 + c_3^2).

    Raises:
        ValueError: if there is none with these nodes.
    """
    if abs(c2 - 2 / 3) < 1e-3 or abs(c2 - c3) < 1e-3:
        raise ValueError(f"c2 = {c2:g} and c3 = {c3:g} make no method of order 3: c2 must be neither 2/3 nor c3")
    g = (3 * c3**2 - 2 * c3) / (c2 * (2 - 3 * c2))

    def weights(p: Callable[..., Scalar]) -> Sequence[Sequence[Scalar]]:
        b3 = p(2) / (g * c2 + c3)
        return (g * c2 * p(2, c2) + c3**2 / c2 * p(2, c3),), (g * b3, b3)

    return Tableau((c2, c3), weights)


def tableau_3_weak(c2: float, c3: float) -> Tableau:
    """DPM-Solver++ 3S in the form `midpoint`: the prediction at c_2 drops out. Order 3 for c_3 = 2/3: eq. 5.9 there."""
    return Tableau((c2, c3), lambda p: ((c3**2 / c2 * p(2, c3),), (0.0, p(2) / c3)))


def _weights_5(p: Callable[..., Scalar]) -> Sequence[Sequence[Scalar]]:
    a52 = p(2, 0.5) / 2 - p(3) + p(2) / 4 - p(3, 0.5) / 2
    b4, b5 = 4 * p(3) - p(2), 4 * p(2) - 8 * p(3)
    return (p(2, 0.5),), (p(2), p(2)), (a52, a52, p(2, 0.5) / 4 - a52), (0.0, 0.0, b4, b5)


TABLEAU_5 = Tableau((1 / 2, 1 / 2, 1.0, 1 / 2), _weights_5)
"""Order 4, five stages. Hochbruck and Ostermann 2005, eq. 5.19."""


def _weights_6(p: Callable[..., Scalar]) -> Sequence[Sequence[Scalar]]:
    c3, c4, c5, c6 = TABLEAU_6.nodes[1:]

    def through(c: float, u: float, v: float) -> tuple[Scalar, Scalar]:
        """c (phi_2(c z) d_1 + phi_3(c z) d_2) for the parabola through the predictions at 0, u and v."""
        first, second = c**2 * p(2, c), 2 * c**3 * p(3, c)
        return (second - v * first) / (u * (u - v)), (second - u * first) / (v * (v - u))

    a63, a64 = through(c6, c3, c4)
    a65 = (c6**2 * p(2, c6) - a63 * c3 - a64 * c4) / c5
    return (
        (c3**2 / TABLEAU_6.nodes[0] * p(2, c3),),
        (c4**2 / TABLEAU_6.nodes[0] * p(2, c4), 0.0),
        (0.0, *through(c5, c3, c4)),
        (0.0, a63, a64, a65),
        (0.0, 0.0, 0.0, *through(1.0, c5, c6)),
    )


TABLEAU_6 = Tableau((1 / 2, 1 / 2, 1 / 3, 1 / 3, 5 / 6), _weights_6)
"""Order 4, six stages. V. T. Luan: Efficient Exponential Runge-Kutta Methods of High Order. BIT 61, 2021,
`expRK4s6`."""


def exponential_runge_kutta(levels: Levels, tableau: Tableau, eta: float = 0.0) -> Iterator[Stage]:
    """One step of the method from each level to the next, with as many evaluations as it has stages.

    A step to sigma = 0, or out of pure noise, is of order 1, its exact limit.
    """
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        if not finite_step(s, t):
            yield Stage(i, s.sigma, taylor_data(X, s, t, DENOISED, eta=eta), noise=sde_noise(eta, s, t))
            continue
        damped = (1 + eta) * (t.lam - s.lam)
        rows = ((), *tableau.weights(partial(_phi, -damped)))
        ends = [*((c, t if c == 1 else levels.between(s, t, c)) for c in tableau.nodes), (1.0, t)]

        u = s
        for k, (_, end) in enumerate(ends):
            x = _mean(s, *ends[k], rows[k], eta, damped, newest=k)
            if eta and k:
                moved = X - _mean(s, *ends[k - 1], rows[k - 1], eta, damped, newest=k)
                x += (end.sigma / u.sigma * exp(-eta * (end.lam - u.lam))) * moved
            yield Stage(i, u.sigma, x, completes=k == len(ends) - 1, noise=sde_noise(eta, u, end))
            u = end


def _phi(z: Scalar, k: int, c: float = 1.0) -> Scalar:
    return phi(k, c * z)


def _mean(
    s: Level, c: float, end: Level, row: Sequence[Scalar], eta: float, damped: Scalar, *, newest: int
) -> Combination:
    """The sample at a node without noise, with `row` for the predictions from the second on. `newest` is the number of
    the newest prediction of the step."""
    first = c * phi(1, -c * damped) - sum(row)
    weights = [first if value(first) else 0.0, *row]  # of `midpoint` at r = 1/2 it drops out, and its gradient
    slope = sum((w * Combination({newest - j: 1.0}) for j, w in enumerate(weights)), start=0.0 * X)
    return (end.sigma / s.sigma * exp(-eta * (end.lam - s.lam))) * START + (end.alpha * damped) * slope


@sampler(
    "RES 2S",
    paper="Zhang et al. 2023, arXiv 2308.02157",
    help="Second order, two evaluations a step: the exponential Runge-Kutta method of RES4LYF. Tolerates strong "
    "guidance, as dpmpp_2s does.",
    order=2,
    curated=True,
)
def res_2s(levels: Levels, *, c2: C2 = 0.5) -> Iterator[Stage]:
    """RES with two stages, at s and at lambda_s + c_2 h:

        x_t = (sigma_t / sigma_s) x_s + alpha_t h (phi_1(-h) D_s + phi_2(-h) (D_u - D_s) / c_2)

    which is `dpmpp_2s` in the form `heun` with r = c_2. Zhang, Song, Chen 2023, arXiv 2308.02157, Algorithm 1.
    """
    return exponential_runge_kutta(levels, tableau_2(c2))


@sampler(
    "RES 3S",
    paper="Zhang et al. 2023, arXiv 2308.02157",
    help="Third order, three evaluations a step. For exact results with many evaluations.",
    order=3,
)
def res_3s(levels: Levels, *, c2: C2 = 0.5, c3: C3 = 1.0) -> Iterator[Stage]:
    """RES with three stages, at s, lambda_s + c_2 h and lambda_s + c_3 h: order 3 for all c_2 and c_3 but c_2 = 2/3 or
    c_3.

    At c_3 = 2/3 it is `dpmpp_3s`. RES4LYF has c_3^3 in the place of c_3^2 in its g, which is the same for c_3 = 1 only.
    Zhang, Song, Chen 2023, arXiv 2308.02157; Hochbruck and Ostermann 2005, eq. 5.8.

    Raises:
        ValueError: if there is no method with these nodes.
    """
    return exponential_runge_kutta(levels, tableau_3(c2, c3))


@sampler(
    "RES 5S",
    paper="Hochbruck and Ostermann 2005, doi 10.1137/040611434",
    help="Fourth order, five evaluations a step. For reference images with very many evaluations.",
    order=4,
)
def res_5s(levels: Levels) -> Iterator[Stage]:
    """The exponential Runge-Kutta method of order 4 with five stages, at 0, 1/2, 1/2, 1 and 1/2 of the step.

    Hochbruck and Ostermann 2005, eq. 5.19.
    """
    return exponential_runge_kutta(levels, TABLEAU_5)


@sampler(
    "RES 6S",
    paper="Luan 2021, doi 10.1007/s10543-020-00834-z",
    help="Fourth order, six evaluations a step, about as exact as res_5s with the same number of "
    "evaluations. For reference images.",
    order=4,
)
def res_6s(levels: Levels) -> Iterator[Stage]:
    """The exponential Runge-Kutta method of order 4 with six stages, at 0, 1/2, 1/2, 1/3, 1/3 and 5/6 of the step.

    Luan 2021, BIT 61, `expRK4s6`.
    """
    return exponential_runge_kutta(levels, TABLEAU_6)


@sampler(
    "RES multistep",
    paper="Zhang et al. 2023, arXiv 2308.02157",
    help="Second order at one evaluation a step: ComfyUI's res_multistep and the res_2m of RES4LYF; order 3 is its "
    "res_3m. Close to dpmpp_2m.",
    order=2,
    curated=True,
)
def res_multistep(
    levels: Levels,
    *,
    order: Annotated[int, Bounds(1, 3), "Number of predictions used."] = 2,
    lower_order_final: LowerOrderFinal = False,
) -> Iterator[Stage]:
    """RES, multistep, with exact phi functions: `dpmpp_2m` in the form `heun`, at order 3 `dpmpp_3m` in the form
    `exact`.

        x_t = (sigma_t / sigma_s) x_s + alpha_t h (phi_1(-h) D_0 + phi_2(-h) (h / h_1) (D_0 - D_1))

    Zhang, Song, Chen 2023, arXiv 2308.02157, Algorithm 2.
    """
    return multistep(levels, DATA, order, lower_order_final=lower_order_final)


@sampler(
    "RES multistep ancestral",
    paper="Zhang et al. 2023, arXiv 2308.02157",
    help="res_multistep with ancestral noise, one evaluation a step. Varied; the image changes with the number "
    "of steps.",
    order=2,
)
def res_multistep_ancestral(
    levels: Levels, *, eta: Eta = 1.0, ancestral_step: AncestralStep = "posterior"
) -> Iterator[Stage]:
    """`res_multistep` of order 2 down to sigma_d, then noise up to sigma_t: one evaluation a step.

    The slope is taken over the way that the sample went: from the level before down to the sigma_d of that step, from
    which noise brought it up to s. So the variance of the samples has order 2; over the distance of the levels it has
    order 1. d as in `euler_ancestral`. ComfyUI, after Zhang, Song, Chen 2023, arXiv 2308.02157, Algorithm 2.
    """
    sigma_down, past = SIGMA_DOWN[ancestral_step](levels, eta), levels[0]
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        d = sigma_down(s, t)
        derivatives = [P[0]]
        if finite_step(s, d) and i > 0 and finite_step(levels[i - 1], past):
            derivatives.append((P[0] - P[1]) * ((d.lam - s.lam) / (past.lam - levels[i - 1].lam)))
        yield ancestral(Stage(i, s.sigma, taylor_data(X, s, d, *derivatives)), s, d, t)
        past = d


@sampler(
    "SEEDS 2",
    paper="Gonzalez et al. 2023, arXiv 2305.14267",
    help="Second-order steps with added noise, two evaluations a step. Varied and detailed, as dpmpp_sde; at eta = 0 "
    "it is dpmpp_2s.",
    order=2,
    curated=True,
)
def seeds_2(levels: Levels, *, eta: Eta = 1.0, r: R = 0.5, solver_type: Form = "midpoint") -> Iterator[Stage]:
    """SEEDS-2, an exponential Runge-Kutta method of the SDE: two evaluations a step, at s and at lambda_u = lambda_s +
    r h.

        x_u = (sigma_u / sigma_s) e^(-eta r h) x_s + alpha_u (1 - e^(-r H)) D_s + n_u
        x_t = (sigma_t / sigma_s) e^(-eta h) x_s + alpha_t (1 - e^-H) ((1 - 1/(2r)) D_s + 1/(2r) D_u) + n_t
        (midpoint)

    with H = (1 + eta) h; `heun` has phi_2 as in `dpmpp_2s`. n_u is the noise of the SDE from s to u, n_t what is left
    of it at t and new noise from u to t. At eta = 0 it is `dpmpp_2s`.
    Gonzalez et al. 2023, arXiv 2305.14267, Algorithm 2.
    """
    return exponential_runge_kutta(levels, tableau_2_weak(r) if solver_type == "midpoint" else tableau_2(r), eta)


@sampler(
    "SEEDS 3",
    paper="Gonzalez et al. 2023, arXiv 2305.14267",
    help="Third-order steps with added noise, three evaluations a step. For many steps.",
    order=3,
)
def seeds_3(levels: Levels, *, eta: Eta = 1.0, r1: R1 = 1 / 3, r2: R2 = 2 / 3) -> Iterator[Stage]:
    """SEEDS-3, an exponential Runge-Kutta method of the SDE: three evaluations a step, noise as in `seeds_2`.

    At eta = 0 it is `dpmpp_3s`. Gonzalez et al. 2023, arXiv 2305.14267, Algorithm 3.

    Raises:
        ValueError: if r1 is not smaller than r2.
    """
    if not r1 < r2:
        raise ValueError(f"r1 = {r1:g} must be smaller than r2 = {r2:g}")
    return exponential_runge_kutta(levels, tableau_3_weak(r1, r2), eta)


@sampler(
    "Exponential Heun 2",
    paper="Hochbruck and Ostermann 2005, doi 10.1137/040611434",
    help="Second order, two evaluations a step, the second at its end: dpmpp_2s with r = 1 and solver_type = heun.",
    order=2,
)
def exp_heun_2_x0(levels: Levels, *, solver_type: Form = "heun") -> Iterator[Stage]:
    """Heun's method as an exponential integrator of the data prediction: `seeds_2` with r = 1 and eta = 0.

    ComfyUI calls the forms phi_1 (midpoint) and phi_2 (heun). Hochbruck and Ostermann 2005, eq. 5.3.
    """
    return seeds_2(levels, eta=0.0, r=1.0, solver_type=solver_type)


@sampler(
    "Exponential Heun 2 SDE",
    paper="Gonzalez et al. 2023, arXiv 2305.14267",
    help="exp_heun_2_x0 with added noise: seeds_2 with r = 1 and solver_type = heun.",
    order=2,
)
def exp_heun_2_x0_sde(levels: Levels, *, eta: Eta = 1.0, solver_type: Form = "heun") -> Iterator[Stage]:
    """The same under the SDE: `seeds_2` with r = 1. Gonzalez et al. 2023, arXiv 2305.14267, Algorithm 2."""
    return seeds_2(levels, eta=eta, r=1.0, solver_type=solver_type)
