"""The node that compares samplers and schedules on one prompt and seed."""

from __future__ import annotations

import logging
import re
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io, ui
from torch import Tensor

from ..samplers.checks import shortened
from .host.comparison import Cell, Comparison
from .host.display import Display, preview_image, show, telling
from .host.protocols import Conditioning
from .host.reference import MANY_STEPS
from .ui.menu import CATEGORY, search_words
from .ui.names import SYNTAX, checked_length, read_samplers, read_schedules
from .ui.options import cfg_input, seed_input
from .ui.pictures import Tile, decode, sheet
from .ui.plans import counted
from .ui.plots import Panel, line_plot
from .ui.tables import text_table

PUBLISHED_PLAN = "published plan"
_WHATEVER = "the sampler follows the plan that its authors published, whatever the schedule"


def _schedule(work: Comparison, cell: Cell) -> str:
    return f"{cell.schedule.label} ({PUBLISHED_PLAN})" if work.published(cell) else cell.schedule.label


def table(work: Comparison) -> str:
    """Every cell in a line."""
    rows = [["sampler", "schedule", "steps", "evaluations", "error"]]
    for row in work.rows:
        for steps in work.columns:
            cell = Cell(*row, steps)
            outcome, error = work.outcome(cell), work.error(cell)
            fault = work.faults.get(cell, "not finished")
            measured = [str(outcome.evaluations), "" if error is None else f"{error:.4g}"] if outcome else ["", fault]
            rows.append([cell.sampler.label, _schedule(work, cell), str(steps), *measured])
    lines = text_table(rows)
    if any(map(work.published, work.cells)):
        lines += ["", f"{PUBLISHED_PLAN}: {_WHATEVER}."]
    if work.reference_steps:
        lines += [
            "",
            f"error: root mean square difference of the latent from {work.reference_steps} steps of {MANY_STEPS}. With "
            "added noise every run gives another image, and the error says little.",
        ]
    return "\n".join([*lines, ""])


def chart(work: Comparison) -> Tensor:
    """Error against evaluations."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in work.rows:
        for cell in (Cell(*row, steps) for steps in work.columns):
            found, error = work.outcome(cell), work.error(cell)
            if found is not None and error is not None and not (work.published(cell) and work.first(cell) != cell):
                schedule = PUBLISHED_PLAN if work.published(cell) else cell.schedule.label
                series.setdefault(f"{cell.sampler.label}, {schedule}", []).append((float(found.evaluations), error))
    series = {name: sorted(points) for name, points in series.items()}
    title = f"Error against {work.reference_steps} steps" if work.reference_steps else "Without a reference"
    return line_plot([Panel(title, "evaluations", "error", series, log_y=True)])


def grid(work: Comparison, width: int, vae: Any = None) -> Tensor:
    """The images, a row for each sampler and schedule, a column for each number of steps; below, the reference."""
    rows = [[_tile(work, Cell(*row, steps), vae) for steps in work.columns] for row in work.rows]
    left = [f"{sampler.label}\n{schedule.label}" for sampler, schedule in work.rows]
    references = {id(found): found for cell in work.cells if (found := work.reference(cell)) is not None}
    if len(references) == 1:
        (found,) = references.values()
        picture = decode(work.patcher, found.latents[:1], vae)[0]
        rows.append([Tile(picture, counted(found.evaluations, "evaluation"))])
        left.append(f"reference\n{MANY_STEPS}")
    return sheet(rows, width, top=[f"{steps} steps" for steps in work.columns], left=left)


def _tile(work: Comparison, cell: Cell, vae: Any) -> Tile:
    found, error = work.outcome(cell), work.error(cell)
    if found is None:
        return Tile(fault=work.faults.get(cell, ""), caption="failed" if cell in work.faults else "not finished")
    if (first := work.first(cell)) != cell:
        same = f"the same run as on {first.schedule.label}"
        return Tile(fault=f"{same}: {_WHATEVER}" if work.published(cell) else same, caption="same run")
    caption = counted(found.evaluations, "evaluation") + ("" if error is None else f", error {error:.2g}")
    caption += f", {PUBLISHED_PLAN}" if work.published(cell) else ""
    return Tile(decode(work.patcher, found.latents[:1], vae)[0], caption)


# The node


class FewStepCompare(io.ComfyNode):
    """Samplers and schedules side by side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepCompare",
            display_name="Few-Step Compare",
            category=CATEGORY,
            description="Runs every sampler on every schedule with every number of steps, from the same noise. It "
            "shows the images in one sheet, and how far each is from the image of many steps. If you stop it, the "
            "finished images are shown. Queue it again with the same inputs, or with a line more, and only what is "
            "missing is run.",
            inputs=[
                io.Model.Input("model", tooltip="The model to be sampled."),
                io.Conditioning.Input("positive", tooltip="What the image shows."),
                io.Conditioning.Input("negative", tooltip="What it does not show."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="An empty latent of the size you want, or an image to start from with denoise below 1.",
                ),
                io.String.Input(
                    "samplers", multiline=True, default="dpmpp_2m\nfewstep_dpmpp_2m\nfewstep_ipndm_v", tooltip=SYNTAX
                ),
                io.String.Input(
                    "schedules",
                    multiline=True,
                    default="karras\nfewstep_karras*",
                    tooltip=f"{SYNTAX} A * after the name of one of ours leaves out its last level above 0 "
                    "(discard_penultimate).",
                ),
                io.String.Input("steps", default="5, 8, 12", tooltip="The numbers of steps, with commas between them."),
                cfg_input(7.0),
                seed_input("Seed of the noise that all images start from.", changes=False),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1 the images start from latent_image (img2img), as in KSampler. The level at which "
                    "a run starts then depends on the schedule and the steps, so each such level has its own "
                    "reference.",
                ),
                io.Int.Input(
                    "reference_steps",
                    default=60,
                    min=0,
                    max=1000,
                    tooltip=f"Steps of the image that the others are compared with ({MANY_STEPS}). 0: there is no such "
                    "image, and no errors.",
                ),
                io.Int.Input(
                    "tile", default=256, min=64, max=2048, tooltip="Width of an image on the sheet, in pixels."
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the images. Without a VAE they are previews of the latents in rough colours.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="The images, with numbers of evaluations and errors."),
                io.Image.Output(display_name="chart", tooltip="Error against evaluations of the model."),
                io.String.Output(display_name="table", tooltip="Evaluations and errors as text."),
                io.Latent.Output(
                    display_name="latents",
                    tooltip="The latents of all images, column by column, to decode at full size.",
                ),
            ],
            is_output_node=True,
            **search_words("xy plot", "compare samplers", "grid of samplers"),
        )

    @classmethod
    def validate_inputs(
        cls, samplers: str | None = None, schedules: str | None = None, steps: str | None = None
    ) -> bool | str:
        readers = (read_samplers, samplers), (read_schedules, schedules), (read_steps, steps)
        for read, text in readers:
            if text is not None:  # else another node gives it
                try:
                    read(text)
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
        samplers: str,
        schedules: str,
        steps: str,
        cfg: float,
        seed: int,
        denoise: float,
        reference_steps: int,
        tile: int,
        vae: Any = None,
    ) -> io.NodeOutput:
        work = Comparison(
            model,
            positive,
            negative,
            latent_image,
            cfg=cfg,
            seed=seed,
            samplers=read_samplers(samplers),
            schedules=read_schedules(schedules),
            steps=read_steps(steps),
            denoise=denoise,
            reference_steps=reference_steps,
        )
        try:
            work.run(Display(model).show)
        except comfy.model_management.InterruptProcessingException:
            with telling("the images that are finished cannot be shown"):
                show(ui.PreviewImage(grid(work, tile, vae)).as_dict())
            logging.info("Few-Step Compare was stopped: queue it again with the same inputs and it goes on from there")
            raise
        sheet = grid(work, tile, vae)
        images = [cell for cell in work.cells if work.outcome(cell) is not None and work.first(cell) == cell]
        latents = [found.latents for cell in images if (found := work.outcome(cell)) is not None]
        if not latents:
            raise ValueError(
                "no sampler gave an image: " + "; ".join(f"{cell}: {why}" for cell, why in work.faults.items())
            )
        out = {"samples": torch.cat(latents)}
        return io.NodeOutput(sheet, chart(work), table(work), out, ui=preview_image(sheet))


def read_steps(text: str) -> list[int]:
    """Numbers of steps.

    Raises:
        ValueError: naming the one at fault.
    """
    found = []
    for part in re.split(r"[\s,;]+", checked_length("steps", text).strip()):
        if not (part.isdecimal() and len(part) <= 9 and 1 <= int(part) <= 1000):
            raise ValueError(f"steps: {shortened(part)} must be a whole number from 1 to 1000; write them as 5, 8, 12")
        found.append(int(part))
    return list(dict.fromkeys(found))


NODES = [FewStepCompare]
