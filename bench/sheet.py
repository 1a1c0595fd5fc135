"""The picture sheet.png: some images of the report, sampled by the best of each kind at each budget."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bench import calibrated, cells
from bench.errors import Bench, Cell
from bench.results import duels

SHOWN, SIDE, MARGIN, TEXT = 4, 256, 230, 24  # images of a row; pixels


def draw_sheet(bench: Bench, path: Path) -> None:
    """Columns: the first images of the report. Rows: many steps; at each budget the host's, ours, plans, AMED."""
    subject, pairs = bench.subject, bench.size.reported_on(bench.subject)[:SHOWN]
    way, steps = bench.limits.reference, bench.size.reference_steps
    rows = [(f"{way[0]}, {steps} steps", _images(bench, Cell(*way, None), steps))]
    for duel in duels(bench.scores, bench.size.budgets):
        for cell in (duel.host, duel.ours):
            rows.append((f"{cell.budget}: {cell.source}, {cell.entry}, {cell.schedule}", _images(bench, cell)))
        for file in calibrated.fitted(subject):
            if file.evaluations == duel.budget:
                cell = Cell(file.entry, calibrated.OWN_LEVELS, duel.budget)
                rows.append((f"{duel.budget}: {file.kind}, {file.entry}", _images(bench, cell)))
    sheet = Image.new("RGB", (MARGIN + SIDE * len(pairs), TEXT + SIDE * len(rows)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, pair in enumerate(pairs):
        pen.text((MARGIN + i * SIDE + 4, 5), f"{pair.prompt[:34]} ({pair.seed})", "black", font)
    for j, (label, images) in enumerate(rows):
        pen.multiline_text((6, TEXT + j * SIDE + SIDE // 2 - 14), label.replace(": ", ":\n").replace(", ", ",\n"),
                           "black", font)  # fmt: skip
        for i, image in enumerate(images):
            tile = Image.fromarray((image * 255).round().byte().numpy()).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            sheet.paste(tile, (MARGIN + i * SIDE, TEXT + j * SIDE))
    part = path.with_suffix(".part.png")
    sheet.save(part)
    part.replace(path)


def _images(bench: Bench, cell: Cell, steps: int = 0) -> list[Tensor]:
    """[H, W, 3] in [0, 1], of the first pairs of the report."""
    subject = bench.subject
    levels = cells.make_levels(subject, cell.entry, cell.schedule, steps) if steps else bench.levels_of(cell)
    images = []
    for pair in bench.size.reported_on(subject)[:SHOWN]:
        latents, _ = cells.sample(subject, cell.entry, levels, (pair,))
        with torch.inference_mode():
            images.append(subject.decode(latents)[0].cpu().clamp(0, 1))
    return images
