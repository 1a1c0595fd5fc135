"""What samplers and schedules need to know of the host's model."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import comfy.model_sampling
import scipy.optimize
import torch

from ...samplers.calibrated.plan import CalibratedPlan
from .families import family_name
from .protocols import ModelSampling, Patcher


def is_flow(model_sampling: Any) -> bool:
    """Whether levels are those of a rectified flow: x_t = (1 - sigma) x_0 + sigma noise (SD3, Flux, Wan ...)."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def time_shift(model_sampling: ModelSampling) -> float:
    """The time shift s of a flow model, sigma(t) = s t / (1 + (s - 1) t): the odds of its level in the middle of time.

    Its classes keep the shift in different units (Flux its logarithm), but all give that level. 1 if it is no level
    of a flow model.
    """
    middle = float(model_sampling.percent_to_sigma(0.5))
    return middle / (1 - middle) if 0 < middle < 1 else 1.0


def percent_at(model_sampling: ModelSampling) -> Callable[[float], float]:
    """How much of sampling is over at a level, 0 to 1: the host's percent, as in its start_percent and end_percent.

    The host has only the inverse, from percent to sigma, of one number at a time. It is asked once for each value of a
    table, between which log sigma is nearly a line, and for about three more values for each level.
    """

    table = [k / 999 for k in range(1000)]  # the time steps of Stable Diffusion, between which it is a line
    table[0], table[-1] = _END, 1 - _END  # at 0 and 1 themselves the host says 1e9 and 0

    @functools.cache
    def log_sigma(percent: float) -> float:
        return _log(float(model_sampling.percent_to_sigma(percent)))

    @functools.cache
    def percent(sigma: float) -> float:
        wanted = _log(sigma)
        after = bisect.bisect_left(table, True, key=lambda percent: log_sigma(percent) <= wanted)
        if after in (0, len(table)):
            return table[after and -1]

        def beyond(percent: float) -> float:
            return log_sigma(percent) - wanted or -1e-12  # of percents with one level the first

        return float(scipy.optimize.brentq(beyond, table[after - 1], table[after], xtol=_END))

    return percent


_END = 2.0**-25  # half a step of float32 below 1


def _log(sigma: float) -> float:
    return math.log(min(max(sigma, 1e-30), 1e30))


def noise_scale(model_sampling: Any) -> float:
    """The standard deviation s of the noise that a model was trained with: x_t = alpha x_0 + sigma s noise.

    1 but for some models of new hosts (8 for HiDream-O1, or as Model Noise Scale says). There the host multiplies by it
    what its samplers add; `noise_scaling` does it with the noise that a run begins from.
    """
    return float(getattr(model_sampling, "noise_scale", 1.0))


class LevelRange(NamedTuple):
    """What a schedule needs to know of a model."""

    sigma_min: float
    sigma_max: float
    flow: bool = False
    shift: float = 1.0


def level_range(model_sampling: ModelSampling) -> LevelRange:
    """The model's own range of noise levels."""
    flow = is_flow(model_sampling)
    return LevelRange(
        float(model_sampling.sigma_min),
        float(model_sampling.sigma_max),
        flow,
        time_shift(model_sampling) if flow else 1.0,
    )


def fingerprint(patcher: Patcher) -> dict[str, Any]:
    """The kind of a model, for `CalibratedPlan.check_model`: fine-tunes and LoRAs of one kind are alike."""
    sampling = patcher.get_model_object("model_sampling")
    model = patcher.model
    kinds = type(sampling).__mro__  # a class of levels and one of predictions, each with its bases
    return {
        "family": type(model.model_config).__name__,
        "sampling": next(c.__name__ for c in kinds if c.__name__ in _SAMPLINGS or c is torch.nn.Module),
        "prediction": next(c.__name__ for c in kinds if not issubclass(c, torch.nn.Module)),
        "shift": time_shift(sampling) if is_flow(sampling) else 1.0,
        "sigma_min": float(sampling.sigma_min),
        "sigma_max": float(sampling.sigma_max),
        "noise_scale": noise_scale(sampling),
        "latent_channels": int(model.latent_format.latent_channels),
    }


def check_plan(plan: CalibratedPlan, model: Mapping[str, Any]) -> None:
    """Check that a plan was made for this kind of model (`fingerprint`).

    Raises:
        ValueError: naming both models, or the first field that differs.
    """
    wanted, found = (facts.get("family") for facts in (plan.about.model, model))
    if wanted is not None and found is not None and wanted != found:
        raise ValueError(
            f"this plan is for {family_name(str(wanted)[:80])}; your model is {family_name(found)}. Load the model it "
            "was made for, or calibrate a plan for this one"
        )
    plan.check_model(model)


_SAMPLINGS = [name for name in vars(comfy.model_sampling) if name.startswith(("ModelSampling", "StableCascade"))]


def levels_ui(patcher: Patcher, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a node tells the front end of its model, so that plots are drawn over its levels before the next run.

    Args:
        more: facts beside the `fingerprint`.
    """
    levels = level_range(patcher.get_model_object("model_sampling"))
    return {"fewstep_levels": [levels._asdict()], "fewstep_model": [fingerprint(patcher) | dict(more or {})]}
