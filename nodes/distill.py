"""The node that trains a student of the model that is connected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io
from torch import Tensor

from ..samplers.calibrated import CalibratedPlan
from .host.display import Display, telling
from .host.distillation import AUTO, MOST, TEACHER_SCHEDULES, TEACHERS, Distillation
from .host.plan_files import check_filename, entry_of
from .host.progress import Progress
from .host.protocols import Conditioning
from .host.session import Session
from .host.students import FOLDER, kept_student
from .ui.links import PLAN
from .ui.menu import CATEGORY, search_words
from .ui.options import common_inputs
from .ui.pictures import decode, side_by_side
from .ui.plans import so_far
from .ui.plots import training_plot
from .ui.students import student_outcome

NONE = "none"


class FewStepDistill(io.ComfyNode):
    """Trains a LoRA with which a model needs 1 to 8 evaluations without guidance."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepDistill",
            display_name="Few-Step Distill",
            category=CATEGORY,
            description="Trains a student of the connected model: a LoRA with which 1 to 8 evaluations without "
            "guidance give nearly the image of many with guidance. It is saved in models/loras. Training takes hours "
            "for a large model and needs a GPU with enough memory for it. If you stop it, the best student so far is "
            "kept.",
            inputs=[
                *common_inputs(
                    "student",
                    "How often the student evaluates the model for an image. Each evaluation is one pass of the "
                    "network; with guidance it would be two. Train one student for each number.",
                    most=MOST,
                    default=4,
                    use="The guidance scale whose effect the student learns. The student itself is sampled at cfg 1.",
                ),
                io.Int.Input(
                    "rank",
                    default=32,
                    min=1,
                    max=1024,
                    tooltip="Rank of the LoRA. A higher one can learn more, and makes a larger file.",
                ),
                io.Int.Input(
                    "iterations",
                    default=500,
                    min=1,
                    max=1000000,
                    tooltip="Number of batches to learn from, each with new noise. More give a better student and "
                    "take longer.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0002,
                    min=1e-6,
                    max=1.0,
                    step=0.0001,
                    round=False,
                    tooltip="Learning rate of the optimizer (AdamW). It falls to a tenth by the end.",
                ),
                io.Int.Input(
                    "batch",
                    default=8,
                    min=1,
                    max=4096,
                    tooltip="Number of images in a batch. If they do not fit into memory at once, they are taken in "
                    "parts, with the same result.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=False,
                    tooltip="The seed of the first image. Each other image uses the next seed.",
                ),
                io.Int.Input(
                    "samples",
                    default=8,
                    min=1,
                    max=1024,
                    tooltip="Number of validation images. The student is not trained on them; they show how good it "
                    "is.",
                ),
                io.Combo.Input(
                    "teacher_sampler",
                    options=list(TEACHERS),
                    default="dpmpp_2m",
                    tooltip="The sampler whose path from noise to image the student follows.",
                ),
                io.Combo.Input(
                    "teacher_schedule",
                    options=list(TEACHER_SCHEDULES),
                    default=AUTO,
                    tooltip="The noise levels of the teacher. The student has some of these levels. auto: karras, or "
                    "time_uniform for flow models.",
                ),
                io.Int.Input(
                    "teacher_steps",
                    default=24,
                    min=2,
                    max=1000,
                    tooltip="Steps of the teacher, rounded up to a multiple of evaluations.",
                ),
                io.String.Input(
                    "filename",
                    default="student",
                    tooltip="Name of the file in models/loras, with subfolders or without. A number is added.",
                ),
                PLAN.Input(
                    "teacher",
                    optional=True,
                    tooltip="A plan from Few-Step Calibrate as the teacher. It replaces teacher_sampler, "
                    "teacher_schedule and teacher_steps. It must have 2, 3 or more times the evaluations of the "
                    "student, and must be made at the same cfg.",
                ),
                io.Combo.Input(
                    "start_from",
                    options=[NONE, *folder_paths.get_filename_list(FOLDER)],
                    default=NONE,
                    optional=True,
                    tooltip="A student of this model to train further, such as one whose training was stopped. Its own "
                    "rank is then used. It may have more evaluations: a student for 4 evaluations is a good beginning "
                    "for one for 2.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the student's LoRA. Sample it with Few-Step Auto at cfg 1."),
                io.Image.Output(display_name="plot", tooltip="Loss and error as they fall during the training."),
                io.String.Output(
                    display_name="report",
                    tooltip="The error before and after, measured on the validation images, and the name of the file.",
                ),
            ],
            is_output_node=True,
            **search_words(
                "train lora", "student", "distillation", "sfd", "lcm lora", "turbo", "lightning", "fewer steps",
            ),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, filename: str | None = None) -> bool | str:
        """Before the run: the training may take hours."""
        if filename is not None:  # else another node gives it
            try:
                check_filename(filename, FOLDER)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: dict[str, Any],
        cfg: float,
        filename: str,
        teacher: CalibratedPlan | None = None,
        start_from: str = NONE,
        **options: Any,
    ) -> io.NodeOutput:
        check_filename(filename, FOLDER)
        display = Display()
        progress = Progress(display.show)
        session = Session(model, positive, negative, cfg, latent_image, progress=progress)
        work = Distillation(session, teacher=teacher, start=_path(start_from), **options)
        seen = []
        with kept_student(work):
            for step in work:
                if step.samples is not None:
                    _show(display, model, step.samples)
                seen.append(step._replace(samples=None))
                progress.note(so_far(step))
            found = work.finished()
        path = found.keep(lambda: found.save(filename))
        text = f"saved as {entry_of(path, FOLDER)}\n{student_outcome(found.student)}"
        progress.end(text)
        plot = training_plot(
            seen, {"without the student": [s.before for s in seen], "student, best": [s.after for s in seen]}
        )
        return io.NodeOutput(found.on(model), plot, text)


def _path(start: str) -> Path | None:
    """Where the student lies that is gone on with."""
    if start == NONE:
        return None
    path = folder_paths.get_full_path(FOLDER, start)
    if path is None:
        raise ValueError(f"start_from: {start!r} is not in models/{FOLDER}: choose another, or {NONE}")
    return Path(path)


def _show(display: Display, model: Any, latents: Tensor) -> None:
    """The sample sheet, in the place of a preview."""
    with telling("the samples cannot be shown on the node"):
        display.picture(side_by_side(decode(model, latents)))


NODES = [FewStepDistill]
