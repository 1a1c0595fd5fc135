"""The picture of docs/EDITING.md: one emoji edited into another by the nodes of the pack and of the host.

.host/venv/bin/python demo/edit.py
"""

from __future__ import annotations

import torch
from figures import GUIDANCE, ROOT, Painter, grid
from torch.nn.functional import interpolate

STEPS = 20
SCALE = 3
EDITS = (
    ("grinning face", "smiling face with sunglasses", 3),
    ("grinning face", "winking face", 3),
    ("red apple", "pizza", 1),
    ("cat face", "dog face", 5),
)
"""What the image shows, what it is to show, and the seed of the image."""


class Editor(Painter):
    """Edits an image as the workflow in docs/EDITING.md does."""

    def run(self, name: str, *arguments, **named):
        return self.nodes[name].execute(*arguments, **named).result

    @torch.inference_mode()
    def edit(self, source: str, target: str, seed: int) -> tuple[list[torch.Tensor], str]:
        """The image, where the prompts differ, the edit, the same with the mask; and the report of the inversion."""
        model, shown, negative = self.run("FewStepDemoModel", source, "")
        _, wanted, _ = self.run("FewStepDemoModel", target, "")
        (latent,) = self.run("FewStepDemoLatent", 1)
        (sigmas,) = self.run("FewStepScheduler", model, "karras", STEPS, 1.0)
        (sampler,) = self.run("FewStepSampler", "ddim")
        image, _ = self.run("SamplerCustom", model, True, seed, GUIDANCE, shown, negative, sampler, sigmas, latent)

        mask, _ = self.run("FewStepDiffEditMask", model, shown, wanted, image, 0.5, 10, 10, 0.3, 3.0, 0)
        (mask,) = self.nodes["GrowMask"]().expand_mask(mask, 1, True)
        _, noise, report = self.run("FewStepInvert", model, shown, negative, image, 1.0, "ddim", sigmas, 1, True)
        (guider,) = self.run("CFGGuider", model, wanted, negative, GUIDANCE)
        (masked,) = self.nodes["SetLatentNoiseMask"]().set_mask(image, mask)
        edits = [self.run("SamplerCustomAdvanced", noise, guider, sampler, sigmas, of)[0] for of in (image, masked)]

        pictures = [self.run("FewStepDemoDecode", of, SCALE)[0][0] for of in (image, *edits)]
        size = pictures[0].shape[:2]
        pictures.insert(1, interpolate(mask[:, None], size=size)[0].movedim(0, -1).expand(*size, 3))
        return pictures, report


if __name__ == "__main__":
    editor, rows = Editor(), []
    for edit in EDITS:
        pictures, report = editor.edit(*edit)
        rows.append(pictures)
        print(*edit, report)
    labels = [f"{source} to\n{target}" for source, target, _ in EDITS]
    grid(rows, ["image", "mask", "edited", "with mask"], labels, 210).save(ROOT / "docs" / "editing.png", optimize=True)
