"""The nodes that fit a plan to the model that is connected."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..samplers import SAMPLERS, SCHEDULES
from ..samplers.calibrated.fit import DEFAULT_BASES
from ..samplers.calibrated.recipe import Recipe
from .host.calibration import DERIVATIVES, Calibration
from .host.display import Display
from .host.protocols import Conditioning
from .host.session import Session
from .host.training import AMED_BASES, GOALS, Training
from .host.work import finished, kept
from .ui.links import PLAN
from .ui.menu import CATEGORY, search_words
from .ui.plans import error_text, outcome
from .ui.plots import Panel, line_plot


def _common_inputs(evaluations: str, samples: str) -> tuple[list[io.Input], list[io.Input]]:
    """Those before and after a node's own, with what it says of two."""
    return [
        io.Model.Input("model", tooltip="The model to be tuned for, with its LoRAs and patches. It is not changed."),
        io.Conditioning.Input(
            "positive",
            tooltip="The prompts, one or several: join them with Conditioning (Combine). With 4 or more a quarter is "
            "kept to see whether the plan is good for prompts that it was not made with.",
        ),
        io.Conditioning.Input("negative", tooltip="The negative prompt, the same for all."),
        io.Latent.Input("latent_image", tooltip="An empty latent: its width and height are those of the images."),
        io.Float.Input(
            "cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="The guidance that the plan is to be used with."
        ),
        io.Int.Input("evaluations", default=6, min=1, max=100, tooltip=evaluations),
    ], [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFF,
            control_after_generate=False,
            tooltip="Of the first image's noise; the others count on from it. The same seed gives the same plan.",
        ),
        io.Int.Input("samples", default=16, min=1, max=4096, tooltip=samples),
        io.Int.Input(
            "teacher_steps",
            default=50,
            min=2,
            max=1000,
            tooltip="Steps of the long run (DPM-Solver++ 2M) whose images are taken as right.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        PLAN.Output(display_name="PLAN", tooltip="For Few-Step Plan Sampler and Few-Step Save Plan."),
        io.Image.Output(display_name="plot", tooltip="How the error went."),
        io.String.Output(display_name="report", tooltip="The error before and after, on images kept apart."),
    ]


def _usable_bases() -> list[str]:
    """Samplers that a recipe can follow."""
    usable = []
    for id in SAMPLERS:
        with contextlib.suppress(ValueError):
            Recipe(id, (3.0, 2.0, 1.0, 0.0))
            usable.append(id)
    return usable


def _points(pairs: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    return [(float(x), y) for x, y in pairs if math.isfinite(y)]


class FewStepCalibrate(io.ComfyNode):
    """Fits noise levels and solver numbers to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        first, second = _common_inputs(
            "Evaluations of the model per image that the plan will make.",
            "Images to fit to; as many others say how good it is. More is better and takes longer.",
        )
        return io.Schema(
            node_id="FewStepCalibrate",
            display_name="Few-Step Calibrate",
            category=CATEGORY,
            description="Fits noise levels and a sampler's numbers to the connected model, so that a few evaluations "
            "give the image of many. It takes some hundred short runs: minutes for SD1.5. Stopping it keeps the best.",
            inputs=[
                *first,
                io.Combo.Input(
                    "base",
                    options=["auto", *_usable_bases()],
                    default="auto",
                    tooltip=f"The sampler to start from, on its best schedule. auto: the best of "
                    f"{' and '.join(DEFAULT_BASES)}.",
                ),
                *second,
                io.Int.Input(
                    "rounds", default=4, min=1, max=100, tooltip="At most so many rounds of the fit: the effort."
                ),
                io.Int.Input(
                    "batch",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="At most so many images at once. 0: all, or what fits into memory.",
                ),
                io.Combo.Input(
                    "derivatives",
                    options=list(DERIVATIVES),
                    default=DERIVATIVES[0],
                    optional=True,
                    tooltip="How it finds out which way to change the numbers. differences: works with every model and "
                    "is nearly always better. backpropagation: for models that gradients go through (not quantised "
                    "ones); needs more memory, and sees nothing of the rounding of noise levels to time steps, which "
                    "all models but flow ones do.",
                ),
            ],
            outputs=_outputs(),
            **search_words("plan", "amed", "fit a sampler"),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: dict[str, Any],
        cfg: float,
        evaluations: int,
        base: str,
        seed: int,
        samples: int,
        teacher_steps: int,
        rounds: int,
        batch: int,
        derivatives: str = DERIVATIVES[0],
    ) -> io.NodeOutput:
        session = Session(model, positive, negative, cfg, latent_image, batch=batch)
        work = Calibration(
            session,
            evaluations=evaluations,
            bases=DEFAULT_BASES if base == "auto" else (base,),
            seed=seed,
            samples=samples,
            teacher_steps=teacher_steps,
            rounds=rounds,
            derivatives=derivatives,
        )
        display, seen = Display(), []
        with kept(work):
            for progress in work:
                seen.append(progress)
                display.show(progress.runs, progress.expected, error_text(progress.before, progress.after))
            plan = finished(work)
            series = {
                "fitted": _points([(p.runs, p.error) for p in seen]),
                "kept apart, best": _points([(p.runs, p.after) for p in seen]),
            }
            plot = line_plot([Panel("Calibration", "runs", "error", series, log_y=True)])
            return io.NodeOutput(plan, plot, outcome(plan))


class FewStepTrainAMED(io.ComfyNode):
    """Trains the network of AMED for a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        first, second = _common_inputs(
            "Evaluations of the model per image that the plan will make; at least 2.",
            "Images that are not trained on and say how good it is.",
        )
        return io.Schema(
            node_id="FewStepTrainAMED",
            display_name="Few-Step Train AMED",
            category=CATEGORY,
            description="Trains a small network that sees the middle of the model's and places every second "
            "evaluation, image by image. No gradient goes through the model: memory is that of sampling. Stopping it "
            "keeps what was learned.",
            inputs=[
                *first,
                io.Combo.Input(
                    "base", options=list(AMED_BASES), default="amed_dpm_2m", tooltip="The solver that is helped."
                ),
                io.Boolean.Input(
                    "afs",
                    default=False,
                    tooltip="Leaves out the first evaluation: at high noise the sample is nearly all noise.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default="karras",
                    tooltip="Levels of all evaluations; every second is then learned.",
                ),
                *second,
                io.Int.Input(
                    "iterations",
                    default=60,
                    min=1,
                    max=100000,
                    tooltip="Batches to learn from: the effort. The paper takes 10,000 images in all.",
                ),
                io.Int.Input("batch", default=8, min=1, max=4096, tooltip="Images of a batch."),
                io.Float.Input(
                    "scale_dir",
                    default=0.01,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="How far the factor of the direction may be from 1. 0 leaves it.",
                ),
                io.Float.Input(
                    "scale_time",
                    default=0.2,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="How far the factor of the noise level that the model is told may be from 1. 0 leaves it.",
                ),
                io.Int.Input(
                    "teacher_extra",
                    default=3,
                    min=1,
                    max=100,
                    tooltip="Levels that the teacher has more in each step that is learned.",
                ),
                io.Float.Input(
                    "learning_rate", default=0.005, min=1e-6, max=1.0, step=0.001, round=False, tooltip="Of Adam."
                ),
                io.Combo.Input(
                    "goal",
                    options=list(GOALS),
                    default=GOALS[0],
                    optional=True,
                    tooltip="last sample: the images are to be those of the teacher; takes longer. each step: every "
                    "step is to end where the teacher's does, as in the paper.",
                ),
                PLAN.Input(
                    "start",
                    optional=True,
                    tooltip="A plan to begin with, from Few-Step Calibrate, or a predictor to be trained further, from "
                    "Few-Step Load Plan. base, afs and schedule are then its own, and scale_dir and scale_time count "
                    "only if they are wider than it needs. If training does not help, it comes out again.",
                ),
            ],
            outputs=_outputs(),
            **search_words("plan", "amed predictor"),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: dict[str, Any],
        cfg: float,
        **options: Any,
    ) -> io.NodeOutput:
        work = Training(Session(model, positive, negative, cfg, latent_image), **options)
        display, seen = Display(), []
        with kept(work):
            for step in work:
                seen.append(step)
                display.show(
                    step.iteration, step.iterations, f"loss {step.loss:.4g}; {error_text(step.before, step.after)}"
                )
            plan = finished(work)
            panels = [
                Panel(
                    "Training",
                    "iterations",
                    "loss",
                    {"loss": _points([(s.iteration, s.loss) for s in seen])},
                    log_y=True,
                ),
                Panel(
                    "Images kept apart",
                    "iterations",
                    "error",
                    {
                        "base": _points([(s.iteration, s.before) for s in seen]),
                        "AMED, best": _points([(s.iteration, s.after) for s in seen]),
                    },
                    log_y=True,
                ),
            ]
            return io.NodeOutput(plan, line_plot(panels), outcome(plan))


NODES = [FewStepCalibrate, FewStepTrainAMED]
