"""Ancestral samplers: a step of the ODE down to sigma_d (sigma_down), below the next level, then added noise up to it.

A sample at level d, below t, becomes one at t by rescaling and added noise, which is exact in both spaces:

    x_t = (alpha_t / alpha_d) x_d + sqrt(sigma_t^2 - (alpha_t sigma_d / alpha_d)^2) z.

Samplers differ in how far below t they go and in how they get there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from ..levels import Level, Levels
from ..options import Bounds
from ..phi import Scalar, exp, log, sqrt, value
from ..plan import Noise, Stage
from ..processes import stable_diffusion_sigma, stable_diffusion_time
from ..sampler import sampler
from .dpm_solver import DATA, Form, R, finite_step, step_1s, step_2s

SigmaDown = Callable[[Level, Level], Level]
"""sigma_down(s, t): the level that the step from s to t goes down to, before noise is added."""

Eta = Annotated[
    float, Bounds(0.0, 10.0), "Amount of added noise. 0: none, a deterministic sampler; 1: the full noise of the SDE."
]
AncestralStep = Annotated[
    Literal["posterior", "linear"],
    "How much of the noise is replaced at a given eta. posterior: as in DDIM; linear: as ComfyUI does for SD3, Flux "
    "and other flow models.",
]


def added_noise(variance: Scalar, s: Level, t: Level) -> Noise | None:
    """Noise of this variance for the step from s to t; None where there is none to add, but for rounding.

    Raises:
        ValueError: if the step ascends: an inversion is deterministic.
    """
    if value(variance) == 0:
        return None
    if value(t.lam) < value(s.lam):
        raise ValueError(
            f"the step from sigma = {value(s.sigma):g} up to {value(t.sigma):g} cannot add noise: to invert an "
            "image set the option for it (eta, gamma, s_churn, restarts) to 0, or take a sampler without noise"
        )
    if value(variance) < 0:  # a difference of squares that are nearly equal
        return None
    return Noise(sqrt(variance), s.sigma, t.sigma)


def ancestral(stage: Stage, s: Level, d: Level, t: Level) -> Stage:
    """The stage of a step from s that ends at d as an ancestral one: added noise takes the sample up to t."""
    if d is t:
        return stage
    rescale = t.alpha / d.alpha
    kept = rescale * d.sigma
    return stage._replace(update=rescale * stage.update, noise=added_noise((t.sigma - kept) * (t.sigma + kept), s, t))


def posterior(levels: Levels, eta: float) -> SigmaDown:
    """Down to where the noise kept has variance sigma_t^2 (1 - eta^2 (1 - e^(-2h))): DDPM's posterior at eta = 1.

    Song, Meng, Ermon 2020 (DDIM), arXiv 2010.02502, eq. 16. For eta above 1 none is kept where the formula would make
    the variance negative.
    """

    def sigma_down(s: Level, t: Level) -> Level:
        if eta == 0 or value(t.sigma) == 0:
            return t
        kept = 1 - eta**2 + eta**2 * (exp(-2 * (t.lam - s.lam)) if finite_step(s, t) else 0.0)
        return levels.at_lambda(t.lam - log(kept) / 2) if value(kept) > 0 else levels.at_sigma(0.0)

    return sigma_down


def linear(levels: Levels, eta: float) -> SigmaDown:
    """Down to sigma_t (1 - eta (1 - sigma_t / sigma_s)): ComfyUI's choice for rectified flow."""

    def sigma_down(s: Level, t: Level) -> Level:
        if eta == 0 or value(t.sigma) == 0:
            return t
        sigma = t.sigma * (1 - eta * (1 - t.sigma / s.sigma))
        return levels.at_sigma(sigma if value(sigma) > 0 else 0.0)

    return sigma_down


SIGMA_DOWN: dict[str, Callable[[Levels, float], SigmaDown]] = {"posterior": posterior, "linear": linear}


def _first_order(levels: Levels, sigma_down: SigmaDown) -> Iterator[Stage]:
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        d = sigma_down(s, t)
        for stage in step_1s(i, s, d, DATA):
            yield ancestral(stage, s, d, t)


@sampler(
    "DDIM (DPM-Solver++ 1)",
    paper="Song et al. 2020, arXiv 2010.02502",
    help="First order, the Euler method in sigma. Robust, with soft images; good at very strong guidance.",
    order=1,
    curated=True,
)
def ddim(
    levels: Levels,
    *,
    eta: Annotated[float, Bounds(0.0, 10.0), "Amount of added noise. 0: deterministic; 1: DDPM."] = 0.0,
) -> Iterator[Stage]:
    """DDIM, which is DPM-Solver++ of order 1 and, at eta = 0 in sigma space, the Euler method:

        x_t = alpha_t D_s + sqrt(sigma_t^2 - v) eps_s + sqrt(v) z,    v = eta^2 sigma_t^2 (1 - e^(-2h)).

    At eta = 0 it is deterministic, at eta = 1 it is DDPM. Song, Meng, Ermon 2020, arXiv 2010.02502, eq. 12 and 16;
    Lu et al. 2022, arXiv 2211.01095, eq. 12.
    """
    return _first_order(levels, posterior(levels, eta))


@sampler(
    "DDPM",
    paper="Ho et al. 2020, arXiv 2006.11239",
    help="The original ancestral sampler: ddim with eta = 1. For many steps.",
    order=1,
)
def ddpm(levels: Levels) -> Iterator[Stage]:
    """DDPM's ancestral sampling, with the variance of the posterior: DDIM at eta = 1, the reverse SDE at order 1.

    Ho, Jain, Abbeel 2020, arXiv 2006.11239, Algorithm 2, from any level to any other.
    """
    return ddim(levels, eta=1.0)


@sampler(
    "Euler ancestral",
    paper="Song et al. 2020, arXiv 2010.02502",
    help="First order, with noise added at every step. Varied images, which change with the number of steps.",
    order=1,
    curated=True,
)
def euler_ancestral(levels: Levels, *, eta: Eta = 1.0, ancestral_step: AncestralStep = "posterior") -> Iterator[Stage]:
    """Euler's method down to sigma_d, then noise up to sigma_t. In EDM space

        sigma_up = eta sigma_t sqrt(1 - (sigma_t / sigma_s)^2),    sigma_d = sqrt(sigma_t^2 - sigma_up^2),

    which is DDIM with the same eta. `linear` takes sigma_d = sigma_t (1 - eta (1 - sigma_t / sigma_s)), as ComfyUI does
    for rectified flow; in EDM space the two agree at eta = 1.
    k-diffusion, after Song et al. 2020, arXiv 2010.02502; Euler: Karras et al. 2022, arXiv 2206.00364.
    """
    return _first_order(levels, SIGMA_DOWN[ancestral_step](levels, eta))


@sampler(
    "DPM-Solver++ 2S ancestral",
    paper="Lu et al. 2022, arXiv 2211.01095",
    help="Second-order steps with ancestral noise, two evaluations a step. Varied, detailed images.",
    order=2,
)
def dpmpp_2s_ancestral(
    levels: Levels,
    *,
    eta: Eta = 1.0,
    r: R = 0.5,
    solver_type: Form = "midpoint",
    ancestral_step: AncestralStep = "posterior",
) -> Iterator[Stage]:
    """DPM-Solver++(2S) down to sigma_d, then noise up to sigma_t: two evaluations a step.

    The step to d is that of `dpmpp_2s`, order 1 where it is infinite in lambda; d as in `euler_ancestral`.
    Lu et al. 2022, arXiv 2211.01095, Algorithm 1; k-diffusion.
    """
    sigma_down = SIGMA_DOWN[ancestral_step](levels, eta)
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        d = sigma_down(s, t)
        step = step_1s(i, s, d, DATA)
        if finite_step(s, d):
            step = step_2s(i, (s, levels.between(s, d, r), d), DATA, solver_type, r)
        for stage in step:
            yield ancestral(stage, s, d, t) if stage.completes else stage


@sampler(
    "Consistency (LCM, TCD)",
    paper="Song et al. 2023, arXiv 2303.01469; Luo et al. 2023, arXiv 2310.04378; Zheng et al. 2024, arXiv 2402.19159",
    help="For distilled models (LCM, TCD, DMD2) at 2 to 8 steps and guidance 1 to 2, on the schedule trained.",
    order=1,
    curated=True,
)
def consistency(
    levels: Levels,
    *,
    gamma: Annotated[
        float, Bounds(0.0, 1.0), "Amount of added noise. 1: LCM; 0: deterministic; TCD recommends 0.3."
    ] = 1.0,
    gamma_of: Annotated[
        Literal["time", "sigma"],
        "What gamma is a share of. time: that of Stable Diffusion, as in TCD; sigma: the noise level. For flow models "
        "both are the same.",
    ] = "time",
) -> Iterator[Stage]:
    """Multistep consistency sampling, for distilled models (LCM, TCD, DMD2): down to (1 - gamma) of t, noise up to t.

        gamma = 1: x_t = alpha_t D_s + sigma_t z (consistency models, LCM);    gamma = 0: DDIM, deterministic.

    (1 - gamma) of the time, as in TCD's strategic stochastic sampling: that of Stable Diffusion, for which TCD
    was made, or sigma itself for rectified flow. With `gamma_of="sigma"` it is of sigma in both spaces.
    Song et al. 2023, arXiv 2303.01469, Algorithm 1; Luo et al. 2023, arXiv 2310.04378; Zheng et al. 2024,
    arXiv 2402.19159, Algorithm 2.
    """

    def sigma_down(s: Level, t: Level) -> Level:
        if gamma == 0 or value(t.sigma) == 0:
            return t
        if gamma_of == "sigma" or levels.flow:
            return levels.at_sigma((1 - gamma) * t.sigma)
        return levels.at_sigma(stable_diffusion_sigma((1 - gamma) * stable_diffusion_time(t.sigma)))

    return _first_order(levels, sigma_down)
