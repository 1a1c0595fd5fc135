"""The host's guider of a run, and the scale of guidance of each of its evaluations."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import comfy.samplers
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...samplers import Guided
from ...samplers.calibrated import CalibratedPlan
from ...samplers.guidance import NONE
from .protocols import AnyGuider, Patcher
from .wrapped import unwrapped


def guider_of(model: Any) -> AnyGuider:
    """The host's guider behind the denoiser that a sampler was given, however often other packs have wrapped that.

    Raises:
        ValueError: if there is none: what the levels of the model mean cannot be told from a function alone.
    """
    for part in unwrapped(model):
        if getattr(part, "model_patcher", None) is not None:
            guider: AnyGuider = part
            return guider
    raise ValueError(
        f"model: this {type(model).__name__} does not lead to a MODEL of ComfyUI (no inner_model of it has a "
        "model_patcher), so the kind of its noise levels is not known. Another pack has wrapped the model: sample "
        "without it, or ask its author to give the wrapper the inner_model of what it wraps"
    )


def patcher_of(model: Any) -> Patcher:
    """The MODEL that is being sampled; raises ValueError as `guider_of`."""
    return guider_of(model).model_patcher


def taken_apart(
    model: Callable[..., Tensor], extra_args: Mapping[str, Any] | None
) -> tuple[Callable[..., Guided], dict[str, Any]]:
    """The model, and the arguments of its calls, so that it answers with the unconditional prediction as well.

    The host mixes the two and hands both to `sampler_post_cfg_function`. At scale 1 it would leave the unconditional
    one out, which it is told not to. The caller's dicts are not written to.

    Raises:
        ValueError: when called, if there is no such prediction.
    """
    extra_args = dict(extra_args or {})
    seen: list[Tensor] = []

    def keep(given: Mapping[str, Any]) -> Tensor:
        seen[:] = [given["uncond_denoised"]] if given["uncond"] is not None else []
        denoised: Tensor = given["denoised"]
        return denoised

    extra_args["model_options"] = comfy.model_patcher.set_model_options_post_cfg_function(
        {**extra_args.get("model_options", {})}, keep, disable_cfg1_optimization=True
    )

    def evaluate(x: Tensor, sigma: Tensor, **arguments: Any) -> Guided:
        denoised = model(x, sigma, **arguments)
        if not seen:
            raise ValueError(
                "a sampler with CFG++ needs the prediction without the prompt, and this run has none: sample with a "
                "negative prompt (KSampler, SamplerCustom or CFGGuider, no BasicGuider) and without a cache that skips "
                "the guidance of whole steps (LazyCache), or choose a sampler without CFG++"
            )
        return Guided(denoised, seen.pop())

    return evaluate, extra_args


# The scale of guidance in a run


class RunGuidance:
    """The guidance of one run of a sampler: an evaluation has the scale `scale` x `factor`, and 1 (none) stays 1.

    `scale` is the host's own number, `guider.cfg`: whatever wraps an evaluation may set it on the way there, a schedule
    of guidance as well as the host's CFG Override, and the one nearest the sampler counts. `factor` is that of the plan
    which is followed. A schedule and a plan find the same object by `guidance_of_run`.
    """

    def __init__(self, guider: AnyGuider):
        self._guider = guider
        self.of_run = guider.cfg
        """The scale of the run as a whole, which that of a plan is compared with: the strongest of a schedule."""

        self.schedule: Any = None
        """What sets `scale` for each evaluation; None where it is that of the sampler node."""

        self.factor = 1.0

        self.seen: set[float] = set()
        """The scales that evaluations of this run had, without the factor."""

    @property
    def scale(self) -> float:
        return self._guider.cfg

    @contextlib.contextmanager
    def at(self, scale: float) -> Iterator[None]:
        """An evaluation at another scale."""
        before, self._guider.cfg = self._guider.cfg, scale
        try:
            yield
        finally:
            self._guider.cfg = before

    def set_factor(self, factor: float) -> None:
        self.factor = factor

    def predict(self, guided: Callable[..., Tensor], *arguments: Any, **options: Any) -> Tensor:
        """The innermost wrapper of an evaluation, which has the last word."""
        self.seen.add(self.scale)
        with self.at(with_factor(self.scale, self.factor)):
            return guided(*arguments, **options)


_KEY = "fewstep_guidance"


def run_guidance(guider: Any) -> RunGuidance | None:
    """The guidance of the run that is going on, if a schedule or a plan takes part in it."""
    return guider.model_options.get(_KEY)


@contextlib.contextmanager
def guidance_of_run(guider: AnyGuider) -> Iterator[RunGuidance | None]:
    """The guidance of the run that is going on: one object for all that ask; None where the guider has no one scale.

    What it is changed to holds within the `with`.
    """
    if guidance_scale(guider) is None:
        yield None
        return
    options = guider.model_options  # those of this run: the guider copies them before
    if (guidance := run_guidance(guider)) is not None:
        before = guidance.of_run, guidance.schedule, guidance.factor
        try:
            yield guidance
        finally:
            guidance.of_run, guidance.schedule, guidance.factor = before
        return
    guidance = options[_KEY] = RunGuidance(guider)
    # Wrappers of evaluations are called in the order of their keys: the newest is the innermost.
    kind = WrappersMP.PREDICT_NOISE
    comfy.patcher_extension.add_wrapper_with_key(kind, _LAST, guidance.predict, options, is_model_options=True)
    try:
        yield guidance
    finally:
        del options[_KEY]
        options["transformer_options"]["wrappers"][kind][_LAST].remove(guidance.predict)


_LAST = "fewstep_last_word"


@contextlib.contextmanager
def guidance_factor(model: Any) -> Iterator[Callable[[Any], None] | None]:
    """A function that sets the factor of guidance of the model that is sampled; None where it has no one scale."""
    with guidance_of_run(guider_of(model)) as guidance:
        yield None if guidance is None else guidance.set_factor


def with_factor(scale: float, factor: float) -> float:
    """The scale of an evaluation for which a plan has a factor. Without guidance (scale 1) it stays so."""
    return scale if scale == NONE else scale * factor


def guidance_scale(guider: Any) -> float | None:
    """The one number that a guider mixes the prompts by; None where it has none.

    Every guider of the host inherits a `cfg`, also those that have no negative prompt or mix in their own way.
    """
    plain = isinstance(guider, comfy.samplers.CFGGuider) and guider.conds.keys() == {"positive", "negative"}
    return guider.cfg if plain else None


def run_scale(guider: Any, guidance: RunGuidance | None) -> float | None:
    """The scale of a run as a whole; that of a guider without a negative prompt is none. None where there is no one."""
    if guidance is not None:
        return guidance.of_run
    plain = isinstance(guider, comfy.samplers.CFGGuider) and guider.conds.keys() == {"positive"}
    return NONE if plain else guidance_scale(guider)


_STRONGEST_PP = 2.0


def strong_cfg_pp(scale: float | None) -> list[str]:
    """A warning of a scale that CFG++ is not meant for; none where it is not known.

    The authors use 0 to 1, 0.6 where guidance is otherwise 7.5 (arXiv 2406.08070); the host's samplers take the same
    number as cfg, and their users stay below 2.
    """
    if scale is None or abs(scale) <= _STRONGEST_PP:
        return []
    return [
        f"CFG++ at cfg {scale:g} burns the image: it is meant for a cfg of 0 to 1, and 2 is the most it bears. Set cfg "
        "to 0.6, which guides about as strongly as 7.5 without CFG++, or choose a sampler or guidance without CFG++"
    ]


def same_guidance(plan: CalibratedPlan, scale: float | None) -> bool:
    """Whether a plan was made at this scale of guidance, as far as both are known."""
    wanted = plan.about.guidance
    if scale is None or wanted is None:
        return True
    return math.isclose(wanted, scale, rel_tol=_SAME_SCALE)


_SAME_SCALE = 0.02  # relative
