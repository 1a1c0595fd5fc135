"""The nodes that show the way from noise to image: how flat it is, and what the model sees on it."""

from __future__ import annotations

from typing import Any, NamedTuple

import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers import SAMPLERS, SCHEDULES
from ..samplers.checks import counted
from ..samplers.trajectory import principal
from .host.display import Display, preview_image
from .host.progress import Progress
from .host.protocols import Conditioning, Latent, Patcher
from .host.sampling import sampler_function, schedule_sigmas
from .host.session import Guider, check_single, fitting, sample
from .host.wiring import run_about
from .ui.menu import COMPARING as CATEGORY
from .ui.menu import search_words
from .ui.options import cfg_input, seed_input, theme_input
from .ui.pictures import Tile, decode, head_lines, sheet
from .ui.plots import Panel, line_plot
from .ui.tables import text_table
from .ui.theme import THEMES

_COMPONENTS = 3


# How flat it is


class FewStepTrajectory(io.ComfyNode):
    """Samples with many small steps and looks at the way there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepTrajectory",
            display_name="Few-Step Trajectory",
            category=CATEGORY,
            description="Shows how close to a plane each sampling trajectory of a model lies, by its principal "
            "components. AMED builds on this (Zhou et al. 2024, arXiv 2312.00094, section 3.1).",
            inputs=[
                io.Model.Input("model", tooltip="The model to be sampled."),
                io.Conditioning.Input("positive", tooltip="What the images should show."),
                io.Conditioning.Input("negative", tooltip="What the images should not show."),
                io.Latent.Input("latent_image", tooltip="An empty latent: its size is used, its content is not."),
                cfg_input(7.5),
                seed_input("Seed of the noise that the trajectories start from."),
                io.Int.Input(
                    "batch", default=4, min=1, max=64, tooltip="Number of trajectories. All are sampled at once."
                ),
                io.Int.Input(
                    "steps", default=50, min=4, max=1000, tooltip="Steps of dpmpp_2m on the exponential schedule."
                ),
                theme_input("Colours of the picture."),
            ],
            outputs=[
                io.Image.Output(tooltip="Each trajectory on its own first two principal components."),
                io.String.Output(display_name="text", tooltip="How much of the variance lies in the first components."),
            ],
            **search_words("principal components"),
        )

    @classmethod
    def execute(
        cls,
        model: Patcher,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        cfg: float,
        seed: int,
        batch: int,
        steps: int,
        theme: str = "light",
    ) -> io.NodeOutput:
        check_single(latent_image)
        like = fitting(model, {**latent_image, "samples": torch.zeros_like(latent_image["samples"][:1])})["samples"]
        paths = trajectories(model, positive, negative, like, cfg, seed, batch, steps)
        found = [principal(paths[:, i], _COMPONENTS) for i in range(batch)]
        shares = torch.stack([share for share, _ in found]).cumsum(dim=1)
        drawn = line_plot(panels([places for _, places in found], shares), THEMES[theme])
        return io.NodeOutput(drawn, shares_text(shares, steps))


def trajectories(
    model: Patcher,
    positive: Conditioning,
    negative: Conditioning,
    like: Tensor,
    cfg: float,
    seed: int,
    batch: int,
    steps: int,
) -> Tensor:
    """The samples at every level, in the space the model works in: [steps + 1, batch, ...] on the CPU.

    Args:
        like: samples of a LATENT of the size that is wanted; what they hold is not looked at.
    """
    empty = torch.zeros_like(like[:1]).repeat(batch, *[1] * (like.ndim - 1))
    sigmas = schedule_sigmas(SCHEDULES["exponential"], model.get_model_object("model_sampling"), steps)
    solver = comfy.samplers.KSAMPLER(sampler_function(SAMPLERS["dpmpp_2m"]))
    seen: list[Tensor] = []
    with Progress(Display(model).show) as progress:

        def record(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
            seen.append(x.float().cpu())
            progress.done(1, denoised)

        progress.stage("Sampling, step", steps, cost=steps)
        guider = Guider(model, positive, negative, cfg, progress=progress)
        last = sample(guider, seed, solver, sigmas, {"samples": empty}, record)
    return torch.stack([*seen, model.model.process_latent_in(last).float().cpu()])


def panels(places: list[Tensor], shares: Tensor) -> list[Panel]:
    """The trajectories on their planes, and what their planes leave out."""
    percent = ", ".join(f"{100 * share:.4g}" for share in shares.mean(dim=0).tolist())
    planes = {f"_{i}": [(x, y) for x, y, *_ in place.tolist()] for i, place in enumerate(places)}
    left = {
        f"_{i}": [(float(k + 1), 100 * (1 - share)) for k, share in enumerate(row)]
        for i, row in enumerate(shares.tolist())
    }
    return [
        Panel(f"Variance in 1, 2, 3 components: {percent} %", "first component", "second component", planes),
        Panel("Variance left out", "components", "%", left, log_y=True),
    ]


def shares_text(shares: Tensor, steps: int) -> str:
    """The shares as text: their mean, and each trajectory's own."""
    rows = {"mean": shares.mean(dim=0), **{str(i): row for i, row in enumerate(shares, 1)}}
    several = f"{counted(len(shares), 'trajectory', 'trajectories')}, {counted(steps, 'step')}"
    head = f"Percent of the variance in the first 1, 2, 3 principal components; {several}"
    names = ["trajectory", *(str(k + 1) for k in range(shares.shape[1]))]
    lines = text_table([names, *([name, *(f"{100 * s:.5f}" for s in row.tolist())] for name, row in rows.items())])
    return "\n".join([head, "", *lines, ""])


# What the model sees


class Seen(NamedTuple):
    """What the model was asked and answered: the level, and the prediction of one image, in the model's own space."""

    sigma: Tensor
    denoised: Tensor


class FewStepFilmStrip(io.ComfyNode):
    """The prediction of every evaluation as a picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepFilmStrip",
            display_name="Few-Step Film Strip",
            category=CATEGORY,
            description="Samples as SamplerCustom does, and shows the clean image that the model predicted at every "
            "evaluation: when the picture is decided, and which evaluations still change it.",
            inputs=[
                io.Model.Input("model", tooltip="The model to be sampled."),
                io.Conditioning.Input("positive", tooltip="What the image should show."),
                io.Conditioning.Input("negative", tooltip="What the image should not show."),
                io.Sampler.Input(
                    "sampler", tooltip="Any sampler. Every evaluation is shown, also where one step has several."
                ),
                io.Sigmas.Input("sigmas", tooltip="The noise levels for the sampler."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="An empty latent, or an image to start from. Of a batch the first image is shown.",
                ),
                cfg_input(7.0),
                seed_input("Seed of the noise that the image starts from."),
                io.Int.Input("columns", default=10, min=1, max=1000, tooltip="Pictures in a row of the strip."),
                io.Int.Input(
                    "tile", default=192, min=32, max=2048, tooltip="Width of each picture in the strip, in pixels."
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the pictures. Without a VAE they are previews of the latents in rough colours.",
                ),
                theme_input("Colours of the strip."),
            ],
            outputs=[
                io.Image.Output(display_name="strip", tooltip="All pictures with their noise levels."),
                io.Image.Output(
                    display_name="frames", tooltip="The pictures without labels, at full size, as a batch."
                ),
                io.Latent.Output(display_name="latent", tooltip="The result, as SamplerCustom gives it."),
            ],
            is_output_node=True,
            **search_words("preview of each step", "denoised", "grid of steps"),
        )

    @classmethod
    def execute(
        cls,
        model: Patcher,
        positive: Conditioning,
        negative: Conditioning,
        sampler: Any,
        sigmas: Tensor,
        latent_image: Latent,
        cfg: float,
        seed: int,
        columns: int,
        tile: int,
        vae: Any = None,
        theme: str = "light",
    ) -> io.NodeOutput:
        seen: list[Seen] = []

        def watch(sigma: Tensor, denoised: Tensor) -> None:
            seen.append(Seen(sigma[0], denoised[:1].float()))

        with Progress(Display(model).show) as progress:
            progress.stage("Sampling, step", len(sigmas) - 1, cost=len(sigmas) - 1)
            guider = Guider(model, positive, negative, cfg, watch, progress)
            result = sample(
                guider, seed, sampler, sigmas, latent_image, lambda step, denoised, x, total: progress.done(1, denoised)
            )
            if not seen:
                raise ValueError("sigmas hold no step to show: raise denoise, or check where the sigmas are split")
            progress.stage(f"Decoding {counted(len(seen), 'picture')}")
            latents = torch.cat([model.model.process_latent_out(denoised.cpu()) for _, denoised in seen])
            frames = decode(model, latents, vae)
        tiles = [
            Tile(frame, f"{k}: sigma {float(sigma):.3g}")
            for k, (frame, (sigma, _)) in enumerate(zip(frames, seen, strict=True), 1)
        ]
        about = run_about(cls.hidden.prompt if cls.hidden else None) | {"settings": f"cfg {cfg:g}, seed {seed}"}
        rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
        strip = sheet(rows, tile, head=head_lines(about), theme=THEMES[theme])
        out = {**fitting(model, latent_image), "samples": result}
        return io.NodeOutput(strip, frames, out, ui=preview_image(strip))


NODES = [FewStepFilmStrip, FewStepTrajectory]
