"""Our samplers and plans as the host's SAMPLER, our schedules as its SIGMAS."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.samplers
from comfy.k_diffusion import sampling as k_diffusion
from torch import Tensor

from ...samplers import SamplerSpec, ScheduleSpec
from ...samplers.calibrated import CalibratedPlan
from ...samplers.calibrated.published import PUBLISHED
from ...samplers.levels import pure_noise, read_sigmas
from .bottleneck import Bottleneck
from .display import warn
from .guider import (
    guidance_of_run,
    guider_of,
    patcher_of,
    run_guidance,
    run_scale,
    same_guidance,
    strong_cfg_pp,
    taken_apart,
)
from .model import LevelRange, check_plan, fingerprint, level_range, noise_scale
from .protocols import ModelSampling, SamplerFunction
from .runs import Run, announce, follow, resolve
from .seeds import image_seeds
from .step_caches import step_cache
from .students import student_warnings

PREFIX = "fewstep_"
"""Of our samplers and schedules among those of the host."""


def sigmas_over(spec: ScheduleSpec, levels: LevelRange, steps: int, **options: Any) -> Tensor:
    """The schedule over a range of levels, [steps + 1], float32 on the CPU as the host wants it."""
    sigmas = spec.function(
        steps, levels.sigma_min, levels.sigma_max, flow=levels.flow, model_shift=levels.shift, **options
    )
    return sigmas.float()


def schedule_sigmas(spec: ScheduleSpec, model_sampling: ModelSampling, steps: int, **options: Any) -> Tensor:
    """The schedule over the model's own range of levels, as `sigmas_over`."""
    return sigmas_over(spec, level_range(model_sampling), steps, **options)


@functools.cache
def sampler_function(spec: SamplerSpec) -> SamplerFunction:
    """The sampler as the host calls it: the level space is read from the model that is being sampled.

    It is found, by pickle too, where `register` puts it: on the host's k-diffusion module.
    """

    def sample(
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: Any = None,
        callback: Any = None,
        disable: bool | None = None,
        noise_sampler: Any = None,
        seed: Any = None,
        **options: Any,
    ) -> Tensor:
        patcher = patcher_of(model)
        sampling = patcher.get_model_object("model_sampling")
        kind = fingerprint(patcher) if spec.id in PUBLISHED else None
        levels = level_range(sampling)
        run = resolve(spec, options, sigmas, flow=levels.flow, shift=levels.shift, kind=kind)
        if run.prepared is None:
            assert run.calibrated is not None
            return _sample_plan(run.calibrated, model, x, sigmas, extra_args, callback, disable, published=run)
        if run.why is not None:
            logging.info("%s: the published numbers are left out: %s", spec.label, run.why)
        if spec.stochastic:
            seed = (extra_args or {}).get("seed") if seed is None else seed
            seed = image_seeds(model, x, seed) or seed
        warn(
            [
                *_step_cache(extra_args),
                *_ends_in_noise(run.given, levels.flow),
                *student_warnings(model, spec.id, run.given),
            ]
        )
        warn(run.prepared.warnings, logged=True)
        if spec.takes_apart:
            guider = guider_of(model)
            guidance = run_guidance(guider)
            if guidance is not None and guidance.schedule is not None and guidance.schedule.cfg_pp:
                raise ValueError(
                    f"cfg_pp: the guidance is that of CFG++, and so is the sampler {spec.id}: turn cfg_pp off in "
                    "Few-Step Guidance, or sample with euler or dpmpp_2m"
                )
            warn(strong_cfg_pp(run_scale(guider, guidance)))
            model, extra_args = taken_apart(model, extra_args)
        info: dict[str, int] = {}
        model, extra_args = announce(run, model, x, sigmas, extra_args)
        samples = run.prepared.sample(
            model, x, extra_args, callback, disable, noise_sampler=noise_sampler, seed=seed,
            noise_scale=noise_scale(sampling), info=info,
        )  # fmt: skip
        if spec.adaptive:
            logging.info("%s: %s", spec.label, ", ".join(f"{count} {name}" for name, count in info.items()))
        return samples

    sample.__module__, sample.__name__ = k_diffusion.__name__, f"sample_{PREFIX}{spec.id}"
    sample.__qualname__ = sample.__name__
    sample.__doc__ = f"{spec.label}: {spec.help} {spec.paper}"
    return sample


def sample_fewstep_plan(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Any = None,
    callback: Any = None,
    disable: bool | None = None,
    noise_sampler: Any = None,
    seed: Any = None,
    *,
    plan: CalibratedPlan | None = None,
    see_bottleneck: bool = True,
) -> Tensor:
    """A plan or predictor as the host calls a sampler. It adds no noise: noise_sampler and seed are not used.

    Raises:
        ValueError: if the plan is missing, was made for another kind of model, or the sigmas are not its own.
    """
    if plan is None:
        raise ValueError(
            "plan: this sampler has lost its plan: connect Few-Step Plan Sampler directly to the node that samples"
        )
    return _sample_plan(plan, model, x, sigmas, extra_args, callback, disable, see_bottleneck=see_bottleneck)


def plan_function(plan: CalibratedPlan, *, see_bottleneck: bool = True) -> SamplerFunction:
    """The function of a plan or predictor, as `sample_fewstep_plan`, which holds it."""
    function = functools.partial(sample_fewstep_plan, plan=plan, see_bottleneck=see_bottleneck)
    return functools.update_wrapper(function, sample_fewstep_plan)


def plan_sampler(plan: CalibratedPlan, *, see_bottleneck: bool = True) -> Any:
    """A SAMPLER that follows a plan. Its options hold the plan, too: hosts may make it again from name and options."""
    options = {"plan": plan, "see_bottleneck": see_bottleneck}
    return comfy.samplers.KSAMPLER(plan_function(plan, see_bottleneck=see_bottleneck), options)


def _sample_plan(
    plan: CalibratedPlan,
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Any,
    callback: Any,
    disable: bool | None,
    *,
    see_bottleneck: bool = True,
    published: Run | None = None,
) -> Tensor:
    """Sample along a plan. A `published` one of a sampler has levels of its own, whatever the sigmas are."""
    guider = guider_of(model)
    patcher = guider.model_patcher
    check_plan(plan, fingerprint(patcher))
    network = patcher.model.diffusion_model if plan.predictor is not None and see_bottleneck else None
    with guidance_of_run(guider) as guidance, Bottleneck(network) as bottleneck:
        given = plan.recipe.sigmas if sigmas is None else read_sigmas(sigmas)
        warnings = [
            *_other_guidance(plan, run_scale(guider, guidance)),
            *_other_size(plan, x),
            *_step_cache(extra_args),
            *_ends_in_noise(given, plan.recipe.flow),
            *student_warnings(model, plan.recipe.base, given),
        ]
        warn(warnings)
        run = published or follow(plan, sigmas, predicts=bottleneck.sees)
        assert run.calibrated is not None
        evaluate, extra_args = announce(run, model, x, sigmas, extra_args)
        samples = run.calibrated.function(
            bottleneck.watch(evaluate), x, None, extra_args, callback, disable,
            set_guidance=None if guidance is None else guidance.set_factor,
            bottleneck=bottleneck if bottleneck.sees else None,
        )  # fmt: skip
        if guidance is not None and guidance.schedule is None:  # another node may have set the scale on the way
            others = [_other_guidance(plan, scale) for scale in sorted(guidance.seen)]
            warn([found[0] for found in others if found and found[0] not in warnings][:1])
        return samples


def _step_cache(extra_args: Mapping[str, Any] | None) -> list[str]:
    """A warning of a step cache, whose answers are far from the network's in few steps."""
    cache = step_cache((extra_args or {}).get("model_options") or {})
    if cache is None:
        return []
    return [
        f"{cache} answers for the network in some steps. In our measurements of EasyCache and LazyCache, fewer steps "
        "without a cache gave a smaller error at the same cost (docs/CACHES.md)"
    ]


def _ends_in_noise(sigmas: Sequence[float], flow: bool) -> list[str]:
    """A warning of a run of a rectified-flow model that ends at sigma = 1, be it without a step."""
    if not (flow and sigmas and pure_noise(sigmas[-1]) == 1):
        return []
    return [
        "the sigmas end at 1, which is pure noise for this model. Nothing is left of the latent, since ComfyUI divides "
        "it by 1 - sigma: end at a lower sigma (in SplitSigmas: after one step or more)"
    ]


def _other_guidance(plan: CalibratedPlan, scale: float | None) -> list[str]:
    """A warning of a scale that the plan was not made for."""
    wanted = plan.about.guidance
    if wanted is None or (scale is not None and same_guidance(plan, scale)):
        return []
    if scale is None:
        return [
            f"this plan was made at guidance {wanted:g}, and the guider of this run has no single scale to compare "
            "with it: the image may be worse than with a plan made for this guider"
        ]
    return [
        f"this plan was made at guidance {wanted:g} and runs at {scale:g}, so the image is worse than it could be: "
        f"set cfg to {wanted:g}, or choose another plan or sampler"
    ]


def _other_size(plan: CalibratedPlan, x: Tensor) -> list[str]:
    """A warning of latents of a size that the plan was not made for."""
    wanted, found = tuple(plan.about.latent[1:]), tuple(x.shape[2:])
    if not wanted or wanted == found:
        return []
    made, here = (" x ".join(map(str, size)) for size in (wanted, found))
    return [
        f"this plan was made with latents of the size {made} and this one has {here} (height x width), so the image "
        "may be worse than it could be: use the size that the plan was made for, or calibrate one for this size"
    ]
