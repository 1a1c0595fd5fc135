"""Runs the host's model from inside a node: once, as SamplerCustom does, for many prompts and seeds, or for work of
another kind than sampling.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from torch import Tensor

from ...samplers.checks import counted, read_number
from .guider import guider_of
from .progress import Progress
from .protocols import AnyGuider, Conditioning, Latent, ModelSampling, Patcher, SamplerFunction

ResultT = TypeVar("ResultT")

Watch = Callable[[Tensor, Tensor], None]
"""Called after each evaluation with the noise levels [B] and the predictions of the model [B, ...]."""


class Guider(comfy.samplers.CFGGuider):
    """The host's own, which stops at any evaluation, whatever the sampler does, and can be watched.

    Args:
        progress: hears of when evaluations begin.
    """

    def __init__(
        self,
        patcher: Patcher,
        positive: Conditioning,
        negative: Conditioning,
        guidance: float,
        watch: Watch | None = None,
        progress: Progress | None = None,
    ):
        super().__init__(patcher)
        self.set_conds(positive, negative)
        self.set_cfg(guidance)
        self._watch, self._progress = watch, progress

    def predict_noise(self, x: Tensor, timestep: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._begin()
        denoised = super().predict_noise(x, timestep, *args, **kwargs)
        if self._watch is not None:
            self._watch(timestep, denoised)
        return denoised

    def _begin(self) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self._progress is not None:
            self._progress.begins()


def sample(
    guider: Guider,
    seed: int,
    sampler: Any,
    sigmas: Tensor,
    latent: Latent,
    callback: Callable[[int, Tensor, Tensor, int], None] | None = None,
) -> Tensor:
    """Final latents [B, ...] of one run: those of SamplerCustom with the same inputs, to the last bit.

    Args:
        sampler: a SAMPLER of the host.
        callback: called once a step with its number, the prediction, the sample and the number of steps.

    Raises:
        ValueError: if the latent is not one of this model.
    """
    latent = fitting(guider.model_patcher, latent)
    image = latent["samples"]
    noise = comfy.sample.prepare_noise(image, seed, latent.get("batch_index"))
    samples = guider.sample(
        noise, image, sampler, sigmas, denoise_mask=latent.get("noise_mask"), callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
    )  # fmt: skip
    dtype = getattr(comfy.model_management, "intermediate_dtype", lambda: None)()  # new hosts have one
    return samples.to(comfy.model_management.intermediate_device(), dtype)


class Inside(NamedTuple):
    """What the host gives a sampler."""

    model: Any
    x: Tensor
    sigmas: Tensor
    extra_args: dict[str, Any]
    disable: bool | None

    @property
    def guider(self) -> AnyGuider:
        return guider_of(self.model)


def inside(
    guider: Any,
    work: Callable[[Inside], ResultT],
    sigmas: Tensor,
    noise: Tensor,
    image: Tensor | None = None,
    *,
    seed: int = 0,
    progress_bar: bool = False,
) -> ResultT:
    """What some work gives that is done in the place of a sampler: with all that the host wraps around one.

    The host is given back the samples that it began with. Errors of the work, interruptions too, come out as they are.

    Args:
        guider: a GUIDER of the host.
        noise: [B, ...], with the level that the sigmas begin at.
        image: the latents below the noise; zeros if there are none.
        progress_bar: whether the work may show one, as `Inside.disable` says.
    """
    results: list[ResultT] = []

    def sample(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: Any = None, callback: Any = None, disable: Any = None
    ) -> Tensor:
        results.append(work(Inside(model, x, sigmas, extra_args, disable)))
        return x

    guider.sample(
        noise, torch.zeros_like(noise) if image is None else image, comfy.samplers.KSAMPLER(sample), sigmas,
        disable_pbar=not (progress_bar and comfy.utils.PROGRESS_BAR_ENABLED), seed=seed,
    )  # fmt: skip
    if not results:
        raise RuntimeError(
            "the sampler was not called: a patch of the model from another pack samples in its place; sample without it"
        )
    return results[-1]


def fitting(patcher: Patcher, latent: Latent) -> dict[str, Any]:
    """A LATENT as the host's own sampler nodes hand it on: made to fit the model, which matters where it is empty.

    An empty one gets the channels and dimensions of the model. New hosts size it, too: the latent then says by what it
    was divided (`downscale_ratio_spacial` and so on), which does not hold any more and is taken out.

    Raises:
        ValueError: if it cannot be had.
    """
    check_single(latent)
    fix = comfy.sample.fix_empty_latent_channels
    sizes = [name for name in inspect.signature(fix).parameters if name.startswith("downscale_ratio")]
    fixed = fix(patcher, latent["samples"], **{name: latent[name] for name in sizes if name in latent})
    check_single({"samples": fixed})  # some models are given two in one
    wanted = patcher.get_model_object("latent_format").latent_channels
    if fixed.shape[1] != wanted:
        raise ValueError(
            f"latent_image has {counted(fixed.shape[1], 'channel')} and this model has {wanted}: use its own latent"
        )
    return {name: part for name, part in latent.items() if name not in sizes} | {"samples": fixed}


def check_single(latent: Latent) -> None:
    """Raise ValueError if a LATENT holds several in one."""
    if latent["samples"].is_nested:
        raise ValueError("latent_image holds several latents in one (video with sound), which this node cannot sample")


class Sample(NamedTuple):
    """A prompt, by its place in the conditioning, and the seed of its starting noise."""

    prompt: int
    seed: int


class Session:
    """A model with prompts, guidance and the size of an image.

    All of what the host wraps around a sampler is in effect: LoRA, ControlNet, hooks, patches of guidance, offloading.

    Args:
        positive: each entry is a prompt of its own.
        negative: as the host takes it; it goes with all of them.
        guidance: the scale of classifier-free guidance, cfg.
        latent: its shape is that of one image; what it holds is not looked at.
        batch: at most so many images at once; 0 leaves it to the memory there is.
        texts: the prompts as they were written, where that is known: a conditioning does not say.
        progress: of the work that is done here; each evaluation counts for its images.

    Raises:
        ValueError: naming the input at fault.
    """

    def __init__(
        self,
        patcher: Patcher,
        positive: Conditioning,
        negative: Conditioning,
        guidance: float,
        latent: Latent,
        *,
        batch: int = 0,
        texts: Sequence[str] = (),
        progress: Progress | None = None,
    ):
        if not positive:
            raise ValueError("positive holds no prompt: connect a text, or several with Conditioning (Combine)")
        if batch < 0:
            raise ValueError(f"batch = {batch} must be at least 1, or 0 for as many images as fit")
        self.patcher, self.guidance = patcher, read_number("cfg", guidance, -1e6, 1e6)
        self.shape = tuple(fitting(patcher, latent)["samples"].shape[1:])
        self._positive, self._negative = list(positive), list(negative)
        self._batch, self.texts = batch, tuple(texts)
        self._fitting = 0
        """How many images are known to fit into memory at once; 0 where all did."""

        self.progress = progress or Progress()
        self.alike = _alike(self._positive)
        """Whether different prompts can share a batch."""

    def on(self, patcher: Patcher, guidance: float) -> Session:
        """The same with another form of the model, at another scale of guidance."""
        other = copy.copy(self)
        other.patcher, other.guidance = patcher, guidance
        return other

    @property
    def prompts(self) -> int:
        return len(self._positive)

    @property
    def sampling(self) -> ModelSampling:
        """Noise levels and their kind."""
        return self.patcher.get_model_object("model_sampling")

    def noise(self, samples: Sequence[Sample]) -> Tensor:
        """Starting noise [N, ...]: that of a sampler node with the same seed and one image."""
        generators = (torch.Generator().manual_seed(sample.seed) for sample in samples)
        return torch.stack([torch.randn(self.shape, generator=generator) for generator in generators])

    @torch.no_grad()
    def run(
        self,
        function: SamplerFunction,
        sigmas: Sequence[float] | Tensor,
        samples: Sequence[Sample],
        callback: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Final latents [N, ...] on the CPU.

        Args:
            function: a sampler as the host calls it.
            callback: called after each evaluation with the number of images in it.
        """
        levels = torch.as_tensor(sigmas, dtype=torch.float32)
        latents: dict[int, Tensor] = {}

        def sample_group(group: list[int]) -> None:
            finished = self._run(function, levels, [samples[k] for k in group], callback)
            latents.update(zip(group, finished, strict=True))

        self.in_groups(samples, sample_group)
        return torch.stack([latents[k] for k in range(len(samples))])

    @torch.no_grad()
    def inside(
        self, work: Callable[[Inside], ResultT], sigmas: Sequence[float] | Tensor, samples: Sequence[Sample]
    ) -> ResultT:
        """As the function of this name, for samples in one batch: their prompts must be one, or `alike`."""
        levels = torch.as_tensor(sigmas, dtype=torch.float32)
        return inside(self._guider(samples), work, levels, self.noise(samples), seed=samples[0].seed)

    def in_groups(self, samples: Sequence[Sample], work: Callable[[list[int]], None]) -> None:
        """Do some work group by group, each the places of samples that share a batch.

        Groups become smaller where the memory does not suffice, and stay so, unless the size of a batch was given.
        """
        waiting = self._groups(samples)
        while waiting:
            group = waiting.pop(0)
            try:
                work(group)
                continue
            except torch.cuda.OutOfMemoryError:
                if self._batch or len(group) == 1:
                    raise
            # Here the error has let go of its tensors.
            comfy.model_management.soft_empty_cache()
            self._fitting = half = (len(group) + 1) // 2
            logging.info("not enough memory for %d images at once: going on with %d", len(group), half)
            waiting = [part[i : i + half] for part in (group, *waiting) for i in range(0, len(part), half)]

    def _groups(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Which samples share a batch."""
        together: dict[int, list[int]] = {}
        for k, sample in enumerate(samples):
            together.setdefault(0 if self.alike else sample.prompt, []).append(k)
        size = self._batch or self._fitting or len(samples)
        return [group[i : i + size] for group in together.values() for i in range(0, len(group), size)]

    def _run(
        self,
        function: SamplerFunction,
        sigmas: Tensor,
        samples: Sequence[Sample],
        callback: Callable[[int], None] | None,
    ) -> Tensor:
        noise, sampler = self.noise(samples), comfy.samplers.KSAMPLER(function)
        latents = self._guider(samples, callback).sample(
            noise, torch.zeros_like(noise), sampler, sigmas, disable_pbar=True, seed=samples[0].seed
        )
        return latents.cpu()

    def _guider(self, samples: Sequence[Sample], callback: Callable[[int], None] | None = None) -> Guider:
        """Of one batch."""

        def watch(_: Tensor, denoised: Tensor) -> None:
            self.progress.done(len(denoised), denoised.detach())
            if callback is not None:
                callback(len(denoised))

        positive = self._conditioning([sample.prompt for sample in samples])
        return Guider(self.patcher, positive, self._negative, self.guidance, watch, self.progress)

    def _conditioning(self, prompts: Sequence[int]) -> Conditioning:
        """Of one batch: one entry, with a row for each image unless all have the same prompt."""
        entries = [self._positive[p] for p in prompts]
        first, settings = entries[0]
        if len(set(prompts)) == 1:
            return [[first, settings]]
        rows = {
            name: torch.cat([entry[1][name] for entry in entries]) if isinstance(value, Tensor) else value
            for name, value in settings.items()
        }
        return [[torch.cat([entry[0] for entry in entries]), rows]]


_ROWS = ("pooled_output", "attention_mask")
"""Settings with a row for each image."""


def _alike(entries: Conditioning) -> bool:
    """Whether entries differ in nothing but the rows of their tensors."""
    described = []
    for tensor, settings in entries:
        tensors = {"": tensor, **{name: settings[name] for name in _ROWS if settings.get(name) is not None}}
        if not all(isinstance(t, Tensor) and len(t) == 1 for t in tensors.values()):
            return False
        plain = {name: value for name, value in settings.items() if name not in tensors}
        if not all(value is None or isinstance(value, bool | int | float | str) for value in plain.values()):
            return False
        described.append(({name: t.shape for name, t in tensors.items()}, plain))
    return all(entry == described[0] for entry in described)
