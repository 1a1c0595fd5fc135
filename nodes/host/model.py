"""What samplers need to know of the host's model, and what the host needs from a sampler or schedule."""

from __future__ import annotations

import bisect
import contextlib
import functools
import logging
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import comfy.model_sampling
import comfy.patcher_extension
import comfy.samplers
import scipy.optimize
import torch
from comfy.k_diffusion import sampling as k_diffusion
from comfy.patcher_extension import WrappersMP

from ...samplers import SCHEDULES, SamplerSpec, ScheduleSpec
from ...samplers.calibrated.plan import CalibratedPlan
from ...samplers.calibrated.published import PUBLISHED
from ...samplers.guidance import NONE
from ..ui.progress import say
from .bottleneck import Bottleneck
from .runs import Run, announce, follow, resolve
from .seeds import image_seeds
from .wrapped import unwrapped

PREFIX = "fewstep_"
"""Of our samplers and schedules among those of the host."""


def host_node(id: str) -> Any:
    """A node of the host; None where it has none of that name."""
    return getattr(sys.modules.get("nodes"), "NODE_CLASS_MAPPINGS", {}).get(id)


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
    """How much of sampling is over at a level, 0 to 1: the host's percent, as in its start_percent and end_percent.

    The host has the function from percent to sigma alone, which falls, and of one number at a time. It is asked for the
    values of a table, each once, between which log sigma is nearly a line, and for about three more for a level.
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


def guider_of(model: Any) -> Any:
    """The host's guider behind the denoiser that a sampler was given, however often other packs have wrapped that.

    Raises:
        ValueError: if there is none: what the levels of the model mean cannot be told from a function alone.
    """
    for found in unwrapped(model):
        if getattr(found, "model_patcher", None) is not None:
            return found
    raise ValueError(
        f"model: this {type(model).__name__} leads to no MODEL of the host (no inner_model of it has a model_patcher): "
        "the kind of its noise levels is not known. Another pack has wrapped the model: sample without it, or ask its "
        "author to give the wrapper the inner_model of what it wraps"
    )


def patcher_of(model: Any) -> Any:
    """The MODEL that is being sampled; raises ValueError as `guider_of`."""
    return guider_of(model).model_patcher


@functools.cache
def sampler_function(spec: SamplerSpec) -> Callable[..., torch.Tensor]:
    """The sampler as the host calls it: the level space is read from the model that is being sampled.

    It is found, by pickle too, where `register` puts it: on the host's k-diffusion module.
    """

    def sample(
        model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None, seed=None, **options
    ):
        patcher = patcher_of(model)
        sampling = patcher.get_model_object("model_sampling")
        flow = is_flow(sampling)
        run = resolve(spec, options, sigmas, flow=flow, kind=fingerprint(patcher) if spec.id in PUBLISHED else None)
        if run.calibrated is not None:
            return _sample_plan(run.calibrated, model, x, sigmas, extra_args, callback, disable, published=run)
        if run.why is not None:
            logging.info("%s: the published numbers are left out: %s", spec.label, run.why)
        if spec.stochastic:
            seed = (extra_args or {}).get("seed") if seed is None else seed
            seed = image_seeds(model, x, seed) or seed
        info: dict[str, int] = {}
        model, extra_args = announce(run, model, x, sigmas, extra_args)
        samples = spec.function(
            model, x, sigmas, extra_args, callback, disable, noise_sampler=noise_sampler, seed=seed, flow=flow,
            noise_scale=noise_scale(sampling), info=info, **run.options,
        )  # fmt: skip
        if spec.adaptive:
            logging.info("%s: %s", spec.label, ", ".join(f"{count} {name}" for name, count in info.items()))
        return samples

    sample.__module__, sample.__name__ = k_diffusion.__name__, f"sample_{PREFIX}{spec.id}"
    sample.__qualname__ = sample.__name__
    sample.__doc__ = f"{spec.label}: {spec.help} {spec.paper}"
    return sample


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


def levels_ui(patcher: Any) -> dict[str, Any]:
    """What a node tells the front end of its model, so that plots are drawn over its levels before the next run."""
    levels = level_range(patcher.get_model_object("model_sampling"))
    return {"fewstep_levels": [levels._asdict()], "fewstep_model": [fingerprint(patcher)]}


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


_SAMPLINGS = [name for name in vars(comfy.model_sampling) if name.startswith(("ModelSampling", "StableCascade"))]


def sample_fewstep_plan(
    model, x, sigmas, extra_args=None, callback=None, disable=None, noise_sampler=None, seed=None,
    *, plan: CalibratedPlan | None = None, see_bottleneck: bool = True,
):  # fmt: skip
    """A plan or predictor as the host calls a sampler. It adds no noise: noise_sampler and seed are not used.

    Raises:
        ValueError: if the plan is missing, was made for another kind of model, or the sigmas are not its own.
    """
    if plan is None:
        raise ValueError("plan: this sampler has lost its plan: connect Few-Step Plan Sampler, which makes it with one")
    return _sample_plan(plan, model, x, sigmas, extra_args, callback, disable, see_bottleneck=see_bottleneck)


def plan_function(calibrated: CalibratedPlan, *, see_bottleneck: bool = True) -> Callable[..., torch.Tensor]:
    """The function of a plan or predictor, as `sample_fewstep_plan`, which holds it."""
    function = functools.partial(sample_fewstep_plan, plan=calibrated, see_bottleneck=see_bottleneck)
    return functools.update_wrapper(function, sample_fewstep_plan)


def plan_sampler(calibrated: CalibratedPlan, *, see_bottleneck: bool = True) -> Any:
    """A SAMPLER that follows a plan. Its options hold the plan, too: hosts may make it again from name and options."""
    options = {"plan": calibrated, "see_bottleneck": see_bottleneck}
    return comfy.samplers.KSAMPLER(plan_function(calibrated, see_bottleneck=see_bottleneck), options)


def _sample_plan(
    calibrated: CalibratedPlan,
    model: Any,
    x: torch.Tensor,
    sigmas: torch.Tensor,
    extra_args: Any,
    callback: Any,
    disable: bool | None,
    *,
    see_bottleneck: bool = True,
    published: Run | None = None,
) -> torch.Tensor:
    """Sample along a plan. A `published` one of a sampler has levels of its own, whatever the sigmas are."""
    guider = guider_of(model)
    patcher = guider.model_patcher
    calibrated.check_model(fingerprint(patcher))
    _compare_guidance(calibrated, guidance_scale(guider))
    network = patcher.model.diffusion_model if calibrated.predictor is not None and see_bottleneck else None
    with guidance_of(model) as set_guidance, Bottleneck(network) as bottleneck:
        run = published or follow(calibrated, sigmas, predicts=bottleneck.sees)
        evaluate, extra_args = announce(run, model, x, sigmas, extra_args)
        return calibrated.function(
            bottleneck.watch(evaluate), x, None if published else sigmas, extra_args, callback, disable,
            set_guidance=set_guidance, bottleneck=bottleneck if bottleneck.sees else None,
        )  # fmt: skip


@contextlib.contextmanager
def guidance_of(model: Any) -> Iterator[Callable[[float], None] | None]:
    """A function that multiplies the guidance scale of the guider that samples; None where it has no such number.

    It multiplies whatever scale an evaluation has, last of all: that of the sampler node, of a schedule, or of the
    host's CFG Override. Where that is 1 there is no guidance, and it stays so.
    """
    guider = guider_of(model)
    if guidance_scale(guider) is None:
        yield None
        return
    current = 1.0

    def set_guidance(factor: float) -> None:
        nonlocal current
        current = factor

    def predict(guided: Callable[..., torch.Tensor], *arguments: Any, **options: Any) -> torch.Tensor:
        scale = guider.cfg
        guider.cfg = with_factor(scale, current)
        try:
            return guided(*arguments, **options)
        finally:
            guider.cfg = scale

    # Wrappers of evaluations are called in the order of their keys: the newest is the innermost. The options are those
    # of this run: the guider copies them before.
    kind, key, options = WrappersMP.PREDICT_NOISE, "fewstep_plan", guider.model_options
    comfy.patcher_extension.add_wrapper_with_key(kind, key, predict, options, is_model_options=True)
    try:
        yield set_guidance
    finally:
        options["transformer_options"]["wrappers"][kind][key].remove(predict)


def with_factor(scale: float, factor: float) -> float:
    """The scale of an evaluation for which a plan has a factor. Without guidance (scale 1) it stays so."""
    return scale if scale == NONE else scale * factor


def guidance_scale(guider: Any) -> float | None:
    """The one number that a guider mixes the prompts by; None where it has none.

    Every guider of the host inherits a `cfg`, also those that have no negative prompt or mix in their own way.
    """
    plain = isinstance(guider, comfy.samplers.CFGGuider) and guider.conds.keys() == {"positive", "negative"}
    return guider.cfg if plain else None


def same_guidance(calibrated: CalibratedPlan, scale: float | None) -> bool:
    """Whether a plan was made at this scale of guidance, as far as both are known."""
    wanted = calibrated.about.guidance
    return wanted is None or scale is None or math.isclose(wanted, scale, rel_tol=_SAME_SCALE)


_SAME_SCALE = 0.02  # relative


def _compare_guidance(calibrated: CalibratedPlan, scale: float | None) -> None:
    """Tell it in the log, and on the node that samples."""
    if not same_guidance(calibrated, scale):
        wanted = calibrated.about.guidance
        warning = (
            f"this plan was made at guidance {wanted:g} and runs at {scale:g}: expect less of it; set cfg to "
            f"{wanted:g}, or take another plan or sampler"
        )
        logging.warning(warning)
        say(f"Warning: {warning}.")
