"""What Few-Step Compare shows of its runs: a sheet of images, a chart, a table as text, and one to choose from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...samplers.checks import counted
from ..host.comparison import Cell, Comparison
from ..host.named import Named
from ..host.reference import MANY_STEPS
from .pictures import Tile, decode, head_lines, sheet
from .plots import Panel, line_plot
from .tables import text_table
from .theme import LIGHT, Theme

PUBLISHED_PLAN = "published plan"
_WHATEVER = "the sampler follows the plan that its authors published, whatever the schedule"


class Shown:
    """The pictures of a comparison, decoded once.

    Args:
        about: what the sheet says of the run, by name, in its head.
    """

    def __init__(
        self, work: Comparison, vae: Any = None, *, about: Mapping[str, str] | None = None, theme: Theme = LIGHT
    ):
        self.work, self.about, self.theme = work, about or {}, theme
        self.best = {cell for steps in work.columns if (cell := best(work, steps)) is not None}
        self.tiles = {cell: self._tile(cell, vae) for cell in work.cells}
        self.reference = self._reference(vae)

    def _tile(self, cell: Cell, vae: Any) -> Tile:
        work = self.work
        found, error = work.outcome(cell), work.error(cell)
        if found is None:
            return Tile(fault=work.faults.get(cell, ""), caption="failed" if cell in work.faults else "not finished")
        if (first := work.first(cell)) != cell:
            same = f"the same run as on {first.schedule.label}"
            return Tile(fault=f"{same}: {_WHATEVER}" if work.published(cell) else same, caption="same run")
        caption = _evaluations(found.evaluations) + ("" if error is None else f", error {error:.2g}")
        caption += f", {PUBLISHED_PLAN}" if work.published(cell) else ""
        marked = cell in self.best
        picture = decode(work.patcher, found.latents[:1], vae)[0]
        return Tile(picture, f"best: {caption}" if marked else caption, marked=marked)

    def _reference(self, vae: Any) -> Tile | None:
        """What all are compared with, if that is one image."""
        references = {id(found): found for cell in self.work.cells if (found := self.work.reference(cell)) is not None}
        if len(references) != 1:
            return None
        (found,) = references.values()
        picture = decode(self.work.patcher, found.latents[:1], vae)[0]
        return Tile(picture, f"reference, {_evaluations(found.evaluations)}")

    @property
    def pictures(self) -> dict[Cell, Tensor]:
        """[H, W, 3], of the cells that have one of their own."""
        return {cell: tile.picture for cell, tile in self.tiles.items() if tile.picture is not None}

    def sheet(self, width: int) -> Tensor:
        """The images, the reference first, then a row for each sampler and schedule, a column for each number of
        steps."""
        work = self.work
        rows = [[self.tiles[Cell(*row, steps)] for steps in work.columns] for row in work.rows]
        left = [f"{sampler.label}\n{schedule.label}" for sampler, schedule in work.rows]
        first = None
        if self.reference is not None:
            first = f"reference\n{counted(work.reference_steps, 'step')} of {MANY_STEPS}", self.reference
        top = [counted(steps, "step") for steps in work.columns]
        head = head_lines(self.about)
        return sheet(rows, width, top=top, left=left, head=head, first=first, theme=self.theme)


def best(work: Comparison, steps: int) -> Cell | None:
    """The one of a column with the least error, if there are several to choose from."""
    column = [Cell(*row, steps) for row in work.rows]
    errors = {cell: error for cell in column if (error := work.error(cell)) is not None and work.first(cell) == cell}
    return min(errors, key=errors.__getitem__) if len(errors) > 1 else None


def table(work: Comparison) -> str:
    """Every cell in a line."""
    rows = [["sampler", "schedule", "steps", "evaluations", "error", ""]]
    for row in work.rows:
        for steps in work.columns:
            cell = Cell(*row, steps)
            outcome, error = work.outcome(cell), work.error(cell)
            measured = [str(outcome.evaluations), "" if error is None else f"{error:.4g}"] if outcome else ["", ""]
            remark = "best" if best(work, steps) == cell else ""
            remark = remark if outcome else work.faults.get(cell, "not finished")
            rows.append([cell.sampler.label, _schedule(work, cell), str(steps), *measured, remark])
    lines = text_table(rows)
    if any(map(work.published, work.cells)):
        lines += ["", f"{PUBLISHED_PLAN}: {_WHATEVER}."]
    if work.reference_steps:
        lines += [
            "",
            f"error: root mean square difference of the latent from {counted(work.reference_steps, 'step')} of "
            f"{MANY_STEPS}. With added noise every run gives another image, and the error says little. best: the least "
            "error of all with as many steps.",
        ]
    return "\n".join([*lines, ""])


def chart(work: Comparison, theme: Theme = LIGHT) -> Tensor:
    """Error against evaluations."""
    series: dict[str, list[tuple[float, float]]] = {}
    for row in work.rows:
        for cell in (Cell(*row, steps) for steps in work.columns):
            found, error = work.outcome(cell), work.error(cell)
            if found is not None and error is not None and not (work.published(cell) and work.first(cell) != cell):
                schedule = PUBLISHED_PLAN if work.published(cell) else cell.schedule.label
                series.setdefault(f"{cell.sampler.label}, {schedule}", []).append((float(found.evaluations), error))
    series = {name: sorted(points) for name, points in series.items()}
    title = f"Error against {counted(work.reference_steps, 'step')}" if work.reference_steps else "Without a reference"
    return line_plot([Panel(title, "evaluations", "error", series, log_y=True, markers=True)], theme)


def cells(work: Comparison, files: Mapping[Cell, Any]) -> dict[str, Any]:
    """For the node in the browser: the rows and columns, and what was measured in each cell, in the order of
    `Comparison.cells`, with the file of its image."""
    return {
        "rows": [[_named(sampler), _named(schedule)] for sampler, schedule in work.rows],
        "columns": work.columns,
        "cells": [
            {
                "evaluations": None if (found := work.outcome(cell)) is None else found.evaluations,
                "error": work.error(cell),
                "best": best(work, cell.steps) == cell,
                "fault": work.faults.get(cell),
                "image": files.get(cell),
                "same": None if found is None else work.cells.index(work.first(cell)),
            }
            for cell in work.cells
        ],
    }


def _named(named: Named[Any]) -> dict[str, Any]:
    id = None if named.spec is None else named.spec.id
    return {"label": named.label, "name": named.name, "ours": id, "options": dict(named.options)}


def _evaluations(count: int) -> str:
    return counted(count, "evaluation")


def _schedule(work: Comparison, cell: Cell) -> str:
    return f"{cell.schedule.label} ({PUBLISHED_PLAN})" if work.published(cell) else cell.schedule.label
