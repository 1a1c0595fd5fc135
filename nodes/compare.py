"""The node that compares samplers and schedules on one prompt and seed."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers.checks import counted
from .host.comparison import STOPPING, Comparison
from .host.display import Display, preview_image, show, telling
from .host.progress import Progress
from .host.protocols import Conditioning
from .host.reference import MANY_STEPS
from .host.wiring import run_about
from .ui.comparison import Shown, cells, chart, table
from .ui.menu import COMPARING as CATEGORY
from .ui.menu import search_words
from .ui.names import SAMPLERS_SYNTAX, SCHEDULES_SYNTAX, faults, read_samplers, read_schedules, read_steps
from .ui.options import cfg_input, seed_input, theme_input
from .ui.theme import THEMES


def output(shown: Shown, sheet: Tensor) -> dict[str, Any]:
    """What the node shows when it is done: the sheet, and the cells with their images for its table in the browser."""
    each = {cell: preview_image(picture[None]) for cell, picture in shown.pictures.items()}
    files = {cell: saved.as_dict()["images"][0] for cell, saved in each.items() if saved is not None}
    whole = preview_image(sheet)
    return {"fewstep_compare": [cells(shown.work, files)], **(whole.as_dict() if whole is not None else {})}


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
                io.Conditioning.Input("positive", tooltip="What the image should show."),
                io.Conditioning.Input("negative", tooltip="What the image should not show."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="An empty latent of the size you want, or an image to start from with denoise below 1.",
                ),
                io.String.Input(
                    "samplers",
                    multiline=True,
                    default="dpmpp_2m\nfewstep_dpmpp_2m\nfewstep_ipndm_v",
                    tooltip=SAMPLERS_SYNTAX,
                ),
                io.String.Input(
                    "schedules",
                    multiline=True,
                    default="karras\nfewstep_karras*",
                    tooltip=SCHEDULES_SYNTAX,
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
                theme_input("Colours of the sheet and the chart."),
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
            **search_words("xy plot", "xyz plot", "grid", "compare samplers", "sampler test"),
        )

    @classmethod
    def validate_inputs(
        cls, samplers: str | None = None, schedules: str | None = None, steps: str | None = None
    ) -> bool:
        """True.

        Raises:
            ValueError: naming the box at fault. The host lays an answer that is not True to the charge of every input
                that is read here, and an error to that of the node, once.
        """
        for fault in faults({"samplers": samplers, "schedules": schedules, "steps": steps}).values():
            raise ValueError(fault)
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
        theme: str = "light",
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
        settings = f"cfg {cfg:g}, seed {seed}" + (f", denoise {denoise:g}" if denoise < 1 else "")
        about = {**run_about(cls.hidden.prompt if cls.hidden else None), "settings": settings}

        def shown() -> Shown:
            return Shown(work, vae, about=about, theme=THEMES[theme])

        with Progress(Display(model).show) as progress:
            try:
                work.run(progress)
            except STOPPING:
                with telling("the images that are finished cannot be shown"):
                    show(output(finished := shown(), finished.sheet(tile)))
                there = sum(work.outcome(cell) is not None for cell in work.cells)
                progress.end(
                    f"Stopped: {there} of {counted(len(work.cells), 'image')} finished. Queue it again to continue"
                )
                raise
        images = [cell for cell in work.cells if work.outcome(cell) is not None and work.first(cell) == cell]
        latents = [found.latents for cell in images if (found := work.outcome(cell)) is not None]
        if not latents:
            raise ValueError(
                "no sampler gave an image: " + "; ".join(f"{cell}: {why}" for cell, why in work.faults.items())
            )
        out, finished = {"samples": torch.cat(latents)}, shown()
        sheet = finished.sheet(tile)
        return io.NodeOutput(sheet, chart(work, THEMES[theme]), table(work), out, ui=output(finished, sheet))


NODES = [FewStepCompare]
