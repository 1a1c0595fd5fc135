"""Low-rank changes of a network's weights, W + scale B A, in the place of training all of them.

E. J. Hu, Y. Shen, P. Wallis, Z. Allen-Zhu, Y. Li, S. Wang, L. Wang, W. Chen: LoRA: Low-Rank Adaptation of Large
Language Models. 2021, arXiv 2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Wanted = Callable[[str, nn.Module], bool]


class _LowRank(nn.Module):
    """W -> W + scale B A; A [rank, inputs], B [outputs, rank], with B = 0 at first."""

    def __init__(self, weight: Tensor, rank: int, scale: float):
        super().__init__()
        inputs = weight[0].numel()
        rank = min(rank, inputs, len(weight))
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.down = nn.Parameter(weight.new_empty(rank, *weight.shape[1:], dtype=wide))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank, dtype=wide))
        self.scale = scale
        nn.init.kaiming_uniform_(self.down.view(rank, -1), a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        change = self.up @ self.down.flatten(1)
        return weight + (self.scale * change).view(weight.shape).to(weight.dtype)


Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d


def layers(network: nn.Module, wanted: Wanted | None = None) -> dict[str, Layer]:
    """The linear and convolutional layers of a network by name, all or those that are wanted."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, Layer) and (wanted is None or wanted(name, module))
    }


def add_lora(
    network: nn.Module, rank: int, *, scale: float = 1.0, wanted: Wanted | None = None
) -> dict[str, nn.Parameter]:
    """Put a LoRA on layers of a network, and give its weights by name: at first it changes nothing.

    The weights of the network itself are frozen. Layers with fewer inputs or outputs than `rank` get that many.

    Args:
        rank: of the changes.
        scale: of the changes; a file has it as alpha / rank.
        wanted: `wanted(name, layer)` says which layers; all linear and convolutional ones without it.

    Raises:
        ValueError: naming the argument at fault.
    """
    if rank < 1:
        raise ValueError(f"rank = {rank} must be at least 1")
    found = layers(network, wanted)
    if not found:
        raise ValueError("wanted: no linear or convolutional layer of the network is")
    taken = [name for name, layer in found.items() if parametrize.is_parametrized(layer, "weight")]
    if taken:
        raise ValueError(f"{taken[0]} has a LoRA already: remove it first")
    whole = [name for name, layer in found.items() if not layer.weight.is_floating_point()]
    if whole:
        raise ValueError(
            f"{whole[0]} has weights of {found[whole[0]].weight.dtype}: load the model without quantisation"
        )
    network.requires_grad_(False)
    weights: dict[str, nn.Parameter] = {}
    for name, layer in found.items():
        change = _LowRank(layer.weight, rank, scale)
        parametrize.register_parametrization(layer, "weight", change, unsafe=True)
        weights |= {f"{name}.lora_down": change.down, f"{name}.lora_up": change.up}
    return weights


def remove_lora(network: nn.Module, *, keep: bool = False) -> None:
    """Take the LoRA off again; with `keep` its changes stay in the weights."""
    for layer in layers(network).values():
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=keep)


def lora_file(network: nn.Module, prefix: str = "diffusion_model.") -> dict[str, Tensor]:
    """The LoRA on a network as the tensors of a file that ComfyUI's loaders and the WebUIs read.

    For each layer `NAME.lora_down.weight`, [rank, inputs ...], `NAME.lora_up.weight`, [outputs, rank ...], and
    `NAME.alpha`.

    Args:
        prefix: of the names of the layers.

    Raises:
        ValueError: if there is no LoRA on it.
    """
    tensors: dict[str, Tensor] = {}
    for name, layer in layers(network).items():
        if not parametrize.is_parametrized(layer, "weight"):
            continue
        change = cast(Any, layer).parametrizations.weight[0]
        rank = len(change.down)
        up = change.up.view(*change.up.shape, *[1] * (change.down.ndim - 2))
        key = f"{prefix}{name}"
        tensors |= {
            f"{key}.lora_down.weight": change.down.detach().clone(),
            f"{key}.lora_up.weight": up.detach().clone(),
        }
        tensors[f"{key}.alpha"] = torch.tensor(change.scale * rank)
    if not tensors:
        raise ValueError("there is no LoRA on this network: see add_lora")
    return tensors
