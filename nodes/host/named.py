"""A sampler or schedule by its name: one of ours or one of the host's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import comfy.samplers
import torch
from torch import Tensor

from ...samplers import SamplerSpec, ScheduleSpec
from .protocols import ModelSampling
from .sampling import sampler_function, schedule_sigmas

SpecT = TypeVar("SpecT", SamplerSpec, ScheduleSpec)


@dataclass(frozen=True)
class Named(Generic[SpecT]):
    """What a name stands for."""

    label: str
    """As the user wrote it."""

    name: str
    """As in the host's list, or in ours."""

    spec: SpecT | None
    """Ours; None for the host's own."""

    options: Mapping[str, Any] = field(default_factory=dict, hash=False)


def make_sampler(named: Named[SamplerSpec]) -> Any:
    """A SAMPLER of the host."""
    if named.spec is not None:
        return comfy.samplers.KSAMPLER(sampler_function(named.spec), dict(named.options))
    sampler = comfy.samplers.sampler_object(named.name)
    sampler.extra_options = {**sampler.extra_options, **named.options}
    return sampler


def make_sigmas(
    sampler: Named[SamplerSpec],
    schedule: Named[ScheduleSpec],
    model_sampling: ModelSampling,
    steps: int,
    denoise: float,
) -> Tensor:
    """[steps + 1] as KSampler makes them, which for some of the host's samplers leaves out the last level above 0."""
    discard = sampler.name in comfy.samplers.KSampler.DISCARD_PENULTIMATE_SIGMA_SAMPLERS
    total = (steps if denoise > 0.9999 else int(steps / denoise)) + discard
    if schedule.spec is not None:
        sigmas = schedule_sigmas(schedule.spec, model_sampling, total, **schedule.options)
    else:
        sigmas = comfy.samplers.calculate_sigmas(model_sampling, schedule.name, total)
    if discard:
        sigmas = torch.cat([sigmas[:-2], sigmas[-1:]])
    return sigmas[-(steps + 1) :].cpu()
