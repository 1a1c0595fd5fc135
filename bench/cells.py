"""Cells of the quality benchmarks: a sampler on the levels of a run, for some prompts and seeds, in the real host."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from bench.subjects import Subject, pack  # first: it finds the host for the others

# isort: split
import comfy.samplers
import torch
from host import COMFYUI_WHEEL
from torch import Tensor

from samplers import SAMPLERS, SCHEDULES

HOST = COMFYUI_WHEEL  # its version
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
    """ours, host, or calibrated: a plan or a predictor"""

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    file: Path | None = None
    """Of a plan or predictor."""

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
    """Those of ours for any number of steps, with and without their last level: once, and not by another name, too."""
    return [
        Schedule("ours", name, discard)
        for name, spec in SCHEDULES.items()
        if spec.any_steps and not name.endswith("_discard")
        for discard in (False, True)
    ]


def host_schedules() -> list[Schedule]:
    return [Schedule("host", n) for n in comfy.samplers.SCHEDULER_HANDLERS if not n.startswith(OURS_PREFIX)]


def plan_entries(subject: Subject) -> list[Entry]:
    """Plans and predictors that were fitted to the subject, each for one number of evaluations."""
    return [Entry("calibrated", path.stem, file=path) for path in subject.plans]


@functools.cache
def calibrated(entry: Entry) -> Any:
    """As the pack inside the host loads it."""
    assert entry.file
    return pack().samplers.calibrated.plan.load(entry.file)


# Levels and evaluations


def make_levels(subject: Subject, entry: Entry, schedule: Schedule, steps: int) -> tuple[float, ...]:
    """The levels as the host gives them to a sampler, in float32.

    The host's own come from its KSampler, which for some samplers leaves out the last level above 0.
    """
    if schedule.source == "host":
        names = {"sampler": entry.name, "scheduler": schedule.name}
        return tuple(comfy.samplers.KSampler(subject.patcher, steps, "cpu", **names).sigmas.tolist())
    spec = SCHEDULES[schedule.name]
    sigmas = pack().nodes.host.sampling.sigmas_over(spec, subject.levels, steps, discard_penultimate=schedule.discard)
    return tuple(sigmas.tolist())


@functools.cache
def fit_levels(subject: Subject, entry: Entry, schedule: Schedule, budget: int) -> tuple[float, ...]:
    """The most steps that the budget of evaluations allows.

    Raises:
        Exception: whatever the schedule raises.
    """
    if entry.source == "calibrated":
        return tuple(calibrated(entry).recipe.sigmas)
    for steps in range(budget, 0, -1):
        levels = make_levels(subject, entry, schedule, steps)
        if len(levels) > 1 and count_evaluations(subject, entry, levels) <= budget:
            return levels
    raise ValueError(f"no number of steps costs at most {budget} evaluations")


def count_evaluations(subject: Subject, entry: Entry, levels: tuple[float, ...]) -> int:
    """Evaluations of a run: of our plan, or of the host's sampler on a model that costs nothing."""
    if entry.source == "calibrated":
        return int(calibrated(entry).recipe.nfe)
    if entry.source == "ours":
        return SAMPLERS[entry.name].nfe(levels, flow=subject.levels.flow, **dict(entry.options))
    return _count_of_host(subject, entry, len(levels), levels[-1] == 0)


@functools.cache
def _count_of_host(subject: Subject, entry: Entry, count: int, ends_at_zero: bool) -> int:
    """It depends on the number of levels and on whether the last is 0; the levels themselves do not matter."""
    levels = make_levels(subject, entry, _ANY, max(count - ends_at_zero, 1))
    levels = levels if ends_at_zero else levels[:-1]
    return sample(subject, entry, levels, _one_pair(subject), network=False)[1]


@functools.cache
def is_stochastic(subject: Subject, entry: Entry) -> bool:
    """Whether the result depends on the seed of the noise that is added on the way."""
    if entry.adaptive or entry.source == "calibrated":
        return False
    levels = make_levels(subject, entry, _ANY, 6)
    if entry.source == "ours":
        plan = SAMPLERS[entry.name].plan(levels, flow=subject.levels.flow, **dict(entry.options))
        return any(stage.noise for stage in plan)
    first, second = (sample(subject, entry, levels, _one_pair(subject), network=False, seed=s)[0] for s in (1, 2))
    return not torch.equal(first, second)


_ANY = Schedule("ours", "time_uniform")


def _one_pair(subject: Subject) -> tuple[Pair, ...]:
    return (Pair(subject.prompts[0], 0),)


# Sampling


class _Guider(comfy.samplers.CFGGuider):
    """The host's own, counting evaluations: guidance makes two of the network, but one of the model."""

    evaluations = 0

    def predict_noise(self, *args: Any, **kwargs: Any) -> Tensor:
        self.evaluations += 1
        return super().predict_noise(*args, **kwargs)


def _free_model(_: Any, arguments: dict[str, Any]) -> Tensor:
    return arguments["input"] * 0.5


def sample(
    subject: Subject,
    entry: Entry,
    levels: tuple[float, ...],
    pairs: tuple[Pair, ...],
    *,
    network: bool = True,
    seed: int | None = None,
) -> tuple[Tensor, int]:
    """Final latents [N, ...] and evaluations. `network=False` asks a model that costs nothing."""
    patcher = subject.patcher
    if not network:
        patcher = patcher.clone()
        patcher.set_model_unet_function_wrapper(_free_model)
    guider = _Guider(patcher)
    guider.set_cfg(subject.guidance)
    if entry.source == "ours":
        sampler = comfy.samplers.KSAMPLER(SAMPLERS[entry.name].function, dict(entry.options) | dict(subject.space))
    elif entry.source == "calibrated":
        sampler = comfy.samplers.KSAMPLER(pack().nodes.host.sampling.plan_function(calibrated(entry)))
    else:
        sampler = comfy.samplers.sampler_object(entry.name)
    seed = pairs[0].seed + 10**9 if seed is None else seed  # apart from those of the starting noise
    torch.manual_seed(seed)
    return run(subject, guider, sampler, levels, pairs, seed), guider.evaluations


@torch.inference_mode()
def run(
    subject: Subject, guider: Any, sampler: Any, levels: Sequence[float], pairs: Sequence[Pair], seed: int = 0
) -> Tensor:
    """Final latents of a guider of the host, [N, ...]: the prompts of the pairs, from their noise."""
    noise = starting_noise(subject, pairs)
    guider.set_conds(*subject.conditioning([pair.prompt for pair in pairs]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the host's tensors and of its Brownian tree
        out = guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(levels), disable_pbar=True, seed=seed)
    return out.cpu()


def starting_noise(subject: Subject, pairs: Sequence[Pair]) -> Tensor:
    """Of each pair, from its seed."""
    generators = [torch.Generator().manual_seed(pair.seed) for pair in pairs]
    return torch.stack([torch.randn(subject.shape, generator=generator) for generator in generators])


def chunks(subject: Subject, pairs: Sequence[Pair], size: int) -> list[tuple[Pair, ...]]:
    """Batches of at most `size`, of one prompt each where the subject wants it."""
    if subject.mixed:
        groups = [list(pairs)]
    else:
        groups = [
            [pair for pair in pairs if pair.prompt == prompt] for prompt in dict.fromkeys(p.prompt for p in pairs)
        ]
    return [tuple(group[i : i + size]) for group in groups for i in range(0, len(group), size)]


def root_mean_square(latents: Tensor) -> Tensor:
    """Of each image."""
    return latents.flatten(1).square().mean(1).sqrt()
