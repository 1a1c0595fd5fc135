"""The demo model: a small text-to-emoji network that the host samples like any other MODEL.

It is built from the host's own parts (`UNetModel`, `BaseModel`, `ModelPatcher`), so that sampling it runs
the same code as sampling Stable Diffusion: guidance, conditioning batches, previews, noise masks and all.

A latent is a 32x32 RGB image in [0, 1], with each 2 x 2 pixels folded into channels: 12 x 16 x 16.

The same network comes with two sets of weights, one for each form of diffusion that the host's models have:
noise prediction as in Stable Diffusion (`ModelType.EPS`) and rectified flow as in SD3 and Flux (`ModelType.FLOW`).
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.supported_models_base
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.model_base import ModelType
from comfy.model_sampling import ModelSamplingDiscrete
from einops import rearrange
from safetensors import safe_open

FORMAT = "fewstep-demo-1"
FOLD = 2  # side of the block of pixels folded into channels
EMBED = 128  # width of a word embedding

UNET = {
    "image_size": 16,
    "in_channels": 3 * FOLD**2,
    "out_channels": 3 * FOLD**2,
    "model_channels": 64,
    "channel_mult": (1, 2),
    "num_res_blocks": [1, 1],
    "transformer_depth": [0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 0, 0],
    "use_spatial_transformer": True,
    "context_dim": EMBED,
    "num_classes": "sequential",
    "adm_in_channels": EMBED,
    "num_heads": -1,
    "num_head_channels": 32,
    "legacy": False,
}


class DemoUNet(UNetModel):
    """The host's UNet, trained to predict v, whatever the host's form of diffusion.

    In variance-preserving form, x_t = alpha x0 + sigma eps with alpha^2 + sigma^2 = 1, the network's
    v = alpha eps - sigma x0 gives eps = alpha v + sigma x_t and x0 = alpha x_t - sigma v. Predicting v trains evenly
    over all levels.
    """

    def level(self, timesteps):
        """alpha and sigma in variance-preserving form, [B, 1, 1, 1], of the host's time steps [B]."""
        raise NotImplementedError

    def predict_v(self, x, timesteps, *args, **kwargs):
        return super()._forward(x, timesteps, *args, **kwargs)


class NoiseUNet(DemoUNet):
    """Answers with epsilon; the host gives it x_t and the number of one of Stable Diffusion's 1000 levels."""

    def __init__(self, **config):
        super().__init__(**config)
        sigmas = ModelSamplingDiscrete().sigmas
        self.register_buffer("sigma_vp", sigmas / (1 + sigmas**2).sqrt(), persistent=False)

    def level(self, timesteps):
        sigma = self.sigma_vp.to(timesteps.device)[timesteps.long()].view(-1, 1, 1, 1)
        return (1 - sigma**2).sqrt(), sigma

    def _forward(self, x, timesteps=None, *args, **kwargs):
        alpha, sigma = (c.to(x) for c in self.level(timesteps))
        return alpha * self.predict_v(x, timesteps, *args, **kwargs) + sigma * x


class FlowUNet(DemoUNet):
    """Answers with the velocity eps - x0; the host gives it (1 - s) x0 + s eps and the time step 1000 s."""

    def level(self, timesteps):
        s = timesteps.view(-1, 1, 1, 1) / 1000
        norm = ((1 - s) ** 2 + s**2).sqrt()
        return (1 - s) / norm, s / norm

    def _forward(self, x, timesteps=None, *args, **kwargs):
        alpha, sigma = (c.to(x) for c in self.level(timesteps))
        x = (alpha + sigma) * x  # to variance-preserving form: alpha + sigma = 1 / sqrt((1 - s)^2 + s^2)
        return (alpha + sigma) * self.predict_v(x, timesteps, *args, **kwargs) + (sigma - alpha) * x


NETWORKS = {ModelType.EPS: NoiseUNet, ModelType.FLOW: FlowUNet}


class WordBag(torch.nn.EmbeddingBag):
    """The text encoder: the mean of the embeddings of the words it knows; no word at all is zero."""

    def __init__(self, vocabulary: list[str]):
        super().__init__(len(vocabulary), EMBED, mode="mean")
        self.index = {word: i for i, word in enumerate(vocabulary)}

    def encode(self, text: str) -> tuple[torch.Tensor, list[str]]:
        """The embedding of `text`, [1, EMBED], and the words of it that are unknown."""
        words = split_words(text)
        known = torch.tensor([self.index[w] for w in words if w in self.index], dtype=torch.long)
        return self(known, torch.tensor([0])), [w for w in words if w not in self.index]


def split_words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def fold(pixels: torch.Tensor) -> torch.Tensor:
    """Image [B, 3, 32, 32] -> latent [B, 12, 16, 16]."""
    return rearrange(pixels, "b c (h i) (w j) -> b (c i j) h w", i=FOLD, j=FOLD)


def unfold(latent: torch.Tensor) -> torch.Tensor:
    """Latent [B, 12, 16, 16] -> image [B, 3, 32, 32]."""
    return rearrange(latent, "b (c i j) h w -> b c (h i) (w j)", i=FOLD, j=FOLD)


class DemoLatent(comfy.latent_formats.LatentFormat):
    """Standardises each channel for the network; previews average the pixels of a block."""

    latent_channels = 3 * FOLD**2

    def __init__(self, mean: torch.Tensor, std: torch.Tensor):
        self.mean, self.std = mean, std
        colour = torch.eye(3).repeat_interleave(FOLD**2, dim=0) / FOLD**2  # channel -> RGB
        self.latent_rgb_factors = (2 * std.view(-1, 1) * colour).tolist()  # the previewer wants -1 ... 1
        self.latent_rgb_factors_bias = (2 * mean.view(-1) @ colour - 1).tolist()

    def process_in(self, latent):
        return (latent - self.mean.to(latent)) / self.std.to(latent)

    def process_out(self, latent):
        return latent * self.std.to(latent) + self.mean.to(latent)


class DemoModel(comfy.model_base.BaseModel):
    """Passes the embedding of the text to the network as the host does SDXL's pooled one."""

    def __init__(self, config, model_type: ModelType):
        super().__init__(config, model_type=model_type, unet_model=NETWORKS[model_type])

    def encode_adm(self, pooled_output=None, **kwargs):
        return pooled_output


def load(path: Path) -> tuple[comfy.model_patcher.ModelPatcher, WordBag]:
    """The demo model as the host's MODEL, and its text encoder.

    The file's metadata names the host's model type; a file that names none predicts noise.

    Raises:
        ValueError: if the file is not one of this format, or names a model type that the network has no form for.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"{path.name} is not a {FORMAT} file (format = {metadata.get('format')!r})")
        name = metadata.get("model_type", ModelType.EPS.name)
        if name not in {kind.name for kind in NETWORKS}:
            raise ValueError(f"{path.name}: model_type = {name!r}, use one of {[kind.name for kind in NETWORKS]}")
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - not a dict

    class Config(comfy.supported_models_base.BASE):
        latent_format = partial(DemoLatent, tensors["latent.mean"], tensors["latent.std"])
        unet_extra_config = {}  # noqa: RUF012 - the host's own style

    config = Config(UNET)
    config.set_inference_dtype(torch.float32, None)
    model = DemoModel(config, ModelType[name])
    model.diffusion_model.load_state_dict(_under("unet.", tensors))
    model.eval()
    patcher = comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    words = WordBag(json.loads(metadata["vocabulary"]))
    words.load_state_dict(_under("words.", tensors))
    return patcher, words.eval()


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
