"""One node in the place of KSampler: sampler and schedule with all their options, guidance that changes, plans."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io
from comfy_extras import nodes_custom_sampler as custom
from torch import Tensor

from ..samplers import SAMPLERS, SCHEDULES
from ..samplers.calibrated import CalibratedPlan
from ..samplers.checks import counted
from ..samplers.distill import Student
from ..samplers.guidance import Guidance
from ..samplers.schedule import END_STEP, START_STEP
from .host.display import say
from .host.guidance import guide
from .host.model import LevelRange, level_range, levels_ui
from .host.protocols import Conditioning, Latent, Patcher
from .host.sampling import plan_sampler, sampler_function
from .host.students import facts_of, fitting_student
from .ui.links import GUIDANCE, PLAN
from .ui.menu import CATEGORY, search_words
from .ui.options import (
    ORDER,
    cfg_input,
    chosen_options,
    denoise_input,
    option_inputs,
    sampler_input,
    schedule_input,
    scheduled,
    seed_input,
    steps_input,
)
from .ui.trained import notes_of_schedule

ENABLE, DISABLE = "enable", "disable"  # the host's words for a switch

INSTEAD = frozenset({START_STEP.name, END_STEP.name})
"""Options of schedules that KSampler (Advanced) has in its own way."""


def _model_inputs() -> list[io.Input]:
    return [io.Model.Input("model", tooltip="The model to be sampled.")]


def _choices(steps: str) -> list[io.Input]:
    """From steps to the latent, in the host's order and by its names: a KSampler can be changed for the node."""
    return [
        steps_input(steps),
        cfg_input(7.0, "Guidance scale: how strongly the prompt guides the image. 1 means no guidance. If the input "
                  "guidance is connected, it replaces this value."),
        sampler_input("sampler_name"),
        schedule_input("scheduler"),
        io.Conditioning.Input("positive", tooltip="What the image should show."),
        io.Conditioning.Input("negative", tooltip="What the image should not show."),
        io.Latent.Input("latent_image", tooltip="An empty latent of the size you want, or an image to start from."),
    ]  # fmt: skip


def _more_inputs() -> list[io.Input]:
    """The options of sampler and schedule in one order, then what can be connected beside them."""
    options = [*option_inputs(SAMPLERS.values()), *option_inputs(SCHEDULES.values())]
    options = [option for option in options if option.id not in INSTEAD]
    return [
        *sorted(options, key=lambda option: ORDER.index(option.id)),
        GUIDANCE.Input(
            "guidance",
            optional=True,
            tooltip="From Few-Step Guidance: guidance that changes from step to step. It takes the place of cfg.",
        ),
        PLAN.Input(
            "plan",
            optional=True,
            tooltip="A calibrated plan. It replaces the sampler, the schedule and the steps that are chosen here. If "
            "only a part of the run is sampled (denoise below 1, or start_at_step and end_at_step), only that part of "
            "the plan is run.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        io.Latent.Output(display_name="LATENT", tooltip="The image. It has noise left if the run ended early."),
        io.Latent.Output(
            display_name="denoised",
            tooltip="The clean image that the model predicted at the last step. It is the image itself, unless noise "
            "is left.",
        ),
    ]


_WORDS = ("ksampler", "k sampler", "sampler with options", "dpm++ 2m karras")


class FewStepKSampler(io.ComfyNode):
    """KSampler with the samplers and schedules of the pack, and all their options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepKSampler",
            display_name="Few-Step KSampler",
            category=CATEGORY,
            description="A KSampler with the samplers and schedules of Few-Step, their options, guidance that changes "
            "along the run, and calibrated plans. Put it in the place of a KSampler. It gives the same image as "
            "Few-Step Sampler, Few-Step Scheduler and SamplerCustomAdvanced together.",
            inputs=[
                *_model_inputs(),
                seed_input("Seed of the noise."),
                *_choices("Number of steps: 10 to 20 for most models with dpmpp_2m on karras."),
                denoise_input(),
                *_more_inputs(),
            ],
            outputs=_outputs(),
            **search_words(*_WORDS),
        )

    @classmethod
    def execute(
        cls,
        model: Patcher,
        seed: int,
        cfg: float,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        guidance: Guidance | None = None,
        plan: CalibratedPlan | None = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        student = fitting_student(model)
        sigmas = cls.sigmas(_levels(model), plan=plan, student=student, **widgets)
        _tell(model, widgets, cfg, guidance, plan, student)
        noise = custom.Noise_RandomNoise(seed)
        guider = _guider(model, positive, negative, cfg, guidance)
        return _sample(noise, guider, _sampler(widgets, plan), sigmas, latent_image, plan)

    @staticmethod
    def sigmas(
        levels: LevelRange,
        steps: int,
        scheduler: str,
        denoise: float,
        plan: CalibratedPlan | None = None,
        student: Student | None = None,
        **options: Any,
    ) -> Tensor:
        """The noise levels of a run with these values of the widgets, over the levels of a model."""
        if plan is None:
            return scheduled(levels, scheduler, steps, denoise, options, student)
        own = _levels_of(plan)
        return own[-max(1, round((len(own) - 1) * denoise)) - 1 :] if denoise > 0 else own[:0]


class FewStepKSamplerAdvanced(io.ComfyNode):
    """KSampler (Advanced) with the samplers and schedules of the pack, and all their options."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepKSamplerAdvanced",
            display_name="Few-Step KSampler (Advanced)",
            category=CATEGORY,
            description="A KSampler (Advanced) with the samplers and schedules of Few-Step, their options, guidance "
            "that changes along the run, and calibrated plans. It runs a part of the steps, so that several of them "
            "can share a run.",
            inputs=[
                *_model_inputs(),
                io.Combo.Input(
                    "add_noise",
                    options=[ENABLE, DISABLE],
                    default=ENABLE,
                    tooltip="disable: the latent has its noise already, from the node that ran the steps before.",
                ),
                seed_input("Seed of the noise. Give the same value to all nodes that share a run.", id="noise_seed"),
                *_choices("Number of steps of the whole run. Give the same value to all nodes that share a run."),
                io.Int.Input(
                    "start_at_step", default=0, min=0, max=10000, tooltip="The first step that is run here, from 0."
                ),
                io.Int.Input(
                    "end_at_step", default=10000, min=0, max=10000, tooltip="The first step that is not run here."
                ),
                io.Combo.Input(
                    "return_with_leftover_noise",
                    options=[DISABLE, ENABLE],
                    default=DISABLE,
                    tooltip="Used if the run ends before its last step. enable: the noise of that level stays in the "
                    "latent, for the node that goes on. disable: the last step here leads to the clean image.",
                ),
                *_more_inputs(),
            ],
            outputs=_outputs(),
            **search_words(*_WORDS, "ksampler advanced", "start at step"),
        )

    @classmethod
    def execute(
        cls,
        model: Patcher,
        add_noise: str,
        noise_seed: int,
        cfg: float,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        guidance: Guidance | None = None,
        plan: CalibratedPlan | None = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        student = fitting_student(model)
        sigmas = cls.sigmas(_levels(model), plan=plan, student=student, **widgets)
        _tell(model, widgets, cfg, guidance, plan, student)
        noise = custom.Noise_RandomNoise(noise_seed) if add_noise == ENABLE else custom.Noise_EmptyNoise()
        noise.seed = noise_seed  # of a sampler that adds noise
        guider = _guider(model, positive, negative, cfg, guidance)
        return _sample(noise, guider, _sampler(widgets, plan), sigmas, latent_image, plan)

    @staticmethod
    def sigmas(
        levels: LevelRange,
        steps: int,
        scheduler: str,
        start_at_step: int,
        end_at_step: int,
        return_with_leftover_noise: str,
        plan: CalibratedPlan | None = None,
        student: Student | None = None,
        **options: Any,
    ) -> Tensor:
        """As `FewStepKSampler.sigmas`: the part of the levels that the host's node would run.

        Raises:
            ValueError: if a plan would have to lead to the clean image from one of its own levels.
        """
        whole = scheduled(levels, scheduler, steps, 1.0, options, student) if plan is None else _levels_of(plan)
        steps = len(whole) - 1
        part = whole[: end_at_step + 1]
        if end_at_step < steps and return_with_leftover_noise == DISABLE and start_at_step < end_at_step:
            if plan is not None:
                raise ValueError(
                    f"end_at_step = {end_at_step}: the plan has {counted(steps, 'step')}, and only its last one leads "
                    f"to the clean image: enable return_with_leftover_noise, or set end_at_step to {steps}"
                )
            part = torch.cat([part[:-1], part.new_zeros(1)])
        return part[start_at_step:] if start_at_step < len(part) - 1 else part[:0]


def _tell(
    model: Patcher,
    widgets: Mapping[str, Any],
    cfg: float,
    guidance: Guidance | None,
    plan: CalibratedPlan | None,
    student: Student | None,
) -> None:
    """Say on the node where the run differs from what a distilled model was trained for."""
    scale = cfg if guidance is None else guidance.strongest
    if plan is not None:
        return
    steps, denoise = widgets["steps"], widgets.get("denoise", 1.0)
    if notes := notes_of_schedule(_levels(model), widgets["scheduler"], steps, denoise, widgets, scale, student):
        say("\n".join(notes))


def _levels(model: Patcher) -> LevelRange:
    return level_range(model.get_model_object("model_sampling"))


def _levels_of(plan: CalibratedPlan) -> Tensor:
    return torch.tensor(plan.recipe.sigmas, dtype=torch.float32)


def _sampler(widgets: Mapping[str, Any], plan: CalibratedPlan | None) -> Any:
    """The SAMPLER of Few-Step Sampler or of Few-Step Plan Sampler."""
    if plan is not None:
        return plan_sampler(plan)
    spec = SAMPLERS[widgets["sampler_name"]]
    return comfy.samplers.KSAMPLER(sampler_function(spec), spec.check_options(chosen_options(spec, widgets)))


def _guider(
    model: Patcher, positive: Conditioning, negative: Conditioning, cfg: float, guidance: Guidance | None
) -> Any:
    """The GUIDER of CFGGuider or of Few-Step Guider."""
    guider = comfy.samplers.CFGGuider(model if guidance is None else guide(model, guidance))
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg if guidance is None else guidance.cfg)
    return guider


def _sample(
    noise: Any, guider: Any, sampler: Any, sigmas: Tensor, latent: Latent, plan: CalibratedPlan | None
) -> io.NodeOutput:
    """What SamplerCustomAdvanced does, by the host's own code: preview and progress, masks, latents of any model."""
    node, inputs = custom.SamplerCustomAdvanced, (noise, guider, sampler, sigmas, latent)
    out = node.execute(*inputs).result if hasattr(node, "execute") else node().sample(*inputs)  # hosts of 2025 before
    drawn = levels_ui(guider.model_patcher, facts_of(fitting_student(guider.model_patcher)))
    if plan is not None:
        drawn["fewstep_plan"] = [plan.text()]  # drawn by the front end
    return io.NodeOutput(*out, ui=drawn)


NODES = [FewStepKSampler, FewStepKSamplerAdvanced]
