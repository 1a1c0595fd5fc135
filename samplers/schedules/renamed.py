"""Other schedules under names and with settings of their own, for dropdowns that have no options."""

from __future__ import annotations

from torch import Tensor

from ..schedule import schedule
from .analytic import beta, cosine, karras, time_quadratic


@schedule(
    "Beta 57",
    paper="Lee et al. 2024, arXiv 2407.12173",
    help="beta with alpha 0.5 and beta 0.7: more steps at both ends, most at low noise.",
    curated=True,
    in_time=True,
)
def beta57(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """`beta` with alpha = 0.5 and beta = 0.7, a name of RES4LYF.

    RES4LYF leaves out the last level above 0, as ComfyUI does in `beta`, and rounds the others to the model's table:
    with `discard_penultimate` these are its levels, not rounded.
    """
    return beta(n, sigma_min, sigma_max, alpha=0.5, beta=0.7, flow=flow)


@schedule(
    "KL-optimal",
    paper="Sabour et al. 2024, arXiv 2404.14507",
    help="The same levels as cosine. ComfyUI's kl_optimal differs for flow models.",
    curated=True,
)
def kl_optimal(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """Uniform in atan(sigma / alpha): `cosine`. Sabour, Fidler, Kreis 2024, arXiv 2404.14507, theorem 3.1.

    ComfyUI's has the same levels where alpha = 1. For flow models it takes the arctangent of sigma alone, which is not
    that of the theorem.
    """
    return cosine(n, sigma_min, sigma_max, flow=flow)


# Without the last level above 0: `discard_penultimate`, where there are no options


@schedule(
    "Karras without its last level",
    paper="Karras et al. 2022, arXiv 2206.00364",
    help="karras with discard_penultimate: the recipe for 4 to 8 steps.",
    curated=True,
    ends_at_sigma_min=False,
)
def karras_discard(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """The first n of the n + 1 levels of `karras`."""
    return karras(n + 1, sigma_min, sigma_max, flow=flow)[:-1]


@schedule(
    "Time quadratic without its last level",
    paper="Song et al. 2020, arXiv 2010.02502",
    help="time_quadratic with discard_penultimate: good at 4 to 8 steps.",
    curated=True,
    ends_at_sigma_min=False,
    in_time=True,
)
def time_quadratic_discard(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """The first n of the n + 1 levels of `time_quadratic`."""
    return time_quadratic(n + 1, sigma_min, sigma_max, flow=flow)[:-1]


@schedule(
    "Beta without its last level",
    paper="Lee et al. 2024, arXiv 2407.12173",
    help="beta with discard_penultimate, as ComfyUI has it: for flow models in few steps.",
    curated=True,
    ends_at_sigma_min=False,
    in_time=True,
)
def beta_discard(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """The first n of the n + 1 levels of `beta`: those of ComfyUI's, which rounds them to its table."""
    return beta(n + 1, sigma_min, sigma_max, flow=flow)[:-1]


@schedule(
    "Beta 57 without its last level",
    paper="Lee et al. 2024, arXiv 2407.12173; alpha and beta of RES4LYF",
    help="beta57 with discard_penultimate: the least error in 4 steps on the demo model.",
    curated=True,
    ends_at_sigma_min=False,
    in_time=True,
)
def beta57_discard(n: int, sigma_min: float, sigma_max: float, *, flow: bool = False) -> Tensor:
    """The first n of the n + 1 levels of `beta57`."""
    return beta57(n + 1, sigma_min, sigma_max, flow=flow)[:-1]
