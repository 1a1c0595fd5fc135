"""The part of the quality benchmark about plans and predictors that were fitted to the demo model.

They were fitted on other prompts and seeds than the ones reported, see demo/learn.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bench import cells
from bench.cells import Entry, Schedule
from bench.errors import Cell, Score
from bench.subjects import Subject

OWN_LEVELS = Schedule("calibrated", "its own")

PLAIN = {"amed_dpm_2s": "dpm_2s", "amed_dpm_2m": "dpm_2m"}
"""The plain sampler that a base of AMED-Plugin is."""

SEEN = 4
"""The first features of a predictor: those of the bottleneck."""

GOALS = {5: (0.6, 0.5), 6: (0.6, 0.5), 8: (0.6, 0.5)}
"""By evaluations: the share of the best host sampler's error that a calibrated plan, and the better of it and AMED, are
to have at most."""


class Fitted(NamedTuple):
    """A file of demo/plans."""

    entry: Entry
    evaluations: int
    kind: str
    base: Entry
    """Its base solver, a sampler of ours."""


def kind(entry: Entry) -> str:
    """plan, amed, or nothing for a sampler."""
    return str(cells.calibrated(entry).kind) if entry.source == "calibrated" else ""


def fitted(subject: Subject) -> list[Fitted]:
    found = []
    for entry in cells.plan_entries(subject):
        calibrated = cells.calibrated(entry)
        base = calibrated.recipe.base
        if calibrated.kind == "amed":
            base = PLAIN.get(base, base)
        found.append(Fitted(entry, calibrated.recipe.nfe, calibrated.kind, Entry("ours", base)))
    return found


def best(scores: Mapping[Cell, Score], budget: int, wanted: Iterable[Entry]) -> tuple[Cell, Score] | None:
    """The cell with the least median error at a budget, of these entries on their own kind of schedules."""
    entries = set(wanted)
    found = [
        (cell, score)
        for cell, score in scores.items()
        if cell.budget == budget and cell.entry in entries and cell.entry.source == cell.schedule.source
        and not score.failed
    ]  # fmt: skip
    return min(found, key=lambda pair: pair[1].median, default=None)


def medians(ours: Score, other: Score) -> tuple[float, float]:
    """Of two scores on the images that both were measured on."""
    count = min(len(ours.errors), len(other.errors))
    first, second = (float(score.errors[:count].quantile(0.5)) for score in (ours, other))
    return first, second


def without_gain(subject: Subject, scores: Mapping[Cell, Score]) -> list[tuple[Cell, Cell]]:
    """AMED over a base whose error is not below the base's own at the same evaluations: (its cell, the base's)."""
    found = []
    for f in fitted(subject):
        ours, base = (best(scores, f.evaluations, [entry]) for entry in (f.entry, f.base))
        if f.kind == "amed" and ours and base:
            a, b = medians(ours[1], base[1])
            if a >= b:
                found.append((ours[0], base[0]))
    return found


def describe(subject: Subject, scores: Mapping[Cell, Score], frechet: Mapping[Cell, tuple[float, float]]) -> str:
    """A section of docs/QUALITY.md. `frechet` holds distances to the data by cell, with their standard errors."""
    files = fitted(subject)
    lines = [
        "## Calibrated plans and AMED",
        "",
        f"Calibrated plans and AMED predictors that were fitted to {subject.title} {subject.origin}. The error is that "
        "of the section above, on the same images. In brackets: the ratio to the best sampler of the host on the best "
        "of its schedules.",
        "",
        "| evaluations | best of the host | best plain of ours | calibrated | best AMED | goals |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_row(scores, files, budget) for budget in sorted({f.evaluations for f in files})),
        "",
        *_describe_plugin(files, scores, frechet),
    ]
    return "\n".join([*(line for line in lines if line is not None), ""])


def _row(scores: Mapping[Cell, Score], files: list[Fitted], budget: int) -> str | None:
    """The best of each kind at a budget; None where nothing of the host was measured."""

    def of(source: str) -> list[Entry]:
        return [cell.entry for cell in scores if cell.entry.source == source]

    def calibrated(kind: str) -> list[Entry]:
        return [f.entry for f in files if f.kind == kind]

    host = best(scores, budget, of("host"))
    if host is None:
        return None
    ours, plan, amed = (best(scores, budget, wanted) for wanted in (of("ours"), calibrated("plan"), calibrated("amed")))
    bases = {f.entry: str(f.base) for f in files}
    error = host[1].median

    def text(found: tuple[Cell, Score] | None) -> str:
        if found is None:
            return ""
        cell, score = found
        return f"{score.median:.4f} ({score.median / error:.2f}), {bases.get(cell.entry, cell.entry)}"

    ratios = [found[1].median / error for found in (plan, amed) if found]
    goal = _goal(budget, ratios) if plan else ""
    return f"| {budget} | {error:.4f}, {host[0].entry} | {text(ours)} | {text(plan)} | {text(amed)} | {goal} |"


def _goal(budget: int, ratios: list[float]) -> str:
    """Whether the goals of a budget are reached, by the ratios of the calibrated plan and of AMED."""
    found = zip((ratios[0], min(ratios)), GOALS.get(budget, ()), strict=False)
    return "; ".join(
        f"{'reached' if ratio <= wanted else 'NOT reached'}: {ratio:.3g} of {wanted:g}" for ratio, wanted in found
    )


def _describe_plugin(
    files: list[Fitted], scores: Mapping[Cell, Score], frechet: Mapping[Cell, tuple[float, float]]
) -> list[str]:
    plugins = [f for f in files if f.kind == "amed"]
    if not plugins:
        return []
    budgets = sorted({f.evaluations for f in plugins})
    trained = sum(sees_bottleneck(f) for f in plugins)
    lines = [
        "AMED over each base, compared with the base itself on the best of our schedules: error of AMED / error of the "
        "base (ratio). The numbers of the inserted levels were fitted to the error of the last sample. +: AMED is part "
        "of a calibrated plan over that base, which also has fitted levels, slopes and guidance factors. "
        f"{trained} of {len(plugins)} predictors were then trained image by image and became better. The others give "
        "every image the same numbers: training gains a few percent at most, and not all were trained. Where the error "
        "does not fall, the table also has the Fréchet distance of 1,000 samples to the data, of AMED / of the base, "
        "if it was measured.",
        "",
        f"| base | {' | '.join(map(str, budgets))} |",
        "| --- |" + " --- |" * len(budgets),
    ]
    for base in dict.fromkeys(f.base for f in plugins):
        by_budget = {f.evaluations: f for f in plugins if f.base == base}
        row = [_against_base(by_budget[n], scores, frechet) if n in by_budget else "" for n in budgets]
        lines.append(f"| {base} | {' | '.join(row)} |")
    return lines


def _against_base(f: Fitted, scores: Mapping[Cell, Score], frechet: Mapping[Cell, tuple[float, float]]) -> str:
    """Error, and distance where it was measured, of AMED and of its base."""
    ours, plain = (best(scores, f.evaluations, [entry]) for entry in (f.entry, f.base))
    if not ours or not plain:
        return ""
    a, b = medians(ours[1], plain[1])
    text = f"{a:.4f} / {b:.4f} ({a / b:.2f}){'+' * is_planned(f)}"
    if ours[0] in frechet and plain[0] in frechet:
        (a, a_error), (b, b_error) = frechet[ours[0]], frechet[plain[0]]
        text += f"; FD {a:.3f} ± {a_error:.3f} / {b:.3f} ± {b_error:.3f}"
    return text


def is_planned(f: Fitted) -> bool:
    """Whether a predictor is part of a calibrated plan: whether it has numbers that AMED does not know."""
    return any(t.slope or t.curvature or t.guidance != 1 for t in cells.calibrated(f.entry).recipe.tunings)


def sees_bottleneck(f: Fitted) -> bool:
    """Whether a predictor gives different images different numbers: a head has weights on what it sees of them."""
    heads = cells.calibrated(f.entry).predictor.heads
    return any(bool(head.weight[:, :SEEN].any()) for head in heads)
