"""Guidance that changes along a run: as a GUIDER, or as a patch of the MODEL for every other sampler node."""

from __future__ import annotations

from typing import Any

import comfy.samplers
from comfy_api.latest import io

from ..samplers.checks import shortened
from ..samplers.guidance import NONE, SHAPES, Guidance
from .host.display import warn
from .host.guidance import guide
from .host.guider import strong_cfg_pp
from .ui.links import GUIDANCE
from .ui.menu import GUIDANCE as CATEGORY
from .ui.menu import search_words


class FewStepGuidance(io.ComfyNode):
    """Puts a `Guidance` together."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepGuidance",
            display_name="Few-Step Guidance",
            category=CATEGORY,
            description="Sets how strongly the prompt guides each step. A step at scale 1 has no guidance and takes "
            "half the time. Connect it to Few-Step Guider or Few-Step Guidance Patch.",
            inputs=[
                io.Combo.Input(
                    "schedule",
                    options=list(SHAPES),
                    default="interval",
                    tooltip="constant: cfg in every step, as in KSampler.\n"
                    "interval: cfg between sigma_start and sigma_end and no guidance elsewhere, which is faster and "
                    "gives better images at strong guidance (Kynkäänniemi 2024).\n"
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
                    tooltip="Guidance scale; 1 is no guidance. It replaces the cfg of the sampler node. With cfg_pp "
                    "use 0 to 1, for example 0.6.",
                ),
                io.Float.Input(
                    "cfg_end",
                    default=NONE,
                    min=-100.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="The scale at the end of linear, cosine and power.",
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
                    tooltip="Noise level at which the interval or the ramp ends. 0 is automatic: 0.28 for the interval "
                    "(0.22 in rectified flow), the clean image for ramps.",
                ),
                io.Float.Input(
                    "power",
                    default=2.0,
                    min=0.01,
                    max=100.0,
                    step=0.1,
                    round=False,
                    tooltip="Exponent of the schedule power. Above 1 the scale stays near cfg for longer; below 1 it "
                    "changes early.",
                ),
                io.String.Input(
                    "values",
                    default="",
                    tooltip="For the schedule list: the scale of each step, such as 7.5, 7.5, 5, 1. If there are "
                    "fewer numbers than steps, the last one is used for the rest. Each sampler node counts from its "
                    "own first step.",
                ),
                io.Boolean.Input(
                    "cfg_pp",
                    default=False,
                    tooltip="CFG++ (Chung 2024): the image is guided, and the noise that is added back is that of the "
                    "prediction without the prompt. Colours are less over-saturated. Use a cfg between 0 and 1. Exact "
                    "with euler and ddim.",
                ),
                io.Float.Input(
                    "rescale",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Brings the contrast of the guided image back to that of the image without guidance (Lin "
                    "2023). 0.7 is usual for v-prediction models. 0 is off.",
                ),
                io.Float.Input(
                    "agreement",
                    default=1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.001,
                    round=False,
                    tooltip="Saves time: guidance ends for the rest of the run once the predictions with and without "
                    "the prompt have this cosine similarity (Castillo 2023), for example 0.995. 1 is off.",
                ),
                io.Float.Input(
                    "threshold",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    round=False,
                    tooltip="Dynamic thresholding (Saharia 2022) at this percentile of a prediction, 0.995 in the "
                    "paper. 1 is off. Use it with models that work on pixels. Leave it off for Stable Diffusion and "
                    "all others that have a VAE: the numbers of a latent are not colours, and clipping them takes "
                    "away detail.",
                ),
                io.Float.Input(
                    "threshold_floor",
                    default=1.0,
                    min=0.1,
                    max=1000.0,
                    step=0.1,
                    round=False,
                    tooltip="For threshold: the largest value of a pixel in this model. Values up to it are not "
                    "changed.",
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
        if guidance.cfg_pp:
            warn(strong_cfg_pp(guidance.strongest))
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
                f"values: {shortened(word)} is not a number; write the scale of each step, such as 7.5, 7.5, 5, 1"
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
            description="A CFGGuider for SamplerCustomAdvanced whose guidance changes from step to step.",
            inputs=[
                io.Model.Input("model", tooltip="The model to be sampled."),
                io.Conditioning.Input("positive", tooltip="What the image should show."),
                io.Conditioning.Input("negative", tooltip="What the image should not show."),
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
            description="Guidance that changes from step to step, for KSampler and every other sampler node. The cfg "
            "of the sampler node is then not used.",
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


NODES = [FewStepGuidance, FewStepGuider, FewStepGuidancePatch]
