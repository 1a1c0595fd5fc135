"""What samplers need to know of the host's model, and what the host needs from a sampler or schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_sampling
import torch

from ..samplers import SamplerSpec, ScheduleSpec


def is_flow(model_sampling: Any) -> bool:
    """Whether levels are those of a rectified flow: x_t = (1 - sigma) x_0 + sigma noise (SD3, Flux, Wan ...)."""
    return isinstance(model_sampling, comfy.model_sampling.CONST)


def sampler_function(spec: SamplerSpec) -> Callable[..., torch.Tensor]:
    """The sampler as the host calls it: the level space is read from the model that is being sampled."""

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        model_sampling = model.inner_model.model_patcher.get_model_object("model_sampling")
        return spec.function(model, x, sigmas, extra_args, callback, disable, flow=is_flow(model_sampling), **options)

    sample.__name__ = f"sample_fewstep_{spec.id}"
    sample.__doc__ = f"{spec.label}: {spec.help} {spec.paper}"
    return sample


def schedule_sigmas(spec: ScheduleSpec, model_sampling: Any, steps: int, **options: Any) -> torch.Tensor:
    """The schedule over the model's own range of levels, [steps + 1], float32 on the CPU as the host wants it."""
    sigmas = spec.function(
        steps,
        float(model_sampling.sigma_min),
        float(model_sampling.sigma_max),
        flow=is_flow(model_sampling),
        **options,
    )
    return sigmas.float()
