"""What samplers need to know of the host's model, and what the host needs from a sampler or schedule."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import comfy.model_sampling
import torch

from ..samplers import SamplerSpec, ScheduleSpec


def is_flow(model_sampling: Any) -> bool:
    """Whether levels are those of a rectified flow: x_t = (1 - sigma) x_0 + sigma noise (SD3, Flux, Wan ...)."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def time_shift(model_sampling: Any) -> float:
    """The time shift s of a flow model, sigma(t) = s t / (1 + (s - 1) t): the odds of its level in the middle of time.

    Its classes keep the shift in different units (Flux its logarithm), but all give that level. 1 if it is no level
    of a flow model.
    """
    middle = float(model_sampling.percent_to_sigma(0.5))
    return middle / (1 - middle) if 0 < middle < 1 else 1.0


def sampler_function(spec: SamplerSpec) -> Callable[..., torch.Tensor]:
    """The sampler as the host calls it: the level space is read from the model that is being sampled."""

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        flow = is_flow(model.inner_model.model_patcher.get_model_object("model_sampling"))
        info: dict[str, int] = {}
        samples = spec.function(model, x, sigmas, extra_args, callback, disable, flow=flow, info=info, **options)
        if spec.adaptive:
            logging.info("%s: %s", spec.label, ", ".join(f"{count} {name}" for name, count in info.items()))
        return samples

    sample.__name__ = f"sample_fewstep_{spec.id}"
    sample.__doc__ = f"{spec.label}: {spec.help} {spec.paper}"
    return sample


def schedule_sigmas(spec: ScheduleSpec, model_sampling: Any, steps: int, **options: Any) -> torch.Tensor:
    """The schedule over the model's own range of levels, [steps + 1], float32 on the CPU as the host wants it."""
    flow = is_flow(model_sampling)
    sigmas = spec.function(
        steps,
        float(model_sampling.sigma_min),
        float(model_sampling.sigma_max),
        flow=flow,
        model_shift=time_shift(model_sampling) if flow else 1.0,
        **options,
    )
    return sigmas.float()
