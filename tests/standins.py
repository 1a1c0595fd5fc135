"""Stand-in checkpoints: files that the host takes for SD1.5, SDXL and the SDXL refiner, of random weights.

Key layout, widths and text encoders are the true ones, since the host's loader reads them; there are few blocks, and
the VAE is the tiny one (TAESD). All weights are overlapping views of a few small pools of noise, of which a file
holds one copy: some megabytes each, though a text encoder has up to 695 million numbers once it is loaded.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

# One level is enough for SD1.5. The others are told by the depths of their transformers, level by level.
BLOCKS: dict[str, dict[str, Any]] = {
    "SD15": {"num_res_blocks": [1], "transformer_depth": [1]},
    "SDXL": {"num_res_blocks": [2, 2, 2], "transformer_depth": [0, 0, 2, 2, 10, 10]},
    "SDXLRefiner": {"num_res_blocks": [2, 2, 2, 2], "transformer_depth": [0, 0, 4, 4, 4, 4, 0, 0]},
}


def network(kind: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """The host's configuration of a kind of `BLOCKS`, and the tensors of its network, without numbers."""
    import comfy.ops
    import comfy.supported_models

    known = getattr(comfy.supported_models, kind)
    config = known(_network(known.unet_config, **BLOCKS[kind]))
    config.custom_operations = comfy.ops.disable_weight_init
    with torch.device("meta") as meta:
        tensors = config.get_model({}, device=meta).diffusion_model.state_dict()
    return config, config.process_unet_state_dict_for_saving(tensors)


def write_checkpoint(kind: str, path: Path) -> Path:
    """Write a checkpoint of a kind of `BLOCKS`, which is the host's name for it. ComfyUI must be imported."""
    from comfy.taesd.taesd import TAESD

    config, tensors = network(kind)
    with torch.device("meta") as meta:
        text = config.clip_target().clip(device=meta, dtype=torch.float16, model_options={})
        vae = TAESD()
    shapes = {
        **tensors,
        **config.process_clip_state_dict_for_saving(text.state_dict()),
        **config.process_vae_state_dict_for_saving(vae.state_dict()),
    }
    pools: dict[int, torch.Tensor] = {}
    torch.save({"state_dict": {name: _filled(name, shape.shape, pools) for name, shape in shapes.items()}}, path)
    return path


def _network(known: dict[str, Any], num_res_blocks: list[int], transformer_depth: list[int]) -> dict[str, Any]:
    """The host's UNet of a known kind, in all that its detection reads, with these blocks."""
    adm = known["adm_in_channels"]
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": known["model_channels"],
        "num_res_blocks": num_res_blocks,
        "channel_mult": (1,) * len(num_res_blocks),
        "transformer_depth": transformer_depth,
        "transformer_depth_output": [0] * sum(blocks + 1 for blocks in num_res_blocks),
        "transformer_depth_middle": 1,
        "use_spatial_transformer": True,
        "use_linear_in_transformer": known["use_linear_in_transformer"],
        "context_dim": known["context_dim"],
        "adm_in_channels": adm,
        "num_classes": None if adm is None else "sequential",
        "use_temporal_attention": False,
        "legacy": False,
    }


def _filled(name: str, shape: torch.Size, pools: dict[int, torch.Tensor]) -> torch.Tensor:
    """Weights that keep the size of what goes through: 1 for norms and scales, 0 for biases, noise for the others."""
    if len(shape) < 2:
        return torch.tensor(float(name.endswith(("weight", "scale"))), dtype=torch.float16).expand(shape)
    row = math.prod(shape[1:])
    scale = round(math.log2(row))
    needed = shape[0] + row  # each row begins one further in the pool than that before
    pool = pools.get(scale)
    if pool is None:
        noise = torch.randn(2**17, generator=torch.Generator().manual_seed(scale))
        pools[scale] = pool = (noise * 2 ** (-scale / 2)).half()
    assert needed <= len(pool)
    return pool.as_strided(shape, (1, *torch.empty(shape, device="meta").stride()[1:]))


FLUX = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "hidden_size": 64,
    "num_heads": 2,
    "mlp_ratio": 4.0,
    "depth": 1,
    "depth_single_blocks": 1,
    "axes_dim": [8, 12, 12],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": False,
    "vec_in_dim": 768,
    "context_in_dim": 768,
}
"""Flux's network in small. The host's loader knows one size only, whose text encoder alone has 4.7 thousand million
numbers: this stand-in is made by a node in the place of the loader, with SD1.5's text encoder."""


def flux_schnell(clip_from: Path) -> tuple[Any, Any, Any]:
    """MODEL, CLIP and VAE of the host's own classes for FLUX.1 schnell, of random weights."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sd
    import comfy.supported_models
    from comfy.taesd.taesd import TAESD

    config = comfy.supported_models.FluxSchnell(for_this_host(FLUX))
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({})
    pools: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for name, parameter in model.diffusion_model.named_parameters():
            parameter.data = _filled(name, parameter.shape, pools).float().clone()
    vae = TAESD(latent_channels=16)
    device = comfy.model_management.get_torch_device()
    patcher = comfy.model_patcher.ModelPatcher(model.eval(), load_device=device, offload_device=torch.device("cpu"))
    _, clip, *_ = comfy.sd.load_checkpoint_guess_config(str(clip_from), output_vae=False)
    weights = {name: _filled(name, value.shape, pools).float().clone() for name, value in vae.state_dict().items()}
    return patcher, clip, comfy.sd.VAE(sd=weights)


def for_this_host(flux: dict[str, Any]) -> dict[str, Any]:
    """The settings of a Flux network with what newer hosts ask for beside them."""
    from comfy.ldm.flux.model import FluxParams

    more = {"txt_ids_dims": []} if "txt_ids_dims" in FluxParams.__annotations__ else {}
    return flux | more


NODE = '''"""In the place of the loader of FLUX.1 schnell."""

import sys
from pathlib import Path

sys.path.append({tests!r})
from standins import flux_schnell


class StandIn:
    RETURN_TYPES = "MODEL", "CLIP", "VAE"
    FUNCTION = "load"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls):
        return {{"required": {{}}}}

    def load(self):
        return flux_schnell(Path({clip_from!r}))


NODE_CLASS_MAPPINGS = {{"StandInFluxSchnell": StandIn}}
'''


def write_node(clip_from: Path, path: Path) -> None:
    """Write a file for custom_nodes with the node *StandInFluxSchnell*."""
    path.write_text(NODE.format(tests=str(Path(__file__).parent), clip_from=str(clip_from)))
