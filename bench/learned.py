"""The part of the quality benchmark about plans and predictors that were fitted to the demo model.

They were fitted on other prompts and seeds than the ones reported, see demo/learn.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from bench import cells
from bench.cells import Entry, Schedule

OWN_LEVELS = Schedule("learned", "its own")

PLAIN = {"amed_dpm_2s": "dpm_2s", "amed_dpm_2m": "dpm_2m"}
"""The plain sampler that a base of AMED-Plugin is."""

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


def fitted() -> list[Fitted]:
    found = []
    for entry in cells.learned_entries():
        learned = cells.learned(entry)
        base = learned.recipe.base
        if learned.kind == "amed":
            base = PLAIN.get(base, base)
        found.append(Fitted(entry, learned.recipe.nfe, learned.kind, Entry("ours", base)))
    return found


def best(scores: Mapping[Any, Any], budget: int, wanted: Iterable[Entry]) -> tuple[Any, Any] | None:
    """The cell with the least median error at a budget, of these entries on their own kind of schedules."""
    entries = set(wanted)
    found = [
        (cell, score)
        for cell, score in scores.items()
        if cell.budget == budget and cell.entry in entries and cell.entry.source == cell.schedule.source
        and not score.failed
    ]  # fmt: skip
    return min(found, key=lambda pair: pair[1].median, default=None)


def medians(ours: Any, other: Any) -> tuple[float, float]:
    """Of two scores on the images that both were measured on."""
    count = min(len(ours.errors), len(other.errors))
    first, second = (float(score.errors[:count].quantile(0.5)) for score in (ours, other))
    return first, second


def without_gain(scores: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """AMED over a base whose error is not below the base's own at the same evaluations: (its cell, the base's)."""
    found = []
    for f in fitted():
        ours, base = (best(scores, f.evaluations, [entry]) for entry in (f.entry, f.base))
        if f.kind == "amed" and ours and base:
            a, b = medians(ours[1], base[1])
            if a >= b:
                found.append((ours[0], base[0]))
    return found


def describe(scores: Mapping[Any, Any], frechet: Mapping[Any, tuple[float, float]]) -> str:
    """A section of docs/QUALITY.md. `frechet` holds distances to the data by cell, with their standard errors."""
    files = fitted()
    budgets = sorted({f.evaluations for f in files})
    lines = [
        "## Learned plans",
        "",
        "Calibrated plans and AMED predictors for the demo model at guidance 3 (demo/plans, made by demo/learn.py from "
        "other prompts and seeds than the ones reported here). Error as above, on the same images; in brackets the "
        "ratio to the best sampler of the host on any of its schedules.",
        "",
        "| NFE | best of the host | best plain of ours | calibrated | best AMED | goals |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    host = [c.entry for c in scores if c.entry.source == "host"]
    plain = [c.entry for c in scores if c.entry.source == "ours"]
    for budget in budgets:
        reference = best(scores, budget, host)
        if reference is None:
            continue
        error = reference[1].median

        def told(found: tuple[Any, Any] | None, label: str = "", error: float = error) -> str:
            return f"{found[1].median:.4f} ({found[1].median / error:.2f}){label and ', ' + label}" if found else ""

        calibrated = best(scores, budget, [f.entry for f in files if f.kind == "plan"])
        amed = best(scores, budget, [f.entry for f in files if f.kind == "amed"])
        labels = {f.entry: str(f.base) for f in files}
        ours = best(scores, budget, plain)
        goal = ""
        if budget in GOALS and calibrated:
            better = min(score.median for _, score in (calibrated, amed) if score) if amed else calibrated[1].median
            reached = [
                f"{'reached' if ratio <= wanted else 'NOT reached'}: {ratio:.2f} of {wanted:g}"
                for ratio, wanted in zip((calibrated[1].median / error, better / error), GOALS[budget], strict=True)
            ]
            goal = "; ".join(reached)
        lines.append(
            f"| {budget} | {error:.4f}, {reference[0].entry} | {told(ours, str(ours[0].entry) if ours else '')} | "
            f"{told(calibrated, labels[calibrated[0].entry] if calibrated else '')} | "
            f"{told(amed, labels[amed[0].entry] if amed else '')} | {goal} |"
        )
    lines += ["", *_describe_plugin(files, scores, frechet)]
    return "\n".join([*lines, ""])


def _describe_plugin(
    files: list[Fitted], scores: Mapping[Any, Any], frechet: Mapping[Any, tuple[float, float]]
) -> list[str]:
    plugins = [f for f in files if f.kind == "amed"]
    if not plugins:
        return []
    budgets = sorted({f.evaluations for f in plugins})
    bases = list(dict.fromkeys(f.base for f in plugins))
    lines = [
        "AMED over each base against the base itself on the best of our schedules: error of AMED / error of the base "
        "(their ratio). The numbers of its inserted levels are fitted to the last sample and are the same for all "
        "images: the weights on the bottleneck are 0. Where the error does not fall: Fréchet distance of 1,000 samples "
        "to the data, of AMED / of the base, as far as it was measured.",
        "",
        f"| base | {' | '.join(map(str, budgets))} |",
        "| --- |" + " --- |" * len(budgets),
    ]
    for base in bases:
        parts = []
        for budget in budgets:
            entry = next((f.entry for f in plugins if f.base == base and f.evaluations == budget), None)
            ours, plain = (best(scores, budget, [e] if e else []) for e in (entry, base))
            if not ours or not plain:
                parts.append("")
                continue
            a, b = medians(ours[1], plain[1])
            text = f"{a:.4f} / {b:.4f} ({a / b:.2f})"
            if ours[0] in frechet and plain[0] in frechet:
                (a, a_error), (b, b_error) = frechet[ours[0]], frechet[plain[0]]
                text += f"; FD {a:.3f} ± {a_error:.3f} / {b:.3f} ± {b_error:.3f}"
            parts.append(text)
        lines.append(f"| {base} | {' | '.join(parts)} |")
    return lines
