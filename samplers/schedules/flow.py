"""Schedules that are defined by the levels of rectified flow, from 1.

For other models their levels have the same signal-to-noise ratio: sigma / alpha = s / (1 - s).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor

from ..options import Bounds
from ..schedule import schedule, shifted
from .analytic import ramp
from .tables import interpolated, published


def of_flow(curve: Tensor, sigma_max: float, flow: bool) -> Tensor:
    """Flow levels between 0 and 1, over the range of a model: the level 1 is sigma_max."""
    sigmas = curve * (sigma_max if flow else sigma_max / (1 + sigma_max))
    return sigmas if flow else sigmas / (1 - sigmas)


@schedule(
    "Bong tangent",
    paper="ClownsharkBatwing, RES4LYF",
    help="Steps gather at both ends, on two arctangents that meet at level 0.5. For flow models.",
    curated=True,
    ends_at_sigma_min=False,
)
def bong_tangent(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Two arctangents of slope k = 8 / (n + 2), from 1 to 0.5 in m = floor(0.6 (n + 2)) - 1 steps, and on to 0.

    RES4LYF, sigmas.py (`bong_tangent_scheduler`), with its defaults. There all models have these levels; it leaves
    n = 1 undefined, which is one step here.
    """
    if n == 1:
        return ramp(1, sigma_max, sigma_max)
    points = n + 2
    first = points * 3 // 5
    k = 8 / points

    def from_1_to_0(angle: Tensor) -> Tensor:
        return (angle - angle[-1]) / (angle[0] - angle[-1])

    above = from_1_to_0(torch.atan(k * torch.arange(first, 0, -1, dtype=torch.float64)))
    below = from_1_to_0(-torch.atan(k * torch.arange(points - first, dtype=torch.float64)))
    return of_flow(torch.cat([(1 + above[:-1]) / 2, below[:-1] / 2]), sigma_max, flow)


Width = Annotated[int, Bounds(16, 16384), "Width of the image, in pixels."]
Height = Annotated[int, Bounds(16, 16384), "Height of the image, in pixels."]


def _tokens(width: int, height: int) -> float:
    """A token is 16 by 16 pixels."""
    return width * height / 16**2


def _uniform_shifted(n: int, sigma_max: float, flow: bool, mu: float) -> Tensor:
    """n equal steps in time down to 0, shifted by e^mu."""
    return of_flow(shifted(ramp(n, 1.0, 1 / n), math.exp(mu)), sigma_max, flow)


@schedule(
    "Flux (by size)",
    paper="Black Forest Labs 2024, FLUX.1",
    help="Equal steps in time, shifted by the size of the image as FLUX.1 dev does.",
    ends_at_sigma_min=False,
)
def flux(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    width: Width = 1024,
    height: Height = 1024,
    base_shift: Annotated[float, Bounds(0.0, 10.0), "Logarithm of the shift (mu) for 256 x 256 pixels."] = 0.5,
    max_shift: Annotated[float, Bounds(0.0, 10.0), "Logarithm of the shift (mu) for 1024 x 1024 pixels."] = 1.15,
    flow: bool = False,
) -> Tensor:
    """sigma_i = e^mu / (e^mu + 1/t_i - 1), t_i = 1 - i/n, with mu linear in the tokens of the image.

    Black Forest Labs, flux, sampling.py (`get_schedule`). mu = base_shift at 256 tokens and max_shift at 4096, and on
    beyond both; `ModelSamplingFlux` of ComfyUI is this with the numbers of the model's own time.
    """
    mu = base_shift + (_tokens(width, height) - 256) / (4096 - 256) * (max_shift - base_shift)
    return _uniform_shifted(n, sigma_max, flow, mu)


@schedule(
    "Flux.2 (by size)",
    paper="Black Forest Labs 2025, FLUX.2",
    help="Equal steps in time, shifted by the size of the image and the number of steps as FLUX.2 does.",
    ends_at_sigma_min=False,
)
def flux2(
    n: int, sigma_min: float, sigma_max: float, *, width: Width = 1024, height: Height = 1024, flow: bool = False
) -> Tensor:
    """`flux` with the mu that was fitted to FLUX.2: two lines in the tokens, for 10 and for 200 steps.

    Black Forest Labs, flux2, sampling.py (`compute_empirical_mu`); ComfyUI's Flux2Scheduler. mu is linear in the steps,
    also below 10; above 4300 tokens it is that of 200 steps. Beyond 200 steps it stays, where the original falls on.
    """
    tokens = round(_tokens(width, height))
    mu_10, mu_200 = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
    part = 1.0 if tokens > 4300 else min((n - 10) / 190, 1.0)
    return _uniform_shifted(n, sigma_max, flow, mu_10 + part * (mu_200 - mu_10))


@schedule(
    "OptimalSteps",
    paper="Pei et al. 2025, arXiv 2503.21774",
    help="Optimised for one flow model: Flux (10 steps), Wan (20) or Chroma (40). Interpolated for other numbers.",
    starts_at_sigma_max=False,
    ends_at_sigma_min=False,
)
def optimal_steps(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    table: Annotated[Literal["flux", "wan", "chroma"], "The model that the levels were optimised for."] = "flux",
    flow: bool = False,
) -> Tensor:
    """The levels that a search by dynamic programming chose for a model.

    Pei, Hu, Gu 2025, arXiv 2503.21774; the tables of ComfyUI's OptimalStepsScheduler. Other numbers of steps are
    log-linear in between. The first level is that of the table, a little below pure noise for Flux and Chroma; the last
    entry gives way to 0.
    """
    logs = torch.tensor(published("optimal_steps.json")["levels"][table], dtype=torch.float64).log()
    return of_flow(interpolated(logs, n + 1)[:-1].exp(), sigma_max, flow)
