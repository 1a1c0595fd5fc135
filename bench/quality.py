"""How good the images are for their evaluations: every sampler of ours and of the host on the demo model.

    make bench-quality              within 40 minutes on two cores; run it again to go on where it stopped
    FULL=1 make bench-quality       for a GPU: more pairs, all stochastic samplers, no limit of time

Deterministic samplers are held against a trajectory of 200 steps from the same starting noise, stochastic ones
against the distribution of the training images and of many-step samples. Each sampler runs on the schedule that was
best for it on other prompts and seeds than the ones reported. Writes docs/quality.csv, .png and QUALITY.md.

Settings, as options or in the environment: FULL, BUDGETS="4 8", PAIRS, SAMPLES, SAMPLERS="dpmpp_2m host:euler",
MINUTES, WORKERS.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import os
import signal
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [path for path in (str(ROOT), str(ROOT / "tools")) if path not in sys.path]
os.environ.setdefault("MPLCONFIGDIR", str(ROOT / ".host" / "cache" / "matplotlib"))  # nothing is written outside

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from bench import calibrated, cells, distances  # noqa: E402
from bench.cells import Cache, Entry, Job, Outcome, OutOfTime, Pair, Runner, Schedule  # noqa: E402

PROMPTS = (
    "cat face", "red apple", "penguin", "hamburger", "grinning face", "tulip", "octopus", "slice of pizza",
    "dog face", "strawberry", "frog face", "banana", "sparkling heart", "turtle", "angry face", "sushi",
    "black cat", "lemon", "smiling face with sunglasses", "mushroom", "whale", "birthday cake", "ghost", "rose",
    "pig face", "hot dog", "clown face", "watermelon", "koala", "cactus", "crying face", "doughnut",
    "unicorn face", "cherries", "sleeping face", "honeybee", "lady beetle", "ice cream", "skull", "maple leaf",
)  # fmt: skip
"""The first 8 belong to the choice of schedules, the rest to the report, as long as there are enough."""

VARIANTS: dict[str, Sequence[dict[str, Any]]] = {
    "dpmpp_2m": [{"corrected_start": True}],
    "dpmpp_3m": [{"corrected_start": True}, {"solver_type": "exact"}],
    "dpm_2m": [{"corrected_start": True}],
    "unipc": [{"order": 2}, {"solver_type": "bh1"}],
    "ipndm": [{"order": 2}],
    "deis": [{"order": 2}],
}
"""Options worth a row of their own."""

REFERENCE = Entry("ours", "dpmpp_2m"), Schedule("ours", "exponential")
"""Its 200 steps are 0.00012 from 1000 of Heun's method, and within 0.00002 of 200 of any method on its levels."""

CHECK = Entry("host", "dpmpp_2m"), Schedule("host", "karras")
"""Another way to the same limit: the distance of the two is the floor of all errors."""

MANY_STEPS = Entry("ours", "dpmpp_2m_sde"), Schedule("ours", "exponential")
MANY_STEPS_ODE = REFERENCE  # the limit without noise, which under guidance is another one
AXES, DIRECTIONS = 16, 256  # of the Fréchet and of the sliced Wasserstein distance

ALIKE = 1.005  # a ratio of errors up to this is rounding: solvers that do the same differ in the last digits
CONTENDER = 2.0  # cells whose error is this many times the least are not measured on all pairs


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    budgets: tuple[int, ...] = (4, 5, 6, 8, 10, 12, 15, 20, 30)
    choosing: tuple[int, int] = (2, 4)
    """Pairs for the first look at a schedule, and for the later ones."""

    pairs: int = 32
    first_look: int = 8
    """Evaluations at which all schedules are tried."""

    second_look: tuple[int, int] = (6, 15)
    """Those at which the better schedules are."""

    schedules: tuple[int, int] = (8, 3)
    """Schedules kept after the first look, and after the second."""

    reference_steps: int = 200

    samples: int = 1000
    """Of each stochastic sampler; 0: leave them out."""

    sample_budgets: tuple[int, ...] = (8, 15)
    many_steps: int = 50
    sample_choosing: int = 64
    """Samples on which a stochastic sampler's schedule is chosen."""

    sample_schedules: int = 2
    """Schedules that are tried with it: those that suit the deterministic samplers best."""

    borrowers: int = 3
    """Host samplers that are tried on our schedules."""

    batch: int = 16
    minutes: float = 37.0


FULL = Size(
    choosing=(16, 32), pairs=1000, samples=10000, sample_budgets=(8, 15, 30), sample_choosing=500, sample_schedules=6,
    batch=500, minutes=math.inf,
)  # fmt: skip
QUICK = Size(
    budgets=(4, 6), choosing=(1, 2), pairs=2, first_look=4, second_look=(4, 6), schedules=(2, 1), reference_steps=20,
    samples=0, sample_budgets=(4,), many_steps=6, sample_choosing=4, sample_schedules=1, borrowers=1, batch=4,
    minutes=math.inf,
)  # fmt: skip


# Deterministic samplers: errors


class Cell(NamedTuple):
    """A sampler on a schedule, for a number of evaluations. Without a budget it takes as many as it wants."""

    entry: Entry
    schedule: Schedule
    budget: int | None


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

    size: Size
    runner: Runner
    scores: dict[Cell, Score] = field(default_factory=dict)
    """Of the cells that are reported, as far as they are known."""

    failures: dict[Cell, str] = field(default_factory=dict)

    def pairs(self, first: int, count: int) -> list[Pair]:
        return [Pair(PROMPTS[i % len(PROMPTS)], i) for i in range(first, first + count)]

    @property
    def chosen_on(self) -> list[Pair]:
        return self.pairs(0, self.size.choosing[1])

    @property
    def reported_on(self) -> list[Pair]:
        return self.pairs(max(8, self.size.choosing[1]), self.size.pairs)

    def references(self, which: tuple[Entry, Schedule], pairs: Sequence[Pair], batch: int) -> list[Job]:
        levels = cells.make_levels(*which, self.size.reference_steps)
        return [Job(which[0], levels, tuple(chunk)) for chunk in chunks(pairs, batch)]

    def score(self, stage: str, wanted: Iterable[Cell], pairs: Sequence[Pair], batch: int) -> dict[Cell, Score]:
        """Errors of the final latents against the reference, for each cell."""
        references = self.references(REFERENCE, pairs, batch)
        self.runner.run("references", references)
        jobs, scores = {}, {}
        for cell in dict.fromkeys(wanted):
            try:
                levels = levels_of(cell)
            except Exception as error:
                scores[cell] = Score(torch.empty(0), failed=cells.describe_error(error))
                continue
            budget = cell.budget or sys.maxsize
            jobs[cell] = [Job(cell.entry, levels, r.pairs, budget, reference=r.key) for r in references]
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
        pairs = self.reported_on[: self.size.batch]
        jobs = [self.references(which, pairs, self.size.batch) for which in (REFERENCE, CHECK)]
        found = self.runner.run("references", itertools.chain(*jobs))
        first, second = (torch.cat([found[job.key].values for job in part]) for part in jobs)
        errors = cells.root_mean_square(first - second)
        return float(errors.quantile(0.5)), float(errors.quantile(0.9))

    def rank(self, stage: str, choices: Choices, pairs: int) -> Choices:
        """The schedules that did not fail, best first; of those with the same levels one."""
        wanted = [Cell(entry, s, budget) for (entry, budget), schedules in choices.items() for s in schedules]
        scores = self.score(stage, wanted, self.chosen_on[:pairs], self.size.choosing[0])
        good = sorted((cell for cell in wanted if not scores[cell].failed), key=lambda cell: scores[cell].size)
        ranks: dict[tuple[Entry, int], dict[tuple[float, ...], Schedule]] = {choice: {} for choice in choices}
        for cell in good:
            assert cell.budget
            ranks[cell.entry, cell.budget].setdefault(levels_of(cell), cell.schedule)
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
        pairs, batch = self.reported_on, self.size.batch
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


def levels_of(cell: Cell) -> tuple[float, ...]:
    if cell.budget is None:
        return cells.make_levels(cell.entry, cell.schedule, 10)  # it uses the first and the last of them
    return cells.fit_levels(cell.entry, cell.schedule, cell.budget)


def near(budget: int, ranks: dict[int, list[Schedule]], keep: int) -> list[Schedule]:
    """The schedules to try at a budget: the best at the nearest that was looked at, or some of both beside it."""
    low, high = min(ranks), max(ranks)
    if budget <= low:
        return ranks[low][:keep]
    if budget >= high:
        return ranks[high][:keep]
    share = math.ceil((keep + 1) / 2)
    return list(dict.fromkeys(ranks[low][:share] + ranks[high][:share]))


def chunks(items: Sequence[Pair], size: int) -> list[Sequence[Pair]]:
    return [items[i : i + size] for i in range(0, len(items), size)]


# Stochastic samplers: distances of distributions


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
        data = load_data()
        self.prompts = data[1] if data else list(PROMPTS)
        many = self._many_steps(*MANY_STEPS, first=10**6)
        found = self.runner.run("many-step samples", many)
        latents = torch.cat([found[job.key].values for job in many]).flatten(1)
        self.basis = cells.digest([job.key for job in many], AXES, DIRECTIONS)
        if self.basis not in self.runner.cache:
            axes = distances.principal_axes(latents, AXES)
            columns = torch.cat([axes, distances.directions(latents.shape[1], DIRECTIONS)], dim=1)
            self.runner.cache.save(self.basis, Outcome(columns))
        columns = self.runner.cache.load(self.basis).values
        pictures = split(data[0].flatten(1) @ columns) if data else None
        self.result = Distribution(split(latents @ columns), pictures, len(self.prompts))

    def _many_steps(self, entry: Entry, schedule: Schedule, first: int, **more: Any) -> list[Job]:
        levels = cells.make_levels(entry, schedule, self.size.many_steps)
        return self._batches(entry, levels, first, self.size.samples, **more)

    def _batches(self, entry: Entry, levels: tuple[float, ...], first: int, count: int, **more: Any) -> list[Job]:
        pairs = [Pair(self.prompts[i % len(self.prompts)], first + i) for i in range(count)]
        return [Job(entry, levels, tuple(chunk), **more) for chunk in chunks(pairs, self.size.batch)]

    def run(self, stage: str, cell: Cell, first: int, count: int) -> Outcome:
        """Features of `count` samples, whose seeds begin with `first`."""
        try:
            budget = cell.budget or sys.maxsize
            jobs = self._batches(cell.entry, levels_of(cell), first, count, budget=budget, basis=self.basis)
            outcome = self._collect(stage, jobs)
        except OutOfTime:
            raise
        except Exception as error:
            outcome = Outcome(torch.empty(0), failed=cells.describe_error(error))
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
        and learned ones whose error is not below their base's."""
        by_source = [[c for c in chosen if c[0].source == source] for source in ("ours", "host")]
        in_turn = [c for two in itertools.zip_longest(*by_source) for c in two if c]
        noisy = [Cell(entry, schedule, b) for entry, schedule in in_turn for b in self.size.sample_budgets]
        best = 2 * len(self.size.sample_budgets)
        for cell in dict.fromkeys(noisy[:best] + compared + weak + noisy[best:]):
            outcome = self.run("stochastic samplers", cell, 3 * 10**6, self.size.samples)
            if not outcome.failed:
                self.result.add(cell, outcome)
        ode = self._many_steps(*MANY_STEPS_ODE, first=4 * 10**6, basis=self.basis)
        self.result.add(Cell(*MANY_STEPS_ODE, self.size.many_steps), self._collect("many-step samples", ode))


# Results


@dataclass
class Row:
    """A line of docs/quality.csv. Errors are in units of the pixel range; empty: not measured."""

    sampler: str
    source: str
    """ours, host, borrowed: a sampler of the host on our schedules, or learned: a file of demo/plans"""

    schedule: str
    """`*`: without the last level above 0"""

    budget: int | None
    nfe: float | None = None
    steps: int | None = None
    images: int | None = None
    median: float | None = None
    median_low: float | None = None
    median_high: float | None = None
    p90: float | None = None
    wasserstein_many: float | None = None
    wasserstein_many_error: float | None = None
    frechet_many: float | None = None
    frechet_many_error: float | None = None
    wasserstein_data: float | None = None
    wasserstein_data_error: float | None = None
    frechet_data: float | None = None
    frechet_data_error: float | None = None
    status: str = "ok"


def source_of(cell: Cell) -> str:
    return cell.entry.source if cell.entry.source == cell.schedule.source else "borrowed"


def error_row(cell: Cell, score: Score) -> Row:
    row = Row(str(cell.entry), source_of(cell), str(cell.schedule), cell.budget)
    if score.failed:
        return replace(row, status=f"failed: {score.failed}")
    low, high = interval(lambda drawn: drawn.quantile(0.5, dim=1), score.errors)
    return replace(
        row, nfe=score.nfe, steps=score.steps, images=len(score.errors), median=score.median, median_low=low,
        median_high=high, p90=float(score.errors.quantile(0.9)),
    )  # fmt: skip


def distance_row(cell: Cell, outcome: Outcome, many: Distances, data: Distances | None) -> Row:
    row = Row(
        str(cell.entry), source_of(cell), str(cell.schedule), cell.budget, outcome.nfe, None, len(outcome.values),
        wasserstein_many=many.wasserstein[0], wasserstein_many_error=many.wasserstein[1],
        frechet_many=many.frechet[0], frechet_many_error=many.frechet[1],
    )  # fmt: skip
    if data:
        row.wasserstein_data, row.wasserstein_data_error = data.wasserstein
        row.frechet_data, row.frechet_data_error = data.frechet
    return row


def interval(statistic: Callable[[Tensor], Tensor], values: Tensor, draws: int = 2000) -> tuple[float, float]:
    """5% and 95% of a statistic over bootstrap draws of the images; `values` [images] or [images, k]."""
    index = torch.randint(len(values), (draws, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = statistic(values[index]).quantile(torch.tensor([0.05, 0.95])).tolist()
    return low, high


@dataclass
class Duel:
    """The best deterministic sampler of ours against that of the host, at a budget."""

    budget: int
    ours: Cell
    host: Cell
    scores: tuple[Score, Score]

    @property
    def ratio(self) -> float:
        return self.scores[0].median / self.scores[1].median

    @property
    def spread(self) -> tuple[float, float]:
        """Of the ratio, over bootstrap draws of the images, the same for both."""
        both = torch.stack([score.errors for score in self.scores], dim=1)
        return interval(lambda drawn: (m := drawn.quantile(0.5, dim=1))[:, 0] / m[:, 1], both)


def duels(scores: dict[Cell, Score], budgets: Sequence[int]) -> list[Duel]:
    found = []
    for budget in budgets:
        best = {}
        for source in ("ours", "host"):
            cells_ = [c for c, s in scores.items() if c.budget == budget and source_of(c) == source and not s.failed]
            if cells_:
                best[source] = min(cells_, key=lambda c: scores[c].median)
        if len(best) == 2:
            ours, host = best["ours"], best["host"]
            images = min(len(scores[c].errors) for c in (ours, host))
            cut = [replace(scores[c], errors=scores[c].errors[:images]) for c in (ours, host)]
            found.append(Duel(budget, ours, host, (cut[0], cut[1])))
    return found


def verdict(found: list[Duel]) -> str:
    """One line: at which budgets the best of ours is at least as good as the best of the host."""
    good = [str(d.budget) for d in found if d.ratio <= ALIKE]
    bad = [_describe_worse(d) for d in found if d.ratio > ALIKE]
    text = f"At least as good as the best host sampler at {', '.join(good) or 'no number of'} evaluations"
    return f"{text}; NOT at {', '.join(bad)}." if bad else f"{text}: at all of them."


def _describe_worse(duel: Duel) -> str:
    low, high = duel.spread
    return f"{duel.budget} ({duel.ratio:.3f} times its error, {low:.2f} to {high:.2f})"


def leaders(scores: dict[Cell, Score], source: str, count: int) -> list[Entry]:
    """The samplers with the least median, in the geometric mean over the budgets."""
    by_entry: dict[Entry, list[float]] = defaultdict(list)
    for cell, score in scores.items():
        if source_of(cell) == source and cell.budget is not None:
            by_entry[cell.entry].append(math.log(max(score.median, 1e-12)))
    return sorted(by_entry, key=lambda entry: statistics.mean(by_entry[entry]))[:count]


def write_csv(rows: list[Row], path: Path) -> None:
    part = path.with_suffix(".part")
    with part.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(column.name for column in fields(Row))
        for row in rows:
            writer.writerow(f"{v:.5g}" if isinstance(v, float) else v for v in asdict(row).values())
    os.replace(part, path)


def best_line(
    scores: dict[Cell, Score], budgets: Sequence[int], source: str, name: str = ""
) -> list[tuple[float, float]]:
    """Evaluations and median error of the best at each budget, of those of a source whose names begin so."""
    found = []
    for budget in budgets:
        line = [
            (s.median, s.nfe)
            for c, s in scores.items()
            if c.budget == budget and source_of(c) == source and c.entry.name.startswith(name) and not s.failed
        ]
        if line:
            found.append(min(line)[::-1])
    return found


def draw(scores: dict[Cell, Score], floor: float, path: Path) -> None:
    """Error against evaluations of the best few samplers, of calibrated plans and of AMED."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 6), layout="constrained")
    for source, style, colours in (("ours", "-", "viridis"), ("host", "--", "autumn")):
        entries = leaders(scores, source, 4)
        for i, entry in enumerate(entries):
            line = sorted(
                (s.nfe, s.median) for c, s in scores.items()
                if c.entry == entry and source_of(c) == source and c.budget and not s.failed
            )  # fmt: skip
            colour = matplotlib.colormaps[colours](0.8 * i / max(len(entries), 1))
            axes.plot(*zip(*line, strict=True), style, marker="o", color=colour, label=f"{source}: {entry}")
    budgets = sorted({c.budget for c in scores if c.budget})
    for name, style, label in (
        ("calibrated-", "-sk", "ours: calibrated plans"),
        ("amed-", ":^k", "ours: AMED, the best at each"),
        ("", "xr", "host: the best on our schedules"),
    ):
        line = best_line(scores, budgets, "learned" if name else "borrowed", name)
        if line:
            axes.plot(*zip(*line, strict=True), style, label=label)
    axes.axhline(floor, color="grey", linewidth=1, label="distance between two references")
    axes.set(xscale="log", yscale="log", xlabel="model evaluations", ylabel="median RMSE of the image (range 0 to 1)")
    axes.set_xticks(budgets, map(str, budgets))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=120)
    pyplot.close(figure)
    os.replace(part, path)


@dataclass
class Results:
    """What is known so far."""

    scores: dict[Cell, Score]
    failures: dict[Cell, str]
    floor: tuple[float, float] | None = None
    distribution: Distribution | None = None
    complete: bool = False

    def rows(self) -> list[Row]:
        """The reported cells, and those that failed on the way."""
        failed = {cell: Score(torch.empty(0), failed=why) for cell, why in self.failures.items()}
        rows = [error_row(cell, score) for cell, score in (failed | self.scores).items()]
        return rows + [distance_row(*row) for row in (self.distribution.rows if self.distribution else [])]


def describe(results: Results, size: Size) -> str:
    """docs/QUALITY.md."""
    parts = [_INTRODUCTION.format(size=size, guidance=cells.GUIDANCE)]
    if results.floor:
        parts.append(_describe_errors(results, results.floor, size))
    if any(cell.entry.source == "learned" for cell in results.scores):
        found = results.distribution.rows if results.distribution else []
        parts.append(calibrated.describe(results.scores, {cell: data.frechet for cell, _, _, data in found if data}))
    if results.distribution:
        parts.append(_describe_distribution(results.distribution, size))
    if results.failures:
        failed = sorted({f"{cell.entry} ({cell.entry.source})" for cell in results.failures})
        parts.append(f"Failed on some schedule or number of steps (see the CSV): {', '.join(failed)}.\n")
    if not results.complete:
        parts.append("This run ended at its time limit. Run it again to continue.\n")
    return "\n".join(parts)


_INTRODUCTION = """# Quality against evaluations

Written by `make bench-quality`; all numbers are in [quality.csv](quality.csv). *Ours* are the samplers of Few-Step, and
*the host's* are those of ComfyUI. All were measured on the demo model at guidance {guidance:g}, with their default
options (some of ours also with others, which are named), each on the schedule that was best for it on other prompts
and seeds. `*` marks a schedule without its last level above 0.

An evaluation (NFE) is one call of the model, in which guidance runs the network twice. A sampler with several
evaluations a step gets fewer steps. The host's `..._gpu` samplers are left out, since they only draw the noise on
another device. Its `..._cfg_pp` samplers apply guidance in another way and lead to another image, so their error says
little.
"""


def _describe_errors(results: Results, floor: tuple[float, float], size: Size) -> str:
    (entry, schedule), (check, check_schedule) = REFERENCE, CHECK
    found = duels(results.scores, size.budgets)
    lines = [
        "## Deterministic samplers",
        "",
        "The error is that of the final latent: root mean square over an image, in units of the pixel range, against "
        f"{entry} ({entry.source}) with {size.reference_steps} steps on {schedule} from the same noise. The table "
        f"gives the median over {size.pairs} images, [5%, 95%] of bootstrap draws, and the 90th percentile. Cells with "
        f"more than {CONTENDER:g} times the least error were measured on {min(size.batch, size.pairs)} images.",
        "",
        f"A second reference, {check} ({check.source}) with as many steps on {check_schedule}, differs from the first "
        f"by {floor[0]:.2g} (90th percentile: {floor[1]:.2g}), because the model rounds each level to one of 1000, and "
        "other levels have another limit. Differences that are smaller than this mean nothing.",
        "",
        "![Error against evaluations](quality.png)",
        "",
        "| NFE | best of ours | error, 90% | best of the host | error, 90% | ours / host |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for duel in found:
        sides = [
            f"{c.entry}, {c.schedule} | {s.median:.4f} [{low:.4f}, {high:.4f}], {float(s.errors.quantile(0.9)):.4f}"
            for c, s in zip((duel.ours, duel.host), duel.scores, strict=True)
            for low, high in [interval(lambda drawn: drawn.quantile(0.5, dim=1), s.errors)]
        ]
        low, high = duel.spread
        lines.append(f"| {duel.budget} | {sides[0]} | {sides[1]} | {duel.ratio:.2f} [{low:.2f}, {high:.2f}] |")
    lines += ["", verdict(found) if found else "There is nothing to compare.", ""]
    borrowed = [(c, s) for c, s in results.scores.items() if source_of(c) == "borrowed" and not s.failed]
    if borrowed:
        lines += [
            "The best samplers of the host on our schedules:",
            "",
            "| NFE | sampler | error |",
            "| --- | --- | --- |",
        ]
        for budget in size.budgets:
            best = min(((c, s) for c, s in borrowed if c.budget == budget), key=lambda b: b[1].median, default=None)
            if best:
                lines.append(f"| {budget} | {best[0].entry}, {best[0].schedule} | {best[1].median:.4f} |")
        lines += ["", _gained_by_schedule(results.scores, found), ""]
    return "\n".join(lines)


def _gained_by_schedule(scores: dict[Cell, Score], found: list[Duel]) -> str:
    """At which budgets a sampler of the host on our schedules does what the best of ours does."""
    alike = [
        str(duel.budget)
        for duel in found
        for _, median in best_line(scores, [duel.budget], "borrowed")
        if median <= ALIKE * scores[duel.ours].median
    ]
    return (
        f"At {', '.join(alike) or 'no number of'} evaluations the best of the host on our schedules is as good as the "
        "best of ours: there the gain over the host comes from the schedule, not from the sampler."
    )


def _describe_distribution(distribution: Distribution, size: Size) -> str:
    wasserstein, frechet = distribution.halves()
    entry, schedule = MANY_STEPS
    lines = [
        "## Stochastic samplers",
        "",
        f"Distances of {size.samples} samples to as many samples of many steps ({entry}, {size.many_steps} steps, "
        f"{schedule}) and to the training images: sliced Wasserstein (SW, {DIRECTIONS} directions) and squared Fréchet "
        f"(FD, {AXES} principal axes), ± the standard error (jackknife over prompts). Lower is better. All sets use "
        f"the same prompts, each with its own seeds. Two independent sets of many-step samples are {wasserstein:.4f} "
        f"(SW) and {frechet:.3f} (FD) apart, so that smaller distances cannot be told from each other.",
        "",
        f"Deterministic samplers are listed for comparison. One with {size.many_steps} evaluations, where it is "
        "listed, has converged: it shows how far the limits with and without noise are apart under guidance. Samplers "
        "that are missing were not reached within the time limit; the next run continues with them.",
        "",
        "| NFE | sampler | source | schedule | SW, many-step | FD, many-step | SW, data | FD, data |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cell, _, many, data in sorted(distribution.rows, key=lambda r: (r[0].budget, r[2].frechet[0])):
        numbers = [f"{d[0]:.{places}f} ± {d[1]:.{places}f}" for pair in (many, data) if pair
                   for d, places in zip(pair, (4, 3), strict=True)]  # fmt: skip
        numbers += [""] * (4 - len(numbers))
        lines.append(f"| {cell.budget} | {cell.entry} | {source_of(cell)} | {cell.schedule} | {' | '.join(numbers)} |")
    return "\n".join([*lines, ""])


# All of it


def benchmark(bench: Bench, names: Sequence[str]) -> Results:
    """Measure everything, as far as the time goes."""
    results = Results(bench.scores, bench.failures)
    try:
        _measure(bench, names, results)
        results.complete = True
    except OutOfTime:
        print("the time limit is reached: run again to go on", file=sys.stderr)
    return results


def _measure(bench: Bench, names: Sequence[str], results: Results) -> None:
    entries = [e for e in cells.our_entries(VARIANTS) + cells.host_entries() if _is_wanted(e, names)]
    schedules = {"ours": cells.our_schedules(), "host": cells.host_schedules()}
    stochastic = [entry for entry in entries if _stochastic(entry)]
    adaptive = [entry for entry in entries if entry.adaptive]
    fixed = [e for e in entries if e not in stochastic and e not in adaptive]
    choices = {entry: schedules[entry.source] for entry in fixed}
    bench.expect(choices, len(stochastic))

    results.floor = bench.floor()
    free = [Cell(entry, Schedule(entry.source, "karras"), None) for entry in adaptive]
    bench.report(bench.choose(choices) + free, "all")

    files = [f for f in calibrated.fitted() if f.evaluations in bench.size.budgets and _is_wanted(f.entry, names)]
    fitted = [Cell(f.entry, calibrated.OWN_LEVELS, f.evaluations) for f in files]
    bench.scores |= bench.score("report, learned", fitted, bench.reported_on, bench.size.batch)

    lent = dict.fromkeys(leaders(bench.scores, "host", bench.size.borrowers), schedules["ours"])
    if lent:
        bench.report(bench.choose(lent), "borrowed")
    if bench.size.samples and stochastic:
        sampling = Sampling(bench)
        results.distribution = sampling.result
        chosen = sampling.choose(stochastic, _liked(bench.scores, schedules))
        compared = [cell for budget in bench.size.sample_budgets for duel in duels(bench.scores, [budget])
                    for cell in (duel.ours, duel.host)]  # fmt: skip
        weak = [cell for pair in calibrated.without_gain(bench.scores) for cell in pair]
        sampling.measure(chosen, compared, weak)


def _stochastic(entry: Entry) -> bool:
    try:
        return cells.is_stochastic(entry)
    except Exception:
        return False  # it will fail again, and be recorded, among the deterministic ones


def _liked(scores: dict[Cell, Score], schedules: dict[str, list[Schedule]]) -> dict[str, list[Schedule]]:
    """The schedules of each source, those first that most deterministic samplers were best on."""
    votes: dict[Schedule, int] = defaultdict(int)
    for cell in scores:
        if cell.budget is not None and source_of(cell) != "borrowed" and 8 <= cell.budget <= 15:
            votes[cell.schedule] += 1
    return {source: sorted(all_, key=lambda s: -votes[s]) for source, all_ in schedules.items()}


def _is_wanted(entry: Entry, names: Sequence[str]) -> bool:
    return not names or any(name in (entry.name, f"{entry.source}:{entry.name}") for name in names)


def write(results: Results, bench: Bench, folder: Path) -> str:
    """The files; gives the text."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(results.rows(), folder / "quality.csv")
    if results.floor and any(c.budget for c in results.scores):
        draw(results.scores, results.floor[0], folder / "quality.png")
    text = describe(results, bench.size)
    (folder / "QUALITY.md").write_text(text)
    return text


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    environment = os.environ.get
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", default=environment("FULL", "0") not in ("", "0"))
    parser.add_argument("--quick", action="store_true", help="next to nothing, for tests")
    parser.add_argument("--budgets", type=_numbers, default=environment("BUDGETS"), help="evaluations")
    parser.add_argument("--pairs", type=int, default=environment("PAIRS"), help="of prompt and seed, for the report")
    parser.add_argument("--samples", type=int, default=environment("SAMPLES"), help="of stochastic samplers; 0: none")
    parser.add_argument("--samplers", type=str.split, default=environment("SAMPLERS", ""), help="only these")
    parser.add_argument("--minutes", type=float, default=environment("MINUTES"), help="time limit")
    parser.add_argument("--workers", type=int, default=environment("WORKERS"), help="processes")
    parser.add_argument("--cache", type=Path, default=ROOT / ".host" / "cache" / "quality")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    return parser.parse_args(arguments)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.replace(",", " ").split()))


def make_size(o: argparse.Namespace) -> Size:
    size = QUICK if o.quick else FULL if o.full else Size()
    given = {
        name: value for name in ("budgets", "pairs", "samples", "minutes") if (value := getattr(o, name)) is not None
    }
    return replace(size, **given)


def main(arguments: Sequence[str] | None = None) -> Runner:
    o = parse(arguments)
    size = make_size(o)
    workers = o.workers or (1 if torch.cuda.is_available() or o.quick else os.cpu_count() or 1)
    with Runner(Cache(o.cache), workers, size.minutes) as runner:
        bench = Bench(size, runner)
        results = benchmark(bench, o.samplers)
    print(write(results, bench, o.out))
    return runner


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the workers are stopped, too
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped: run it again to go on")
