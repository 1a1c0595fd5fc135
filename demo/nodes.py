"""Nodes of the demo: model and text, empty latent, and the way between latents and images."""

from __future__ import annotations

import difflib
import functools
import logging
from pathlib import Path

import comfy.model_management
import torch
from comfy_api.latest import io
from einops import rearrange, repeat
from torch.nn.functional import interpolate

from ..nodes.host.display import say
from ..nodes.ui.menu import DEMO as CATEGORY
from ..nodes.ui.menu import search_words
from .model import fold, load, unfold

SIDE = 32
EXAMPLES = (
    "cat",
    "dog",
    "fox",
    "bear",
    "fish",
    "apple",
    "strawberry",
    "pizza",
    "tree",
    "heart",
    "face",
    "smiling",
    "red",
)

WEIGHTS = {
    "noise prediction": Path(__file__).with_name("weights.safetensors"),
    "rectified flow": Path(__file__).with_name("weights_flow.safetensors"),
}

_load = functools.lru_cache(maxsize=len(WEIGHTS))(load)


class FewStepDemoModel(io.ComfyNode):
    """The demo model and the conditioning for a prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepDemoModel",
            display_name="Demo Model (emoji)",
            category=CATEGORY,
            description="A small text-to-emoji model that comes with Few-Step: nothing to download. It has two forms: "
            "noise prediction as in Stable Diffusion, and rectified flow as in SD3 and Flux.",
            inputs=[
                io.String.Input(
                    "prompt",
                    default="cat face",
                    tooltip="A few words: smileys, animals, food. The model knows the names of 459 emoji.",
                ),
                io.String.Input("negative", default="", tooltip="Words to steer away from; empty is usual."),
                io.Combo.Input(
                    "model_type",
                    options=list(WEIGHTS),
                    default="noise prediction",
                    optional=True,
                    tooltip="noise prediction: levels as Stable Diffusion has them, 14.6 to 0.03. rectified flow: from "
                    "1 to 0, as in SD3, Flux, Wan and Qwen-Image; ModelSamplingSD3 gives it a time shift.",
                ),
            ],
            outputs=[
                io.Model.Output(),
                io.Conditioning.Output(display_name="positive"),
                io.Conditioning.Output(display_name="negative"),
            ],
            **search_words("few-step demo", "emoji", "text to image without a checkpoint"),
        )

    @classmethod
    def execute(cls, prompt: str, negative: str, model_type: str = "noise prediction") -> io.NodeOutput:
        model, words = _load(WEIGHTS[model_type])
        tell(words, f"{prompt} {negative}")
        return io.NodeOutput(model.clone(), _conditioning(words, prompt), _conditioning(words, negative))


def _conditioning(words, text: str) -> list:
    embedding, _ = words.encode(text)
    return [[embedding[:, None], {"pooled_output": embedding}]]


def tell(words, text: str) -> None:
    """Says on the node, until it runs again, and in the log which words are unknown, and what is known."""
    _, unknown = words.encode(text)
    if not unknown:
        return
    like = [near for word in unknown for near in difflib.get_close_matches(word, words.index, 3)]
    some = dict.fromkeys([*like, *EXAMPLES])
    message = (
        f"The demo model does not know: {', '.join(dict.fromkeys(unknown))}. It knows {len(words.index)} words, "
        f"such as: {', '.join(word for word in some if word in words.index)}. The help page of this node lists them."
    )
    logging.warning(message)
    say(message)


class FewStepDemoLatent(io.ComfyNode):
    """An empty latent of the demo model's size."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepDemoLatent",
            display_name="Demo Empty Latent",
            category=CATEGORY,
            description="An empty latent of the demo model's size.",
            inputs=[io.Int.Input("batch_size", default=1, min=1, max=256, tooltip="Number of images.")],
            outputs=[io.Latent.Output()],
            **search_words("few-step demo", "emoji", "empty latent"),
        )

    @classmethod
    def execute(cls, batch_size: int) -> io.NodeOutput:
        device = comfy.model_management.intermediate_device()
        return io.NodeOutput({"samples": fold(torch.zeros(batch_size, 3, SIDE, SIDE, device=device))})


class FewStepDemoDecode(io.ComfyNode):
    """Latents of the demo model to images: exact, there is no VAE."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepDemoDecode",
            display_name="Demo Decode",
            category=CATEGORY,
            description="Turns latents of the demo model into images.",
            inputs=[
                io.Latent.Input("samples", tooltip="Latents of the demo model."),
                io.Int.Input(
                    "upscale",
                    default=8,
                    min=1,
                    max=32,
                    tooltip="How many times the images, 32 pixels wide, are enlarged.",
                ),
            ],
            outputs=[io.Image.Output()],
            **search_words("few-step demo", "emoji", "vae decode"),
        )

    @classmethod
    def execute(cls, samples: dict, upscale: int) -> io.NodeOutput:
        pixels = unfold(samples["samples"]).clamp(0, 1)
        return io.NodeOutput(repeat(pixels, "b c h w -> b (h up) (w across) c", up=upscale, across=upscale))


class FewStepDemoEncode(io.ComfyNode):
    """Images to latents of the demo model, for img2img."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepDemoEncode",
            display_name="Demo Encode",
            category=CATEGORY,
            description="Turns any image into a latent for the demo model.",
            inputs=[io.Image.Input("pixels", tooltip="Any image; it is resized to 32 x 32.")],
            outputs=[io.Latent.Output()],
            **search_words("few-step demo", "emoji", "vae encode", "img2img"),
        )

    @classmethod
    def execute(cls, pixels: torch.Tensor) -> io.NodeOutput:
        small = interpolate(rearrange(pixels[..., :3], "b h w c -> b c h w"), size=(SIDE, SIDE), mode="area")
        return io.NodeOutput({"samples": fold(small)})


NODES = [FewStepDemoModel, FewStepDemoLatent, FewStepDemoDecode, FewStepDemoEncode]
