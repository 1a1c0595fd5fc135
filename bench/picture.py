"""The picture docs/quality.png: error against evaluations."""

from __future__ import annotations

import os
from pathlib import Path

from bench.calibrated import kind
from bench.errors import Cell, Score
from bench.results import best_line, leaders
from bench.subjects import ROOT

os.environ.setdefault("MPLCONFIGDIR", str(ROOT / ".host" / "cache" / "matplotlib"))  # nothing is written outside

NAMES = {"ours": "Few-Step", "host": "ComfyUI"}  # of where a sampler comes from


def draw(scores: dict[Cell, Score], floor: float, unit: str, path: Path) -> None:
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
                if c.entry == entry and c.source == source and c.budget and not s.failed
            )  # fmt: skip
            colour = matplotlib.colormaps[colours](0.8 * i / max(len(entries), 1))
            axes.plot(*zip(*line, strict=True), style, marker="o", color=colour, label=f"{NAMES[source]}: {entry}")
    budgets = sorted({c.budget for c in scores if c.budget})
    for wanted, style, label in (
        (lambda cell: kind(cell.entry) == "plan", "-sk", "Few-Step: calibrated plans"),
        (lambda cell: kind(cell.entry) == "amed", ":^k", "Few-Step: AMED, the best at each"),
        (lambda cell: cell.source == "borrowed", "xr", "ComfyUI: the best on our schedules"),
    ):
        line = best_line(scores, budgets, wanted)
        if line:
            axes.plot(*zip(*line, strict=True), style, label=label)
    axes.axhline(floor, color="grey", linewidth=1, label="distance between two references")
    axes.set(xscale="log", yscale="log", xlabel="model evaluations", ylabel=f"median error, {unit}")
    axes.set_xticks(budgets, map(str, budgets))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    part = path.with_suffix(".part.png")
    figure.savefig(part, dpi=120)
    pyplot.close(figure)
    os.replace(part, path)
