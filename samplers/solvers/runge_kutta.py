"""Runge-Kutta methods in sigma: the classics that need no special functions.

With the derivative d = (x - D(x, sigma)) / sigma the probability-flow ODE is dx / dsigma = d, in EDM space (where d is
the predicted noise) and in rectified flow (where it is the velocity) alike. A step to sigma = 0 is an Euler step,
x = D: there d has no value.

    T. Karras, M. Aittala, T. Aila, S. Laine: Elucidating the Design Space of Diffusion-Based Generative Models.
    2022, arXiv 2206.00364.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated

from ..levels import Level, Levels
from ..options import Bounds
from ..phi import sqrt, value
from ..plan import DENOISED, START, Combination, P, Stage, X
from ..sampler import sampler
from .ancestral import SIGMA_DOWN, AncestralStep, Eta, added_noise, ancestral
from .dpm_solver import LARGEST_CORRECTION


def derivative(s: Level) -> Combination:
    """d = (x - D) / sigma."""
    return (X - DENOISED) / s.sigma


def slope_corrects(s: Level, u: Level, share: float = 0.5) -> bool:
    """Whether the derivative at u can correct an Euler step from s. If not, the step is too long for it.

    As `noise_corrects` of dpm_solver.py: by a step that gives the derivative at u this share, an image is moved by

        share sigma_s / (alpha_u^2 + sigma_u^2)

    standard deviations of the data. In rectified flow, with sigma_s at most 1, that is never much.
    """
    return share * value(s.sigma / (u.alpha**2 + u.sigma**2)) <= LARGEST_CORRECTION


def euler_step(i: int, s: Level, t: Level) -> Iterator[Stage]:
    """x_s + (sigma_t - sigma_s) d_s, written so that it is D to the last bit at sigma_t = 0."""
    yield Stage(i, s.sigma, (t.sigma / s.sigma) * X + (1 - t.sigma / s.sigma) * DENOISED, derivative(s))


@sampler(
    "Euler",
    paper="Karras et al. 2022, arXiv 2206.00364",
    help="First order, with the same results as ddim.",
    order=1,
)
def euler(levels: Levels) -> Iterator[Stage]:
    """Euler's method: x_t = x_s + (sigma_t - sigma_s) d_s. The same numbers as DDIM.

    Karras et al. 2022, arXiv 2206.00364, Algorithm 1 without its correction; Song et al. 2020, arXiv 2010.02502.
    """
    for i in range(len(levels) - 1):
        yield from euler_step(i, levels[i], levels[i + 1])


@sampler(
    "Heun",
    paper="Karras et al. 2022, arXiv 2206.00364",
    help="Second order in sigma, two evaluations a step. Reliable at low guidance.",
    order=2,
)
def heun(levels: Levels) -> Iterator[Stage]:
    """Heun's method: an Euler step to t, then the step again with the mean of the derivatives at both ends.

        x' = x_s + (sigma_t - sigma_s) d_s,    x_t = x_s + (sigma_t - sigma_s) (d_s + d(x', sigma_t)) / 2

    Karras et al. 2022, arXiv 2206.00364, Algorithm 1. Two evaluations a step, one in the step to 0 and in
    one that is too long.
    """
    for i in range(len(levels) - 1):
        yield from heun_step(i, levels[i], levels[i + 1])


def heun_step(i: int, s: Level, t: Level) -> Iterator[Stage]:
    """Step i of `heun`, from s to t."""
    if t.sigma == 0 or not slope_corrects(s, t):
        yield from euler_step(i, s, t)
        return
    h = t.sigma - s.sigma
    yield Stage(i, s.sigma, X + h * derivative(s), derivative(s), completes=False)
    yield Stage(i, t.sigma, START + (h / 2) * (P[0] + P[1]), derivative(t))


@sampler(
    "EDM (Heun with churn)",
    paper="Karras et al. 2022, arXiv 2206.00364",
    help="Heun with noise added before each step: set s_churn (10 to 40); at 0 it is heun. For many steps.",
    order=2,
)
def edm(
    levels: Levels,
    *,
    s_churn: Annotated[
        float,
        Bounds(0.0, 1000.0),
        "Noise added over the whole run, relative to the level: s_churn / steps before each step, at most 41%.",
    ] = 0.0,
    s_tmin: Annotated[float, Bounds(0.0, 1e4), "No noise is added below this noise level."] = 0.0,
    s_tmax: Annotated[float, Bounds(0.0, 1e4), "No noise is added above this noise level."] = 1e4,
) -> Iterator[Stage]:
    """The stochastic sampler of EDM: before each step noise is added up to sigma_hat, then a step of `heun` is taken.

        sigma_hat = (1 + gamma) sigma_s,    gamma = min(s_churn / n, sqrt(2) - 1) if s_tmin <= sigma_s <= s_tmax, or 0

    With s_churn = 0 it is `heun`. In rectified flow gamma raises sigma / alpha, the noise in units of the data; pure
    noise has no more to gain. Noise is labelled with the interval of its step, so that steps get independent noise.
    Karras et al. 2022, arXiv 2206.00364, Algorithm 2.
    """
    gamma = min(s_churn / (len(levels) - 1), math.sqrt(2) - 1)
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        if gamma and s_tmin <= value(s.sigma) <= s_tmax and value(s.alpha) > 0:
            hat = levels.at_lambda(s.lam - math.log1p(gamma))
            noise = added_noise((hat.alpha * s.sigma / s.alpha) ** 2 * (gamma * (2 + gamma)), s, t)
            if noise and value(t.sigma) == 0:
                noise = noise._replace(sigma_next=s.sigma / 2)
            yield Stage(i, None, (hat.alpha / s.alpha) * X, noise=noise)
            s = hat
        yield from heun_step(i, s, t)


@sampler(
    "Runge-Kutta 4",
    paper="Kutta 1901",
    help="Fourth order in sigma, four evaluations a step. For reference images with very many evaluations.",
    order=4,
)
def rk4(levels: Levels) -> Iterator[Stage]:
    """The classical Runge-Kutta method of order 4, four evaluations a step, at s, twice in the middle m, and at t.

        x_t = x_s + (sigma_t - sigma_s) (d_1 + 2 d_2 + 2 d_3 + d_4) / 6

    W. Kutta 1901. One evaluation in the step to 0 and in one that is too long.
    """
    for i in range(len(levels) - 1):
        yield from rk4_step(levels, i)


def rk4_step(levels: Levels, i: int) -> Iterator[Stage]:
    """Step i of `rk4`."""
    s, t = levels[i], levels[i + 1]
    if t.sigma == 0 or not slope_corrects(s, t):
        yield from euler_step(i, s, t)
        return
    h, m = t.sigma - s.sigma, levels.at_sigma((s.sigma + t.sigma) / 2)
    yield Stage(i, s.sigma, START + (h / 2) * P[0], derivative(s), completes=False)
    yield Stage(i, m.sigma, START + (h / 2) * P[0], derivative(m), completes=False)
    yield Stage(i, m.sigma, START + h * P[0], derivative(m), completes=False)
    yield Stage(i, t.sigma, START + (h / 6) * (P[3] + 2 * P[2] + 2 * P[1] + P[0]), derivative(t))


@sampler(
    "Heun++ 2",
    paper="Carzit 2024, sd-webui-samplers-scheduler",
    help="Euler's method with a look at the next two levels, three evaluations a step. First order in the limit of many"
    " steps: with the same number of evaluations others are better.",
    order=1,
)
def heunpp2(levels: Levels) -> Iterator[Stage]:
    """Heun++: a mean of the derivatives at the start of the step and at the next two levels, weighted by sigma.

        x_t = x_s + (sigma_t - sigma_s) ((1 - w_1 - w_2) d_0 + w_1 d_1 + w_2 d_2),    w_k = sigma_(i+k) / (3 sigma_max)

    d_1 and d_2 are evaluated on Euler steps from level to level. The last step but one looks at one level, with
    w_1 = sigma_(i+1) / (2 sigma_max), the last is an Euler step. The weights are not those of a method of order 2. No
    step is too long for them: with w_k as small as that, a derivative moves an image by at most 1/4 of its deviation.
    Carzit, sd-webui-samplers-scheduler; ComfyUI.
    """
    n = len(levels) - 1
    highest = max(levels[0].sigma, levels[n].sigma, key=value)
    for i in range(n):
        s, ahead = levels[i], [levels[k] for k in range(i + 1, min(i + 3, n))]
        if not ahead:
            yield from euler_step(i, s, levels[n])
            continue
        weights = [u.sigma / ((len(ahead) + 1) * highest) for u in ahead]
        slope, here = (1 - sum(weights)) * P[len(ahead)], s
        for k, u in enumerate(ahead):
            yield Stage(i, here.sigma, X + (u.sigma - here.sigma) * derivative(here), derivative(here), completes=False)
            slope, here = slope + weights[k] * P[len(ahead) - 1 - k], u
        yield Stage(i, here.sigma, START + (levels[i + 1].sigma - s.sigma) * slope, derivative(here))


@sampler(
    "DPM-Solver 2 ancestral",
    paper="Lu et al. 2022, arXiv 2206.00927",
    help="Second-order steps in the noise with ancestral noise, two evaluations a step. Varied; for low guidance and "
    "many steps.",
    order=2,
)
def dpm_2_ancestral(levels: Levels, *, eta: Eta = 1.0, ancestral_step: AncestralStep = "posterior") -> Iterator[Stage]:
    """DPM-Solver-2 down to sigma_d, then noise up to sigma_t: two evaluations a step, the second at u.

        x_d = x_s + (sigma_d - sigma_s) d(x_u, sigma_u),    sigma_u = sqrt(sigma_s sigma_d)

    In EDM space the step is that of `dpm_2s`. In rectified flow it is the same formula with the velocity, as in
    ComfyUI. d as in `euler_ancestral`; an Euler step to 0, and where the step is too long.
    Lu et al. 2022, arXiv 2206.00927, Algorithm 1; k-diffusion.
    """
    sigma_down = SIGMA_DOWN[ancestral_step](levels, eta)
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        d = sigma_down(s, t)
        u = levels.at_sigma(sqrt(s.sigma * d.sigma))
        if value(d.sigma) == 0 or not slope_corrects(s, u, 1.0):
            yield from (ancestral(stage, s, d, t) for stage in euler_step(i, s, d))
            continue
        yield Stage(i, s.sigma, X + (u.sigma - s.sigma) * derivative(s), derivative(s), completes=False)
        yield ancestral(Stage(i, u.sigma, START + (d.sigma - s.sigma) * P[0], derivative(u)), s, d, t)
