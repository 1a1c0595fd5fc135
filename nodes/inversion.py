"""Nodes for editing: the noise that samples to a given image, and where two prompts disagree about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy_api.latest import io
from einops import reduce
from torch import Tensor

from ..samplers import SAMPLERS, SamplerSpec
from ..samplers.calibrated.published import PUBLISHED
from ..samplers.inversion import Inversion, invert
from .host.model import is_flow
from .host.runs import announce_each, partial_options
from .host.session import Conditioning, Guider, fitting
from .sampling import CATEGORY
from .ui.options import cfg_input, seed_input
from .ui.progress import Display
from .ui.search import search_words


def invertible() -> dict[str, SamplerSpec]:
    """The samplers that are deterministic as they come, on the levels that they are given."""
    return {
        id: spec
        for id, spec in SAMPLERS.items()
        if not (spec.adaptive or id in PUBLISHED or any(o.name == "middle" for o in spec.options))
        and (not spec.stochastic or any(o.name == "eta" and o.default == 0 for o in spec.options))
    }


class InvertedNoise:
    """A NOISE of the host: with the image that was inverted it makes the sample that was found."""

    seed = 0

    def __init__(self, noise: Tensor):
        self.noise = noise

    def generate_noise(self, latent: Mapping[str, Any]) -> Tensor:
        """As the host asks for it.

        Raises:
            ValueError: if the latent is of another shape than the one that was inverted.
        """
        shape = latent["samples"].shape
        if shape != self.noise.shape:
            raise ValueError(
                f"latent_image has the shape {list(shape)} and the inverted noise {list(self.noise.shape)}: connect "
                "the latent that was inverted"
            )
        return self.noise


class FewStepInvert(io.ComfyNode):
    """From an image to the noise that a sampler makes it from."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        samplers = invertible()
        return io.Schema(
            node_id="FewStepInvert",
            display_name="Few-Step Invert",
            category=CATEGORY,
            description="The noise from which a sampler makes the given image. Sample it with another prompt to edit "
            "the image. The sampling that follows must use the same sampler (options at their defaults) and sigmas; "
            "with the same prompts and cfg, too, the image comes back.",
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample, with its LoRAs and patches."),
                io.Conditioning.Input("positive", tooltip="What the image shows now."),
                io.Conditioning.Input("negative", tooltip="The negative prompt; unused at cfg 1."),
                io.Latent.Input("latent_image", tooltip="The image. A noise mask in it is not used here."),
                cfg_input(
                    1.0,
                    "Guidance scale of the inversion. 1 is the most accurate and half the work; the edit may "
                    "then use more. With the same value in both the image comes back.",
                ),
                io.Combo.Input(
                    "sampler",
                    options=list(samplers),
                    default="ddim",
                    tooltip="The sampler that will make the image, a deterministic one. ddim is inverted best.\n"
                    + "\n".join(f"{spec.id}: {spec.help}" for spec in samplers.values()),
                ),
                io.Sigmas.Input(
                    "sigmas", tooltip="Those of the sampler that will make the image, descending. 20 steps are good."
                ),
                io.Int.Input(
                    "refinements",
                    default=1,
                    min=0,
                    max=100,
                    tooltip="More of the work, less of the round-trip error. Each is as many evaluations as there are "
                    "steps for ddim and euler, and a run down and one up for the others.",
                ),
                io.Boolean.Input(
                    "check",
                    default=True,
                    tooltip="Sample once more to report the round-trip error. Refinements of samplers other than ddim "
                    "and euler report it in any case.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent",
                    tooltip="The noisy sample, for SamplerCustom with add_noise off or SamplerCustomAdvanced with "
                    "DisableNoise. Not for flow models at sigma 1, which the host starts from noise alone: use noise.",
                ),
                io.Noise.Output(
                    display_name="noise",
                    tooltip="For SamplerCustomAdvanced together with the latent_image that was inverted: works for "
                    "every model, and with noise masks (Set Latent Noise Mask).",
                ),
                io.String.Output(display_name="report", tooltip="Evaluations, and the round-trip error if measured."),
            ],
            **search_words("inversion", "ddim inversion", "edit an image"),
        )

    @classmethod
    def execute(
        cls, model, positive, negative, latent_image, cfg: float, sampler: str, sigmas, refinements: int, check: bool
    ) -> io.NodeOutput:
        fitted = fitting(model, latent_image)
        image = fitted["samples"]
        found = _invert(model, positive, negative, image, cfg, SAMPLERS[sampler], sigmas, refinements, check)
        inversion, noisy, noise = found
        latent = {name: value for name, value in fitted.items() if name != "noise_mask"} | {"samples": noisy}
        return io.NodeOutput(latent, InvertedNoise(noise), report(sampler, len(sigmas) - 1, inversion))


def _invert(
    patcher: Any,
    positive: Conditioning,
    negative: Conditioning,
    image: Tensor,
    cfg: float,
    spec: SamplerSpec,
    sigmas: Tensor,
    refinements: int,
    check: bool,
) -> tuple[Inversion, Tensor, Tensor]:
    """What was found, then as samples of a LATENT and as noise."""
    if len(sigmas) < 2:
        raise ValueError("sigmas hold no step: raise steps (or denoise) of the scheduler")
    if not image.any():
        raise ValueError("latent_image is empty: connect the image to invert, from VAE Encode")
    display = Display(patcher)
    results: list[tuple[Inversion, Tensor, Tensor]] = []

    def run(model, x, sigmas, extra_args=None, callback=None, disable=None):
        guider = model.inner_model
        sampling = guider.inner_model.model_sampling
        evaluate, arguments = announce_each(model, sigmas, extra_args)
        inversion = invert(
            spec, evaluate, model.latent_image, sigmas, arguments,
            lambda step: display.show(step["i"] + 1, step["steps"], denoised=step["denoised"]),
            disable, flow=is_flow(sampling), refinements=refinements, measure=check,
            **partial_options(spec, sigmas, {}),
        )  # fmt: skip
        begins_in_noise = comfy.samplers.Sampler().max_denoise(guider, sigmas)

        def start(noise: Tensor, image: Tensor) -> Tensor:
            """The sample that the host begins with: a line in the noise."""
            return sampling.noise_scaling(sigmas[0], noise.clone(), image, begins_in_noise)

        nothing = torch.zeros_like(x)
        slope = start(torch.ones_like(x), nothing)
        noise = (inversion.sample - start(nothing, model.latent_image)) / slope
        noisy = inversion.sample
        if not (is_flow(sampling) and float(sigmas[0]) >= 1):
            noisy = sampling.inverse_noise_scaling(sigmas[0], noisy)
        results.append((inversion, guider.inner_model.process_latent_out(noisy), noise))
        return x

    guider = Guider(patcher, positive, negative, cfg)
    guider.sample(
        torch.zeros_like(image), image, comfy.samplers.KSAMPLER(run), sigmas,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=0,
    )  # fmt: skip
    inversion, noisy, noise = results[0]
    return inversion, noisy.float().to(comfy.model_management.intermediate_device()), noise.float().cpu()


def report(sampler: str, steps: int, inversion: Inversion) -> str:
    """What was done and how exact it is, as text."""
    lines = [f"{sampler}, {steps} steps: {inversion.nfe} evaluations"]
    if inversion.error is None:
        return "\n".join([*lines, "Round-trip error not measured: switch check on.", ""])
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
            description="Where an image has to change to become what another prompt says: noise is added to it, the "
            "model predicts it with both prompts, and the mask is where the predictions differ (DiffEdit, Couairon et "
            "al. 2022, arXiv 2210.11427).",
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample the edit."),
                io.Conditioning.Input("source", tooltip="What the image shows now."),
                io.Conditioning.Input("target", tooltip="What it is to show."),
                io.Latent.Input("latent_image", tooltip="The image."),
                io.Float.Input(
                    "noise_level",
                    default=0.5,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="How much noise is added, in the time of the model: 0.5 is half way. More finds larger "
                    "shapes.",
                ),
                io.Int.Input("noises", default=10, min=1, max=1000, tooltip="Number of noises that are averaged."),
                io.Int.Input(
                    "batch", default=5, min=1, max=256, tooltip="So many of them at once: less if memory is short."
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The mask is where the difference is at least this much, of 1. Lower: a larger mask.",
                ),
                io.Float.Input(
                    "outliers",
                    default=3.0,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="What counts as a difference of 1: this many times the mean. Larger differences are cut.",
                ),
                seed_input("Of the noises."),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask", tooltip="1 where the image is to change: for Set Latent Noise Mask."
                ),
                io.Mask.Output(display_name="difference", tooltip="The difference before the threshold, 0 to 1."),
            ],
            **search_words("inversion", "automatic mask"),
        )

    @classmethod
    def execute(
        cls, model, source, target, latent_image, noise_level: float, noises: int, batch: int, threshold: float,
        outliers: float, seed: int,
    ) -> io.NodeOutput:  # fmt: skip
        difference = prediction_difference(model, source, target, latent_image, noise_level, noises, batch, seed)
        flat = difference.flatten(1)
        scale = outliers * flat.mean(dim=1).clamp(min=torch.finfo(flat.dtype).tiny)
        shares = (difference / scale[:, None, None]).clamp(max=1.0)
        return io.NodeOutput((shares >= threshold).float(), shares)


class _Difference(Guider):
    """Predicts the difference that the positive prompt makes against the negative one."""

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        conds = [self.conds["positive"], self.conds["negative"]]
        target, source = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options or {})
        return target - source


def prediction_difference(
    patcher: Any,
    source: Conditioning,
    target: Conditioning,
    latent: Mapping[str, Any],
    noise_level: float,
    noises: int,
    batch: int,
    seed: int,
) -> Tensor:
    """|D_target - D_source|, the mean over channels and noises, [B, H, W]; a video gives a map for each frame.

    Raises:
        ValueError: if the latent has no height and width, or is not one of this model.
    """
    image = fitting(patcher, latent)["samples"]
    if image.ndim < 4:
        raise ValueError(
            f"latent_image has the shape {list(image.shape)}, without height and width (sound): a mask is made of "
            "images and videos"
        )
    sampling = patcher.get_model_object("model_sampling")
    sigma = float(sampling.percent_to_sigma(1 - noise_level)) if noise_level < 1 else float(sampling.sigma_max)
    generator = torch.Generator().manual_seed(seed)
    display, total = Display(patcher), torch.zeros(())
    guider = _Difference(patcher, target, source, 1.0)

    def evaluate(model, x, sigmas, extra_args=None, callback=None, disable=None):
        found.append(model(x, sigmas[:1].expand(len(x)), **extra_args).float().cpu())
        return x

    for first in range(0, noises, batch):
        count, found = min(batch, noises - first), []
        many = image.repeat(count, *[1] * (image.ndim - 1))
        noise = torch.randn(many.shape, generator=generator)
        guider.sample(
            noise, many, comfy.samplers.KSAMPLER(evaluate), torch.tensor([sigma, 0.0]), disable_pbar=True, seed=seed
        )
        difference = reduce(found[0].abs(), "b c ... -> b ...", "mean")
        total = total + reduce(difference, "(noise b) ... -> b ...", "sum", noise=count)
        display.show(first + count, noises)
    return (total / noises).reshape(-1, *image.shape[-2:])
