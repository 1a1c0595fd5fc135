"""MODELs of a few thousand weights, of every kind the host samples.

Their networks compute in float64, and the host rounds what they give to float32. So an image does not depend on how a
kernel adds up, which differs with the processor, the number of threads and the size of the batch.
"""

from __future__ import annotations

from functools import partial

import torch

UNET = {
    "image_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "channel_mult": (1,),
    "num_res_blocks": [1],
    "transformer_depth": [0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0],
    "use_spatial_transformer": True,
    "context_dim": 16,
    "num_heads": -1,
    "num_head_channels": 16,
    "legacy": False,
}


def small_model(model_type: str):
    """A MODEL of the given `comfy.model_base.ModelType`, with weights drawn from a fixed seed."""
    import comfy.latent_formats
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base

    class Config(comfy.supported_models_base.BASE):
        latent_format = partial(comfy.latent_formats.LatentFormat)
        unet_extra_config = {}  # noqa: RUF012 - the host's own style

    config = Config(UNET)
    config.set_inference_dtype(torch.float64, None)
    model = comfy.model_base.BaseModel(config, model_type=comfy.model_base.ModelType[model_type])
    generator = torch.Generator().manual_seed(0)
    for parameter in model.diffusion_model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator).double()
    model.eval()
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def conditioning(seed: int) -> list:
    return [[torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(seed)), {}]]


def controlled(comfyui, positive: list, negative: list) -> tuple[list, list]:
    """The prompts under a ControlNet of the host, with a network of the small models' shape."""
    import comfy.cldm.cldm
    import comfy.controlnet

    config = {k: v for k, v in UNET.items() if k not in ("out_channels", "transformer_depth_output")}
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode(False):
        network = comfy.cldm.cldm.ControlNet(hint_channels=3, dtype=torch.float64, **config)
        for parameter in network.parameters():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator).double()
    control = comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"), manual_cast_dtype=None)
    hint = torch.rand(1, 64, 64, 3, generator=generator)
    apply = comfyui.nodes["ControlNetApplyAdvanced"]().apply_controlnet
    return apply(positive, negative, control, hint, 1.0, 0.0, 1.0)
