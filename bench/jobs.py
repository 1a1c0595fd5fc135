"""What a cell gave, kept on disk under a key made of all that it depends on, so that a stopped benchmark goes on."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench import cells
from bench.cells import HOST, SAMPLERS, Entry, Pair, calibrated, root_mean_square
from bench.subjects import Subject

VERSION = 1  # raise it when a cell comes to hold something else in a way that its key does not show


class Outcome(NamedTuple):
    """What a job gave: an error, a latent or features of each image; or why it failed."""

    values: Tensor
    nfe: int = 0
    failed: str = ""


@dataclass(frozen=True)
class Job:
    """A sampler run on some pairs, and what is kept of it: latents, errors against a reference, or features."""

    subject: Subject
    entry: Entry
    levels: tuple[float, ...]
    pairs: tuple[Pair, ...]
    budget: int = sys.maxsize
    reference: str = ""
    """Key of the job that made the reference of the same pairs."""

    basis: str = ""
    """Key of the axes on which the latents are projected."""

    @functools.cached_property
    def key(self) -> str:
        """Changes with all that the outcome depends on, and with nothing else."""
        does = _identity(self.entry, self.levels, self.subject.space)
        parts = (VERSION, *self.subject.identity, does, self.pairs)
        return digest(parts, self.reference, self.basis)

    @property
    def cost(self) -> int:
        """Evaluations of single images."""
        return len(self.pairs) * (
            50 if self.entry.adaptive else cells.count_evaluations(self.subject, self.entry, self.levels)
        )


class Cache:
    """Outcomes by key, a file each, written whole or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def load(self, key: str) -> Outcome:
        with safe_open(self._path(key), "pt") as file:
            about = file.metadata()
            return Outcome(file.get_tensor("values"), int(about["nfe"]), about["failed"])

    def save(self, key: str, outcome: Outcome) -> None:
        part = self.folder / f"{key}.{os.getpid()}.part"
        about = {"nfe": str(outcome.nfe), "failed": outcome.failed}
        save_file({"values": outcome.values.contiguous()}, part, about)
        os.replace(part, self._path(key))


def digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


# Keys


@functools.cache
def _identity(entry: Entry, levels: tuple[float, ...], space: tuple[tuple[str, Any], ...]) -> tuple[Any, ...]:
    """What the sampler does on these levels. Samplers that do the same share it, and so their cells.

    Of ours it is what comes out on a model that costs nothing: it changes with their behaviour, not with their code.
    """
    if entry.source == "host":
        function = cells.comfy.samplers.sampler_object(entry.name).sampler_function
        return HOST, function.__module__, function.__qualname__, levels
    if entry.source == "calibrated":
        assert entry.file
        file = digest(entry.file.read_bytes())
        function = functools.partial(calibrated(entry).function, set_guidance=lambda factor: None)
        return "calibrated", file, *_behaviour(function, levels)
    options = dict(entry.options) | dict(space)
    return _behaviour(functools.partial(SAMPLERS[entry.name].function, seed=0, **options), levels)


def _behaviour(function: Callable[..., Tensor], levels: tuple[float, ...]) -> tuple[Any, ...]:
    """Levels that the model is asked for, and the sample, without the last digits, in which two ways to write one
    formula differ."""
    asked = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(f"{float(sigma[0]):.9g}")
        return torch.tanh(x / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt() + 0.1 * sigma[0].log())

    noise = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = function(model, noise * levels[0], levels, disable=True)
    return (*asked, *(f"{v:.9g}" for v in x.flatten().tolist()))


# Running them


def perform(job: Job, cache: Cache) -> Outcome:
    """Run a job and keep its outcome. A sampler that fails is an outcome, too."""
    try:
        latents, nfe = cells.sample(job.subject, job.entry, job.levels, job.pairs)
        outcome = Outcome(_measure(latents, job, cache), nfe, _complaint(latents, nfe, job.budget))
    except Exception as error:
        outcome = Outcome(torch.full((len(job.pairs),), math.nan), failed=describe_error(error))
    cache.save(job.key, outcome)
    return outcome


def _measure(latents: Tensor, job: Job, cache: Cache) -> Tensor:
    if job.reference:
        first, second = (job.subject.scaled(x) for x in (latents, cache.load(job.reference).values))
        return root_mean_square(first - second)
    if job.basis:
        return latents.flatten(1) @ cache.load(job.basis).values
    return latents


def _complaint(latents: Tensor, nfe: int, budget: int) -> str:
    if not latents.isfinite().all():
        return "not finite"
    return f"made {nfe} evaluations, {budget} were allowed" if nfe > budget else ""


def describe_error(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
