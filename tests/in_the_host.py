"""What the tests ask of the host in this process, and of the pack as the host has loaded it."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch
from small_models import conditioning


def module(comfyui, name: str) -> ModuleType:
    """One of the pack's in `nodes/`, as the host has loaded it."""
    return importlib.import_module(f"{comfyui.nodes['FewStepSampler'].__module__.rpartition('.')[0]}.{name}")


def ksample(
    comfyui,
    model,
    sampler: str,
    image: dict | None = None,
    *,
    scheduler: str = "karras",
    seed: int = 3,
    steps: int = 6,
    cfg: float = 2.5,
    denoise: float = 1.0,
    positive: list | None = None,
    negative: list | None = None,
) -> torch.Tensor:
    """The latent that KSampler gives, of an empty one unless there is an image."""
    node = comfyui.nodes["KSampler"]()
    known = node.INPUT_TYPES()["required"]
    for name, kind in ((sampler, "sampler_name"), (scheduler, "scheduler")):
        assert name in known[kind][0], f"the host would take its first {kind} in the place of {name}, without a word"
    image = image or {"samples": torch.zeros(1, 4, 8, 8)}
    positive, negative = positive or conditioning(1), negative or conditioning(2)
    return node.sample(model, seed, steps, cfg, sampler, scheduler, positive, negative, image, denoise)[0]["samples"]
