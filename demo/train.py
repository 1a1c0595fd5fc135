"""Train the demo model: text to 32x32 emoji, on the CPU, from an npm package.

    python demo/train.py          # noise prediction; run inside the environment that `make setup` builds
    python demo/train.py --flow   # rectified flow, going out from the weights of the first

The images are the Noto emoji of the npm package `emoji-datasource-google` (fetched with `npm pack` when
missing). Training goes on from its checkpoint when it was stopped; every random draw depends on the step
alone, so that a run that was stopped ends as one that was not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PACKAGE = "emoji-datasource-google@16.0.0"
CATEGORIES = ("Smileys & Emotion", "Animals & Nature", "Food & Drink")
KEEP_WORD = 0.7  # chance that a word stays in the bag
DROP_TEXT = 0.12  # chance that the whole text is dropped, for classifier-free guidance
EMA = 0.999
DEFAULTS: dict[bool, dict] = {  # by --flow
    False: {
        "steps": 15000, "lr": 1.5e-3,
        "out": HERE / "weights.safetensors", "checkpoint": ROOT / ".host" / "train.safetensors",
    },
    True: {
        "steps": 600, "lr": 5e-4,
        "out": HERE / "weights_flow.safetensors", "checkpoint": ROOT / ".host" / "train_flow.safetensors",
    },
}  # fmt: skip

if __name__ == "__main__":  # the host parses sys.argv when it is imported
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flow", action="store_true", help="fine-tune the weights of --start to rectified flow")
    parser.add_argument("--start", type=Path, default=HERE / "weights.safetensors")
    parser.add_argument("--steps", type=int, help="15000, or 600 with --flow")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, help="1.5e-3, or 5e-4 with --flow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=ROOT / ".host" / "data")
    parser.add_argument("--out", type=Path, help="demo/weights.safetensors, or demo/weights_flow.safetensors")
    parser.add_argument("--checkpoint", type=Path, help=".host/train.safetensors, or .host/train_flow.safetensors")
    parser.add_argument("--device", default="cpu")
    parser.set_defaults(**DEFAULTS[parser.parse_args().flow])
    options = parser.parse_args()
    sys.argv = sys.argv[:1]
    sys.path.insert(0, str(ROOT / ".host" / "comfyui"))
    import comfy.cli_args

    comfy.cli_args.args.cpu = options.device == "cpu"
    comfy.cli_args.args.use_pytorch_cross_attention = True

# ruff: noqa: E402 - after the host's arguments are set
import comfy.ops
import numpy as np
import torch
from comfy.ldm.modules.diffusionmodules.util import timestep_embedding
from comfy.model_base import ModelType
from comfy.model_sampling import ModelSamplingDiscrete
from model import FORMAT, NETWORKS, UNET, FlowUNet, WordBag, fold, split_words
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file


def load_emoji(folder: Path) -> tuple[torch.Tensor, list[list[str]]]:
    """Folded images [N, 12, 16, 16] in [0, 1] and the words that describe each."""
    source = folder / "package"
    if not (source / "emoji.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        cache = {"npm_config_cache": str(folder / "npm")}  # nothing is written outside the repository
        command = ["npm", "pack", "--silent", PACKAGE]
        name = subprocess.check_output(command, cwd=folder, text=True, env=os.environ | cache).strip()
        with tarfile.open(folder / name) as archive:
            archive.extractall(folder, filter="data")
    images, texts = [], []
    for entry in json.loads((source / "emoji.json").read_text()):
        if entry["category"] not in CATEGORIES or not entry["has_img_google"]:
            continue
        icon = Image.open(source / "img" / "google" / "64" / entry["image"]).convert("RGBA")
        white = Image.new("RGBA", icon.size, "white")
        images.append(np.asarray(Image.alpha_composite(white, icon).convert("RGB").reduce(2)))
        phrases = [entry["name"], *entry["short_names"], entry["category"], entry["subcategory"]]
        texts.append(sorted(set(split_words(" ".join(phrases)))))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return fold(pixels), texts


def initialise(unet: torch.nn.Module) -> None:
    """The host's layers skip initialisation: fill every parameter, and start each residual branch at zero."""
    for module in unet.modules():
        for base in (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm):
            if isinstance(module, base):
                base.reset_parameters(module)
    for name, parameter in unet.named_parameters():
        if name.startswith("out.2.") or ".out_layers.3." in name or ".proj_out." in name:
            torch.nn.init.zeros_(parameter)


def draw_bags(texts: list[list[int]], chosen: torch.Tensor, generator: torch.Generator):
    """Word indices and offsets of an EmbeddingBag batch, with word dropout and whole-text dropout."""
    words, offsets = [], []
    for i in chosen.tolist():
        offsets.append(len(words))
        if torch.rand((), generator=generator) < DROP_TEXT:
            continue
        keep = torch.rand(len(texts[i]), generator=generator) < KEEP_WORD
        words += [w for w, k in zip(texts[i], keep.tolist(), strict=True) if k]
    return torch.tensor(words, dtype=torch.long), torch.tensor(offsets)


def read_weights(unet: torch.nn.Module, words: WordBag, path: Path) -> None:
    """Start from trained weights (`path`, float16) in place of random ones."""
    for prefix, module in (("unet.", unet), ("words.", words)):
        with safe_open(path, "pt") as file:
            names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 - not a dict
            module.load_state_dict({key.removeprefix(prefix): file.get_tensor(key) for key in names})


def align_time(unet: FlowUNet, steps: int = 1000) -> None:
    """Fit the embedding of time, so that a level of the flow is embedded as noise prediction's of the same SNR was."""
    s = torch.linspace(0, 1, 1002)[1:-1]
    theirs, ours = ModelSamplingDiscrete().timestep(s / (1 - s)), 1000 * s
    theirs, ours = (timestep_embedding(t, UNET["model_channels"]) for t in (theirs, ours))
    with torch.no_grad():
        target = unet.time_embed(theirs)
    optimizer = torch.optim.Adam(unet.time_embed.parameters(), 1e-3)
    for _ in range(steps):
        loss = (unet.time_embed(ours) - target).square().mean() / target.var()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"time embedding fitted, relative error {loss.item():.2g}")


def save_atomically(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    part = path.with_suffix(".part")
    save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, part, metadata)
    os.replace(part, path)


def train(o: argparse.Namespace) -> None:
    torch.manual_seed(o.seed)
    torch.set_flush_denormal(True)
    latents, texts = load_emoji(o.data)
    vocabulary = sorted({word for text in texts for word in text})
    mean = latents.mean((0, 2, 3), keepdim=True)
    std = latents.std((0, 2, 3), keepdim=True)
    latents = ((latents - mean) / std).to(o.device)

    model_type = ModelType.FLOW if o.flow else ModelType.EPS
    unet = NETWORKS[model_type](**UNET, device="cpu", operations=comfy.ops.disable_weight_init)
    initialise(unet)
    words = WordBag(vocabulary)
    if o.flow and not o.checkpoint.exists():
        read_weights(unet, words, o.start)
        align_time(unet)
    model = torch.nn.ModuleDict({"unet": unet, "words": words}).to(o.device)
    bags = [[words.index[w] for w in text] for text in texts]
    parameters = dict(model.named_parameters())
    average = {k: p.detach().clone() for k, p in parameters.items()}
    optimizer = torch.optim.AdamW(parameters.values(), o.lr, weight_decay=1e-3)
    print(f"{len(texts)} images, {len(vocabulary)} words, {sum(p.numel() for p in parameters.values()):,} parameters")

    start = 0
    if o.checkpoint.exists():
        with safe_open(o.checkpoint, "pt") as file:
            start = int(file.metadata()["step"])
            with torch.no_grad():
                for i, (k, p) in enumerate(parameters.items()):
                    p.copy_(file.get_tensor(f"model.{k}"))
                    average[k].copy_(file.get_tensor(f"average.{k}"))
                    names = ("step", "exp_avg", "exp_avg_sq")
                    optimizer.state[p] = {n: file.get_tensor(f"adam.{i}.{n}").to(p.device) for n in names}
        print(f"going on from step {start}")

    def checkpoint(step: int) -> None:
        tensors = {f"model.{k}": p for k, p in parameters.items()}
        tensors |= {f"average.{k}": p for k, p in average.items()}
        for i, p in enumerate(parameters.values()):
            tensors |= {f"adam.{i}.{n}": t for n, t in optimizer.state[p].items()}
        save_atomically(tensors, o.checkpoint, {"step": str(step)})

    losses, clock = [], time.monotonic()
    for step in range(start, o.steps):
        generator = torch.Generator().manual_seed(o.seed * 1_000_003 + step)
        chosen = torch.randint(len(latents), (o.batch,), generator=generator)
        if o.flow:  # uniform, one in each of `batch` equal parts: less variance
            timesteps = 1000 * (torch.arange(o.batch) + torch.rand(o.batch, generator=generator)) / o.batch
        else:
            timesteps = torch.randint(1000, (o.batch,), generator=generator)
        noise = torch.randn(o.batch, *latents.shape[1:], generator=generator).to(o.device)
        indices, offsets = draw_bags(bags, chosen, generator)

        timesteps = timesteps.to(o.device)
        alpha, sigma = unet.level(timesteps)
        x0 = latents[chosen]
        bag = words(indices.to(o.device), offsets.to(o.device))
        v = unet.predict_v(alpha * x0 + sigma * noise, timesteps, context=bag[:, None], y=bag)
        loss = (v - (alpha * noise - sigma * x0)).square().mean()

        for group in optimizer.param_groups:
            warm_up, progress = min(1, (step + 1) / 200), step / o.steps
            group["lr"] = o.lr * warm_up * (0.5 + 0.5 * math.cos(math.pi * progress))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(EMA, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.values()), list(parameters.values()), 1 - decay)

        losses = [*losses[-999:], loss.item()]
        if (step + 1) % 100 == 0:
            rate = 100 * o.batch / (time.monotonic() - clock)
            clock = time.monotonic()
            print(f"step {step + 1}/{o.steps}  loss {np.mean(losses[-100:]):.4f}  {rate:.0f} images/s", flush=True)
        if (step + 1) % 500 == 0 or step + 1 == o.steps:
            checkpoint(step + 1)
            metadata = {
                "format": FORMAT,
                "model_type": model_type.name,
                "vocabulary": json.dumps(vocabulary),
                "training": json.dumps(
                    {
                        "images": len(texts),
                        "steps": step + 1,
                        "batch": o.batch,
                        "loss": round(float(np.mean(losses)), 5),
                    }
                ),
            }
            tensors = {k: p.half() for k, p in average.items()}
            save_atomically(tensors | {"latent.mean": mean, "latent.std": std}, o.out, metadata)


if __name__ == "__main__":
    train(options)
