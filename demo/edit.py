"""The picture and the table of docs/EDITING.md, made with the nodes of the pack and of the host.

.host/venv/bin/python demo/edit.py
"""

from __future__ import annotations

import importlib
import math
import re

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

    @torch.inference_mode()
    def error(
        self, model_type: str, cfg: float, prompt: str, sampler: str, refinements: int | None
    ) -> tuple[int, float]:
        """Evaluations of an inversion, and the relative round-trip error; None: plain, up the levels above 0."""
        model, positive, negative = self.run("FewStepDemoModel", prompt, "", model_type)
        (latent,) = self.run("FewStepDemoLatent", 1)
        flow = model_type == "rectified flow"
        schedule = "time_uniform" if flow else "karras"
        (sigmas,) = self.run("FewStepScheduler", model, schedule, STEPS, 1.0, discard_penultimate=flow)
        (exact,) = self.run("FewStepScheduler", model, schedule, 3 * STEPS, 1.0)
        (solver,) = self.run("FewStepSampler", "dpmpp_3m")
        image, _ = self.run("SamplerCustom", model, True, 5, GUIDANCE, positive, negative, solver, exact, latent)
        if refinements is not None:
            *_, report = self.run(
                "FewStepInvert", model, positive, negative, image, cfg, sampler, sigmas, refinements, True
            )
            evaluations = int(re.search(r"(\d+) evaluations", report)[1])
            shown = report.splitlines()[1].split(": ")[1]
            return evaluations - STEPS, rms(float(error) / 100 for error in shown.split(", "))

        pack = self.nodes["FewStepInvert"].__module__.rpartition(".")[0]
        session = importlib.import_module(f"{pack}.host.session")
        (solver,) = self.run("FewStepSampler", sampler)

        def up_and_down(run):
            """The relative round-trip error of each image."""
            model, sigmas, clean = run.model, run.sigmas, run.model.latent_image
            lowest = clean * (1 - sigmas[-2]) if flow else clean
            noise = solver.sampler_function(model, lowest, sigmas[:-1].flip(0), run.extra_args, None, True)
            again = solver.sampler_function(model, noise, sigmas, run.extra_args, None, True)
            return ((again - clean).flatten(1).norm(dim=1) / clean.flatten(1).norm(dim=1)).tolist()

        guider, samples = session.Guider(model, positive, negative, cfg), image["samples"]
        return STEPS - 1, rms(session.inside(guider, up_and_down, sigmas, torch.zeros_like(samples), samples))


def rms(errors) -> float:
    errors = list(errors)
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


WAYS = (
    ("ddim", None),
    ("dpmpp_2m", None),
    *((id, 0) for id in ("ddim", "dpmpp_2m", "dpmpp_3m", "ipndm_v")),
    *((id, 1) for id in ("ddim", "dpmpp_2m")),
)


def table(editor: Editor) -> None:
    """Round-trip errors in percent, over an image of each prompt."""
    columns = [(kind, cfg) for kind in ("noise prediction", "rectified flow") for cfg in (1.0, GUIDANCE)]
    print("| inversion | evaluations |", *(f"{kind}, cfg {cfg:g} |" for kind, cfg in columns))
    for sampler, refinements in WAYS:
        cells = []
        for kind, cfg in columns:
            found = [
                editor.error(kind, cfg, source, sampler, refinements)
                for source in ("cat face", "red apple", "pizza", "frog")
            ]
            cells.append(f"{100 * rms(error for _, error in found):.2g} |")
        way = "plain" if refinements is None else f"ours, {refinements} refinement{'s' * (refinements != 1)}"
        print(f"| {sampler}, {way} | {found[0][0]} |", *cells, flush=True)


if __name__ == "__main__":
    editor, rows = Editor(), []
    table(editor)
    for edit in EDITS:
        pictures, report = editor.edit(*edit)
        rows.append(pictures)
        print(*edit, report)
    labels = [f"{source} to\n{target}" for source, target, _ in EDITS]
    grid(rows, ["image", "mask", "edited", "with mask"], labels, 210).save(ROOT / "docs" / "editing.png", optimize=True)
