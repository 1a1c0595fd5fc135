"""The nodes that load, save, follow and show calibrated plans."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io, ui

from ..samplers.calibrated import CalibratedPlan, FileError, load, parse
from .host.display import say
from .host.model import check_plan, fingerprint
from .host.plan_files import BUILT_IN, FOLDER, check_filename, entries, find, keep, save
from .host.sampling import plan_sampler
from .ui.links import PLAN
from .ui.menu import PLANS as CATEGORY
from .ui.menu import search_words
from .ui.plans import conditions, description, panels, summary
from .ui.plots import line_plot


class FewStepLoadPlan(io.ComfyNode):
    """A plan from a file, from those that come with the pack, or from a text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepLoadPlan",
            display_name="Few-Step Load Plan",
            category=CATEGORY,
            description="Loads a calibrated plan: noise levels and solver coefficients made for one kind of model.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=entries(),
                    default=next(iter(BUILT_IN)),
                    tooltip=f"A file in models/{FOLDER}, or a published plan that comes with Few-Step.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    placeholder="or paste a plan here",
                    optional=True,
                    tooltip="A plan as text, as Few-Step Save Plan gives it. If there is a text, it is used instead "
                    "of the file, so that a workflow carries its own plan.",
                ),
            ],
            outputs=[
                PLAN.Output(display_name="PLAN", tooltip="For Few-Step Plan Sampler."),
                io.String.Output(display_name="summary", tooltip="What the plan does, and what it was made for."),
            ],
            **search_words("amed", "calibrated plan"),
        )

    @classmethod
    def validate_inputs(cls, file: str, text: str | None = None) -> bool | str:
        # A text that another node gives is not known yet, and the file may not be needed.
        if text is None or text.strip() or file in BUILT_IN:
            return True
        try:
            find(file)
        except FileError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str, text: str | None = None) -> Any:
        """Another when the file has changed."""
        if (text and text.strip()) or file in BUILT_IN:
            return file, text
        try:
            stat = find(file).stat()
        except (FileError, OSError):
            return file, text
        return file, text, stat.st_mtime_ns, stat.st_size

    @classmethod
    def execute(cls, file: str, text: str = "") -> io.NodeOutput:
        if text.strip():
            try:
                plan = parse(text)
            except FileError as error:
                raise FileError(f"text: {error}") from None
        elif file in BUILT_IN:
            plan = BUILT_IN[file]
        else:
            plan = load(find(file))
        return io.NodeOutput(plan, summary(plan))


class FewStepSavePlan(io.ComfyNode):
    """A plan to a file, and as text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepSavePlan",
            display_name="Few-Step Save Plan",
            category=CATEGORY,
            description=f"Writes a plan to models/{FOLDER}. No file is replaced: a number is added to the name.",
            inputs=[
                PLAN.Input("plan", tooltip="The plan to save."),
                io.String.Input(
                    "filename",
                    default="plan",
                    tooltip=f"Name of the file in models/{FOLDER}, with subfolders if you like: portraits/plan.",
                ),
            ],
            outputs=[
                PLAN.Output(display_name="PLAN", tooltip="The same plan."),
                io.String.Output(
                    display_name="text",
                    tooltip="The plan as text, for Few-Step Load Plan. The network of an AMED plan does not fit into a "
                    "text. Its text has fixed parameters, the same for all images.",
                ),
            ],
            is_output_node=True,
            **search_words("amed", "calibrated plan"),
        )

    @classmethod
    def validate_inputs(cls, filename: str | None = None) -> bool | str:
        """Before the run: a plan may take hours to make."""
        if filename is not None:  # else another node gives it
            try:
                check_filename(filename)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(cls, plan: CalibratedPlan, filename: str) -> io.NodeOutput:
        check_filename(filename)
        path = keep(plan, lambda: save(plan, filename))
        message = f"saved as {path}"
        say(message)
        return io.NodeOutput(plan, plan.text(), ui=ui.PreviewText(message))


class FewStepPlanSampler(io.ComfyNode):
    """A plan as SAMPLER and SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepPlanSampler",
            display_name="Few-Step Plan Sampler",
            category=CATEGORY,
            description="Follows a calibrated plan. Connect both outputs to SamplerCustom or SamplerCustomAdvanced. "
            "For img2img, use the last part of the sigmas (low_sigmas of SplitSigmas).",
            inputs=[
                PLAN.Input("plan", tooltip="The plan to follow."),
                io.Boolean.Input(
                    "see_bottleneck",
                    default=True,
                    optional=True,
                    tooltip="Only for AMED plans. On: the network of the plan reads the middle of the model's network "
                    "during sampling, and gives every image its own parameters. Off: all images have the same "
                    "parameters.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that will be sampled. If it is connected, a plan for another kind of model is "
                    "an error at once, not only when sampling begins.",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="Follows the plan on the sigmas of this node, or on a part of them."),
                io.Sigmas.Output(tooltip="The noise levels of the plan: one more than it has evaluations."),
            ],
            **search_words("amed", "calibrated plan"),
        )

    @classmethod
    def execute(cls, plan: CalibratedPlan, see_bottleneck: bool = True, model: Any = None) -> io.NodeOutput:
        if model is not None:
            check_plan(plan, fingerprint(model))
        if sentences := conditions(plan):
            say(" ".join(sentences))
        sampler = plan_sampler(plan, see_bottleneck=see_bottleneck)
        sigmas = torch.tensor(plan.recipe.sigmas, dtype=torch.float32)
        return io.NodeOutput(sampler, sigmas, ui={"fewstep_plan": [plan.text()]})  # drawn by the front end


class FewStepInspectPlan(io.ComfyNode):
    """A plan as a picture and a table."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepInspectPlan",
            display_name="Few-Step Inspect Plan",
            category=CATEGORY,
            description="Shows what a plan does: its levels and parameters, and the coefficients that follow.",
            inputs=[PLAN.Input("plan", tooltip="The plan to show.")],
            outputs=[
                io.Image.Output(tooltip="The noise levels, the parameters at each of them, and the coefficients."),
                io.String.Output(
                    display_name="text", tooltip="The base, the origin, the levels and the coefficients of each update."
                ),
            ],
            **search_words("amed", "calibrated plan"),
        )

    @classmethod
    def execute(cls, plan: CalibratedPlan) -> io.NodeOutput:
        return io.NodeOutput(line_plot(panels(plan)), description(plan))


NODES = [FewStepLoadPlan, FewStepSavePlan, FewStepPlanSampler, FewStepInspectPlan]
