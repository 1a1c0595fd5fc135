"""What was measured: the lines of docs/quality.csv, and the best of ours against the best of the host."""

from __future__ import annotations

import csv
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from bench.cells import Entry
from bench.distributions import Distances, Distribution
from bench.errors import Cell, Score
from bench.jobs import Outcome

ALIKE = 1.005  # a ratio of errors up to this is rounding: solvers that do the same differ in the last digits


@dataclass
class Row:
    """A line of docs/quality.csv. Errors are in the unit of the subject (`Subject.unit`); empty: not measured."""

    sampler: str
    source: str
    """ours, host, borrowed: a sampler of the host on our schedules, or calibrated: a file of demo/plans"""

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


def error_row(cell: Cell, score: Score) -> Row:
    row = Row(str(cell.entry), cell.source, str(cell.schedule), cell.budget)
    if score.failed:
        return replace(row, status=f"failed: {score.failed}")
    low, high = interval(lambda drawn: drawn.quantile(0.5, dim=1), score.errors)
    return replace(
        row, nfe=score.nfe, steps=score.steps, images=len(score.errors), median=score.median, median_low=low,
        median_high=high, p90=float(score.errors.quantile(0.9)),
    )  # fmt: skip


def distance_row(cell: Cell, outcome: Outcome, many: Distances, data: Distances | None) -> Row:
    row = Row(
        str(cell.entry), cell.source, str(cell.schedule), cell.budget, outcome.nfe, None, len(outcome.values),
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
            cells_ = [c for c, s in scores.items() if c.budget == budget and c.source == source and not s.failed]
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


def best_line(
    scores: dict[Cell, Score], budgets: Sequence[int], wanted: Callable[[Cell], bool]
) -> list[tuple[float, float]]:
    """Evaluations and median error of the best at each budget, of the cells that are wanted."""
    found = []
    for budget in budgets:
        line = [(s.median, s.nfe) for c, s in scores.items() if c.budget == budget and wanted(c) and not s.failed]
        if line:
            found.append(min(line)[::-1])
    return found


def leaders(scores: dict[Cell, Score], source: str, count: int) -> list[Entry]:
    """The samplers with the least median, in the geometric mean over the budgets."""
    by_entry: dict[Entry, list[float]] = defaultdict(list)
    for cell, score in scores.items():
        if cell.source == source and cell.budget is not None:
            by_entry[cell.entry].append(math.log(max(score.median, 1e-12)))
    return sorted(by_entry, key=lambda entry: statistics.mean(by_entry[entry]))[:count]


def write_csv(rows: list[Row], path: Path) -> None:
    part = path.with_suffix(".part")
    with part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(column.name for column in fields(Row))
        for row in rows:
            writer.writerow(f"{v:.5g}" if isinstance(v, float) else v for v in asdict(row).values())
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
