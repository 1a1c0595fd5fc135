"""Schedules: where the n steps of a run lie between sigma_max and sigma_min, computed in float64.

Each function gives n descending levels from sigma_max to sigma_min; the registry checks the arguments and
appends the final 0. `flow` says that the levels are those of a rectified-flow model (alpha = 1 - sigma).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def _ramp(n: int, start: float, end: float) -> Tensor:
    """n values from start to end, both exact: linspace, except that a single value is the start."""
    return torch.linspace(start, end, n, dtype=torch.float64)


def karras(n: int, sigma_min: float, sigma_max: float, *, rho: float = 7.0, flow: bool = False) -> Tensor:
    """sigma_i = (sigma_max^(1/rho) + i/(n-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho.

    Karras, Aittala, Aila, Laine 2022, arXiv 2206.00364, eq. 5. The same formula serves flow levels.
    """
    return _ramp(n, sigma_max ** (1 / rho), sigma_min ** (1 / rho)) ** rho


def exponential(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in log-SNR: lambda_i = lambda(sigma_max) + i/(n-1) (lambda(sigma_min) - lambda(sigma_max)).

    Lu et al. 2022, arXiv 2206.00927, section 3.4 (logSNR). For alpha = 1 the sigmas form a geometric sequence.
    A flow model starts at sigma = 1, where lambda = -inf: the ramp then begins at the mirror image of its end,
    1 - sigma_min (not below the middle between sigma_min and 1), and the first level is sigma_max all the same.
    """
    if not flow:
        return _ramp(n, math.log(sigma_max), math.log(sigma_min)).exp()
    start = min(sigma_max, max(1 - sigma_min, (1 + sigma_min) / 2))
    return torch.sigmoid(_ramp(n, math.log(start / (1 - start)), math.log(sigma_min / (1 - sigma_min))))


_VP_END = 1e-3  # time of sigma_min in the VP process, as in Song et al. 2021


def _vp(sigma_min: float, sigma_max: float) -> tuple[float, Callable[[Tensor], Tensor]]:
    """The VP process with linear beta, sigma(t)^2 + 1 = exp(beta_d t^2 / 2 + beta_min t): its end, and sigma(t).

    beta_d and beta_min are those for which sigma(1) = sigma_max and sigma(end) = sigma_min. The end is at t = 0.001,
    or, where the two sigmas are so close that beta would have to become negative, where a constant beta puts it.
    """
    log_min, log_max = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    end = _VP_END
    beta_d = 2 * (log_min / end - log_max) / (end - 1)
    if beta_d / 2 + log_max <= 0:  # beta(1)
        beta_d, end = 0.0, log_min / log_max
    beta_min = log_max - beta_d / 2
    return end, lambda t: torch.expm1(beta_d / 2 * t**2 + beta_min * t).sqrt()


def time_uniform(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in time: t_i from 1 to 0.001 of the VP process, sigma = sqrt(exp(beta_d t^2/2 + beta_min t) - 1).

    Song et al. 2021, arXiv 2011.13456; the default of DPM-Solver for large images. For a flow model uniform in
    sigma itself, without the model's time shift.
    """
    if flow:
        return _ramp(n, sigma_max, sigma_min)
    end, sigma = _vp(sigma_min, sigma_max)
    return sigma(_ramp(n, 1.0, end))


def time_quadratic(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in the square root of time, so denser at low noise: t_i = (1 + i/(n-1) (sqrt(0.001) - 1))^2.

    Song, Meng, Ermon 2020 (DDIM), arXiv 2010.02502. For a flow model in the square root of
    sigma itself, without the model's time shift.
    """
    if flow:
        return _ramp(n, math.sqrt(sigma_max), math.sqrt(sigma_min)) ** 2
    end, sigma = _vp(sigma_min, sigma_max)
    return sigma(_ramp(n, 1.0, math.sqrt(end)) ** 2)
