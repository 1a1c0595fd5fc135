"""What a step costs outside the model: our samplers and the host's own, in one run.

    make bench-overhead

The model returns a stored tensor, so that only the sampler is timed, as the host calls it (inference mode,
float32 sigmas, no preview). Every figure is the median over interleaved repetitions of microseconds per step (for an
adaptive sampler, per try); the ratio is taken repetition by repetition. `plan` is what a schedule costs the first
time, per step; plans are kept, so that it is not in `ours`. Stochastic samplers draw their noise, ours and the host's,
which takes nearly all of their time; for video they are left out. What ours takes is then counted in draws of the batch
(`torch.randn` of its shape): how many are made for each step, and how many would take as long as all that noise takes.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / ".host" / "comfyui")]
sys.argv = sys.argv[:1]  # the host reads it

import comfy.cli_args  # noqa: E402
import torch  # noqa: E402

comfy.cli_args.args.cpu = not torch.cuda.is_available()

import comfy.k_diffusion.sampling as k_diffusion  # noqa: E402
import comfy.model_sampling  # noqa: E402

from samplers import SAMPLERS, SCHEDULES, BrownianNoise, SamplerSpec  # noqa: E402
from samplers.noise import noise_for  # noqa: E402

LATENTS = {
    "SD1.5 512x512": (1, 4, 64, 64),
    "SDXL 1024x1024": (1, 4, 128, 128),
    "SD1.5 batch 4": (4, 4, 64, 64),
    "SDXL batch 4": (4, 4, 128, 128),
    "Flux 1024x1024": (1, 16, 128, 128),
    "video 81x480x832": (1, 16, 21, 60, 104),
}
SAME = (
    "dpmpp_2m", "euler", "heun", "ipndm", "ipndm_v", "deis", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_sde",
    "dpmpp_2s_ancestral", "euler_ancestral", "ddpm",
)  # fmt: skip
HOST: dict[str, tuple[str, dict]] = {name: (name, {}) for name in SAME} | {
    "dpm_2s": ("dpm_2", {}),
    "consistency": ("lcm", {}),
    "dpmpp_3m": ("dpmpp_3m_sde", {"eta": 0.0}),  # an SDE solver: without noise, the same work
}
"""The host's sampler that does the same work as ours, and its options."""
ANCESTRAL = ("euler_ancestral", "ddpm", "consistency")
"""Those whose noise the host draws once a step."""
NOISY = {"ddim": {"eta": 1.0}, "edm": {"s_churn": 10.0}}
"""Options with which samplers add noise that add none by default."""
DRAWS = {20: 4, 4: 8}
"""Steps of a run, and how many draws a step of it may take at most."""
STEPS, REPETITIONS, SECONDS = 20, 15, 0.05
FEW = 5  # repetitions of what takes longer than that
SEED = {"seed": 1}


class Sampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """As of SD1.5."""


class StoredModel:
    """Answers at once; carries what the host's samplers look up on a model."""

    def __init__(self, shape: tuple[int, ...], device: torch.device):
        self.denoised = torch.randn(shape, device=device)
        sampling = Sampling()
        patcher = types.SimpleNamespace(get_model_object=lambda name: sampling)
        self.inner_model = types.SimpleNamespace(
            model_patcher=patcher, inner_model=types.SimpleNamespace(model_sampling=sampling)
        )

    def __call__(self, x: torch.Tensor, sigma: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.denoised


def time_per_step(run: Callable[[], object], repeats: int) -> float:
    """Microseconds."""
    started = time.perf_counter()
    for _ in range(repeats):
        run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats / STEPS * 1e6


def plan_time(spec: SamplerSpec, sigmas: torch.Tensor) -> float:
    """Microseconds per step to make a plan that is not kept yet."""
    times = []
    for i in range(REPETITIONS):
        other = sigmas.cpu() * (1 + 1e-6 * (i + 1))
        started = time.perf_counter()
        spec.plan(other)
        times.append((time.perf_counter() - started) / STEPS * 1e6)
    return statistics.median(times)


def draws_noise(spec: SamplerSpec, sigmas: torch.Tensor) -> bool:
    """Whether it does with its default options."""
    return not spec.adaptive and any(stage.noise for stage in spec.plan(sigmas))


def draws(spec: SamplerSpec, shape: tuple[int, ...], device: torch.device, steps: int) -> tuple[float, float]:
    """Draws of the batch for each step: those that are made, and those that would take as long."""
    plan = spec.plan(SCHEDULES["karras"].function(steps, 0.0292, 14.6146), **NOISY.get(spec.id, {}))
    x = torch.zeros(shape, device=device)

    def make() -> BrownianNoise:
        noise = noise_for(plan, x, 1)
        for stage in plan:
            if stage.noise:
                noise(stage.noise.sigma, stage.noise.sigma_next)
        return noise

    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPETITIONS):
        for run, taken in zip((make, lambda: [torch.randn(shape) for _ in range(steps)]), times, strict=True):
            taken.append(time_per_step(run, 1))
    return make().draws / steps, min(times[0]) / min(times[1])


def tries(spec: SamplerSpec, model: StoredModel, x: torch.Tensor, sigmas: torch.Tensor) -> int:
    """How many steps a run has."""
    info: dict[str, int] = {}
    spec.function(model, x, sigmas, disable=True, info=info)
    return info["n_accept"] + info["n_reject"] if spec.adaptive else STEPS


def measure(shape: tuple[int, ...], device: torch.device) -> dict[str, list[float]]:
    """Times per step of every sampler, ours as `id` and the host's as `host id`."""
    model = StoredModel(shape, device)
    x = torch.randn(shape, device=device) * 14.6146
    sigmas = SCHEDULES["karras"].function(STEPS, 0.0292, 14.6146).float().to(device)
    runs: dict[str, Callable[[], object]] = {}
    for name, spec in SAMPLERS.items():
        if spec.takes_apart:  # the stored model gives one prediction
            continue
        if len(shape) == 5 and draws_noise(spec, sigmas):
            continue
        runs[name] = lambda spec=spec: spec.function(model, x, sigmas, dict(SEED), disable=True)
        if name in HOST:
            theirs, options = HOST[name]
            function = getattr(k_diffusion, f"sample_{theirs}")
            runs[f"host {name}"] = lambda f=function, o=options: f(model, x, sigmas, dict(SEED), disable=True, **o)
    repeats = {name: max(1, int(SECONDS / (time_per_step(run, 1) * STEPS / 1e6))) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(REPETITIONS):
        for name, run in runs.items():
            if repetition < FEW or repeats[name] > 1:
                times[name].append(time_per_step(run, repeats[name]))
    for name, spec in SAMPLERS.items():
        if spec.adaptive and name in times:
            share = STEPS / tries(spec, model, x, sigmas)
            times[name] = [microseconds * share for microseconds in times[name]]
    return times


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"torch {torch.__version__} on {device}, {torch.get_num_threads()} threads, {STEPS} steps")
    sigmas = SCHEDULES["karras"].function(STEPS, 0.0292, 14.6146)
    plans = {name: plan_time(spec, sigmas) for name, spec in SAMPLERS.items() if not spec.adaptive}
    print(
        f"{'latent':18} {'sampler':18} {'plan':>7} {'ours us/step':>13} {'host us/step':>13} {'ratio':>6} {'goal':>5}"
    )
    for latent, shape in LATENTS.items():
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Should have tb<=t1")  # the host's float32 levels
            times = measure(shape, device)
        for name in (name for name in SAMPLERS if name in times):
            row = f"{latent:18} {name:18} {plans.get(name, math.nan):7.1f} {statistics.median(times[name]):13.1f}"
            if name in HOST:
                host = times[f"host {name}"]
                ratio = statistics.median(a / b for a, b in zip(times[name], host, strict=False))
                goal = 0.25 if shape[0] == 1 and len(shape) == 4 else 0.5
                row += f" {statistics.median(host):13.1f} {ratio:6.2f}"
                if name in ANCESTRAL:
                    row += f" {2:5.2f}"
                elif not SAMPLERS[name].stochastic:  # those spend their time on noise, here and there
                    row += f" {goal:5.2f}"
            print(row, flush=True)
    print(f"\n{'latent':18} {'sampler':18} {'steps':>6} {'draws/step':>11} {'their time':>11} {'goal':>5}")
    for latent, shape in LATENTS.items():
        for spec in SAMPLERS.values():
            for steps, goal in DRAWS.items() if spec.stochastic and len(shape) == 4 else ():
                with torch.inference_mode():
                    made, time_taken = draws(spec, shape, device, steps)
                print(f"{latent:18} {spec.id:18} {steps:6} {made:11.2f} {time_taken:11.2f} {goal:5}", flush=True)


if __name__ == "__main__":
    main()
