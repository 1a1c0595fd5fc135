"""What the quality benchmark samples: the demo model in one of its forms, or a checkpoint of one's own.

A subject is a few names, so that it can be sent to another process; whatever is big is loaded where it is needed, once.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if "samplers" not in sys.modules:
    sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import torch  # noqa: E402
from host import import_comfyui, import_pack  # noqa: E402
from torch import Tensor  # noqa: E402

import samplers  # noqa: E402, F401 - before the host, one of whose folders has a samplers.py

if "comfy.samplers" not in sys.modules:
    logging.disable(logging.WARNING)  # of node files whose requirements are left out
    import_comfyui()

import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402

import demo.model  # noqa: E402

Conditioning = list[Any]

FORMS = {"noise prediction": "weights", "rectified flow": "weights_flow"}
"""Of the demo model: the names of the files of weights."""


class Subject(ABC):
    """A model with its prompts."""

    title: str
    """As in 'measured on ...'."""

    guidance: float
    prompts: tuple[str, ...]
    unit: str
    """Of the errors."""

    mixed: bool
    """Whether one batch can have several prompts."""

    origin: str
    """Of the plans."""

    stem: str
    """Of the names of the files that are written."""

    @property
    @abstractmethod
    def patcher(self) -> Any:
        """The host's MODEL."""

    @property
    @abstractmethod
    def identity(self) -> tuple[Any, ...]:
        """All that latents depend on beside sampler, levels, prompt and seed."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one latent."""

    @property
    @abstractmethod
    def plans(self) -> tuple[Path, ...]:
        """Files of plans and predictors that are measured beside the samplers."""

    @abstractmethod
    def conditioning(self, prompts: Sequence[str]) -> tuple[Conditioning, Conditioning]:
        """What the host's guider takes: of the prompts, one for each image, and of the negative one."""

    @abstractmethod
    def scaled(self, latents: Tensor) -> Tensor:
        """Latents in the unit of the errors."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images [N, H, W, 3] in [0, 1]."""

    @property
    def levels(self) -> Any:
        """The `LevelRange` of the model."""
        return _levels(self)

    @property
    def space(self) -> tuple[tuple[str, Any], ...]:
        """What our samplers are told of the noise of the model, by the names of `SamplerSpec.function`, as the nodes
        tell them; what is as it mostly is left out."""
        return _space(self)


@functools.cache
def _levels(subject: Subject) -> Any:
    return pack().nodes.host.model.level_range(subject.patcher.get_model_object("model_sampling"))


@functools.cache
def _space(subject: Subject) -> tuple[tuple[str, Any], ...]:
    scale = pack().nodes.host.model.noise_scale(subject.patcher.get_model_object("model_sampling"))
    levels = subject.levels
    told = (("flow", levels.flow, False), ("model_shift", levels.shift, 1.0), ("noise_scale", scale, 1.0))
    return tuple((name, fact) for name, fact, mostly in told if fact != mostly)


pack = functools.cache(import_pack)
"""The pack as it is inside the host."""


@dataclass(frozen=True)
class Demo(Subject):
    """The demo model. Its latents are the pixels of an image, in another order."""

    form: str = "noise prediction"

    guidance = 3.0
    unit = "units of the pixel range"
    mixed = True
    origin = "at guidance 3 (files in demo/plans, made by demo/learn.py with other prompts and seeds than those here)"
    prompts = (
        "cat face", "red apple", "penguin", "hamburger", "grinning face", "tulip", "octopus", "slice of pizza",
        "dog face", "strawberry", "frog face", "banana", "sparkling heart", "turtle", "angry face", "sushi",
        "black cat", "lemon", "smiling face with sunglasses", "mushroom", "whale", "birthday cake", "ghost", "rose",
        "pig face", "hot dog", "clown face", "watermelon", "koala", "cactus", "crying face", "doughnut",
        "unicorn face", "cherries", "sleeping face", "honeybee", "lady beetle", "ice cream", "skull", "maple leaf",
    )  # fmt: skip

    @property
    def title(self) -> str:  # type: ignore[override]
        return "the demo model" if self.form == "noise prediction" else f"the demo model's form of {self.form}"

    @property
    def stem(self) -> str:  # type: ignore[override]
        return "quality" if self.form == "noise prediction" else "quality_flow"

    @property
    def weights(self) -> Path:
        return ROOT / "demo" / f"{FORMS[self.form]}.safetensors"

    @property
    def patcher(self) -> Any:
        return _demo(self.weights)[0]

    @property
    def words(self) -> Any:
        return _demo(self.weights)[1]

    @property
    def identity(self) -> tuple[Any, ...]:
        return self.guidance, _digest(self.weights)

    @property
    def shape(self) -> tuple[int, ...]:
        return (12, 16, 16)

    @property
    def plans(self) -> tuple[Path, ...]:
        return tuple(sorted((ROOT / "demo" / "plans").glob("*.safetensors"))) if self.form == "noise prediction" else ()

    def conditioning(self, prompts: Sequence[str]) -> tuple[Conditioning, Conditioning]:
        return self._encode(prompts), self._encode([""])

    def _encode(self, prompts: Sequence[str]) -> Conditioning:
        embedding = torch.cat([self.words.encode(prompt)[0] for prompt in prompts])
        return [[embedding[:, None], {"pooled_output": embedding}]]

    def scaled(self, latents: Tensor) -> Tensor:
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        return demo.model.unfold(latents).clamp(0, 1).movedim(1, -1)


@functools.cache
def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@functools.cache
def _demo(weights: Path) -> tuple[Any, Any]:
    return demo.model.load(weights)


@dataclass(frozen=True)
class Checkpoint(Subject):
    """A file that ComfyUI's *Load Checkpoint* reads: model, text encoder and VAE."""

    file: Path
    prompts: tuple[str, ...]
    width: int
    height: int
    guidance: float
    negative: str = ""
    plans: tuple[Path, ...] = ()

    unit = "units of the standard deviation that latents have"
    mixed = False  # prompts may differ in the number of their tokens
    origin = "(files that were given)"
    stem = "quality"

    @property
    def title(self) -> str:  # type: ignore[override]
        return f"{self.file.name}, {self.width} x {self.height}"

    @property
    def patcher(self) -> Any:
        return _checkpoint(self.file)[0]

    @property
    def identity(self) -> tuple[Any, ...]:
        about = self.file.stat()
        return self.guidance, self.file.name, about.st_size, about.st_mtime_ns, self.shape, self.negative

    @property
    def shape(self) -> tuple[int, ...]:
        return _shape(self.file, self.width, self.height)

    def conditioning(self, prompts: Sequence[str]) -> tuple[Conditioning, Conditioning]:
        (prompt,) = set(prompts)
        return _encode(self.file, prompt), _encode(self.file, self.negative)

    def scaled(self, latents: Tensor) -> Tensor:
        return self.patcher.model.process_latent_in(latents)

    def decode(self, latents: Tensor) -> Tensor:
        images = _checkpoint(self.file)[2].decode(latents)
        return images.reshape(-1, *images.shape[-3:])


@functools.cache
def _checkpoint(file: Path) -> tuple[Any, Any, Any]:
    """Model, text encoder and VAE.

    Raises:
        ValueError: naming what the file lacks.
    """
    parts = comfy.sd.load_checkpoint_guess_config(str(file), output_vae=True, output_clip=True)[:3]
    missing = [name for name, part in zip(("a model", "a text encoder", "a VAE"), parts, strict=True) if part is None]
    if missing:
        raise ValueError(f"{file.name} has not {' and not '.join(missing)}: use a checkpoint that holds all three")
    return parts


@functools.cache
def _shape(file: Path, width: int, height: int) -> tuple[int, ...]:
    model, _, vae = _checkpoint(file)
    shrink = vae.spacial_compression_decode()
    empty = torch.zeros(1, 4, height // shrink, width // shrink)
    return tuple(comfy.sample.fix_empty_latent_channels(model, empty).shape[1:])


@functools.cache
def _encode(file: Path, prompt: str) -> Conditioning:
    clip = _checkpoint(file)[1]
    with torch.inference_mode():
        return clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
