"""SDE-DPM-Solver++: exponential integrators of the reverse SDE, from one to three predictions of the data.

The family of SDEs that share the marginals of the probability-flow ODE is, with the amount of noise eta,

    x_t = (sigma_t / sigma_s) e^(-eta h) x_s + sigma_t sqrt(1 - e^(-2 eta h)) z
          + alpha_t * integral from lambda_s to lambda_t of e^-(1 + eta)(lambda_t - lambda) (1 + eta) D(lambda) dlambda.

At eta = 0 it is the ODE, at eta = 1 the reverse SDE of the diffusion. A solver puts a polynomial in the place of D,
just as for the ODE: `taylor_data` with eta.

    C. Lu, Y. Zhou, F. Bao, J. Chen, C. Li, J. Zhu: DPM-Solver++: Fast Solver for Guided Sampling of Diffusion
    Probabilistic Models. 2022, arXiv 2211.01095.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from ..levels import Level, Levels
from ..phi import Scalar, expm1
from ..plan import START, Noise, P, Stage, X
from ..sampler import sampler
from .ancestral import Eta, added_noise, ancestral, posterior
from .dpm_solver import DATA, Curvature, Form, Prediction, R, finite_step, multistep, step_1s, taylor_data


def _prediction(eta: float) -> Prediction:
    """The data prediction under the SDE with noise eta."""
    taylor = partial(taylor_data, eta=eta)
    return Prediction(taylor, DATA.of, first_order=taylor)


def sde_noise(eta: float, s: Level, t: Level) -> Noise | None:
    """sigma_t sqrt(1 - e^(-2 eta h)) z."""
    if eta == 0:
        return None
    kept: Scalar = expm1(-2 * eta * (t.lam - s.lam)) if finite_step(s, t) else -1.0
    return added_noise(t.sigma**2 * -kept, s, t)


def _multistep_sde(levels: Levels, order: int, eta: float, *, midpoint: bool, half_curvature: bool) -> Iterator[Stage]:
    for stage in multistep(levels, _prediction(eta), order, midpoint=midpoint, half_curvature=half_curvature):
        s, t = levels[stage.step], levels[stage.step + 1]
        yield stage._replace(noise=sde_noise(eta, s, t))


@sampler(
    "DPM-Solver++ 2M SDE",
    paper="Lu et al. 2022, arXiv 2211.01095",
    help="Second order with added noise, one evaluation a step. Livelier detail. For 12 steps or more.",
    order=2,
    curated=True,
)
def dpmpp_2m_sde(levels: Levels, *, eta: Eta = 1.0, solver_type: Form = "midpoint") -> Iterator[Stage]:
    """SDE-DPM-Solver++(2M): one evaluation a step, a line through the last two predictions.

        x_t = (sigma_t / sigma_s) e^(-eta h) x_s + alpha_t (1 - e^-H) (D_0 + d / 2) + noise          (midpoint)
        x_t = (sigma_t / sigma_s) e^(-eta h) x_s + alpha_t H (phi_1(-H) D_0 + phi_2(-H) d) + noise   (heun)

    with H = (1 + eta) h and d = (h / h_1) (D_0 - D_1). The paper has eta = 1 and the midpoint form.
    Lu et al. 2022, arXiv 2211.01095, section 5 and appendix; other eta: k-diffusion.
    """
    return _multistep_sde(levels, 2, eta, midpoint=solver_type == "midpoint", half_curvature=False)


@sampler(
    "DPM-Solver++ 3M SDE",
    paper="Lu et al. 2022, arXiv 2211.01095",
    help="Third order with added noise, one evaluation a step. For 20 steps or more; below 12 the image breaks.",
    order=3,
)
def dpmpp_3m_sde(levels: Levels, *, eta: Eta = 1.0, solver_type: Curvature = "published") -> Iterator[Stage]:
    """SDE-DPM-Solver++(3M): one evaluation a step, a parabola through the last three predictions.

        x_t = (sigma_t / sigma_s) e^(-eta h) x_s + alpha_t H (phi_1(-H) D_0 + phi_2(-H) d_1 + phi_3(-H) d_2) + noise

    The order rises over the first two steps, the second in the heun form. `published` takes half the curvature d_2, as
    k-diffusion does, `exact` all of it (see `dpmpp_3m`). diffusers' third-order `sde-dpmsolver++` has a wrong sign.
    Lu et al. 2022, arXiv 2211.01095; k-diffusion.
    """
    return _multistep_sde(levels, 3, eta, midpoint=False, half_curvature=solver_type == "published")


@sampler(
    "DPM-Solver++ SDE",
    paper="Lu et al. 2022, arXiv 2211.01095",
    help="Second order with added noise, two evaluations a step. Tolerates strong guidance.",
    order=2,
    curated=True,
)
def dpmpp_sde(levels: Levels, *, eta: Eta = 1.0, r: R = 0.5) -> Iterator[Stage]:
    """SDE-DPM-Solver++ singlestep: two evaluations a step, at s and at lambda_u = lambda_s + r h, both ancestral.

        x_u = (step of order 1 from s to sigma_down of u) + noise up to u
        x_t = (step of order 1 from s to sigma_down of t, for (1 - 1/(2r)) D_s + 1/(2r) D_u) + noise up to t

    sigma_down is that of DDIM. The noise of both comes from one path: the way to t goes on from that to u.
    k-diffusion, after Lu et al. 2022, arXiv 2211.01095.
    """
    sigma_down = posterior(levels, eta)
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        d = sigma_down(s, t)
        if not finite_step(s, t):
            yield from (ancestral(stage, s, d, t) for stage in step_1s(i, s, d, DATA))
            continue
        u = levels.between(s, t, r)
        d_u = sigma_down(s, u)
        yield ancestral(Stage(i, s.sigma, taylor_data(X, s, d_u, P[0]), completes=False), s, d_u, u)
        yield ancestral(Stage(i, u.sigma, taylor_data(START, s, d, P[1] + (P[0] - P[1]) / (2 * r))), s, d, t)
