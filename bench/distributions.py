"""Distances of stochastic samplers: between the distribution of their samples, that of many steps, and the data."""

from __future__ import annotations

import itertools
import math
import sys
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench import cells, distances
from bench.cells import Entry, Pair, Schedule, chunks
from bench.errors import Bench, Cell
from bench.jobs import Job, Outcome, describe_error, digest
from bench.runner import OutOfTime
from bench.settings import Way
from bench.subjects import ROOT

AXES, DIRECTIONS = 16, 256  # of the Fréchet and of the sliced Wasserstein distance


class Features(NamedTuple):
    """Samples on the principal axes, and on random directions."""

    axes: Tensor
    slices: Tensor


class Distances(NamedTuple):
    """Of a set of samples to another, each with the standard error of the drawing."""

    wasserstein: tuple[float, float]
    frechet: tuple[float, float]


GROUPS = 10  # of prompts, for the standard errors


def compare(samples: Features, target: Features, prompts: int) -> Distances:
    """Both sets go through the same prompts in turn."""
    groups = _groups(samples, prompts), _groups(target, prompts)
    return Distances(
        distances.with_error(distances.sliced_wasserstein, samples.slices, target.slices, groups),
        distances.with_error(distances.frechet, samples.axes, target.axes, groups),
    )


def _groups(samples: Features, prompts: int) -> Tensor:
    return torch.arange(len(samples.axes)) % prompts % GROUPS


@dataclass
class Distribution:
    """Distances to the data and to many-step samples, by sampler; `many` and `data` are what they are held against."""

    many: Features
    data: Features | None
    prompts: int
    """How many there are. Every set takes them in turn, from the first on; image k of the data has prompt k."""

    rows: list[tuple[Cell, Outcome, Distances, Distances | None]] = field(default_factory=list)

    def add(self, cell: Cell, outcome: Outcome) -> None:
        samples = split(outcome.values)
        data = compare(samples, self.data, self.prompts) if self.data else None
        self.rows.append((cell, outcome, compare(samples, self.many, self.prompts), data))

    def halves(self) -> tuple[float, float]:
        """How far two independent sets of many-step samples are apart: halves, scaled to the size of the whole."""
        count = len(self.many.axes)
        half = count // 2 // self.prompts * self.prompts or count // 2  # the same prompts in both
        first, second = (Features(*(f[i : i + half] for f in self.many)) for i in (0, half))
        wasserstein = distances.sliced_wasserstein(first.slices, second.slices)
        return wasserstein * math.sqrt(half / count), distances.frechet(first.axes, second.axes) * half / count


def split(projected: Tensor) -> Features:
    return Features(projected[:, :AXES], projected[:, AXES:])


def load_data() -> tuple[Tensor, list[str]] | None:
    """The training images as latents, and the words of each; None if they cannot be had."""
    sys.path.append(str(ROOT / "demo"))  # for `model`, as the script itself has it
    try:
        from demo.train import load_emoji

        latents, words = load_emoji(ROOT / ".host" / "data")
    except Exception as error:
        print(f"the training images cannot be had ({error}): no distances to the data", file=sys.stderr)
        return None
    finally:
        sys.path.remove(str(ROOT / "demo"))
    return latents, [" ".join(w) for w in words]


class Sampling:
    """The stages of the stochastic samplers. Many-step samples, choice and report use different seeds."""

    def __init__(self, bench: Bench):
        self.bench, self.size, self.runner = bench, bench.size, bench.runner
        self.subject = bench.subject
        data = load_data()
        self.prompts = data[1] if data else list(self.subject.prompts)
        many = self._many_steps(bench.limits.many_steps, first=10**6)
        found = self.runner.run("many-step samples", many)
        latents = torch.cat([found[job.key].values for job in many]).flatten(1)
        self.basis = digest([job.key for job in many], AXES, DIRECTIONS)
        if self.basis not in self.runner.cache:
            axes = distances.principal_axes(latents, AXES)
            columns = torch.cat([axes, distances.directions(latents.shape[1], DIRECTIONS)], dim=1)
            self.runner.cache.save(self.basis, Outcome(columns))
        columns = self.runner.cache.load(self.basis).values
        pictures = split(data[0].flatten(1) @ columns) if data else None
        self.result = Distribution(split(latents @ columns), pictures, len(self.prompts))

    def _many_steps(self, way: Way, first: int, **more: Any) -> list[Job]:
        levels = cells.make_levels(self.subject, *way, self.size.many_steps)
        return self._batches(way[0], levels, first, self.size.samples, **more)

    def _batches(self, entry: Entry, levels: tuple[float, ...], first: int, count: int, **more: Any) -> list[Job]:
        pairs = [Pair(self.prompts[i % len(self.prompts)], first + i) for i in range(count)]
        batches = chunks(self.subject, pairs, self.size.batch)
        return [Job(self.subject, entry, levels, batch, **more) for batch in batches]

    def run(self, stage: str, cell: Cell, first: int, count: int) -> Outcome:
        """Features of `count` samples, whose seeds begin with `first`."""
        try:
            budget = cell.budget or sys.maxsize
            jobs = self._batches(cell.entry, self.bench.levels_of(cell), first, count, budget=budget, basis=self.basis)
            outcome = self._collect(stage, jobs)
        except OutOfTime:
            raise
        except Exception as error:
            outcome = Outcome(torch.empty(0), failed=describe_error(error))
        if outcome.failed:
            self.bench.failures[cell] = outcome.failed
        return outcome

    def _collect(self, stage: str, jobs: list[Job]) -> Outcome:
        outcomes = list(self.runner.run(stage, jobs).values())
        failed = next((o.failed for o in outcomes if o.failed), "")
        values = torch.empty(0) if failed else torch.cat([o.values for o in outcomes])
        return Outcome(values, max(o.nfe for o in outcomes), failed)

    def choose(self, entries: list[Entry], schedules: dict[str, list[Schedule]]) -> list[tuple[Entry, Schedule]]:
        """Each sampler with its schedule, the best samplers first."""
        tried: dict[Entry, tuple[float, Schedule]] = {}
        for entry in entries:
            for schedule in schedules[entry.source][: self.size.sample_schedules]:
                cell = Cell(entry, schedule, self.size.first_look)
                outcome = self.run("schedules, stochastic", cell, 2 * 10**6, self.size.sample_choosing)
                distance = math.inf
                if not outcome.failed:
                    distance = distances.frechet(split(outcome.values).axes, self.result.many.axes)
                tried[entry] = min(tried.get(entry, (math.inf, schedule)), (distance, schedule), key=itemgetter(0))
        return [(entry, schedule) for entry, (_, schedule) in sorted(tried.items(), key=lambda item: item[1][0])]

    def measure(self, chosen: list[tuple[Entry, Schedule]], compared: list[Cell], weak: list[Cell]) -> None:
        """Fills `result`: in turn the best of ours and of the host, with the deterministic ones in between: the best,
        and calibrated ones whose error is not below their base's."""
        by_source = [[c for c in chosen if c[0].source == source] for source in ("ours", "host")]
        in_turn = [c for two in itertools.zip_longest(*by_source) for c in two if c]
        noisy = [Cell(entry, schedule, b) for entry, schedule in in_turn for b in self.size.sample_budgets]
        best = 2 * len(self.size.sample_budgets)
        for cell in dict.fromkeys(noisy[:best] + compared + weak + noisy[best:]):
            outcome = self.run("stochastic samplers", cell, 3 * 10**6, self.size.samples)
            if not outcome.failed:
                self.result.add(cell, outcome)
        limit = self.bench.limits.reference
        ode = self._many_steps(limit, first=4 * 10**6, basis=self.basis)
        self.result.add(Cell(*limit, self.size.many_steps), self._collect("many-step samples", ode))
