"""Seeds of the added noise for the images of a batch: which image is which."""

from __future__ import annotations

from typing import Any

import comfy.sample
import torch
from torch import Tensor

from ...samplers.noise import mix
from .wrapped import unwrapped

_PLACES = 64


def image_seeds(model: Any, x: Tensor, seed: Any) -> list[int] | None:
    """For each image the seed of its added noise: `seed`, that of the run, with the noise that the image starts from.

    So an image has the same added noise alone, in any batch and in any row of it; and images that start alike stay
    alike. Where the run adds no noise, as the second part of a split one, it is that which the host would have added in
    this row. None, for the sampler to go by the row, where that is no seed, or the host's wrapper of the model, which
    carries the noise, is missing.
    """
    noise = _starting_noise(model)
    if not isinstance(seed, int) or noise is None or len(noise) != len(x):
        return None
    signs = _fingerprints(noise)
    if None in signs:
        with torch.random.fork_rng(devices=[]):  # the host seeds the generator that all others draw from
            absent = _fingerprints(comfy.sample.prepare_noise(torch.empty_like(noise, device="cpu"), seed))
        signs = [absent[k] if fingerprint is None else fingerprint for k, fingerprint in enumerate(signs)]
    return [mix(seed, fingerprint or 0) for fingerprint in signs]


def _starting_noise(model: Any) -> Tensor | None:
    """What the host's wrapper of the model keeps for masks. Other packs may have wrapped it once more."""
    noises = (getattr(part, "noise", None) for part in unwrapped(model))
    return next((noise for noise in noises if isinstance(noise, Tensor)), None)


def _fingerprints(noise: Tensor) -> list[int | None]:
    """The signs of each image's noise at some places, which do not depend on rounding; None where it is 0 there."""
    numbers = noise.flatten(1)
    places = torch.linspace(0, numbers.shape[1] - 1, _PLACES, dtype=torch.float64).long()
    rows = numbers[:, places.to(numbers.device)].tolist()
    return [sum((number > 0) << k for k, number in enumerate(row)) if any(row) else None for row in rows]
