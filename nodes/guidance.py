"""Guidance that changes along a run: as a GUIDER, or as a patch of the MODEL for every other sampler node."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import comfy.model_patcher
import comfy.samplers
from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy_api.latest import io
from torch import Tensor

from ..samplers.checks import shortened
from ..samplers.guidance import NONE, SHAPES, Guidance, agreement_of, rescaled, thresholded
from .host.model import guidance_scale, is_flow, progress
from .host.runs import STEPS
from .sampling import CATEGORY
from .ui.search import search_words

GUIDANCE = io.Custom("FEWSTEP_GUIDANCE")
_KEY = "fewstep_guidance"
_STRONG_PP = 2.0  # CFG++ is meant for scales up to 1


def guide(patcher: Any, guidance: Guidance) -> Any:
    """A MODEL that is sampled with this guidance, in the place of the one number of the sampler node.

    Evaluations at scale 1 run one pass of the network: the host leaves out the negative prompt by itself then.
    """
    patched = patcher.clone()
    for kind, wrapper in (
        (WrappersMP.SAMPLER_SAMPLE, functools.partial(_sample, guidance)),
        (WrappersMP.PREDICT_NOISE, _predict),
    ):
        patched.remove_wrappers_with_key(kind, _KEY)  # a second patch replaces the first
        patched.add_wrapper_with_key(kind, _KEY, wrapper)
    return patched


def _sample(guidance: Guidance, sampler: WrapperExecutor, guider: Any, sigmas: Tensor, extra_args: Any, *rest: Any):
    """One run of a sampler."""
    scale = guidance_scale(guider)
    if scale is None:
        logging.warning("the guidance schedule is left out: this guider has not one scale and a negative prompt")
        return sampler(guider, sigmas, extra_args, *rest)
    extra_args["model_options"][_KEY] = _Run(guidance, guider, sigmas)
    guider.cfg = guidance.strongest  # for what compares it
    try:
        return sampler(guider, sigmas, extra_args, *rest)
    finally:
        guider.cfg = scale


def _predict(guider: WrapperExecutor, x: Tensor, sigma: Tensor, model_options: dict[str, Any], seed: Any) -> Tensor:
    """One evaluation."""
    run = model_options.get(_KEY)
    return guider(x, sigma, model_options, seed) if run is None else run.predict(guider, x, sigma, model_options, seed)


class _Run:
    """Guidance along one run of a sampler."""

    def __init__(self, guidance: Guidance, guider: Any, sigmas: Tensor):
        sampling = guider.model_patcher.get_model_object("model_sampling")
        self._guidance, self._guider, self._flow = guidance, guider, is_flow(sampling)
        self._progress = progress(sampling)
        self._steps = sigmas.tolist()
        self._scale = self._over(self._steps)
        self._agreed = 0.0  # the level at and below which the predictions agree

    def _over(self, steps: list[float]) -> Callable[[float], float]:
        return self._guidance.over(steps, flow=self._flow, elapsed=self._progress)

    def predict(self, guided: Callable[..., Tensor], x: Tensor, sigma: Tensor, options: dict[str, Any], seed: Any):
        before = self._guider.cfg  # of wrappers further from the sampler, as the host's CFG Override is one
        if (steps := options.get(STEPS, self._steps)) != self._steps:  # the sampler has levels of its own
            self._steps, self._scale = steps, self._over(steps)
        self._guider.cfg = self._at(sigma)
        try:
            return guided(x, sigma, self._with_changes(options), seed)
        finally:
            self._guider.cfg = before

    def _at(self, sigma: Tensor) -> float:
        """The scale of an evaluation. Only where it varies is its level read from the device."""
        if self._agreed and float(sigma[0]) <= self._agreed:
            return NONE
        return self._scale(float(sigma[0])) if self._guidance.varies else self._guidance.strongest

    def _with_changes(self, options: dict[str, Any]) -> dict[str, Any]:
        """The host's options with our changes of the prediction, after those of other patches."""
        if (self._guidance.rescale, self._guidance.threshold, self._guidance.agreement) == (0, 1, 1):
            return options
        return comfy.model_patcher.set_model_options_post_cfg_function({**options}, self._change)

    def _change(self, given: dict[str, Any]) -> Tensor:
        g, denoised = self._guidance, given["denoised"]
        if g.agreement < 1 and given["uncond"] is not None:
            alike = agreement_of(given["cond_denoised"], given["uncond_denoised"])
            if (alike >= g.agreement).all():
                self._agreed = max(self._agreed, float(given["sigma"][0]))  # an inversion comes from below
        if g.rescale:
            x, sigma = given["input"], given["sigma"]
            denoised = rescaled(denoised, given["cond_denoised"], x, sigma, g.rescale, flow=self._flow)
        if g.threshold < 1:
            denoised = thresholded(denoised, g.threshold, g.threshold_floor)
        return denoised


class FewStepGuidance(io.ComfyNode):
    """Puts a `Guidance` together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepGuidance",
            display_name="Few-Step Guidance",
            category=CATEGORY,
            description="How strongly the prompt guides each step. Where the scale is 1 a step takes half the time. "
            "Connect it to Few-Step Guider or Few-Step Guidance Patch.",
            inputs=[
                io.Combo.Input(
                    "schedule",
                    options=list(SHAPES),
                    default="interval",
                    tooltip="constant: cfg in every step, as in KSampler.\n"
                    "interval: cfg between sigma_start and sigma_end, none elsewhere: better images at strong "
                    "guidance, and faster (Kynkäänniemi 2024).\n"
                    "linear, cosine, power: from cfg to cfg_end along the run (Wang 2024).\n"
                    "list: a scale for each step, from values.",
                ),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=-100.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Guidance scale; 1 is none. It takes the place of the cfg of the sampler node. With cfg_pp "
                    "0 to 1, 0.6 for instance.",
                ),
                io.Float.Input(
                    "cfg_end",
                    default=NONE,
                    min=-100.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Where linear, cosine and power end.",
                ),
                io.Float.Input(
                    "sigma_start",
                    default=0.0,
                    min=0.0,
                    max=100000.0,
                    step=0.01,
                    round=False,
                    tooltip="Noise level at which the interval or the ramp begins. 0 is automatic: 5.42 for the "
                    "interval (0.84 in rectified flow), pure noise for ramps.",
                ),
                io.Float.Input(
                    "sigma_end",
                    default=0.0,
                    min=0.0,
                    max=100000.0,
                    step=0.01,
                    round=False,
                    tooltip="Noise level at which it ends. 0 is automatic: 0.28 for the interval (0.22 in rectified "
                    "flow), the clean image for ramps.",
                ),
                io.Float.Input(
                    "power",
                    default=2.0,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    round=False,
                    tooltip="Exponent of the ramp power: above 1 it stays near cfg for longer, below 1 it leaves it "
                    "soon.",
                ),
                io.String.Input(
                    "values",
                    default="",
                    tooltip="For list: the scale of each step, as 7.5, 7.5, 5, 1. If there are fewer than steps, the "
                    "last one stays. Each sampler node counts from its own first step.",
                ),
                io.Boolean.Input(
                    "cfg_pp",
                    default=False,
                    tooltip="CFG++ (Chung 2024): guides the image and adds the noise of the unconditional prediction "
                    "again. Less over-saturation, at cfg between 0 and 1. Exact with euler and ddim.",
                ),
                io.Float.Input(
                    "rescale",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Brings the contrast of the guided image back to that of the prompt's own (Lin 2023). 0.7 "
                    "is usual for v-prediction models; 0 is off.",
                ),
                io.Float.Input(
                    "agreement",
                    default=1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.001,
                    round=False,
                    tooltip="Ends guidance for the rest of the run once the predictions with and without the prompt "
                    "agree this much (cosine; Castillo 2023): saves time. 0.995 for instance; 1 is off.",
                ),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=False,
                    tooltip="Dynamic thresholding (Saharia 2022) at this percentile of a prediction, 0.995 in the "
                    "paper; 1 is off. For models of pixels only: the numbers of a latent are no colours, and clipping "
                    "them takes away detail. So it is off for Stable Diffusion and all others that have a VAE.",
                ),
                io.Float.Input(
                    "threshold_floor",
                    default=1.0,
                    min=0.1,
                    max=1000.0,
                    step=0.1,
                    round=False,
                    tooltip="Range of the pixels of the model, for threshold: values within it stay.",
                ),
            ],
            outputs=[
                GUIDANCE.Output(display_name="guidance", tooltip="For Few-Step Guider or Few-Step Guidance Patch.")
            ],
            **search_words("cfg", "guidance interval", "cfg++", "rescale cfg"),
        )

    @classmethod
    def execute(cls, schedule: str, values: str, **fields: Any) -> io.NodeOutput:
        guidance = Guidance(schedule, values=read_values(values), **fields)
        if guidance.cfg_pp and abs(guidance.strongest) > _STRONG_PP:
            logging.warning("CFG++ at %g burns the image: it is meant for a cfg of 0 to 1", guidance.strongest)
        return io.NodeOutput(guidance)


def read_values(text: str) -> tuple[float, ...]:
    """Numbers with commas, semicolons or spaces between them.

    Raises:
        ValueError: naming what is no number.
    """
    numbers = []
    for word in text.replace(",", " ").replace(";", " ").split():
        try:
            numbers.append(float(word))
        except ValueError:
            raise ValueError(
                f"values: {shortened(word)} is no number; write the scale of each step, as 7.5, 7.5, 5, 1"
            ) from None
    return tuple(numbers)


class FewStepGuider(io.ComfyNode):
    """The host's CFGGuider with a schedule."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepGuider",
            display_name="Few-Step Guider",
            category=CATEGORY,
            description="CFGGuider with guidance that changes from step to step, for SamplerCustomAdvanced.",
            inputs=[
                io.Model.Input("model", tooltip="The model to be sampled."),
                io.Conditioning.Input("positive", tooltip="What the image shows."),
                io.Conditioning.Input("negative", tooltip="What it does not show."),
                GUIDANCE.Input("guidance", tooltip="From Few-Step Guidance."),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
            **search_words("cfg", "guidance interval", "cfg++"),
        )

    @classmethod
    def execute(cls, model: Any, positive: Any, negative: Any, guidance: Guidance) -> io.NodeOutput:
        guider = comfy.samplers.CFGGuider(guide(model, guidance))
        guider.set_conds(positive, negative)
        guider.set_cfg(guidance.cfg)
        return io.NodeOutput(guider)


class FewStepGuidancePatch(io.ComfyNode):
    """A MODEL with a schedule of guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepGuidancePatch",
            display_name="Few-Step Guidance Patch",
            category=CATEGORY,
            description="Guidance that changes from step to step, for KSampler and every other sampler node: their own "
            "cfg is not used any more.",
            inputs=[
                io.Model.Input("model", tooltip="The model to be sampled."),
                GUIDANCE.Input("guidance", tooltip="From Few-Step Guidance."),
            ],
            outputs=[io.Model.Output(tooltip="For KSampler or any other sampler node.")],
            **search_words("cfg", "guidance interval", "cfg++"),
        )

    @classmethod
    def execute(cls, model: Any, guidance: Guidance) -> io.NodeOutput:
        return io.NodeOutput(guide(model, guidance))
