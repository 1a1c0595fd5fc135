"""Schedules in the time steps of Stable Diffusion, by the names that other programs have for them.

ComfyUI takes the sigmas of a model from a table of 1,000. Here the same time is continuous, so that no level repeats
and none is rounded to an entry: with T = 1000 for pure noise and 1 for the lowest level, sigma(t) is log-linear between
the entries. In another range of levels the table is stretched in log sigma. For a flow model time is sigma, shifted as
the model is. Where n divides the table, the levels are ComfyUI's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..processes import stable_diffusion_sigma
from ..schedule import schedule
from .analytic import ramp

_TIMES = 1000


@functools.cache
def _log_sigmas() -> list[float]:
    return [math.log(stable_diffusion_sigma(time)) for time in range(1, _TIMES + 1)]


def _table_time(sigma_min: float, sigma_max: float, flow: bool) -> tuple[float, float, Callable[[Tensor], Tensor]]:
    """The time in the table of sigma_max, that of sigma_min, and sigma(t) between them."""
    if flow:
        return sigma_max, sigma_min, lambda t: t
    logs = torch.tensor(_log_sigmas(), dtype=torch.float64)
    low, high = math.log(sigma_min), math.log(sigma_max)
    logs = low + (logs - logs[0]) / (logs[-1] - logs[0]) * (high - low)

    def sigma(t: Tensor) -> Tensor:
        k = t.long().clamp(1, _TIMES - 1)
        return torch.lerp(logs[k - 1], logs[k], t - k).exp()

    return float(_TIMES), 1.0, sigma


@schedule(
    "Normal",
    paper="Song et al. 2020, arXiv 2010.02502",
    help="Equal steps in the time of Stable Diffusion, both ends included. Called linspace in diffusers.",
    curated=True,
    in_time=True,
)
def normal(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """t_i = T + i/(n-1) (1 - T), from the first time step to the last.

    ComfyUI's `normal`, `timestep_spacing="linspace"` of diffusers (Lin et al. 2023, arXiv 2305.08891, table 2). For
    flow models ComfyUI shifts the last time twice; here it is that of sigma_min.
    """
    start, end, sigma = _table_time(sigma_min, sigma_max, flow)
    return sigma(ramp(n, start, end))


@schedule(
    "SGM uniform",
    paper="Lin et al. 2023, arXiv 2305.08891",
    help="normal with one more step, from its last level to 0. Often recommended for SDXL Lightning and similar "
    "models; trained has their exact levels.",
    curated=True,
    ends_at_sigma_min=False,
    in_time=True,
)
def sgm_uniform(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """t_i = T + i/n (1 - T): the first n of n + 1 equal steps in time.

    ComfyUI's `sgm_uniform`, after Stability's generative-models. For flow models ComfyUI shifts the last time twice;
    here it is that of sigma_min.
    """
    start, end, sigma = _table_time(sigma_min, sigma_max, flow)
    return sigma(ramp(n + 1, start, end)[:-1])


@schedule(
    "Simple",
    paper="Lin et al. 2023, arXiv 2305.08891",
    help="Equal steps in time from pure noise to 0. Called trailing in diffusers. For flow and distilled models.",
    curated=True,
    ends_at_sigma_min=False,
    in_time=True,
)
def simple(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """t_i = T (1 - i/n), with the end at time 0, where there is no noise.

    ComfyUI's `simple`, `timestep_spacing="trailing"` of diffusers (Lin et al. 2023, arXiv 2305.08891, table 2), which
    round t to an entry of the table. With more steps than entries the last level is sigma_min.
    """
    start, end, sigma = _table_time(sigma_min, sigma_max, flow)
    return sigma(ramp(n, start, max(start / n, end)))


@schedule(
    "DDIM uniform",
    paper="Song et al. 2020, arXiv 2010.02502",
    help="Equal steps in time that begin below pure noise, far below with few steps. Called leading in diffusers.",
    curated=True,
    starts_at_sigma_max=False,
    ends_at_sigma_min=False,
    in_time=True,
)
def ddim_uniform(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """t_i = 2 + (n - 1 - i) T/n: the first of each n-th part of time, with the offset of 1 that Stable Diffusion has.

    ComfyUI's `ddim_uniform`, `timestep_spacing="leading"` of diffusers (Lin et al. 2023, arXiv 2305.08891, table 2). It
    never sees pure noise. Where n does not divide the table, ComfyUI's has steps in excess. More steps than half of the
    table have no room there: they lie between T and the same last level.
    """
    start, end, sigma = _table_time(sigma_min, sigma_max, flow)
    last = end + min(end, (start - end) / (_TIMES - 1))  # the next entry of the table, within the range
    return sigma(ramp(n, min(last + start * (1 - 1 / n), start), last))
