"""The levels that distilled models were trained on. trained.json holds them, and where each was read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..checks import counted
from ..processes import stable_diffusion_sigma
from ..schedule import schedule, shifted
from .analytic import ramp
from .tables import published

Distilled = Literal[
    "sdxl_turbo", "sdxl_lightning", "lcm", "tcd", "hyper_sd", "hyper_sdxl_unet", "hyper_flux", "dmd2_sdxl",
    "flux_schnell", "flux2_dev_turbo", "wan22_lightning", "qwen_image_lightning", "z_image_turbo", "fast_hunyuan",
    "hyper_sd_cfg", "wan21_lightx2v",
]  # fmt: skip


def trained_models() -> dict[str, dict[str, Any]]:
    """By id: the name of the model, where its levels were read (`sources`), and these in one of four forms.

    `times`: time steps of Stable Diffusion, 0 to 999, by number of steps. `sigmas`: flow levels, likewise. `grid`: any
    n of so many time steps from 999 down, evenly spread. `shift`, `steps`: equal steps in the time of a flow, shifted.
    """
    return published("trained.json")


def steps_of(entry: dict[str, Any]) -> list[int]:
    """The numbers of steps that a model was trained for."""
    if "grid" in entry:
        return list(range(1, entry["grid"] + 1))
    return entry["steps"] if "shift" in entry else [int(n) for n in entry.get("times") or entry["sigmas"]]


def steps_in_words(entry: dict[str, Any]) -> str:
    """The numbers of steps, as "2, 4 or 8"."""
    known = steps_of(entry)
    return f"1 to {known[-1]}" if "grid" in entry else either(known)


def either(numbers: Iterable[float]) -> str:
    """Some of which one holds, as "2, 4 or 8"."""
    *others, last = (f"{number:g}" for number in numbers)
    return " or ".join(filter(None, (", ".join(others), last)))


def of_flow(entry: dict[str, Any]) -> bool:
    """Whether a model has the levels of a rectified flow; those of Stable Diffusion if not."""
    return any(form in entry for form in _OF_FLOW)


def _of_stable_diffusion(times: Iterable[int]) -> Tensor:
    return torch.tensor([stable_diffusion_sigma(time + 1) for time in times], dtype=torch.float64)


_LEVELS: dict[str, Callable[[Any, int], Tensor]] = {
    "times": lambda times, n: _of_stable_diffusion(times[str(n)]),
    "grid": lambda grid, n: _of_stable_diffusion(999 - i * grid // n * (1000 // grid) for i in range(n)),
    "sigmas": lambda sigmas, n: torch.tensor(sigmas[str(n)], dtype=torch.float64),
    "shift": lambda shift, n: shifted(ramp(n, 1.0, 1 / n), shift),
}
_OF_FLOW = ("sigmas", "shift")


@schedule(
    "Trained (distilled models)",
    paper="the model's makers (docs/MODELS.md)",
    help="The levels that a distilled model was trained on: choose it under distilled.",
    starts_at_sigma_max=False,
    ends_at_sigma_min=False,
    any_steps=False,
)
def trained(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    distilled: Annotated[Distilled, "The distilled model, or the one whose LoRA you use."] = "sdxl_lightning",
    flow: bool = False,
) -> Tensor:
    """The published levels of a distilled model. `trained_models` names the source of each.

    They are levels of noise, so that the time shift of the loaded model makes no difference. Time steps of Stable
    Diffusion are those of its betas (Rombach et al. 2022, arXiv 2112.10752).

    Raises:
        ValueError: if the model was not trained for n steps, or its kind of levels is not that of the one loaded.
    """
    entry = trained_models()[distilled]
    form = next(form for form in _LEVELS if form in entry)
    if flow != of_flow(entry):
        kinds = "Stable Diffusion", "rectified-flow"
        raise ValueError(
            f"distilled = {distilled}: {entry['name']} has the levels of a {kinds[not flow]} model, and the connected "
            f"model those of a {kinds[flow]} model: choose the one that is connected"
        )
    if n not in steps_of(entry):
        raise ValueError(
            f"distilled = {distilled}: {entry['name']} was trained for {counted(steps_in_words(entry), 'step')}, "
            f"and the whole schedule has {n} (steps / denoise, one more with discard_penultimate)"
        )
    return _LEVELS[form](entry[form], n)
