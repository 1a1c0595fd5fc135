"""ComfyUI's objects, as far as they are used here: it has no types that could be imported without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

Conditioning = list[Any]
"""The host's: entries [tensor, settings]."""

Latent = Mapping[str, Any]
"""The host's: `samples` [B, C, ...], and what else belongs to them, such as `noise_mask`."""

SamplerFunction = Callable[..., Tensor]
"""A sampler as the host's `KSAMPLER` calls it: (model, x, sigmas, extra_args, callback, disable, **options)."""


class ModelSampling(Protocol):
    """Noise levels of a model, and their kind."""

    @property
    def sigma_min(self) -> Any: ...

    @property
    def sigma_max(self) -> Any: ...

    def percent_to_sigma(self, percent: float) -> Any: ...


class BaseModel(Protocol):
    """A network with what belongs to it; itself a module of torch."""

    diffusion_model: Any
    model_sampling: Any
    model_config: Any
    latent_format: Any

    def modules(self) -> Iterator[torch.nn.Module]: ...

    def process_latent_in(self, latent: Tensor) -> Tensor: ...

    def process_latent_out(self, latent: Tensor) -> Tensor: ...


class Patcher(Protocol):
    """A MODEL: a model with its patches."""

    model: BaseModel
    load_device: torch.device

    def get_model_object(self, name: str) -> Any: ...

    def clone(self) -> Any: ...


class AnyGuider(Protocol):
    """What mixes the predictions for the prompts. `cfg` is its scale."""

    cfg: float
    conds: dict[str, Any]
    model_options: dict[str, Any]
    model_patcher: Patcher
    inner_model: BaseModel


class Denoiser(Protocol):
    """The model that a sampler is given."""

    latent_image: Tensor
    inner_model: AnyGuider

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor: ...
