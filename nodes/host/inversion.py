"""Work on a given image: the noise that samples to it, and where two prompts disagree about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import comfy.model_management
import comfy.samplers
import torch
from einops import reduce
from torch import Tensor

from ...samplers import SAMPLERS, SamplerSpec
from ...samplers.inversion import Inversion, invert
from .model import is_flow
from .progress import Progress
from .protocols import Conditioning, Latent, Patcher
from .runs import announce_each, partial_options
from .session import Guider, Inside, fitting, inside


def invertible() -> dict[str, SamplerSpec]:
    """The samplers that add no noise as they come, keep to the levels that they are given and look at one prediction;
    `edm` is then `heun`."""
    return {
        id: spec
        for id, spec in SAMPLERS.items()
        if not (spec.adaptive or spec.adds_noise or spec.takes_apart or spec.at_given_levels or id == "edm")
    }


class InvertedNoise:
    """A NOISE of the host: with the image that was inverted it makes the sample that was found."""

    seed = 0

    def __init__(self, noise: Tensor):
        self.noise = noise

    def generate_noise(self, latent: Latent) -> Tensor:
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


class Inverted(NamedTuple):
    """What was found, as the host takes it."""

    inversion: Inversion
    samples: Tensor
    """Of a LATENT."""

    noise: Tensor
    """Of a NOISE."""


def invert_image(
    patcher: Patcher,
    positive: Conditioning,
    negative: Conditioning,
    image: Tensor,
    cfg: float,
    spec: SamplerSpec,
    sigmas: Tensor,
    *,
    refinements: int,
    check: bool,
    progress: Progress,
) -> Inverted:
    """The noise from which a sampler makes an image.

    Args:
        check: whether the round-trip error is measured.
        progress: each step counts, of all the ways up and down.

    Raises:
        ValueError: naming the input at fault.
    """
    if len(sigmas) < 2:
        raise ValueError("sigmas hold no step: raise steps (or denoise) of the scheduler")
    if not image.any():
        raise ValueError("latent_image is empty: connect the image to invert, from VAE Encode")

    def step(step: Mapping[str, Any]) -> None:
        if step["i"] == 0:  # how many there are is known now
            progress.stage("Inverting, step", step["steps"], cost=step["steps"])
        progress.done(1, step["denoised"])

    def work(run: Inside) -> Inverted:
        guider, sigmas, clean = run.guider, run.sigmas, run.model.latent_image
        sampling = guider.inner_model.model_sampling
        evaluate, arguments = announce_each(run.model, sigmas, run.extra_args)
        inversion = invert(
            spec, evaluate, clean, sigmas, arguments, step, run.disable,
            flow=is_flow(sampling), refinements=refinements, measure=check, **partial_options(spec, sigmas, {}),
        )  # fmt: skip
        begins_in_noise = comfy.samplers.Sampler().max_denoise(guider, sigmas)

        def start(noise: Tensor, image: Tensor) -> Tensor:
            """The sample that the host begins with: a line in the noise."""
            return sampling.noise_scaling(sigmas[0], noise.clone(), image, begins_in_noise)

        nothing = torch.zeros_like(run.x)
        slope = start(torch.ones_like(run.x), nothing)
        noise = (inversion.sample - start(nothing, clean)) / slope
        noisy = inversion.sample
        if not (is_flow(sampling) and float(sigmas[0]) >= 1):
            noisy = sampling.inverse_noise_scaling(sigmas[0], noisy)
        return Inverted(inversion, guider.inner_model.process_latent_out(noisy), noise)

    progress.stage("Inverting")
    guider = Guider(patcher, positive, negative, cfg, progress=progress)
    inversion, noisy, noise = inside(guider, work, sigmas, torch.zeros_like(image), image, progress_bar=True)
    return Inverted(inversion, noisy.float().to(comfy.model_management.intermediate_device()), noise.float().cpu())


class _Difference(Guider):
    """Predicts the difference that the positive prompt makes against the negative one."""

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
        self._begin()
        conds = [self.conds["positive"], self.conds["negative"]]
        target, source = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, model_options or {})
        return target - source


def prediction_difference(
    patcher: Patcher,
    source: Conditioning,
    target: Conditioning,
    latent: Latent,
    noise_level: float,
    noises: int,
    batch: int,
    seed: int,
    progress: Progress,
) -> Tensor:
    """|D_target - D_source|, the mean over channels and noises, [B, H, W]; a video gives a map for each frame.

    Args:
        progress: each noise counts.

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
    guider = _Difference(patcher, target, source, 1.0, progress=progress)
    total = torch.zeros(())

    def evaluate(run: Inside) -> Tensor:
        return run.model(run.x, run.sigmas[:1].expand(len(run.x)), **run.extra_args).float().cpu()

    progress.stage("Comparing predictions, noise", noises, cost=noises)
    for first in range(0, noises, batch):
        count = min(batch, noises - first)
        many = image.repeat(count, *[1] * (image.ndim - 1))
        drawn = torch.randn((count, *image.shape[1:]), generator=generator)
        noise = drawn.repeat_interleave(len(image), 0)  # the same for all images: a mask does not depend on the others
        difference = inside(guider, evaluate, torch.tensor([sigma, 0.0]), noise, many, seed=seed)
        difference = reduce(difference.abs(), "b c ... -> b ...", "mean")
        total = total + reduce(difference, "(noise b) ... -> b ...", "sum", noise=count)
        progress.done(count)
    return (total / noises).reshape(-1, *image.shape[-2:])
