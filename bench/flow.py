"""Error against evaluations on the demo's rectified-flow model, ours and the host's samplers.

    .host/venv/bin/python bench/flow.py

Sixteen images at guidance 3: root mean square distance of the pixels to the images of the same model in many steps. For
each sampler the schedule with the least error at each number of evaluations; * is with discard_penultimate.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "demo"))

import torch  # noqa: E402
from figures import GUIDANCE, SCALE, Painter  # noqa: E402

PROMPTS = ("red apple", "cat face", "grinning face", "strawberry")
COUNT = 4  # images of each
EVALUATIONS = (5, 8, 12)
HOST = ("euler", "heun", "dpmpp_2m", "uni_pc")
HOST_SCHEDULES = ("simple", "beta")
OURS = ("euler", "dpmpp_2m", "dpm_2m", "dpmpp_3m", "dpm_3m", "unipc", "ipndm_v", "deis")
OUR_SCHEDULES = ("time_uniform", "beta", "beta shift 1.5", "karras", "exponential")
EVALUATIONS_A_STEP = {"heun": 2}  # but one in the step to 0


class Bench(Painter):
    def __init__(self) -> None:
        super().__init__()
        self.model_type = "rectified flow"

    @torch.inference_mode()
    def images(self, sampler: str, schedule: str, steps: int, host: bool = False) -> torch.Tensor:
        """[prompts * COUNT, H, W, 3]."""
        if not host:
            name, *shift = schedule.split(" shift ")
            options = {"early": steps < 100, "count": COUNT, "shift": float(*shift)}
            return torch.cat([self.paint(prompt, steps, sampler, name, **options) for prompt in PROMPTS])
        images = []
        for prompt in PROMPTS:
            model, positive, negative = self.nodes["FewStepDemoModel"].execute(prompt, "", self.model_type).result
            (latent,) = self.nodes["FewStepDemoLatent"].execute(COUNT).result
            (solver,) = self.nodes["KSamplerSelect"].execute(sampler).result
            (sigmas,) = self.nodes["BasicScheduler"].execute(model, schedule, steps, 1.0).result
            run = self.nodes["SamplerCustom"].execute
            out, _ = run(model, True, 1, GUIDANCE, positive, negative, solver, sigmas, latent).result
            images.append(self.nodes["FewStepDemoDecode"].execute(out, SCALE).result[0])
        return torch.cat(images)


def main() -> None:
    warnings.simplefilter("ignore")  # of the host's tensors
    bench = Bench()
    exact = bench.images("dpmpp_3m", "time_uniform", 100)
    other = bench.images("ipndm_v", "cosine", 100)
    print(f"two ways of 100 steps are {distance(exact, other):.4f} apart\n")
    print("| sampler |", " | ".join(f"{n} evaluations" for n in EVALUATIONS), "|")
    print("| --- |", " | ".join("---" for _ in EVALUATIONS), "|", flush=True)
    for host, samplers, schedules in ((True, HOST, HOST_SCHEDULES), (False, OURS, OUR_SCHEDULES)):
        for sampler in samplers:
            cells = []
            for n in EVALUATIONS:
                steps = (n - 1) // EVALUATIONS_A_STEP.get(sampler, 1) + 1
                errors = {name: distance(bench.images(sampler, name, steps, host), exact) for name in schedules}
                best = min(errors, key=lambda name: errors[name])
                cells.append(f"{errors[best]:.4f} {best}{'' if host else '*'}")
            print(f"| {'ComfyUI ' * host}{sampler} |", " | ".join(cells), "|", flush=True)


def distance(images: torch.Tensor, exact: torch.Tensor) -> float:
    """The mean over the images of their root mean square distance."""
    return float((images - exact).flatten(1).square().mean(1).sqrt().mean())


if __name__ == "__main__":
    main()
