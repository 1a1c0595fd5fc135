"""The nodes that fit a plan to the model that is connected."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..samplers.calibrated.fit import DEFAULT_BASES
from ..samplers.calibrated.recipe import usable_bases
from .host.calibration import DERIVATIVES, Calibration
from .host.display import Display
from .host.progress import Progress
from .host.protocols import Conditioning
from .host.session import Session
from .host.training import AMED_BASES, AMED_SCHEDULES, GOALS, Training
from .host.work import finished, kept
from .ui.links import PLAN
from .ui.menu import PLANS as CATEGORY
from .ui.menu import search_words
from .ui.options import common_inputs
from .ui.plans import outcome, so_far
from .ui.plots import Panel, line_plot, points, training_plot


def _further_inputs(samples: str) -> list[io.Input]:
    """Those after a node's own."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFF,
            control_after_generate=False,
            tooltip="The seed of the first image. Each other image uses the next seed. The same seed gives the same "
            "plan.",
        ),
        io.Int.Input("samples", default=16, min=1, max=4096, tooltip=samples),
        io.Int.Input(
            "teacher_steps",
            default=50,
            min=2,
            max=1000,
            tooltip="Steps of the long run (DPM-Solver++ 2M) whose images are taken as the right ones.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        PLAN.Output(display_name="PLAN", tooltip="For Few-Step Plan Sampler and Few-Step Save Plan."),
        io.Image.Output(display_name="plot", tooltip="The error as it falls during the work."),
        io.String.Output(
            display_name="report", tooltip="The error before and after, measured on the validation images."
        ),
    ]


class FewStepCalibrate(io.ComfyNode):
    """Fits noise levels and solver coefficients to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        first = common_inputs("plan", "How often the plan evaluates the model for an image.")
        second = _further_inputs(
            "Number of images for the fit. As many others are made for validation. More images give a better plan and "
            "take longer."
        )
        return io.Schema(
            node_id="FewStepCalibrate",
            display_name="Few-Step Calibrate",
            category=CATEGORY,
            description="Fits the noise levels and the coefficients of a sampler to the connected model, so that a few "
            "evaluations give nearly the image of many. For 4 to 12 evaluations this takes 100 to 300 short runs. If "
            "you stop it, the best plan so far is kept.",
            inputs=[
                *first,
                io.Combo.Input(
                    "base",
                    options=["auto", *usable_bases()],
                    default="auto",
                    tooltip="The sampler to start from, on the schedule that is best for it. auto: the better of "
                    f"{' and '.join(DEFAULT_BASES)}.",
                ),
                *second,
                io.Int.Input("rounds", default=4, min=1, max=100, tooltip="The largest number of rounds of the fit."),
                io.Int.Input(
                    "batch",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="The largest number of images at once. 0: all of them, or as many as fit into memory.",
                ),
                io.Combo.Input(
                    "derivatives",
                    options=list(DERIVATIVES),
                    default=DERIVATIVES[0],
                    optional=True,
                    tooltip="How the fit finds the direction of a step. differences: works with every model and "
                    "is nearly always better. backpropagation: for models that gradients can go through, not for "
                    "quantised ones. It needs more memory, and it does not see that all models but flow models round "
                    "noise levels to time steps.",
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
        progress = Progress(Display().show)
        session = Session(model, positive, negative, cfg, latent_image, batch=batch, progress=progress)
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
        seen = []
        with kept(work):
            for found in work:
                seen.append(found)
                progress.note(so_far(found))
            plan = finished(work)
            series = {
                "training": points([(p.runs, p.error) for p in seen]),
                "validation, best": points([(p.runs, p.after) for p in seen]),
            }
            plot = line_plot([Panel("Calibration", "runs", "error", series, log_y=True)])
            progress.end(outcome(plan))
            return io.NodeOutput(plan, plot, outcome(plan))


class FewStepTrainAMED(io.ComfyNode):
    """Trains the network of AMED for a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        first = common_inputs("plan", "How often the plan evaluates the model for an image; at least 2.")
        second = _further_inputs(
            "Number of validation images. The network is not trained on them; they show how good it is."
        )
        return io.Schema(
            node_id="FewStepTrainAMED",
            display_name="Few-Step Train AMED",
            category=CATEGORY,
            description="Trains a small network that reads the middle of the model's own network and chooses every "
            "second noise level for each image. No gradient goes through the model, so it needs no more memory than "
            "sampling. If you stop it, the best network so far is kept.",
            inputs=[
                *first,
                io.Combo.Input(
                    "base",
                    options=list(AMED_BASES),
                    default="amed_dpm_2m",
                    tooltip="The sampler that the network is trained for.",
                ),
                io.Boolean.Input(
                    "afs",
                    default=False,
                    tooltip="Leave out the first evaluation (analytical first step): the sample is nearly pure noise "
                    "there.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(AMED_SCHEDULES),
                    default="karras",
                    tooltip="The noise levels at the start. Every second one is then learned.",
                ),
                *second,
                io.Int.Input(
                    "iterations",
                    default=60,
                    min=1,
                    max=100000,
                    tooltip="Number of batches to learn from. More take longer. The paper uses 10,000 images in all.",
                ),
                io.Int.Input("batch", default=8, min=1, max=4096, tooltip="Number of images in a batch."),
                io.Float.Input(
                    "scale_dir",
                    default=0.01,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="How far the factor of the direction may be from 1. 0: it stays 1.",
                ),
                io.Float.Input(
                    "scale_time",
                    default=0.2,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="How far the factor of the sigma passed to the model may be from 1. 0: it stays 1.",
                ),
                io.Int.Input(
                    "teacher_extra",
                    default=3,
                    min=1,
                    max=100,
                    tooltip="How many more levels the teacher has in each step that is learned.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.005,
                    min=1e-6,
                    max=1.0,
                    step=0.001,
                    round=False,
                    tooltip="Learning rate of the optimizer (Adam). It falls to a tenth by the end.",
                ),
                io.Combo.Input(
                    "goal",
                    options=list(GOALS),
                    default=GOALS[0],
                    optional=True,
                    tooltip="What is matched with the teacher. last sample: the finished image; this takes longer. "
                    "each step: the end of every step, as in the paper.",
                ),
                PLAN.Input(
                    "start",
                    optional=True,
                    tooltip="A plan to begin with: a calibrated plan, or an AMED plan to train further. Its base, afs "
                    "and schedule replace those that are chosen here. scale_dir and scale_time are used only if they "
                    "are wider than the plan needs. If training does not help, the output is this plan.",
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
        progress = Progress(Display().show)
        work = Training(Session(model, positive, negative, cfg, latent_image, progress=progress), **options)
        seen = []
        with kept(work):
            for step in work:
                seen.append(step)
                progress.note(so_far(step))
            plan = finished(work)
            progress.end(outcome(plan))
            plot = training_plot(seen, {"base": [s.before for s in seen], "AMED, best": [s.after for s in seen]})
            return io.NodeOutput(plan, plot, outcome(plan))


NODES = [FewStepCalibrate, FewStepTrainAMED]
