"""Runs by chance of every sampler in the real ComfyUI: models, levels, options, latents and interrupts at random.

    make fuzz
    .host/venv/bin/python bench/fuzz.py --runs 2000 --seed 0
    .host/venv/bin/python bench/fuzz.py --seed 0 --only 17

A run may end with an image or with a `ValueError` that says what is wrong. All else is a finding, printed with the
number that repeats it: NaN, an exception of another kind, an image far larger than Euler's on the same levels, another
image the second time or in another batch, a change of the model that stays, a run without an end.
"""

from __future__ import annotations

import argparse
import collections
import copy
import math
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools"), str(ROOT / "tests")]

import torch  # noqa: E402
from host import BASE, import_comfyui, load_pack  # noqa: E402

from samplers import SAMPLERS, SCHEDULES, Option  # noqa: E402

NODES = import_comfyui()
load_pack(NODES, BASE / "custom_nodes" / "fewstep")

import comfy.model_management as management  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.utils  # noqa: E402
from small_models import conditioning, small_model  # noqa: E402

N = NODES.NODE_CLASS_MAPPINGS
LARGE = 30.0
"""Times the size of Euler's image: beyond that an image is broken, not inexact."""
SECONDS = 60.0
"""Longer than that a run of a network of a few thousand weights must not take."""
CLOSE = 1e-2
"""Of the largest value: a batch goes through other kernels, and thirty evaluations of a random network enlarge that."""


@dataclass
class Run:
    """What is tried, all of it drawn from one number."""

    chance: random.Random
    kind: str = ""
    shift: float = 1.0
    sampler: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    levels: str = ""
    sigmas: list[float] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    latent: str = ""
    masked: bool = False
    cfg: float = 1.0
    add_noise: bool = True
    seed: int = 0
    stop: int | None = None
    """The evaluation at which the run is interrupted."""

    def __str__(self) -> str:
        sigmas = ", ".join(f"{sigma:.9g}" for sigma in self.sigmas[:12]) + (" ..." if len(self.sigmas) > 12 else "")
        return (
            f"{self.sampler} {self.options} on {self.kind} (shift {self.shift:g}), {self.levels} [{sigmas}], latent "
            f"{self.latent} {list(self.shape)}{' masked' if self.masked else ''}, cfg {self.cfg:g}, "
            f"{'noise' if self.add_noise else 'no noise'}, seed {self.seed}, stop {self.stop}"
        )


def drawn_option(chance: random.Random, option: Option) -> Any:
    """A value that the option allows: often an end of its range."""
    if option.choices:
        return chance.choice(option.choices)
    if isinstance(option.default, bool):
        return chance.random() < 0.5
    low = 0.0 if option.minimum is None else option.minimum
    high = 10.0 if option.maximum is None else option.maximum
    if isinstance(option.default, int):
        return chance.choice([int(low), int(high), option.default, chance.randint(int(low), int(min(high, low + 50)))])
    return chance.choice([low, high, low + (high - low) * chance.random() ** 3, low + 10 ** chance.uniform(-12, -1)])


def drawn_options(chance: random.Random, options: tuple[Option, ...]) -> dict[str, Any]:
    return {option.name: drawn_option(chance, option) for option in options if chance.random() < 0.4}


def patched(run: Run) -> Any:
    """The model."""
    model = small_model(run.kind)
    return N["ModelSamplingSD3"]().patch(model, shift=run.shift)[0] if run.kind == "FLOW" else model


def drawn_sigmas(run: Run, model: Any) -> list[float]:
    """Levels of a scheduler, the host's or ours, or numbers as a person or another pack may send them."""
    chance, sampling = run.chance, model.get_model_object("model_sampling")
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    steps = chance.choice([1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30])
    run.levels = chance.choice(
        ["host", "host", "ours", "ours", "random", "part", "repeated", "ascending", "odd", "far"]
    )
    if run.levels == "host":
        name = chance.choice(comfy.samplers.KSampler.SCHEDULERS)
        denoise = chance.choice([1.0, 1.0, 0.5, 0.02])
        return N["BasicScheduler"].execute(model, name, steps, denoise).result[0].tolist()
    if run.levels == "ours":
        spec = chance.choice([spec for spec in SCHEDULES.values() if spec.any_steps])
        options = drawn_options(chance, spec.options)
        return spec.function(steps, low, high, flow=run.kind == "FLOW", **options).float().tolist()
    ends = (math.log(low), math.log(high))
    sigmas = sorted((math.exp(chance.uniform(*ends)) for _ in range(steps)), reverse=True)
    sigmas = [high, *sigmas, *([0.0] if chance.random() < 0.7 else [])]
    if run.levels == "part":
        start = chance.randrange(len(sigmas))
        part = sigmas[start : chance.randint(start, len(sigmas))]
        return [] if run.kind == "FLOW" and part == [1.0] else part  # there the host divides the latent by 0
    if run.levels == "repeated":
        k = chance.randrange(len(sigmas))
        return sigmas[:k] + [sigmas[k]] * chance.randint(1, 3) + sigmas[k:]
    if run.levels == "ascending":
        return [sigma for sigma in sigmas[::-1] if 0 < sigma < 1 or run.kind != "FLOW"]  # at 1 the host divides by 0
    if run.levels == "odd":
        sigmas[chance.randrange(len(sigmas))] = chance.choice([math.nan, math.inf, -1.0, 1e30, 1e-30, 0.0])
    if run.levels == "far":
        limit = (
            chance.choice([0.9999, 0.99999994, 1.0000001, 0.999, 1.0])
            if run.kind == "FLOW"
            else 10 ** chance.uniform(2, 5)
        )
        return [limit, *[sigma for sigma in sigmas if sigma < 0.9 * limit]]
    return sigmas


def draw(seed: int, number: int) -> tuple[Run, Any]:
    """The run of a number, and its model."""
    run = Run(random.Random(f"{seed}/{number}"))
    chance = run.chance
    run.kind = chance.choice(["EPS", "V_PREDICTION", "EDM", "FLOW", "FLOW"])
    run.shift = round(chance.uniform(0.1, 20), 2)
    model = patched(run)
    spec = chance.choice(list(SAMPLERS.values()))
    run.sampler, run.options = spec.id, drawn_options(chance, spec.options)
    run.shape = (chance.choice([1, 1, 2, 3]), 4, chance.randint(1, 9), chance.randint(1, 9))
    run.latent = chance.choice(["empty", "random", "large"])
    run.masked = chance.random() < 0.15
    run.cfg = chance.choice([1.0, 1.0, 2.5, 7.0, 0.0, -1.0])
    run.add_noise = chance.random() < 0.85
    run.seed = chance.choice([0, 1, chance.randrange(2**64)])
    run.stop = chance.randint(1, 8) if chance.random() < 0.05 else None
    run.sigmas = drawn_sigmas(run, model)
    return run, model


def latent(run: Run) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(run.seed)
    samples = torch.randn(run.shape, generator=generator) * {"empty": 0.0, "random": 1.0, "large": 1e3}[run.latent]
    mask = {"noise_mask": torch.ones(1, *run.shape[2:]).tril()} if run.masked else {}
    return {"samples": samples, **mask}


def sample(run: Run, model: Any, name: str, options: dict[str, Any], image: dict[str, torch.Tensor]) -> torch.Tensor:
    """As a graph does it."""
    count = 0

    def evaluate(apply: Any, arguments: dict[str, Any]) -> torch.Tensor:
        nonlocal count
        count += 1
        if count == run.stop:
            raise management.InterruptProcessingException
        return apply(arguments["input"], arguments["timestep"], **arguments["c"])

    watched = model.clone()
    watched.set_model_unet_function_wrapper(evaluate)
    before = copy.deepcopy({k: v for k, v in watched.model_options.items() if k == "transformer_options"})
    sampler = N["FewStepSampler"].execute(name, **options).result[0]
    sigmas = torch.tensor(run.sigmas, dtype=torch.float32)
    try:
        out = N["SamplerCustom"].execute(
            watched, run.add_noise, run.seed, run.cfg, conditioning(1), conditioning(2), sampler, sigmas, image
        )
    finally:
        assert before == {k: v for k, v in watched.model_options.items() if k == "transformer_options"}, "options stay"
    return out.result[0]["samples"]


def attempt(run: Run, model: Any) -> tuple[str, str]:
    """How a run ended, and what is wrong about it, if anything is."""
    started = time.monotonic()
    image = latent(run)
    try:
        found = sample(run, model, run.sampler, run.options, image)
    except management.InterruptProcessingException:
        return "interrupted", "" if run.stop else "nobody asked for an interrupt"
    except ValueError as error:
        return "refused", "" if len(str(error)) > 30 else f"the error says little: {error}"
    except Exception as error:
        return "error", f"{type(error).__name__}: {error}"
    took = time.monotonic() - started
    if took > SECONDS:
        return "image", f"it took {took:.0f} s"
    if found.shape != image["samples"].shape:
        return "image", f"shape {list(found.shape)}"
    if not found.isfinite().all():
        return "image", "not finite"
    return "image", wrong(run, model, image, found)


def wrong(run: Run, model: Any, image: dict[str, torch.Tensor], found: torch.Tensor) -> str:
    """What is wrong about an image; an empty text if nothing is."""
    spec, stop, run.stop = SAMPLERS[run.sampler], run.stop, None
    if (
        stop is None
        and run.chance.random() < 0.2
        and not torch.equal(found, sample(run, model, run.sampler, run.options, image))
    ):
        return "another image the second time"
    whole = math.prod(run.shape[1:]) % 16 == 0  # else the host's starting noise of an image depends on its batch
    if len(found) > 1 and whole and not spec.adaptive and run.chance.random() < 0.5:
        one = {"samples": image["samples"][:1], **{k: v for k, v in image.items() if k != "samples"}}
        alone = sample(run, model, run.sampler, run.options, one)
        difference = float((alone - found[:1]).abs().max() / found[:1].abs().max().clamp(min=1e-6))
        if difference > CLOSE:
            return f"image 0 alone differs by {difference:.2g}"
    descending = all(a > b for a, b in zip(run.sigmas, run.sigmas[1:], strict=False))
    if descending and not spec.stochastic:
        plain = sample(run, model, "euler", {}, image)
        ratio = float(found.square().mean().sqrt() / plain.square().mean().sqrt().clamp(min=1e-6))
        if ratio > LARGE:
            return f"{ratio:.3g} times the size of Euler's image"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one run, to look at it again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    comfy.utils.PROGRESS_BAR_ENABLED = False
    counts: collections.Counter[str] = collections.Counter()
    findings, started = 0, time.monotonic()
    for number in range(options.runs) if options.only is None else [options.only]:
        with torch.inference_mode():
            try:
                run, model = draw(options.seed, number)
            except ValueError:
                counts["schedule refused"] += 1
                continue
            ended, trouble = attempt(run, model)
        counts[ended] += 1
        if trouble or options.only is not None:
            findings += bool(trouble)
            print(f"{number}: {ended}: {trouble or 'nothing wrong'}\n    {run}", flush=True)
    listed = ", ".join(f"{count} {name}" for name, count in counts.most_common())
    print(f"{sum(counts.values())} runs in {time.monotonic() - started:.0f} s: {listed}; {findings} findings")
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
