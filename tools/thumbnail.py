"""The small picture of a workflow that ComfyUI shows under Templates: its title over what it makes, or a diagram."""

from __future__ import annotations

import textwrap
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps
from wires import wires

SIZE = 640, 400
HEAD, MARGIN = 132, 24  # height of the title; from the edge
SHARPER = 3  # drawn so much larger, then reduced
LETTERS = 25  # of a line of the title
BACK, GROUP, NODE, NOTE = "#1b1b1d", "#22384b", "#4a4a4e", "#6b5836"
KIND, TEXT = "#7aa7cc", "#f2f2f2"
OWN = "#7aa7cc"  # titles of nodes of the pack
COLOURS = {
    "MODEL": "#b39ddb",
    "CLIP": "#ffd500",
    "VAE": "#ff6e6e",
    "CONDITIONING": "#ffa931",
    "LATENT": "#ff9cf9",
    "IMAGE": "#64b5f6",
    "SIGMAS": "#cdffcd",
    "SAMPLER": "#ecb4b4",
}


def thumbnail(title: str, workflow: dict[str, Any], made: Image.Image | None = None) -> Image.Image:
    """A title, whose first word is the kind of model, over an image that was made or a diagram of the workflow."""
    image = Image.new("RGB", (SIZE[0] * SHARPER, SIZE[1] * SHARPER), BACK)
    kind, rest = title.split(" ", 1)
    pen = ImageDraw.Draw(image)
    pen.text((MARGIN * SHARPER, 14 * SHARPER), kind, fill=KIND, font=ImageFont.load_default(24 * SHARPER))
    lines = textwrap.wrap(rest[0].upper() + rest[1:], LETTERS)
    size = 36 if len(lines) < 3 else 25
    font = ImageFont.load_default(size * SHARPER)
    for k, line in enumerate(lines):
        pen.text((MARGIN * SHARPER, (42 + 1.15 * size * k) * SHARPER), line, fill=TEXT, font=font)
    box = MARGIN * SHARPER, HEAD * SHARPER, image.width - MARGIN * SHARPER, image.height - MARGIN * SHARPER
    if made is None:
        _diagram(pen, workflow, box)
    else:
        fitted = ImageOps.contain(made, (box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
        image.paste(fitted, (box[0] + (box[2] - box[0] - fitted.width) // 2, box[1]))
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def _diagram(pen: ImageDraw.ImageDraw, workflow: dict[str, Any], area: tuple[int, int, int, int]) -> None:
    """Groups, nodes and wires of a saved workflow; nodes of the pack have a bright title."""
    boxes = [group["bounding"] for group in workflow["groups"]]
    left, top = (min(box[k] for box in boxes) for k in (0, 1))
    right, bottom = (max(box[k] + box[k + 2] for box in boxes) for k in (0, 1))
    bottom = max(bottom, *(y for _, way in wires(workflow) for _, y in way))  # which go below the only row
    scale = min((area[2] - area[0]) / (right - left), (area[3] - area[1]) / (bottom - top))
    shift = (area[0] + area[2] - scale * (right + left)) / 2, area[1] - scale * top

    def at(x: float, y: float) -> tuple[float, float]:
        return shift[0] + scale * x, shift[1] + scale * y

    def box(x: float, y: float, wide: float, high: float, colour: str) -> None:
        pen.rounded_rectangle((*at(x, y), *at(x + wide, y + high)), radius=8 * scale, fill=colour)

    for group in workflow["groups"]:
        box(*group["bounding"], GROUP)
    for node in workflow["nodes"]:
        (x, y), (wide, high) = node["pos"], node["size"]
        box(x, y - 30, wide, high + 30, NOTE if node["type"] == "MarkdownNote" else NODE)
        if node["type"].startswith("FewStep"):
            box(x, y - 30, wide, 30, OWN)
    for link, way in wires(workflow):
        colour = COLOURS.get(link[5], "#9a9a9a")
        pen.line([at(*point) for point in way], fill=colour, width=round(6 * scale), joint="curve")
