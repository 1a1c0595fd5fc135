"""What samplers need to know of the host's model, and what the host needs from a sampler or schedule.

model       the host's CFGDenoiser, called as model(x, sigma, **extra_args); cond_scale is the scale of guidance
model.p     the processing that runs: prompts, seeds and settings
wrap        model.inner_model, a k-diffusion wrapper of the network: levels, and what the network predicts
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from modules import shared

from ..samplers import SamplerSpec, ScheduleSpec
from ..samplers.calibrated.plan import CalibratedPlan
from ..samplers.checks import counted
from ..samplers.guidance import NONE, Guidance
from ..samplers.schedule import DISCARD_PENULTIMATE
from .names import PLAN
from .options import KEYS, naming, running, settings_of, tell

# The model


def _model_sampling(wrap: Any) -> Any:
    """What reForge, and A1111 for SD3, keep the levels in, as ComfyUI does; None elsewhere."""
    inner = getattr(wrap, "inner_model", None)
    unet = getattr(getattr(inner, "forge_objects", None), "unet", inner)
    return getattr(getattr(unet, "model", None), "model_sampling", None)


_PREDICTOR = {"epsilon": "EPS", "eps": "EPS", "v_prediction": "V_PREDICTION", "edm": "EDM", "const": "CONST"}
_SAMPLING = ("CONST", "V_PREDICTION", "EDM", "EPS")  # in this order: the classes of the first ones derive from EPS


def prediction(wrap: Any) -> str | None:
    """What the network predicts, in ComfyUI's words: EPS, V_PREDICTION, EDM or CONST, which is rectified flow."""
    predictor = getattr(wrap, "predictor", None)  # Forge
    if predictor is not None:
        return _PREDICTOR.get(predictor.prediction_type)
    kinds = {kind.__name__ for kind in type(_model_sampling(wrap)).__mro__}
    if "ModelSamplingDiscreteFlow" in kinds:  # of A1111, where it does not derive from CONST
        return "CONST"
    known = [name for name in _SAMPLING if name in kinds]
    if known:
        return known[0]
    parameterization = getattr(getattr(wrap, "inner_model", None), "parameterization", None)
    return {"v": "V_PREDICTION", "eps": "EPS"}.get(parameterization)


def is_flow(wrap: Any) -> bool:
    """Whether levels are those of a rectified flow: x_t = (1 - sigma) x_0 + sigma noise (SD3, Flux ...)."""
    return prediction(wrap) == "CONST"


def time_shift(wrap: Any) -> float:
    """The time shift s of a flow model, s t / (1 + (s - 1) t): the odds of its level in the middle of time."""
    levels = wrap.sigmas
    middle = float(levels[len(levels) // 2 - 1])  # the first one is that of the first time above 0
    return middle / (1 - middle)


def level_space(wrap: Any) -> dict[str, Any]:
    """What samplers and schedules are told of a model: `flow` and `model_shift`."""
    flow = is_flow(wrap)
    return {"flow": flow, "model_shift": time_shift(wrap) if flow else 1.0}


def progress(wrap: Any) -> Callable[[float], float]:
    """How much of sampling is over at a level, 0 to 1, in the network's time."""
    logs = wrap.sigmas.detach().double().cpu().log()

    def done(sigma: float) -> float:
        if sigma <= 0:
            return 1.0
        level = math.log(sigma)
        above = int(torch.searchsorted(logs, level).clamp(1, len(logs) - 1))
        low, high = float(logs[above - 1]), float(logs[above])
        index = above - 1 + min(1.0, max(0.0, (level - low) / (high - low)))
        return 1 - index / (len(logs) - 1)

    return done


_FAMILIES = {"is_sd3": "SD3", "is_sdxl": "SDXL", "is_sd2": "SD20", "is_sd1": "SD15"}


def fingerprint(wrap: Any, x: torch.Tensor) -> dict[str, Any]:
    """The kind of a model, for `CalibratedPlan.check_model`, in the words of ComfyUI, as far as it is known."""
    found = {
        "family": next((f for flag, f in _FAMILIES.items() if getattr(wrap.inner_model, flag, False)), None),
        "prediction": prediction(wrap),
        "shift": level_space(wrap)["model_shift"],
        "sigma_min": float(wrap.sigmas[0]),
        "sigma_max": float(wrap.sigmas[-1]),
        "latent_channels": x.shape[1],
    }
    return {name: value for name, value in found.items() if value is not None}


# The run


def seeds_of(p: Any, count: int) -> list[int]:
    """The seeds of the images of a batch: of each its own noise, so that a batch gives what they give alone."""
    start = p.iteration * p.batch_size
    return [int(seed) for seed in p.all_seeds[start : start + count]]


class Scale:
    """The scale of guidance in each evaluation of a run, which is that of the host's sliders times `factor`."""

    factor = 1.0

    def __init__(self, model: Any, extra_args: dict[str, Any]):
        self._model, self._p = model, model.p
        # Forge and reForge take the scale of the second pass of hires fix from there, whatever a sampler says.
        self._second_pass = bool(getattr(self._p, "is_hr_pass", False)) and hasattr(self._p, "hr_cfg")
        self.whole: float = self._p.hr_cfg if self._second_pass else extra_args["cond_scale"]

    def set_factor(self, factor: float) -> None:
        """That of a calibrated plan, before an evaluation."""
        self.factor = factor

    @contextlib.contextmanager
    def along(self, sigmas: torch.Tensor, guidance: Guidance, flow: bool) -> Iterator[Callable[..., torch.Tensor]]:
        """The model as it is guided along a run over these levels."""
        with naming(KEYS["guidance"]):
            scale_at = guidance.over(sigmas.tolist(), flow=flow, elapsed=progress(self._model.inner_model))

        def evaluate(x: torch.Tensor, sigma: torch.Tensor, **extra_args: Any) -> torch.Tensor:
            scale = scale_at(float(sigma[0])) if guidance.varies else self.whole
            if scale != NONE or not guidance.varies:
                scale = scale * self.factor
            if scale != NONE and extra_args["uncond"] is None:  # Forge leaves it out by the scale of the request
                raise ValueError("guidance needs a negative prompt, which the WebUI leaves out at CFG 1: raise the CFG")
            if self._second_pass:
                self._p.hr_cfg = scale
            return self._model(x, sigma, **{**extra_args, "cond_scale": scale})

        try:
            yield evaluate
        finally:
            if self._second_pass:
                self._p.hr_cfg = self.whole


def sampler_function(spec: SamplerSpec) -> Callable[..., torch.Tensor]:
    """The sampler as the host calls it, which gives the arguments that its signature names."""
    defaults = {option.name: option.default for option in spec.options}

    def sample(model, x, sigmas, extra_args=None, callback=None, disable=None, **given):
        settings = settings_of(model.p)
        space = level_space(model.inner_model)
        options = {**given, **settings.of_sampler(spec, functools.partial(tell, model.p))}
        if spec.stochastic:
            options["seed"] = seeds_of(model.p, len(x))
        scale = Scale(model, extra_args)
        with scale.along(sigmas, settings.guided(scale.whole), space["flow"]) as guided:
            return spec.function(guided, x, sigmas, extra_args, callback, disable, **space, **options)

    # The host's own eta is 1 where nothing is set: only samplers that mean the same by that are given it.
    host_options = [name for name in ("eta", "s_noise") if defaults.get(name) == 1]
    return _signed(sample, spec.id, f"{spec.label}: {spec.help} {spec.paper}", host_options)


def _signed(
    function: Callable[..., torch.Tensor], id: str, doc: str, options: Sequence[str] = ()
) -> Callable[..., torch.Tensor]:
    """The function with a name of its own, and a signature with these keywords instead of any."""
    signature = inspect.signature(function)
    plain = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    keywords = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=1.0) for name in options]
    function.__name__, function.__doc__ = f"sample_fewstep_{id}", doc
    function.__signature__ = signature.replace(parameters=[*plain, *keywords])  # type: ignore[attr-defined]
    return function


def schedule_function(spec: ScheduleSpec) -> Callable[..., torch.Tensor]:
    """The schedule as the host calls it, [n + 1] in float32."""

    def sigmas(n, sigma_min, sigma_max, inner_model, device):
        p = running()
        options = settings_of(p).of_schedule(spec, functools.partial(tell, p))
        if _host_discards(p) and options.pop(DISCARD_PENULTIMATE.name, False):
            tell(p, f"{DISCARD_PENULTIMATE.name} is left out: the WebUI discards that level itself")
        space = level_space(inner_model)
        return spec.function(n, sigma_min, sigma_max, **space, **options).float().to(device)

    sigmas.__name__, sigmas.__doc__ = spec.id, f"{spec.label}: {spec.help} {spec.paper}"
    return sigmas


def _host_discards(p: Any) -> bool:
    """Whether the host itself leaves out the last level above 0, by its settings or for its own sampler."""
    config = getattr(getattr(p, "sampler", None), "config", None)
    return bool(
        getattr(shared.opts, "always_discard_next_to_last_sigma", False)
        or (config is not None and config.options.get("discard_next_to_last_sigma", False))
    )


# Plans


def plan_sigmas(n: int, sigma_min: float, sigma_max: float, inner_model: Any, device: Any) -> torch.Tensor:
    """The schedule of a plan: its own levels.

    Raises:
        ValueError: if there is no plan, it has another number of steps, or the host would leave out one of its levels.
    """
    p = running()
    recipe = settings_of(p).calibrated().recipe
    if _host_discards(p):
        raise ValueError(
            "a plan needs all of its levels, and the WebUI leaves out the next-to-last: turn off 'Always discard "
            f"next-to-last sigma' in its settings, and use the sampler {PLAN}"
        )
    steps = len(recipe.sigmas) - 1
    if n != steps:
        raise ValueError(
            f"this plan has {counted(steps, 'step')} and the WebUI asks for {n}: set the sampling steps to {steps}; "
            "for image to "
            "image turn off 'do exactly the amount of steps the slider specifies', and for hires fix choose another "
            "sampler and schedule for the second pass"
        )
    return torch.tensor(recipe.sigmas, dtype=torch.float32, device=device)


def sample_plan(model, x, sigmas, extra_args=None, callback=None, disable=None) -> torch.Tensor:
    """The sampler of a plan.

    Raises:
        ValueError: if there is no plan, it was made for another kind of model, or the sigmas are not its own.
    """
    settings, wrap = settings_of(model.p), model.inner_model
    calibrated = settings.calibrated()
    _check_model(calibrated, fingerprint(wrap, x))
    try:
        part = dataclasses.replace(calibrated, recipe=calibrated.recipe.piece(sigmas))
    except ValueError as error:
        raise ValueError(f"set the schedule type to Automatic or {PLAN}: {error}") from None
    scale = Scale(model, extra_args)
    _compare_guidance(calibrated, scale.whole, functools.partial(tell, model.p))
    with scale.along(sigmas, settings.guided(scale.whole), is_flow(wrap)) as guided:
        return part.function(guided, x, None, extra_args, callback, disable, set_guidance=scale.set_factor)


def _check_model(calibrated: CalibratedPlan, found: dict[str, Any]) -> None:
    wanted = calibrated.about.model
    if "family" in wanted and "family" not in found:
        raise ValueError(f"this plan was made for {wanted['family']}, and the model that is loaded is not recognised")
    calibrated.check_model(found)


def _compare_guidance(calibrated: CalibratedPlan, scale: float, tell: Callable[[str], None]) -> None:
    wanted = calibrated.about.guidance
    if wanted is not None and not math.isclose(wanted, scale, rel_tol=0.02):
        tell(f"this plan was made at guidance {wanted:g} and runs at {scale:g}: the image may be worse")
