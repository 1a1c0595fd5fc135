"""The nodes that choose a sampler and a schedule."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

from ..samplers import SAMPLERS, SCHEDULES
from ..samplers.distill import Student
from .host.display import say
from .host.model import LevelRange, level_range, levels_ui
from .host.protocols import Patcher
from .host.sampling import sampler_function
from .host.students import facts_of, fitting_student
from .ui.menu import CATEGORY, known_names, search_words
from .ui.options import (
    chosen_options,
    denoise_input,
    option_inputs,
    sampler_input,
    schedule_input,
    scheduled,
    steps_input,
)
from .ui.trained import notes_of_schedule

WANTED = ("sigma", "sigmas", "noise schedule", "turbo", "lightning", "distilled", "lcm", "tcd", "hyper-sd", "schnell")
"""What a schedule is looked for by, beside its name."""


class FewStepSampler(io.ComfyNode):
    """Any sampler of the registry with its options, as a SAMPLER for SamplerCustom and SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepSampler",
            display_name="Few-Step Sampler",
            category=CATEGORY,
            description="Any Few-Step sampler (DPM-Solver++ and others) with its options. Leave an option at its "
            "default unless you know what it does. Options that the chosen sampler does not have are ignored. A "
            "choice that only another sampler has is an error.",
            inputs=[
                sampler_input(),
                *option_inputs(SAMPLERS.values()),
            ],
            outputs=[io.Sampler.Output(tooltip="For SamplerCustom or SamplerCustomAdvanced.")],
            **search_words("sampler", *known_names("samplers"), *SAMPLERS, *(spec.label for spec in SAMPLERS.values())),
        )

    @classmethod
    def execute(cls, sampler: str, **options: Any) -> io.NodeOutput:
        spec = SAMPLERS[sampler]
        options = spec.check_options(chosen_options(spec, options))
        return io.NodeOutput(comfy.samplers.KSAMPLER(sampler_function(spec), options))


class FewStepScheduler(io.ComfyNode):
    """Any schedule of the registry over the model's own range of levels, as SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepScheduler",
            display_name="Few-Step Scheduler",
            category=CATEGORY,
            description="Chooses the noise levels between full noise and the clean image, for the connected model.",
            inputs=[
                io.Model.Input("model", tooltip="The model to be sampled: its range of noise levels is used."),
                schedule_input(),
                steps_input(),
                denoise_input(),
                *option_inputs(SCHEDULES.values()),
            ],
            outputs=[
                io.Sigmas.Output(
                    tooltip="The noise levels, descending: one more than steps, unless an option leaves some out."
                )
            ],
            **search_words(
                *WANTED, *known_names("schedules"), *SCHEDULES, *(spec.label for spec in SCHEDULES.values())
            ),
        )

    @classmethod
    def execute(cls, model: Patcher, schedule: str, steps: int, denoise: float, **options: Any) -> io.NodeOutput:
        levels = level_range(model.get_model_object("model_sampling"))
        student = fitting_student(model)
        if notes := notes_of_schedule(levels, schedule, steps, denoise, options, student=student):
            say("\n".join(notes))
        sigmas = cls.sigmas(levels, schedule, steps, denoise, student, **options)
        return io.NodeOutput(sigmas, ui=levels_ui(model, facts_of(student)))

    @staticmethod
    def sigmas(
        levels: LevelRange, schedule: str, steps: int, denoise: float, student: Student | None = None, **options: Any
    ) -> torch.Tensor:
        """The values of the widgets as noise levels."""
        return scheduled(levels, schedule, steps, denoise, options, student)


NODES = [FewStepSampler, FewStepScheduler]
