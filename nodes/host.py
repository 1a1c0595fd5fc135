"""What samplers need to know of the host's model, and what the host needs from a sampler or schedule."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import comfy.model_sampling
import comfy.samplers
import torch

from ..samplers import SCHEDULES, SamplerSpec, ScheduleSpec
from ..samplers.learned import Learned
from ..samplers.published import PUBLISHED
from .bottleneck import Bottleneck
from .seeds import image_seeds


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


def progress(model_sampling: Any) -> Callable[[float], float]:
    """How much of sampling is over at a level, 0 to 1: the host's percent, as in its start_percent and end_percent."""

    @functools.cache
    def percent(sigma: float) -> float:
        low, high = 0.0, 1.0
        for _ in range(24):  # to a step of float32
            middle = (low + high) / 2
            low, high = (middle, high) if float(model_sampling.percent_to_sigma(middle)) > sigma else (low, middle)
        return (low + high) / 2

    return percent


def sampler_function(spec: SamplerSpec) -> Callable[..., torch.Tensor]:
    """The sampler as the host calls it: the level space is read from the model that is being sampled."""

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **options):
        published = PUBLISHED.get(spec.id)
        if published is not None and not spec.changed_options(options):
            reason = _why_not(published, model, sigmas)
            if reason is None:
                return learned_function(published)(model, x, None, extra_args, callback, disable)
            logging.info("%s: the published numbers are left out: %s", spec.label, reason)
        flow = is_flow(model.inner_model.model_patcher.get_model_object("model_sampling"))
        options = partial_options(spec, sigmas, options)
        if spec.stochastic:
            options["seed"] = image_seeds(model, x, extra_args)
        info: dict[str, int] = {}
        samples = spec.function(model, x, sigmas, extra_args, callback, disable, flow=flow, info=info, **options)
        if spec.adaptive:
            logging.info("%s: %s", spec.label, ", ".join(f"{count} {name}" for name, count in info.items()))
        return samples

    sample.__name__ = f"sample_fewstep_{spec.id}"
    sample.__doc__ = f"{spec.label}: {spec.help} {spec.paper}"
    return sample


def partial_options(
    spec: SamplerSpec, sigmas: torch.Tensor | Sequence[float], options: Mapping[str, Any]
) -> dict[str, Any]:
    """The options of a run that may be the first part of one: where noise is left, no step is the final one.

    So the order is not lowered at the end of a part (`lower_order_final`), as it is not in the host's own samplers.
    """
    part = float(sigmas[-1]) > 0 and any(option.name == "lower_order_final" for option in spec.options)
    return {**options, "lower_order_final": False} if part else dict(options)


class LevelRange(NamedTuple):
    """What a schedule needs to know of a model."""

    sigma_min: float
    sigma_max: float
    flow: bool = False
    shift: float = 1.0


def level_range(model_sampling: Any) -> LevelRange:
    """The model's own range of noise levels."""
    flow = is_flow(model_sampling)
    return LevelRange(
        float(model_sampling.sigma_min),
        float(model_sampling.sigma_max),
        flow,
        time_shift(model_sampling) if flow else 1.0,
    )


def sigmas_over(spec: ScheduleSpec, levels: LevelRange, steps: int, **options: Any) -> torch.Tensor:
    """The schedule over a range of levels, [steps + 1], float32 on the CPU as the host wants it."""
    sigmas = spec.function(
        steps, levels.sigma_min, levels.sigma_max, flow=levels.flow, model_shift=levels.shift, **options
    )
    return sigmas.float()


def schedule_sigmas(spec: ScheduleSpec, model_sampling: Any, steps: int, **options: Any) -> torch.Tensor:
    """The schedule over the model's own range of levels, as `sigmas_over`."""
    return sigmas_over(spec, level_range(model_sampling), steps, **options)


MANY_STEPS = "dpmpp_2m"
"""The sampler whose runs of many steps others are measured against."""


def many_steps_schedule(model_sampling: Any) -> ScheduleSpec:
    """The schedule of such runs."""
    return SCHEDULES["time_uniform" if is_flow(model_sampling) else "exponential"]


# What was learned for one model


def fingerprint(patcher: Any) -> dict[str, Any]:
    """What tells kinds of models apart, for `Learned.check_model`: fine-tunes and LoRAs of one kind are alike."""
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
        "latent_channels": int(model.latent_format.latent_channels),
    }


_SAMPLINGS = [name for name in vars(comfy.model_sampling) if name.startswith(("ModelSampling", "StableCascade"))]


def learned_function(learned: Learned, *, see_bottleneck: bool = True) -> Callable[..., torch.Tensor]:
    """A plan or predictor as the host calls a sampler.

    Raises:
        ValueError: from the function, if it was made for another kind of model or the sigmas are not its own.
    """

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None):
        patcher = model.inner_model.model_patcher
        learned.check_model(fingerprint(patcher))
        _compare_guidance(learned, guidance_scale(model.inner_model))
        network = patcher.model.diffusion_model if learned.predictor is not None and see_bottleneck else None
        with guidance_of(model) as set_guidance, Bottleneck(network) as bottleneck:
            return learned.function(
                bottleneck.watch(model), x, sigmas, extra_args, callback, disable,
                set_guidance=set_guidance, bottleneck=bottleneck if bottleneck.sees else None,
            )  # fmt: skip

    sample.__name__ = "sample_fewstep_plan"
    return sample


@contextlib.contextmanager
def guidance_of(model: Any) -> Iterator[Callable[[float], None] | None]:
    """A function that multiplies the guidance scale of the guider that samples; None where it has no such number."""
    guider = model.inner_model
    scale = guidance_scale(guider)
    if scale is None:
        yield None
        return

    def set_guidance(factor: float) -> None:
        guider.cfg = scale * factor

    try:
        yield set_guidance
    finally:
        guider.cfg = scale


def guidance_scale(guider: Any) -> float | None:
    """The one number that a guider mixes the prompts by; None where it has none.

    Every guider of the host inherits a `cfg`, also those that have no negative prompt or mix in their own way.
    """
    plain = isinstance(guider, comfy.samplers.CFGGuider) and guider.conds.keys() == {"positive", "negative"}
    return guider.cfg if plain else None


def _compare_guidance(learned: Learned, scale: float | None) -> None:
    wanted = learned.about.get("guidance")
    if isinstance(wanted, int | float) and scale is not None and not math.isclose(wanted, scale, rel_tol=0.02):
        logging.warning("this plan was made at guidance %g and runs at %g: expect less of it", wanted, scale)


def _why_not(published: Learned, model: Any, sigmas: torch.Tensor) -> str | None:
    """Why a run cannot follow published numbers; None if it can."""
    recipe = published.recipe
    try:
        published.check_model(fingerprint(model.inner_model.model_patcher))
    except ValueError as error:
        return str(error)
    if len(sigmas) != len(recipe.sigmas):
        return f"they are for {len(recipe.sigmas) - 1} steps and this run has {len(sigmas) - 1}"
    if not math.isclose(float(sigmas[0]), recipe.sigmas[0], rel_tol=1e-3) or float(sigmas[-1]) != 0:
        return "they are for a run from pure noise to the clean image"
    return None
