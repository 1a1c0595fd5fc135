"""A run in parts: one sampler after another, and noise levels that are cut where one model hands over to another."""

from __future__ import annotations

import itertools
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..samplers.levels import first_below, read_sigmas
from .host.chain import chain_sampler
from .ui.menu import CATEGORY, search_words

OWN = "own number"
BOUNDARIES = {
    "Wan 2.2 text to video: 0.875": 0.875,
    "Wan 2.2 image to video: 0.9": 0.9,
}
"""Where the makers change from the expert for high noise to that for low noise (`boundary` in wan/configs)."""


class FewStepChain(io.ComfyNode):
    """Two SAMPLERs as one."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepChain",
            display_name="Few-Step Chain",
            category=CATEGORY,
            description="One sampler for the first steps of a run, another for the rest. Samplers of Few-Step hand on "
            "their earlier predictions if both keep the same kind, so that no order is lost at the change.",
            inputs=[
                io.Sampler.Input("first", tooltip="The sampler that begins: from Few-Step Sampler or KSamplerSelect."),
                io.Sampler.Input("second", tooltip="The sampler that goes on."),
                io.Int.Input(
                    "step",
                    default=5,
                    min=0,
                    max=10000,
                    tooltip="How many steps the first sampler takes. If the run has no more, it takes all of them; 0 "
                    "leaves all to the second.",
                ),
                io.Float.Input(
                    "sigma",
                    default=0.0,
                    min=0.0,
                    max=100000.0,
                    step=0.01,
                    round=False,
                    tooltip="Above 0, this is used instead of step: the first sampler takes the steps that begin at "
                    "this noise level or above. 0: step is used.",
                ),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom or SamplerCustomAdvanced.")],
            **search_words("sampler by step range", "switch sampler", "two samplers", "clownshark chain"),
        )

    @classmethod
    def execute(cls, first: Any, second: Any, step: int, sigma: float) -> io.NodeOutput:
        return io.NodeOutput(chain_sampler(first, second, step, sigma))


class FewStepSplitAtSigma(io.ComfyNode):
    """The host's SplitSigmas by noise level."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepSplitAtSigma",
            display_name="Few-Step Split at Sigma",
            category=CATEGORY,
            description="Splits noise levels in two for a model of two experts (Wan 2.2): one part for the expert for "
            "high noise, one for the expert for low noise. It works with every schedule and number of steps. The steps "
            "that begin at the boundary or above are in high.",
            inputs=[
                io.Sigmas.Input("sigmas", tooltip="The noise levels of the whole run, descending."),
                io.Combo.Input(
                    "boundary",
                    options=[*BOUNDARIES, OWN],
                    default=next(iter(BOUNDARIES)),
                    tooltip=f"The noise level at which the model changes. {OWN}: the value of the input sigma.",
                ),
                io.Float.Input(
                    "sigma",
                    default=0.875,
                    min=0.0,
                    max=100000.0,
                    step=0.005,
                    round=False,
                    tooltip=f"The boundary for {OWN}. A flow model has levels from 1 to 0.",
                ),
            ],
            outputs=[
                io.Sigmas.Output(
                    display_name="high",
                    tooltip="For the expert for high noise. If no step is in this part, it is a single level: the "
                    "sampler node adds its noise and takes no step.",
                ),
                io.Sigmas.Output(
                    display_name="low",
                    tooltip="For the expert for low noise; add no noise here. It begins at the level "
                    "at which high ends.",
                ),
            ],
            **search_words("wan 2.2", "high noise low noise", "split sigmas", "moe", "boundary", "two experts"),
        )

    @classmethod
    def execute(cls, sigmas: Tensor, boundary: str, sigma: float) -> io.NodeOutput:
        return io.NodeOutput(*split_at(sigmas, BOUNDARIES.get(boundary, sigma)))


def split_at(sigmas: Tensor, boundary: float) -> tuple[Tensor, Tensor]:
    """The levels up to the first one below a boundary, and those from it on. A part without a step is one level.

    The makers' code evaluates with the expert for high noise where t >= boundary, step by step.

    Raises:
        ValueError: if the levels do not descend.
    """
    levels = read_sigmas(sigmas)
    if any(b > a for a, b in itertools.pairwise(levels)):
        raise ValueError(
            "sigmas: the levels ascend, and a split at a noise level is for sampling: give them descending"
        )
    k = first_below(levels, boundary)
    return sigmas[: k + 1], sigmas[k:]


NODES = [FewStepChain, FewStepSplitAtSigma]
