"""Schedules: where the n steps of a run lie, computed in float64.

Each function gives n descending levels from sigma_max to sigma_min; the last three have a last level of their own.
The registry checks the arguments, makes the ends exact, applies a time shift and appends the final 0. `flow` says
that the levels are those of a rectified-flow model (alpha = 1 - sigma). What is defined for alpha = 1 acts there on
sigma / alpha, the level with the same signal-to-noise ratio.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor


def _ramp(n: int, start: float, end: float) -> Tensor:
    """n values from start to end, both exact: linspace, except that a single value is the start."""
    return torch.linspace(start, end, n, dtype=torch.float64)


def _log_ends(sigma_min: float, sigma_max: float, flow: bool) -> tuple[float, float]:
    """log(sigma / alpha), which is -lambda, at sigma_max and at sigma_min.

    A flow model starts at sigma = 1, where it is infinite. The range then begins at the mirror image of its end,
    1 - sigma_min (not below the middle between sigma_min and 1); the registry puts the first level at sigma_max.
    """
    if not flow:
        return math.log(sigma_max), math.log(sigma_min)
    end = math.log(sigma_min / (1 - sigma_min))
    start = max(-end, math.log((1 + sigma_min) / (1 - sigma_min)))
    return start if sigma_max == 1 else min(start, math.log(sigma_max / (1 - sigma_max))), end


def _level(log_ratio: Tensor, flow: bool) -> Tensor:
    """sigma, from log(sigma / alpha)."""
    return torch.sigmoid(log_ratio) if flow else log_ratio.exp()


def karras(n: int, sigma_min: float, sigma_max: float, *, rho: float = 7.0, flow: bool = False) -> Tensor:
    """sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.

    Karras, Aittala, Aila, Laine 2022, arXiv 2206.00364, eq. 5. The same formula serves flow levels.
    """
    return _ramp(n, sigma_max ** (1 / rho), sigma_min ** (1 / rho)) ** rho


def edm(n: int, sigma_min: float, sigma_max: float, *, rho: float = 7.0, flow: bool = False) -> Tensor:
    """The polynomial schedule of EDM: the formula of `karras`, with any rho > 0. Below 1 it is dense at high noise."""
    return karras(n, sigma_min, sigma_max, rho=rho, flow=flow)


def exponential(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in log-SNR: lambda_i = lambda(sigma_max) + i/(n-1) (lambda(sigma_min) - lambda(sigma_max)).

    Lu et al. 2022, arXiv 2206.00927, section 3.4 (logSNR); `use_lu_lambdas` of diffusers. For alpha = 1 the sigmas
    form a geometric sequence.
    """
    return _level(_ramp(n, *_log_ends(sigma_min, sigma_max, flow)), flow)


def polyexponential(n: int, sigma_min: float, sigma_max: float, *, rho: float = 1.0, flow: bool = False) -> Tensor:
    """lambda_i = lambda(sigma_min) + (1 - i/(n-1))^rho (lambda(sigma_max) - lambda(sigma_min)).

    k-diffusion (Crowson 2022), get_sigmas_polyexponential. rho = 1 is `exponential`.
    """
    start, end = _log_ends(sigma_min, sigma_max, flow)
    return _level(end + _ramp(n, 1.0, 0.0) ** rho * (start - end), flow)


def _vp_sigma(t: Tensor, beta_d: float, beta_min: float) -> Tensor:
    """The VP process with linear beta: sigma(t)^2 + 1 = exp(beta_d t^2 / 2 + beta_min t)."""
    return torch.expm1(beta_d / 2 * t**2 + beta_min * t).sqrt()


def vp(
    n: int, sigma_min: float, sigma_max: float, *, beta_d: float = 19.9, beta_min: float = 0.1, flow: bool = False
) -> Tensor:
    """Uniform in the time of a given VP process: sigma_i = sqrt(exp(beta_d t_i^2/2 + beta_min t_i) - 1).

    Song et al. 2021, arXiv 2011.13456. t runs between the times of sigma_max and sigma_min, which are 1 and 0.001 for
    the range of k-diffusion's get_sigmas_vp.
    """

    def time(log_ratio: float) -> float:
        exponent = math.log1p(math.exp(2 * log_ratio))
        return 2 * exponent / (beta_min + math.sqrt(beta_min**2 + 2 * beta_d * exponent))

    start, end = _log_ends(sigma_min, sigma_max, flow)
    return _level(_vp_sigma(_ramp(n, time(start), time(end)), beta_d, beta_min).log(), flow)


_VP_END = 1e-3  # time of sigma_min in the VP process, as in Song et al. 2021


def _time(sigma_min: float, sigma_max: float, flow: bool) -> tuple[float, float, Callable[[Tensor], Tensor]]:
    """The model's own time: that of sigma_max, that of sigma_min, and sigma(t).

    For a flow model time is sigma. Else it is that of the VP process for which sigma(1) = sigma_max and
    sigma(0.001) = sigma_min; where the two are so close that beta would have to become negative, a constant beta
    says where the end is.
    """
    if flow:
        return sigma_max, sigma_min, lambda t: t
    log_min, log_max = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    end = _VP_END
    beta_d = 2 * (log_min / end - log_max) / (end - 1)
    if beta_d / 2 + log_max <= 0:  # beta(1)
        beta_d, end = 0.0, log_min / log_max
    return 1.0, end, functools.partial(_vp_sigma, beta_d=beta_d, beta_min=log_max - beta_d / 2)


def time_uniform(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in the model's time: t_i = 1 + i/(n-1) (0.001 - 1), sigma = sqrt(exp(beta_d t^2/2 + beta_min t) - 1).

    Song et al. 2021, arXiv 2011.13456; the default of DPM-Solver for large images.
    """
    start, end, sigma = _time(sigma_min, sigma_max, flow)
    return sigma(_ramp(n, start, end))


def time_quadratic(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in the square root of time, so denser at low noise: t_i = (1 + i/(n-1) (sqrt(0.001) - 1))^2.

    Song, Meng, Ermon 2020 (DDIM), arXiv 2010.02502.
    """
    start, end, sigma = _time(sigma_min, sigma_max, flow)
    return sigma(_ramp(n, math.sqrt(start), math.sqrt(end)) ** 2)


def beta(
    n: int, sigma_min: float, sigma_max: float, *, alpha: float = 0.6, beta: float = 0.6, flow: bool = False
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
    start, end, sigma = _time(sigma_min, sigma_max, flow)
    quantile = torch.from_numpy(betaincinv(alpha, beta, _ramp(n, 1.0, 0.0).numpy()))
    return sigma(end + (start - end) * quantile)


def cosine(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in the angle: sigma_i / alpha_i = tan(theta_i), from atan(sigma_max / alpha) to atan(sigma_min / alpha).

    Nichol and Dhariwal 2021, arXiv 2102.09672. A flow model starts at a right angle.
    """
    start, end = (math.atan2(sigma, 1 - sigma if flow else 1.0) for sigma in (sigma_max, sigma_min))
    theta = _ramp(n, start, end)
    return theta.sin() / (theta.sin() + theta.cos()) if flow else theta.tan()


def laplace(
    n: int, sigma_min: float, sigma_max: float, *, median: float = 1.0, scale: float = 0.5, flow: bool = False
) -> Tensor:
    """Quantiles of a Laplace distribution of log(sigma / alpha) with mu = log(median) and b = scale.

    Hang, Gu, Geng, Guo 2024, arXiv 2407.03297; the mu and beta of k-diffusion's get_sigmas_laplace. The
    probabilities are uniform between those of sigma_max and sigma_min, so that no level is clamped to an end. They are
    held as logarithms of both tails, P(below) and P(above), of which one is always accurate.
    """

    def log_cdf(z: Tensor) -> Tensor:
        return torch.where(z < 0, z - math.log(2), torch.log1p(-torch.exp(-z.abs()) / 2))

    ends = torch.tensor(_log_ends(sigma_min, sigma_max, flow), dtype=torch.float64)
    start, end = (ends - math.log(median)) / scale
    part = _ramp(n, 0.0, 1.0)
    below, above = (
        torch.logaddexp(torch.log1p(-part) + log_cdf(sign * start), part.log() + log_cdf(sign * end))
        for sign in (1, -1)
    )
    z = torch.where(below < above, below + math.log(2), -(above + math.log(2)))
    return _level(math.log(median) + scale * z, flow)


def linear_quadratic(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    threshold_noise: float = 0.025,
    linear_steps: int = 0,
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
        return _ramp(1, sigma_max, sigma_max)
    linear = linear_steps or n // 2
    if linear >= n:
        raise ValueError(f"linear_steps = {linear} must be smaller than the number of steps, {n}")
    if threshold_noise * (n + linear) >= 2 * linear:  # the parabola would turn before it reaches 0
        raise ValueError(
            f"threshold_noise = {threshold_noise:g} must be smaller than {2 * linear / (n + linear):.3g} "
            f"with {linear} linear steps of {n}"
        )
    slope = threshold_noise / linear
    curvature = (1 - slope * n) / (n - linear) ** 2
    i = torch.arange(n, dtype=torch.float64)
    return sigma_max * (1 - slope * i - curvature * (i - linear).clamp(min=0) ** 2)


def _from_table(table: list[float], n: int, sigma_min: float, sigma_max: float, flow: bool) -> Tensor:
    """The first n of n + 1 levels, by interpolating the logarithms of a published table linearly in the step index.

    They are stretched affinely in log(sigma / alpha), so that the ends of the table fall on sigma_max and sigma_min.
    """
    logs = torch.tensor(table, dtype=torch.float64).log()
    height = (logs - logs[-1]) / (logs[0] - logs[-1])
    height = torch.nn.functional.interpolate(height[None, None], n + 1, mode="linear", align_corners=True)[0, 0, :-1]
    start, end = _log_ends(sigma_min, sigma_max, flow)
    return _level(end + height * (start - end), flow)


# Those of the Stable Diffusion models are the levels of the published time steps.
AYS_TABLES = {
    "sd15": [14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904,
             0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582],
    "sdxl": [14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289,
             0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582],
    "svd": [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002],
}  # fmt: skip


def ays(n: int, sigma_min: float, sigma_max: float, *, table: str = "sd15", flow: bool = False) -> Tensor:
    """Align Your Steps: the levels optimised for a model, published for 10 steps.

    Sabour, Fidler, Kreis 2024, arXiv 2404.14507. Other numbers of steps are log-linear in between, other ranges are
    stretched in log-SNR. As published, the last entry of the table gives way to 0: the last level is not sigma_min.
    """
    return _from_table(AYS_TABLES[table], n, sigma_min, sigma_max, flow)


@functools.cache
def _gits_tables() -> list[list[list[float]]]:
    """The published tables, by coefficient (0.80, 0.85 ... 1.50) and number of steps (2 ... 20)."""
    published = json.loads(Path(__file__).with_name("gits.json").read_text())
    return [[[published["levels"][i] for i in row] for row in rows] for rows in published["steps"].values()]


def gits(n: int, sigma_min: float, sigma_max: float, *, coeff: float = 1.2, flow: bool = False) -> Tensor:
    """Geometry-inspired time scheduling: published tables for 2 to 20 steps of Stable Diffusion.

    Chen, Zhou, Wang, Shen, Lyu 2024, arXiv 2405.11326. `coeff` is taken to the nearest of the published 0.80, 0.85 ...
    1.50. More than 20 steps are log-linear in the table of 20, other ranges are stretched in log-SNR. As published, the
    last entry of a table gives way to 0: the last level is not sigma_min.
    """
    tables = _gits_tables()[round(20 * coeff) - 16]
    return _from_table(tables[min(max(n, 2), 20) - 2], n, sigma_min, sigma_max, flow)
