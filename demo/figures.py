"""The pictures of README.md, docs/ARCHITECTURE.md and demo/README.md, sampled by the real host.

.host/venv/bin/python demo/figures.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import torch  # noqa: E402
from host import import_comfyui, load_pack, setup  # noqa: E402
from PIL import Image, ImageDraw, ImageFont  # noqa: E402

GUIDANCE = 3.0
SCALE = 2
TEXT = 22  # height of a line of labels


class Painter:
    """Samples prompts in the host, with the pack's nodes."""

    def __init__(self) -> None:
        self.model_type = "noise prediction"
        setup()
        host = import_comfyui()
        if not load_pack(host, ROOT):
            raise RuntimeError("the pack did not load, see the messages above")
        self.nodes = host.NODE_CLASS_MAPPINGS

    @torch.inference_mode()
    def paint(
        self, prompt: str, steps: int, sampler: str, schedule: str, *, early=False, count: int = 1, shift: float = 0.0
    ):
        """`count` images [count, H, W, 3] in 0 ... 1; `early` leaves out the last level above 0."""
        model, positive, negative = self.nodes["FewStepDemoModel"].execute(prompt, "", self.model_type).result
        (solver,) = self.nodes["FewStepSampler"].execute(sampler).result
        options = {"discard_penultimate": early, "shift": shift}
        (sigmas,) = self.nodes["FewStepScheduler"].execute(model, schedule, steps, 1.0, **options).result
        return self._sample(model, positive, negative, solver, sigmas, count)

    @torch.inference_mode()
    def follow(self, prompt: str, plan: str):
        """One image [1, H, W, 3] by a file of demo/plans."""
        model, positive, negative = self.nodes["FewStepDemoModel"].execute(prompt, "", self.model_type).result
        load = sys.modules[self.nodes["FewStepPlanSampler"].__module__].load
        calibrated = load(ROOT / "demo" / "plans" / f"{plan}.safetensors")
        solver, sigmas = self.nodes["FewStepPlanSampler"].execute(calibrated).result
        return self._sample(model, positive, negative, solver, sigmas, 1)

    def _sample(self, model, positive, negative, solver, sigmas, count: int):
        (latent,) = self.nodes["FewStepDemoLatent"].execute(count).result
        inputs = (model, True, 1, GUIDANCE, positive, negative, solver, sigmas, latent)
        out, _ = self.nodes["SamplerCustom"].execute(*inputs).result
        return self.nodes["FewStepDemoDecode"].execute(out, SCALE).result[0]

    @torch.inference_mode()
    def trajectories(self, prompt: str) -> tuple[torch.Tensor, str]:
        """The figure of the node, [1, H, W, 3], and its numbers."""
        model, positive, negative = self.nodes["FewStepDemoModel"].execute(prompt, "").result
        (latent,) = self.nodes["FewStepDemoLatent"].execute(1).result
        node = self.nodes["FewStepTrajectory"]
        return node.execute(model, positive, negative, latent, GUIDANCE, seed=1, batch=4, steps=50).result


def grid(rows: list[list[torch.Tensor]], top: list[str], left: list[str], margin: int) -> Image.Image:
    """Images in rows, with labels over the columns and before the rows."""
    height, width, _ = rows[0][0].shape
    sheet = Image.new("RGB", (margin + width * len(rows[0]), TEXT + height * len(rows)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, label in enumerate(top):
        pen.text((margin + i * width + width / 2, TEXT / 2), label, "black", font, anchor="mm")
    for j, (label, images) in enumerate(zip(left, rows, strict=True)):
        pen.text((6, TEXT + j * height + height / 2), label, "black", font, anchor="lm")
        for i, image in enumerate(images):
            tile = Image.fromarray((image * 255).round().byte().numpy())
            sheet.paste(tile, (margin + i * width, TEXT + j * height))
    return sheet


def by_steps(painter: Painter) -> Image.Image:
    """Prompts and ways to sample down, steps across; the last column is a run of many steps."""
    counts = (4, 5, 6, 8, 10, 12)
    rows, labels = [], []
    for prompt in ("cat face", "strawberry"):
        exact = painter.paint(prompt, 150, "dpmpp_2m", "karras")[0]
        for label, sampler, early in (("dpmpp_2m", "dpmpp_2m", False), ("ipndm_v *", "ipndm_v", True)):
            rows.append([painter.paint(prompt, n, sampler, "karras", early=early)[0] for n in counts] + [exact])
            labels.append(label)
        rows.append([painter.follow(prompt, f"calibrated-{n}")[0] for n in counts] + [exact])
        labels.append("calibrated plan")
    return grid(rows, [f"{n} steps" for n in counts] + ["150"], labels, 120)


def samples(painter: Painter) -> Image.Image:
    """What the demo model can do: a batch of six of each prompt, 20 steps."""
    prompts = (
        "cat face", "dog face", "grinning face", "smiling face with sunglasses", "sparkling heart", "red apple",
        "banana", "pizza", "tulip", "frog", "penguin", "octopus", "hamburger", "strawberry",
    )  # fmt: skip
    rows = [list(painter.paint(prompt, 20, "dpmpp_2m", "karras", count=6)) for prompt in prompts]
    return grid(rows, [f"image {i + 1}" for i in range(6)], list(prompts), 190)


def flow_samples(painter: Painter) -> Image.Image:
    """The same of the model's rectified-flow form, fewer of them."""
    painter.model_type = "rectified flow"
    prompts = ("cat face", "grinning face", "sparkling heart", "red apple", "pizza", "frog")
    rows = [list(painter.paint(prompt, 20, "dpmpp_2m", "karras", count=6)) for prompt in prompts]
    painter.model_type = "noise prediction"
    return grid(rows, [f"image {i + 1}" for i in range(6)], list(prompts), 120)


def trajectory(painter: Painter) -> Image.Image:
    """The way from noise to four images of one prompt, on the plane of its first two principal components."""
    (figure,), text = painter.trajectories("red apple")
    print(text)
    return Image.fromarray((figure * 255).round().byte().numpy()).quantize(64)


if __name__ == "__main__":
    painter = Painter()
    by_steps(painter).save(ROOT / "docs" / "steps.png", optimize=True)
    trajectory(painter).save(ROOT / "docs" / "trajectory.png", optimize=True)
    samples(painter).save(ROOT / "demo" / "samples.png", optimize=True)
    flow_samples(painter).save(ROOT / "demo" / "samples_flow.png", optimize=True)
