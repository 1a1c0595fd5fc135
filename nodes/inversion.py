"""Nodes for editing: the noise that samples to a given image, and where two prompts disagree about it."""

from __future__ import annotations

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers import SAMPLERS
from ..samplers.checks import counted
from ..samplers.inversion import Inversion
from .host.display import Display, preview_image
from .host.inversion import InvertedNoise, invert_image, invertible, prediction_difference
from .host.progress import Progress
from .host.protocols import Conditioning, Latent, Patcher
from .host.session import fitting
from .ui.menu import EDITING as CATEGORY
from .ui.menu import search_words
from .ui.options import cfg_input, seed_input


class FewStepInvert(io.ComfyNode):
    """From an image to the noise that a sampler makes it from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        samplers = invertible()
        return io.Schema(
            node_id="FewStepInvert",
            display_name="Few-Step Invert",
            category=CATEGORY,
            description="Finds the noise from which a sampler makes the given image. Sample it with another prompt to "
            "edit the image. The sampling that follows must use the same sampler (options at their defaults) and "
            "sigmas; if the prompts and cfg are the same, too, the image comes back.",
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample, with its LoRAs and patches."),
                io.Conditioning.Input("positive", tooltip="What the image shows now."),
                io.Conditioning.Input("negative", tooltip="The negative prompt. It is not used at cfg 1."),
                io.Latent.Input("latent_image", tooltip="The image. A noise mask in it is not used here."),
                cfg_input(
                    1.0,
                    "Guidance scale of the inversion. 1 is the most accurate and takes half the time; the edit may "
                    "use a higher one. With the same scale in both, sampling gives the image back.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=list(samplers),
                    default="ddim",
                    tooltip="The sampler that will make the image, without added noise. ddim is inverted best.\n"
                    + "\n".join(f"{spec.id}: {spec.help}" for spec in samplers.values()),
                ),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The sigmas that will be used to make the image, descending. 20 steps are a good choice.",
                ),
                io.Int.Input(
                    "refinements",
                    default=1,
                    min=0,
                    max=100,
                    tooltip="More refinements take longer and make the round-trip error smaller. For ddim and euler "
                    "each one takes as many evaluations as there are steps; for the others, a whole sampling run and a "
                    "whole inversion.",
                ),
                io.Boolean.Input(
                    "check",
                    default=True,
                    tooltip="Sample once more to measure the round-trip error. With refinements, samplers other than "
                    "ddim and euler measure it in any case.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The noisy latent, for SamplerCustom with add_noise off or SamplerCustomAdvanced with "
                    "DisableNoise. For flow models that start at sigma 1 use the output noise: ComfyUI starts those "
                    "from the noise alone.",
                ),
                io.Noise.Output(
                    display_name="noise",
                    tooltip="For SamplerCustomAdvanced together with the latent_image that was inverted: works for "
                    "every model, and with noise masks (Set Latent Noise Mask).",
                ),
                io.String.Output(
                    display_name="report",
                    tooltip="The number of evaluations, and the round-trip error if it was measured.",
                ),
            ],
            **search_words(
                "inversion", "ddim inversion", "edit an image", "unsampler", "img2img", "DDIMInverseScheduler"
            ),
        )

    @classmethod
    def execute(
        cls,
        model: Patcher,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: Latent,
        cfg: float,
        sampler: str,
        sigmas: Tensor,
        refinements: int,
        check: bool,
    ) -> io.NodeOutput:
        fitted = fitting(model, latent_image)
        with Progress(Display(model).show) as progress:
            inversion, samples, noise = invert_image(
                model, positive, negative, fitted["samples"], cfg, SAMPLERS[sampler], sigmas, refinements=refinements,
                check=check, progress=progress,
            )  # fmt: skip
            report = round_trip(sampler, len(sigmas) - 1, inversion)
            progress.end(report.strip())
        latent = {name: value for name, value in fitted.items() if name != "noise_mask"} | {"samples": samples}
        return io.NodeOutput(latent, InvertedNoise(noise), report)


def round_trip(sampler: str, steps: int, inversion: Inversion) -> str:
    """What was done and how exact it is, as text."""
    lines = [f"{sampler}, {counted(steps, 'step')}: {counted(inversion.nfe, 'evaluation')}"]
    if inversion.error is None:
        return "\n".join([*lines, "The round-trip error was not measured: switch check on.", ""])
    shown = ", ".join(f"{100 * error:.3g}" for error in inversion.error.tolist())
    lines.append(f"Round-trip error, in percent of the image, one for each image: {shown}")
    if len(inversion.errors) > 1:
        means = (f"{100 * error.square().mean().sqrt():.3g}" for error in inversion.errors)
        lines.append(f"From refinement to refinement: {', '.join(means)}")
    return "\n".join([*lines, ""])


class FewStepDiffEditMask(io.ComfyNode):
    """Where two prompts disagree about an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepDiffEditMask",
            display_name="Few-Step DiffEdit Mask",
            category=CATEGORY,
            description="Makes a mask of the places where an image has to change to fit another prompt. Noise is added "
            "to the image, the model predicts the clean image with each prompt, and the mask is where the predictions "
            "differ (DiffEdit, Couairon et al. 2022, arXiv 2210.11427).",
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample the edit."),
                io.Conditioning.Input("source", tooltip="What the image shows now."),
                io.Conditioning.Input("target", tooltip="What the image should show."),
                io.Latent.Input("latent_image", tooltip="The image."),
                io.Float.Input(
                    "noise_level",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How much noise is added, as a share of the model's time: 0.5 is half way. More noise "
                    "finds larger shapes.",
                ),
                io.Int.Input(
                    "noises", default=10, min=1, max=1000, tooltip="How many noises the mask is averaged over."
                ),
                io.Int.Input(
                    "batch",
                    default=5,
                    min=1,
                    max=256,
                    tooltip="How many noises are sampled at once. Use fewer if memory is short.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The mask is where the difference, from 0 to 1, is at least this. A lower threshold gives "
                    "a larger mask.",
                ),
                io.Float.Input(
                    "outliers",
                    default=3.0,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="A difference of this many times the mean counts as 1, and so do larger ones.",
                ),
                seed_input("Seed of the noises."),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask", tooltip="1 where the image is to change: for Set Latent Noise Mask."
                ),
                io.Mask.Output(display_name="difference", tooltip="The difference before the threshold, 0 to 1."),
            ],
            **search_words("inpaint", "inpainting", "automatic mask", "edit an image"),
        )

    @classmethod
    def execute(
        cls,
        model: Patcher,
        source: Conditioning,
        target: Conditioning,
        latent_image: Latent,
        noise_level: float,
        noises: int,
        batch: int,
        threshold: float,
        outliers: float,
        seed: int,
    ) -> io.NodeOutput:
        with Progress(Display(model).show) as progress:
            difference = prediction_difference(
                model, source, target, latent_image, noise_level, noises, batch, seed, progress
            )
        flat = difference.flatten(1)
        scale = outliers * flat.mean(dim=1).clamp(min=torch.finfo(flat.dtype).tiny)
        shares = (difference / scale[:, None, None]).clamp(max=1.0)
        mask = (shares >= threshold).float()
        return io.NodeOutput(mask, shares, ui=preview_image(enlarged(mask)[..., None].expand(-1, -1, -1, 3)))


def enlarged(mask: Tensor, side: int = 256) -> Tensor:
    """A mask of the size of a latent, (n, h, w), with a longer side of **side** pixels or a little more, in squares."""
    by = -(-side // max(mask.shape[1:]))
    return mask.repeat_interleave(by, 1).repeat_interleave(by, 2)


NODES = [FewStepInvert, FewStepDiffEditMask]
