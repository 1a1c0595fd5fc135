"""One cell of the quality benchmark: a sampler on the levels of a run, for some prompts and seeds, in the real host.

What a cell gave is kept on disk under a key made of all that it depends on, so that a stopped benchmark goes on.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import math
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
if "samplers" not in sys.modules:
    sys.path[:0] = [str(ROOT), str(ROOT / "tools")]  # before the folders of the host, one of which has a samplers.py

import torch  # noqa: E402
from host import COMFYUI_WHEEL, import_comfyui, import_pack  # noqa: E402
from safetensors import safe_open  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from samplers import SAMPLERS, SCHEDULES  # noqa: E402

if "comfy.samplers" not in sys.modules:
    logging.disable(logging.WARNING)  # of node files whose requirements are left out
    import_comfyui()

import comfy.samplers  # noqa: E402

import demo.model  # noqa: E402

WEIGHTS = ROOT / "demo" / "weights.safetensors"
GUIDANCE = 3.0
SHAPE = (12, 16, 16)  # of one latent
OURS_PREFIX = "fewstep_"  # of the pack's names in the host's lists, once it is loaded
VERSION = 1  # raise it when a cell comes to hold something else in a way that its key does not show

torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa would be seen in the errors


class Pair(NamedTuple):
    """A prompt and the seed of its starting noise."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Entry:
    """A sampler with its options."""

    source: str
    """ours, host, or learned: a file of demo/plans"""

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


class Outcome(NamedTuple):
    """What a job gave: an error, a latent or features of each image; or why it failed."""

    values: Tensor
    nfe: int = 0
    failed: str = ""


@dataclass(frozen=True)
class Job:
    """A sampler run on some pairs, and what is kept of it: latents, errors against a reference, or features."""

    entry: Entry
    levels: tuple[float, ...]
    pairs: tuple[Pair, ...]
    budget: int = sys.maxsize
    reference: str = ""
    """Key of the job that made the reference of the same pairs."""

    basis: str = ""
    """Key of the axes on which the latents are projected."""

    @functools.cached_property
    def key(self) -> str:
        """Changes with all that the outcome depends on, and with nothing else."""
        parts = (VERSION, GUIDANCE, _weights(), _identity(self.entry, self.levels), self.pairs)
        return digest(parts, self.reference, self.basis)

    @property
    def cost(self) -> int:
        """Evaluations of single images."""
        return len(self.pairs) * (50 if self.entry.adaptive else count_evaluations(self.entry, self.levels))


class Cache:
    """Outcomes by key, a file each, written whole or not at all."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        return self._path(key).exists()

    def load(self, key: str) -> Outcome:
        with safe_open(self._path(key), "pt") as file:
            about = file.metadata()
            return Outcome(file.get_tensor("values"), int(about["nfe"]), about["failed"])

    def save(self, key: str, outcome: Outcome) -> None:
        part = self.folder / f"{key}.{os.getpid()}.part"
        about = {"nfe": str(outcome.nfe), "failed": outcome.failed}
        save_file({"values": outcome.values.contiguous()}, part, about)
        os.replace(part, self._path(key))


def digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]


# What there is to measure


def our_entries(variants: Mapping[str, Sequence[dict[str, Any]]]) -> list[Entry]:
    """Our samplers with their default options, and the variants: options by sampler."""
    given = [(name, options) for name in SAMPLERS for options in ({}, *variants.get(name, ()))]
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


LEARNED = ROOT / "demo" / "plans"
"""Plans and predictors that were fitted to the demo model, each for one number of evaluations."""


def learned_entries() -> list[Entry]:
    return [Entry("learned", path.stem) for path in sorted(LEARNED.glob("*.safetensors"))]


def learned_path(entry: Entry) -> Path:
    return LEARNED / f"{entry.name}.safetensors"


@functools.cache
def calibrated(entry: Entry) -> Any:
    """As the pack inside the host loads it."""
    return import_pack().samplers.calibrated.file.load(learned_path(entry))


# Levels and evaluations


def make_levels(entry: Entry, schedule: Schedule, steps: int) -> tuple[float, ...]:
    """The levels as the host gives them to a sampler, in float32.

    The host's own come from its KSampler, which for some samplers leaves out the last level above 0.
    """
    if schedule.source == "host":
        model = _model()[0]
        return tuple(
            comfy.samplers.KSampler(model, steps, "cpu", sampler=entry.name, scheduler=schedule.name).sigmas.tolist()
        )
    sampling = _model()[0].get_model_object("model_sampling")
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    sigmas = SCHEDULES[schedule.name].function(steps, low, high, discard_penultimate=schedule.discard)
    return tuple(sigmas.float().tolist())


@functools.cache
def fit_levels(entry: Entry, schedule: Schedule, budget: int) -> tuple[float, ...]:
    """The most steps that the budget of evaluations allows.

    Raises:
        Exception: whatever the schedule raises.
    """
    if entry.source == "learned":
        return tuple(calibrated(entry).recipe.sigmas)
    for steps in range(budget, 0, -1):
        levels = make_levels(entry, schedule, steps)
        if len(levels) > 1 and count_evaluations(entry, levels) <= budget:
            return levels
    raise ValueError(f"no number of steps costs at most {budget} evaluations")


def count_evaluations(entry: Entry, levels: tuple[float, ...]) -> int:
    """Evaluations of a run: of our plan, or of the host's sampler on a model that costs nothing."""
    if entry.source == "learned":
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
    if entry.adaptive or entry.source == "learned":
        return False
    levels = make_levels(entry, Schedule("ours", "exponential"), 6)
    if entry.source == "ours":
        return any(stage.noise for stage in SAMPLERS[entry.name].plan(levels, **dict(entry.options)))
    first, second = (sample(entry, levels, (Pair("", 0),), network=False, seed=seed)[0] for seed in (1, 2))
    return not torch.equal(first, second)


# Keys


@functools.cache
def _weights() -> str:
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()


@functools.cache
def _identity(entry: Entry, levels: tuple[float, ...]) -> tuple[Any, ...]:
    """What the sampler does on these levels. Samplers that do the same share it, and so their cells.

    Of ours it is what comes out on a model that costs nothing: it changes with their behaviour, not with their code.
    """
    if entry.source == "host":
        function = comfy.samplers.sampler_object(entry.name).sampler_function
        return COMFYUI_WHEEL, function.__module__, function.__qualname__, levels
    if entry.source == "learned":
        file = digest(learned_path(entry).read_bytes())
        function = functools.partial(calibrated(entry).function, set_guidance=lambda factor: None)
        return "learned", file, *_behaviour(function, levels)
    return _behaviour(functools.partial(SAMPLERS[entry.name].function, seed=0, **dict(entry.options)), levels)


def _behaviour(function: Callable[..., Tensor], levels: tuple[float, ...]) -> tuple[Any, ...]:
    """Levels that the model is asked for, and the sample, without the last digits, in which two ways to write one
    formula differ."""
    asked = []

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        asked.append(f"{float(sigma[0]):.9g}")
        return torch.tanh(x / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt() + 0.1 * sigma[0].log())

    noise = torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = function(model, noise * levels[0], levels, disable=True)
    return (*asked, *(f"{v:.9g}" for v in x.flatten().tolist()))


# Sampling


@functools.cache
def _model() -> tuple[Any, Any]:
    return demo.model.load(WEIGHTS)


class _Guider(comfy.samplers.CFGGuider):
    """The host's own, counting evaluations: guidance makes two of the network, but one of the model."""

    evaluations = 0

    def predict_noise(self, *args: Any, **kwargs: Any) -> Tensor:
        self.evaluations += 1
        return super().predict_noise(*args, **kwargs)


def _free_model(_: Any, arguments: dict[str, Any]) -> Tensor:
    return arguments["input"] * 0.5


@torch.inference_mode()
def sample(
    entry: Entry, levels: tuple[float, ...], pairs: tuple[Pair, ...], *, network: bool = True, seed: int | None = None
) -> tuple[Tensor, int]:
    """Final latents [N, 12, 16, 16] and evaluations. `network=False` asks a model that costs nothing."""
    patcher, words = _model()
    if not network:
        patcher = patcher.clone()
        patcher.set_model_unet_function_wrapper(_free_model)
    guider = _Guider(patcher)
    guider.set_conds(_conditioning(words, [pair.prompt for pair in pairs]), _conditioning(words, [""]))
    guider.set_cfg(GUIDANCE)
    noise = starting_noise(pairs)
    if entry.source == "ours":
        sampler = comfy.samplers.KSAMPLER(SAMPLERS[entry.name].function, dict(entry.options))
    elif entry.source == "learned":
        sampler = comfy.samplers.KSAMPLER(import_pack().nodes.host.model.plan_function(calibrated(entry)))
    else:
        sampler = comfy.samplers.sampler_object(entry.name)
    seed = pairs[0].seed + 10**9 if seed is None else seed  # apart from those of the starting noise
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the host's tensors and of its Brownian tree
        out = guider.sample(noise, torch.zeros_like(noise), sampler, torch.tensor(levels), disable_pbar=True, seed=seed)
    return out.cpu(), guider.evaluations


def starting_noise(pairs: Sequence[Pair]) -> Tensor:
    """Of each pair, from its seed."""
    return torch.stack([torch.randn(SHAPE, generator=torch.Generator().manual_seed(pair.seed)) for pair in pairs])


def _conditioning(words: Any, prompts: list[str]) -> list[Any]:
    embedding = torch.cat([words.encode(prompt)[0] for prompt in prompts])
    return [[embedding[:, None], {"pooled_output": embedding}]]


def perform(job: Job, cache: Cache) -> Outcome:
    """Run a job and keep its outcome. A sampler that fails is an outcome, too."""
    try:
        latents, nfe = sample(job.entry, job.levels, job.pairs)
        outcome = Outcome(_measure(latents, job, cache), nfe, _complaint(latents, nfe, job.budget))
    except Exception as error:
        outcome = Outcome(torch.full((len(job.pairs),), math.nan), failed=describe_error(error))
    cache.save(job.key, outcome)
    return outcome


def _measure(latents: Tensor, job: Job, cache: Cache) -> Tensor:
    if job.reference:
        return root_mean_square(latents - cache.load(job.reference).values)
    if job.basis:
        return latents.flatten(1) @ cache.load(job.basis).values
    return latents


def _complaint(latents: Tensor, nfe: int, budget: int) -> str:
    if not latents.isfinite().all():
        return "not finite"
    return f"made {nfe} evaluations, {budget} were allowed" if nfe > budget else ""


def describe_error(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def root_mean_square(latents: Tensor) -> Tensor:
    """Of each image."""
    return latents.flatten(1).square().mean(1).sqrt()


# Many cells


class OutOfTime(Exception):
    """The time box is over."""


class Runner:
    """Runs jobs on all workers, out of the cache where they were run before, and says how long it will take."""

    def __init__(self, cache: Cache, workers: int, minutes: float):
        self.cache = cache
        self.expected: dict[str, float] = {}
        """Estimated cost of the stages still to come, in evaluations of single images."""

        self.calls = 0
        """Jobs that were run, not found."""

        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._started = time.monotonic()
        self._deadline = self._started + 60 * minutes
        self._paid, self._work_started, self._reported = 0.0, 0.0, 0.0

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool:
            for worker in multiprocessing.active_children() if kind else []:
                worker.terminate()
            self._pool.shutdown(cancel_futures=True)

    def run(self, stage: str, jobs: Iterable[Job]) -> dict[str, Outcome]:
        """Outcomes by key.

        Raises:
            OutOfTime: when the time box ends before the work.
        """
        wanted = {job.key: job for job in jobs}
        todo = [job for key, job in wanted.items() if key not in self.cache]
        self._begin(stage, sum(job.cost for job in wanted.values()))
        left = sum(job.cost for job in todo)
        for done, job in enumerate(self._finish(todo), 1):
            left -= job.cost
            self.calls += 1
            self._paid += job.cost
            self._report(stage, done, len(todo), left, last=done == len(todo))
        return {key: self.cache.load(key) for key in wanted}

    def _begin(self, stage: str, cost: float) -> None:
        """Correct what is expected: the stages before this one are over, and part of this one is known."""
        stages = list(self.expected)
        if stage in stages:
            self.expected = {name: self.expected[name] for name in stages[stages.index(stage) :]}
            self.expected[stage] = max(self.expected[stage] - cost, 0)

    def _finish(self, todo: list[Job]) -> Iterator[Job]:
        """The jobs, each once it is done. Never more of them are under way than there are workers."""
        if todo and not self._work_started:
            self._work_started = time.monotonic()
        if self._workers <= 1:
            for job in todo:
                self._check_time()
                perform(job, self.cache)
                yield job
            return
        running: dict[Future[Any], Job] = {}
        waiting = iter(todo)
        while True:
            for job in itertools.islice(waiting, 2 * self._workers - len(running)):
                self._check_time()
                running[self._workers_pool().submit(work, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                yield running.pop(future)

    def _workers_pool(self) -> ProcessPoolExecutor:
        if self._pool is None:
            os.environ["OMP_NUM_THREADS"] = "1"
            self._pool = ProcessPoolExecutor(
                self._workers, multiprocessing.get_context("spawn"), start_worker, (self.cache.folder,)
            )
        return self._pool

    def _check_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise OutOfTime

    def _report(self, stage: str, done: int, count: int, left: float, *, last: bool) -> None:
        now = time.monotonic()
        if now - self._reported < 5 and not last:
            return
        self._reported = now
        seconds = (left + sum(self.expected.values())) * (now - self._work_started) / self._paid
        over = "; the time limit comes first" if now + seconds > self._deadline else ""
        print(
            f"{stage}: {done} of {count} runs, {_minutes(now - self._started)} min so far, "
            f"about {_minutes(seconds)} left{over}",
            file=sys.stderr, flush=True,
        )  # fmt: skip


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


# A process of its own


def start_worker(folder: Path) -> None:
    """Each worker has one thread: two of them do more than one with two threads."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops the workers
    torch.set_num_threads(1)
    global _worker_cache
    _worker_cache = Cache(folder)


_worker_cache: Cache


def work(job: Job) -> None:
    perform(job, _worker_cache)
