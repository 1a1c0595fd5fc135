"""Cells of the quality benchmarks: a sampler on the levels of a run, for some prompts and seeds, in the real host."""

from __future__ import annotations

import functools
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if "samplers" not in sys.modules:
    sys.path[:0] = [str(ROOT), str(ROOT / "tools")]  # before the folders of the host, one of which has a samplers.py

import torch  # noqa: E402
from host import COMFYUI_WHEEL, import_comfyui, import_pack  # noqa: E402
from torch import Tensor  # noqa: E402

from samplers import SAMPLERS, SCHEDULES  # noqa: E402

if "comfy.samplers" not in sys.modules:
    logging.disable(logging.WARNING)  # of node files whose requirements are left out
    import_comfyui()

import comfy.samplers  # noqa: E402

import demo.model  # noqa: E402

WEIGHTS = ROOT / "demo" / "weights.safetensors"
GUIDANCE = 3.0
HOST = COMFYUI_WHEEL  # its version
SHAPE = (12, 16, 16)  # of one latent
OURS_PREFIX = "fewstep_"  # of the pack's names in the host's lists, once it is loaded

torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa would be seen in the errors


class Pair(NamedTuple):
    """A prompt and the seed of its starting noise."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Entry:
    """A sampler with its options."""

    source: str
    """ours, host, or calibrated: a file of demo/plans"""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options)
        return f"{self.name} ({options})" if options else self.name

    @property
    def adaptive(self) -> bool:
        """Whether it decides for itself how many evaluations it makes."""
        return self.name == "dpm_adaptive"


@dataclass(frozen=True)
class Schedule:
    """A schedule; `discard` leaves out its last level above 0."""

    source: str
    name: str
    discard: bool = False

    def __str__(self) -> str:
        return self.name + "*" * self.discard


# What there is to measure


def our_entries(variants: Mapping[str, Sequence[dict[str, Any]]]) -> list[Entry]:
    """Our samplers with their default options, and the variants: options by sampler."""
    single = [name for name, spec in SAMPLERS.items() if not spec.takes_apart]  # CFG++ leads to another image
    given = [(name, options) for name in single for options in ({}, *variants.get(name, ()))]
    return [Entry("ours", name, tuple(sorted(options.items()))) for name, options in given]


def host_entries() -> list[Entry]:
    """The host's samplers. `..._gpu` is left out: the same sampler, its noise drawn on another device."""
    names = [n for n in comfy.samplers.KSampler.SAMPLERS if not n.startswith(OURS_PREFIX)]
    return [Entry("host", name) for name in names if not name.endswith("_gpu")]


def our_schedules() -> list[Schedule]:
    return [
        Schedule("ours", name, discard)
        for name, spec in SCHEDULES.items()
        if spec.any_steps
        for discard in (False, True)
    ]


def host_schedules() -> list[Schedule]:
    return [Schedule("host", n) for n in comfy.samplers.SCHEDULER_HANDLERS if not n.startswith(OURS_PREFIX)]


PLANS = ROOT / "demo" / "plans"
"""Plans and predictors that were fitted to the demo model, each for one number of evaluations."""


def plan_entries() -> list[Entry]:
    return [Entry("calibrated", path.stem) for path in sorted(PLANS.glob("*.safetensors"))]


def plan_path(entry: Entry) -> Path:
    return PLANS / f"{entry.name}.safetensors"


@functools.cache
def calibrated(entry: Entry) -> Any:
    """As the pack inside the host loads it."""
    return import_pack().samplers.calibrated.plan.load(plan_path(entry))


# Levels and evaluations


def make_levels(entry: Entry, schedule: Schedule, steps: int) -> tuple[float, ...]:
    """The levels as the host gives them to a sampler, in float32.

    The host's own come from its KSampler, which for some samplers leaves out the last level above 0.
    """
    if schedule.source == "host":
        patcher = model()[0]
        return tuple(
            comfy.samplers.KSampler(patcher, steps, "cpu", sampler=entry.name, scheduler=schedule.name).sigmas.tolist()
        )
    sampling = model()[0].get_model_object("model_sampling")
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    sigmas = SCHEDULES[schedule.name].function(steps, low, high, discard_penultimate=schedule.discard)
    return tuple(sigmas.float().tolist())


@functools.cache
def fit_levels(entry: Entry, schedule: Schedule, budget: int) -> tuple[float, ...]:
    """The most steps that the budget of evaluations allows.

    Raises:
        Exception: whatever the schedule raises.
    """
    if entry.source == "calibrated":
        return tuple(calibrated(entry).recipe.sigmas)
    for steps in range(budget, 0, -1):
        levels = make_levels(entry, schedule, steps)
        if len(levels) > 1 and count_evaluations(entry, levels) <= budget:
            return levels
    raise ValueError(f"no number of steps costs at most {budget} evaluations")


def count_evaluations(entry: Entry, levels: tuple[float, ...]) -> int:
    """Evaluations of a run: of our plan, or of the host's sampler on a model that costs nothing."""
    if entry.source == "calibrated":
        return int(calibrated(entry).recipe.nfe)
    if entry.source == "ours":
        return SAMPLERS[entry.name].nfe(levels, **dict(entry.options))
    return _count_of_host(entry, len(levels), levels[-1] == 0)


@functools.cache
def _count_of_host(entry: Entry, count: int, ends_at_zero: bool) -> int:
    """It depends on the number of levels and on whether the last is 0; the levels themselves do not matter."""
    levels = make_levels(entry, Schedule("ours", "exponential"), max(count - ends_at_zero, 1))
    levels = levels if ends_at_zero else levels[:-1]
    return sample(entry, levels, (Pair("", 0),), network=False)[1]


@functools.cache
def is_stochastic(entry: Entry) -> bool:
    """Whether the result depends on the seed of the noise that is added on the way."""
    if entry.adaptive or entry.source == "calibrated":
        return False
    levels = make_levels(entry, Schedule("ours", "exponential"), 6)
    if entry.source == "ours":
        return any(stage.noise for stage in SAMPLERS[entry.name].plan(levels, **dict(entry.options)))
    first, second = (sample(entry, levels, (Pair("", 0),), network=False, seed=seed)[0] for seed in (1, 2))
    return not torch.equal(first, second)


# Sampling


@functools.cache
def model() -> tuple[Any, Any]:
    """The demo model as the host has it, and its words."""
    return demo.model.load(WEIGHTS)


class _Guider(comfy.samplers.CFGGuider):
    """The host's own, counting evaluations: guidance makes two of the network, but one of the model."""

    evaluations = 0

    def predict_noise(self, *args: Any, **kwargs: Any) -> Tensor:
        self.evaluations += 1
        return super().predict_noise(*args, **kwargs)


def _free_model(_: Any, arguments: dict[str, Any]) -> Tensor:
    return arguments["input"] * 0.5


def sample(
    entry: Entry, levels: tuple[float, ...], pairs: tuple[Pair, ...], *, network: bool = True, seed: int | None = None
) -> tuple[Tensor, int]:
    """Final latents [N, 12, 16, 16] and evaluations. `network=False` asks a model that costs nothing."""
    patcher, _ = model()
    if not network:
        patcher = patcher.clone()
        patcher.set_model_unet_function_wrapper(_free_model)
    guider = _Guider(patcher)
    guider.set_cfg(GUIDANCE)
    if entry.source == "ours":
        sampler = comfy.samplers.KSAMPLER(SAMPLERS[entry.name].function, dict(entry.options))
    elif entry.source == "calibrated":
        sampler = comfy.samplers.KSAMPLER(import_pack().nodes.host.sampling.plan_function(calibrated(entry)))
    else:
        sampler = comfy.samplers.sampler_object(entry.name)
    seed = pairs[0].seed + 10**9 if seed is None else seed  # apart from those of the starting noise
    torch.manual_seed(seed)
    return run(guider, sampler, levels, pairs, seed), guider.evaluations


@torch.inference_mode()
def run(guider: Any, sampler: Any, levels: Sequence[float], pairs: Sequence[Pair], seed: int = 0) -> Tensor:
    """Final latents of a guider of the host, [N, 12, 16, 16]: the prompts of the pairs, and none, from their noise."""
    words, noise = model()[1], starting_noise(pairs)
    guider.set_conds(_conditioning(words, [pair.prompt for pair in pairs]), _conditioning(words, [""]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the host's tensors and of its Brownian tree
        out = guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(levels), disable_pbar=True, seed=seed)
    return out.cpu()


def starting_noise(pairs: Sequence[Pair]) -> Tensor:
    """Of each pair, from its seed."""
    return torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(pair.seed)) for pair in pairs])


def _conditioning(words: Any, prompts: list[str]) -> list[Any]:
    embedding = torch.cat([words.encode(prompt)[0] for prompt in prompts])
    return [[embedding[:, None], {"pooled_output": embedding}]]


def chunks(items: Sequence[Pair], size: int) -> list[Sequence[Pair]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


def root_mean_square(latents: Tensor) -> Tensor:
    """Of each image."""
    return latents.flatten(1).square().mean(1).sqrt()
