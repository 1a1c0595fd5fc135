"""Schedules: where the n steps of a run lie, computed in float64.

Each function gives n descending levels from sigma_max to sigma_min, or to a last level of its own. `ScheduleSpec`
checks the arguments, makes the ends exact, applies a time shift and appends the final 0. `flow` says
that the levels are those of a rectified-flow model (alpha = 1 - sigma). What is defined for alpha = 1 acts there on
sigma / alpha, the level with the same signal-to-noise ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor

from ..checks import counted
from ..options import Bounds
from ..phi import value
from ..processes import T_MIN, LinearBeta
from ..schedule import schedule


def ramp(n: int, start: float, end: float) -> Tensor:
    """n values from start to end, both exact: linspace, except that a single value is the start."""
    return torch.linspace(start, end, n, dtype=torch.float64)


def log_ends(sigma_min: float, sigma_max: float, flow: bool) -> tuple[float, float]:
    """log(sigma / alpha), which is -lambda, at sigma_max and at sigma_min.

    A flow model starts at sigma = 1, where it is infinite. The range then begins at the mirror image of its end,
    1 - sigma_min (not below the middle between sigma_min and 1); `ScheduleSpec` puts the first level at sigma_max.
    """
    if not flow:
        return math.log(sigma_max), math.log(sigma_min)
    end = math.log(sigma_min / (1 - sigma_min))
    start = max(-end, math.log((1 + sigma_min) / (1 - sigma_min)))
    return start if sigma_max == 1 else min(start, math.log(sigma_max / (1 - sigma_max))), end


def level_of(log_ratio: Tensor, flow: bool) -> Tensor:
    """sigma, from log(sigma / alpha)."""
    return torch.sigmoid(log_ratio) if flow else log_ratio.exp()


@schedule(
    "Karras",
    paper="Karras et al. 2022, arXiv 2206.00364",
    help="Many steps at low noise. The usual choice for 10 steps or more; with discard_penultimate for 4 or more.",
    curated=True,
)
def karras(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    rho: Annotated[
        float, Bounds(1.0, 100.0), "Exponent. Larger puts more steps at low noise; 1 is uniform in sigma."
    ] = 7.0,
    flow: bool = False,
) -> Tensor:
    """sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.

    Karras, Aittala, Aila, Laine 2022, arXiv 2206.00364, eq. 5. The same formula serves flow levels.
    """
    return ramp(n, sigma_max ** (1 / rho), sigma_min ** (1 / rho)) ** rho


@schedule(
    "EDM polynomial",
    paper="Karras et al. 2022, arXiv 2206.00364",
    help="karras with any rho, also below 1.",
)
def edm(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    rho: Annotated[
        float, Bounds(0.1, 100.0), "Exponent. 1 is uniform in sigma; below 1, more steps at high noise."
    ] = 7.0,
    flow: bool = False,
) -> Tensor:
    """The polynomial schedule of EDM: the formula of `karras`, with any rho > 0. Below 1 it is dense at high noise."""
    return karras(n, sigma_min, sigma_max, rho=rho, flow=flow)


@schedule(
    "Exponential (uniform log-SNR)",
    paper="Lu et al. 2022, arXiv 2206.00927",
    help="Equal steps in log-SNR, the variable in which most solvers work.",
    curated=True,
)
def exponential(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in log-SNR: lambda_i = lambda(sigma_max) + i/(n-1) (lambda(sigma_min) - lambda(sigma_max)).

    Lu et al. 2022, arXiv 2206.00927, section 3.4 (logSNR); `use_lu_lambdas` of diffusers. For alpha = 1 the sigmas
    form a geometric sequence.
    """
    return level_of(ramp(n, *log_ends(sigma_min, sigma_max, flow)), flow)


@schedule(
    "Uniform lambda",
    paper="Lu et al. 2022, arXiv 2206.00927",
    help="The same levels as exponential; use_lu_lambdas in diffusers.",
)
def lu_lambda(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in log-SNR under the name that it has in other programs: `exponential`."""
    return exponential(n, sigma_min, sigma_max, flow=flow)


@schedule(
    "Polyexponential",
    paper="Crowson 2022, k-diffusion",
    help="Between exponential (rho 1) and more steps at low noise (rho above 1) or high noise (below 1).",
    curated=True,
)
def polyexponential(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    rho: Annotated[float, Bounds(0.1, 10.0), "Exponent, in log-SNR. 1 gives the schedule exponential."] = 1.0,
    flow: bool = False,
) -> Tensor:
    """lambda_i = lambda(sigma_min) + (1 - i/(n-1))^rho (lambda(sigma_max) - lambda(sigma_min)).

    k-diffusion (Crowson 2022), get_sigmas_polyexponential. rho = 1 is `exponential`.
    """
    start, end = log_ends(sigma_min, sigma_max, flow)
    return level_of(end + ramp(n, 1.0, 0.0) ** rho * (start - end), flow)


@schedule(
    "VP (given betas)",
    paper="Song et al. 2021, arXiv 2011.13456",
    help="Equal steps in the time of a VP process with betas of your choice. time_uniform uses those of the model.",
)
def vp(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    beta_d: Annotated[float, Bounds(0.1, 100.0), "Growth of beta over time."] = 19.9,
    beta_min: Annotated[float, Bounds(0.0, 20.0), "beta at time 0."] = 0.1,
    flow: bool = False,
) -> Tensor:
    """Uniform in the time of a given VP process: sigma_i = sqrt(exp(beta_d t_i^2/2 + beta_min t_i) - 1).

    Song et al. 2021, arXiv 2011.13456. t runs between the times of sigma_max and sigma_min, which are 1 and 0.001 for
    the range of k-diffusion's get_sigmas_vp.
    """
    beta = LinearBeta(beta_d, beta_min)
    start, end = (
        value(beta.inverse(math.log1p(math.exp(2 * log_ratio)))) for log_ratio in log_ends(sigma_min, sigma_max, flow)
    )
    return level_of(torch.as_tensor(beta.sigma(ramp(n, start, end))).log(), flow)


def _model_time(sigma_min: float, sigma_max: float, flow: bool) -> tuple[float, float, Callable[[Tensor], Tensor]]:
    """The model's own time: that of sigma_max, that of sigma_min, and sigma(t).

    For a flow model time is sigma. Else it is that of the VP process for which sigma(1) = sigma_max and
    sigma(0.001) = sigma_min; where the two are so close that beta would have to become negative, a constant beta
    says where the end is.
    """
    if flow:
        return sigma_max, sigma_min, lambda t: t
    end, beta = T_MIN, LinearBeta.through(sigma_min, sigma_max)
    if beta.beta_d + beta.beta_min <= 0:  # beta(1)
        beta = LinearBeta(0.0, math.log1p(sigma_max**2))
        end = math.log1p(sigma_min**2) / beta.beta_min
    return 1.0, end, lambda t: torch.as_tensor(beta.sigma(t))


@schedule(
    "Time uniform (VP)",
    paper="Song et al. 2021, arXiv 2011.13456",
    help="Equal steps in diffusion time: few at low noise. For flow models equal steps in sigma, with their shift.",
    curated=True,
    in_time=True,
)
def time_uniform(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in the model's time: t_i = 1 + i/(n-1) (0.001 - 1), sigma = sqrt(exp(beta_d t^2/2 + beta_min t) - 1).

    Song et al. 2021, arXiv 2011.13456; the default of DPM-Solver for large images.
    """
    start, end, sigma = _model_time(sigma_min, sigma_max, flow)
    return sigma(ramp(n, start, end))


@schedule(
    "Time quadratic (VP)",
    paper="Song et al. 2020, arXiv 2010.02502",
    help="Between uniform time and log-SNR. With discard_penultimate good at 4 to 8 steps.",
    curated=True,
    in_time=True,
)
def time_quadratic(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in the square root of time, so denser at low noise: t_i = (1 + i/(n-1) (sqrt(0.001) - 1))^2.

    Song, Meng, Ermon 2020 (DDIM), arXiv 2010.02502.
    """
    start, end, sigma = _model_time(sigma_min, sigma_max, flow)
    return sigma(ramp(n, math.sqrt(start), math.sqrt(end)) ** 2)


@schedule(
    "Beta",
    paper="Lee et al. 2024, arXiv 2407.12173",
    help="Many steps at both ends, in diffusion time. Often used with flow models.",
    curated=True,
    in_time=True,
)
def beta(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    alpha: Annotated[float, Bounds(0.1, 10.0), "Below 1: more steps at low noise."] = 0.6,
    beta: Annotated[float, Bounds(0.1, 10.0), "Below 1: more steps at high noise."] = 0.6,
    flow: bool = False,
) -> Tensor:
    """Times from a Beta distribution: t_i = 0.001 + (1 - 0.001) Q(1 - i/(n-1)), Q the quantile of Beta(alpha, beta).

    Lee et al. 2024, arXiv 2407.12173. Below 1, `alpha` makes it denser at low noise and `beta` at high noise.

    Raises:
        ImportError: without scipy, which ComfyUI brings along.
    """
    try:
        from scipy.special import betaincinv
    except ImportError as error:
        raise ImportError("the beta schedule needs scipy: pip install scipy") from error
    start, end, sigma = _model_time(sigma_min, sigma_max, flow)
    quantile = torch.from_numpy(betaincinv(alpha, beta, ramp(n, 1.0, 0.0).numpy()))
    return sigma(end + (start - end) * quantile)


@schedule(
    "Cosine",
    paper="Nichol and Dhariwal 2021, arXiv 2102.09672",
    help="Equal steps of the angle between signal and noise: few at both ends. Called KL-optimal in other programs.",
    curated=True,
)
def cosine(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in the angle: sigma_i / alpha_i = tan(theta_i), from atan(sigma_max / alpha) to atan(sigma_min / alpha).

    Nichol and Dhariwal 2021, arXiv 2102.09672. A flow model starts at a right angle.
    """
    start, end = (math.atan2(sigma, 1 - sigma if flow else 1.0) for sigma in (sigma_max, sigma_min))
    theta = ramp(n, start, end)
    return theta.sin() / (theta.sin() + theta.cos()) if flow else theta.tan()


@schedule(
    "Laplace",
    paper="Hang et al. 2024, arXiv 2407.03297",
    help="Most steps where signal and noise are equally strong. For 15 steps or more.",
    curated=True,
)
def laplace(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    median: Annotated[
        float, Bounds(0.01, 100.0), "Noise level around which most steps lie; 1 is as much noise as signal."
    ] = 1.0,
    scale: Annotated[
        float, Bounds(0.01, 10.0), "Width in log sigma, b in the paper. Smaller: the steps are closer together."
    ] = 0.5,
    flow: bool = False,
) -> Tensor:
    """Quantiles of a Laplace distribution of log(sigma / alpha) with mu = log(median) and b = scale.

    Hang, Gu, Geng, Guo 2024, arXiv 2407.03297; the mu and beta of k-diffusion's get_sigmas_laplace. The
    probabilities are uniform between those of sigma_max and sigma_min, so that no level is clamped to an end. They are
    held as logarithms of both tails, P(below) and P(above), of which one is always accurate.
    """

    def log_cdf(z: Tensor) -> Tensor:
        return torch.where(z < 0, z - math.log(2), torch.log1p(-torch.exp(-z.abs()) / 2))

    ends = torch.tensor(log_ends(sigma_min, sigma_max, flow), dtype=torch.float64)
    start, end = (ends - math.log(median)) / scale
    part = ramp(n, 0.0, 1.0)
    below, above = (
        torch.logaddexp(torch.log1p(-part) + log_cdf(sign * start), part.log() + log_cdf(sign * end))
        for sign in (1, -1)
    )
    z = torch.where(below < above, below + math.log(2), -(above + math.log(2)))
    return level_of(math.log(median) + scale * z, flow)


@schedule(
    "Linear-quadratic",
    paper="Polyak et al. 2024, arXiv 2410.13720",
    help="Half of the steps at nearly full noise, then ever larger ones. For video flow models (Mochi).",
    curated=True,
    ends_at_sigma_min=False,
)
def linear_quadratic(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    threshold_noise: Annotated[
        float, Bounds(0.001, 0.9, step=1e-3), "How far down the linear steps go, where 1 is all of the way to 0."
    ] = 0.025,
    linear_steps: Annotated[int, Bounds(0, 10000), "Number of linear steps; 0 is half of all."] = 0,
    flow: bool = False,
) -> Tensor:
    """sigma_i = sigma_max (1 - s i - c max(i - L, 0)^2): L small equal steps, then smoothly on to sigma_n = 0.

    s = threshold_noise / L, c = (1 - s n) / (n - L)^2, and L = linear_steps, half of the steps if 0.
    Polyak et al. 2024 (Movie Gen), arXiv 2410.13720, in the form of Genmo's Mochi. It is made for flow models; in EDM
    space it is the same curve, as in ComfyUI. The last level is its own, not sigma_min.

    Raises:
        ValueError: if the options do not give a descending curve.
    """
    if n == 1:
        return ramp(1, sigma_max, sigma_max)
    linear = linear_steps or n // 2
    if linear >= n:
        raise ValueError(f"linear_steps = {linear} must be smaller than the number of steps, {n}")
    if threshold_noise * (n + linear) >= 2 * linear:  # the parabola would turn before it reaches 0
        raise ValueError(
            f"threshold_noise = {threshold_noise:g} must be smaller than {2 * linear / (n + linear):.3g} "
            f"with {counted(linear, 'linear step')} of {n}"
        )
    slope = threshold_noise / linear
    curvature = (1 - slope * n) / (n - linear) ** 2
    i = torch.arange(n, dtype=torch.float64)
    return sigma_max * (1 - slope * i - curvature * (i - linear).clamp(min=0) ** 2)
