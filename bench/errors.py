"""Errors of deterministic samplers: the distance of their final latents to those of many steps."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bench import cells
from bench.cells import Entry, Pair, Schedule, chunks, root_mean_square
from bench.jobs import Job, describe_error
from bench.runner import Runner
from bench.settings import LIMITS, Limits, Size, Way
from bench.subjects import Subject

CONTENDER = 2.0  # cells whose error is this many times the least are not measured on all pairs


class Cell(NamedTuple):
    """A sampler on a schedule, for a number of evaluations. Without a budget it takes as many as it wants."""

    entry: Entry
    schedule: Schedule
    budget: int | None

    @property
    def source(self) -> str:
        """That of the sampler; `borrowed` where the schedule has another."""
        return self.entry.source if self.entry.source == self.schedule.source else "borrowed"


Choices = dict[tuple[Entry, int], list[Schedule]]
"""Schedules of a sampler for a budget."""


@dataclass
class Score:
    """What a cell came to on some pairs."""

    errors: Tensor
    steps: int = 0
    nfe: float = 0.0
    failed: str = ""

    @property
    def median(self) -> float:
        return math.inf if self.failed else float(self.errors.quantile(0.5))

    @property
    def size(self) -> float:
        """The geometric mean, which weighs all pairs alike: schedules are chosen by it."""
        return math.inf if self.failed else float(self.errors.clamp(min=1e-12).log().mean().exp())


@dataclass
class Bench:
    """The measurements of deterministic samplers, stage by stage."""

    subject: Subject
    size: Size
    runner: Runner
    scores: dict[Cell, Score] = field(default_factory=dict)
    """Of the cells that are reported, as far as they are known."""

    failures: dict[Cell, str] = field(default_factory=dict)

    @property
    def limits(self) -> Limits:
        return LIMITS[self.subject.levels.flow]

    def levels_of(self, cell: Cell) -> tuple[float, ...]:
        if cell.budget is None:  # it uses the first and the last level
            return cells.make_levels(self.subject, cell.entry, cell.schedule, 10)
        return cells.fit_levels(self.subject, cell.entry, cell.schedule, cell.budget)

    def references(self, which: Way, pairs: Sequence[Pair], batch: int) -> list[Job]:
        levels = cells.make_levels(self.subject, *which, self.size.reference_steps)
        return [Job(self.subject, which[0], levels, chunk) for chunk in chunks(self.subject, pairs, batch)]

    def score(self, stage: str, wanted: Iterable[Cell], pairs: Sequence[Pair], batch: int) -> dict[Cell, Score]:
        """Errors of the final latents against the reference, for each cell."""
        references = self.references(self.limits.reference, pairs, batch)
        self.runner.run("references", references)
        jobs, scores = {}, {}
        for cell in dict.fromkeys(wanted):
            try:
                levels = self.levels_of(cell)
            except Exception as error:
                scores[cell] = Score(torch.empty(0), failed=describe_error(error))
                continue
            budget = cell.budget or sys.maxsize
            jobs[cell] = [Job(self.subject, cell.entry, levels, r.pairs, budget, reference=r.key) for r in references]
        found = self.runner.run(stage, [job for chunk in jobs.values() for job in chunk])
        for cell, parts in jobs.items():
            outcomes = [found[job.key] for job in parts]
            scores[cell] = Score(
                torch.cat([o.values for o in outcomes]),
                len(parts[0].levels) - 1,
                statistics.mean(o.nfe for o in outcomes),
                next((o.failed for o in outcomes if o.failed), ""),
            )
        self.failures |= {cell: score.failed for cell, score in scores.items() if score.failed}
        return scores

    def floor(self) -> tuple[float, float]:
        """Median and 90th percentile of the distance between two references of 200 steps."""
        pairs = self.size.reported_on(self.subject)[: self.size.batch]
        jobs = [self.references(which, pairs, self.size.batch) for which in self.limits[:2]]
        found = self.runner.run("references", itertools.chain(*jobs))
        first, second = (torch.cat([found[job.key].values for job in part]) for part in jobs)
        errors = root_mean_square(self.subject.scaled(first) - self.subject.scaled(second))
        return float(errors.quantile(0.5)), float(errors.quantile(0.9))

    def rank(self, stage: str, choices: Choices, pairs: int) -> Choices:
        """The schedules that did not fail, best first; of those with the same levels one."""
        wanted = [Cell(entry, s, budget) for (entry, budget), schedules in choices.items() for s in schedules]
        scores = self.score(stage, wanted, self.size.chosen_on(self.subject)[:pairs], self.size.choosing[0])
        good = sorted((cell for cell in wanted if not scores[cell].failed), key=lambda cell: scores[cell].size)
        ranks: dict[tuple[Entry, int], dict[tuple[float, ...], Schedule]] = {choice: {} for choice in choices}
        for cell in good:
            assert cell.budget
            ranks[cell.entry, cell.budget].setdefault(self.levels_of(cell), cell.schedule)
        return {choice: list(by_levels.values()) for choice, by_levels in ranks.items()}

    def choose(self, schedules: dict[Entry, list[Schedule]]) -> list[Cell]:
        """Each sampler with the best of its schedules for each budget, in three looks on the pairs for choosing."""
        size, (few, some), (many, keep) = self.size, self.size.choosing, self.size.schedules
        all_ = {(entry, size.first_look): mine for entry, mine in schedules.items()}
        first = self.rank("schedules, first look", all_, few)
        better = {(entry, b): mine[:many] for (entry, _), mine in first.items() for b in size.second_look}
        second = self.rank("schedules, second look", better, some)
        last = {
            (entry, budget): near(budget, {b: second[entry, b] for b in size.second_look}, keep) or mine[:1]
            for entry, mine in schedules.items()  # if all have failed, one is kept to show it
            for budget in size.budgets
        }
        third = self.rank("schedules, third look", last, some)
        return [Cell(entry, (third[entry, b] or mine)[0], b) for (entry, b), mine in last.items()]

    def report(self, wanted: list[Cell], which: str) -> None:
        """Errors on the pairs for the report; on the first batch alone where a cell cannot win. Fills `scores`."""
        pairs, batch = self.size.reported_on(self.subject), self.size.batch
        first = self.score(f"report, {which}", wanted, pairs[:batch], batch)
        self.scores |= first
        least: dict[int | None, float] = defaultdict(lambda: math.inf)
        for cell, score in first.items():
            least[cell.budget] = min(least[cell.budget], score.median)
        contenders = [cell for cell in wanted if first[cell].median <= CONTENDER * least[cell.budget]]
        self.scores |= self.score(f"report, {which}: contenders", contenders, pairs, batch)

    def expect(self, schedules: dict[Entry, list[Schedule]], stochastic: int) -> None:
        """Rough costs of what is to come, for the time left."""
        size, samplers = self.size, len(schedules)
        few, some = size.choosing
        first = min(size.batch, size.pairs)
        self.runner.expected = {
            "references": size.reference_steps * (size.pairs + some + first),
            "schedules, first look": sum(map(len, schedules.values())) * size.first_look * few,
            "schedules, second look": samplers * size.schedules[0] * sum(size.second_look) * some,
            "schedules, third look": samplers * size.schedules[1] * sum(size.budgets) * some * 0.8,
            "report, all": samplers * sum(size.budgets) * first,
            "report, all: contenders": samplers * sum(size.budgets) * (size.pairs - first) * 0.3,
            "report, borrowed": size.borrowers * sum(size.budgets) * (first + size.schedules[1] * some),
        }
        if size.samples and stochastic:
            tries = stochastic * size.sample_schedules * size.sample_choosing
            self.runner.expected |= {
                "many-step samples": size.samples * size.many_steps,
                "schedules, stochastic": tries * size.first_look,
                "stochastic samplers": size.samples * sum(size.sample_budgets) * (stochastic + 2),
            }


def near(budget: int, ranks: dict[int, list[Schedule]], keep: int) -> list[Schedule]:
    """The schedules to try at a budget: the best at the nearest that was looked at, or some of both beside it."""
    low, high = min(ranks), max(ranks)
    if budget <= low:
        return ranks[low][:keep]
    if budget >= high:
        return ranks[high][:keep]
    share = math.ceil((keep + 1) / 2)
    return list(dict.fromkeys(ranks[low][:share] + ranks[high][:share]))
