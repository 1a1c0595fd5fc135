"""The small picture of a workflow that ComfyUI shows under Templates: its groups, nodes and links."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw

SIZE = 640, 400
SHARPER = 3  # drawn so much larger, then reduced
BACK, GROUP, NODE, NOTE = "#1b1b1d", "#22384b", "#4a4a4e", "#6b5836"
TITLE = "#7aa7cc"  # of nodes of the pack
COLOURS = {
    "MODEL": "#b39ddb",
    "CLIP": "#ffd500",
    "VAE": "#ff6e6e",
    "CONDITIONING": "#ffa931",
    "LATENT": "#ff9cf9",
    "IMAGE": "#64b5f6",
    "SIGMAS": "#cdffcd",
    "SAMPLER": "#ecb4b4",
    "GUIDER": "#66ffff",
}


def thumbnail(workflow: dict[str, Any]) -> Image.Image:
    """A diagram of a saved workflow; nodes of the pack have a bright title."""
    boxes = [group["bounding"] for group in workflow["groups"]]
    left, top = (min(box[k] for box in boxes) for k in (0, 1))
    right, bottom = (max(box[k] + box[k + 2] for box in boxes) for k in (0, 1))
    width, height = (SHARPER * side for side in SIZE)
    scale = 0.92 * min(width / (right - left), height / (bottom - top))
    corner = (width - scale * (right - left)) / 2 - scale * left, (height - scale * (bottom - top)) / 2 - scale * top

    def at(x: float, y: float) -> tuple[float, float]:
        return corner[0] + scale * x, corner[1] + scale * y

    def box(x: float, y: float, wide: float, high: float, colour: str) -> None:
        pen.rounded_rectangle((*at(x, y), *at(x + wide, y + high)), radius=8 * scale, fill=colour)

    image = Image.new("RGB", (width, height), BACK)
    pen = ImageDraw.Draw(image)
    for group in workflow["groups"]:
        box(*group["bounding"], GROUP)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for node in nodes.values():
        (x, y), (wide, high) = node["pos"], node["size"]
        box(x, y - 30, wide, high + 30, NOTE if node["type"] == "MarkdownNote" else NODE)
        if node["type"].startswith("FewStep"):
            box(x, y - 30, wide, 30, TITLE)
    for _, source, slot, target, place, kind in workflow["links"]:
        start, end = nodes[source], nodes[target]
        a = start["pos"][0] + start["size"][0], start["pos"][1] + 15 + 20 * slot
        b = end["pos"][0], end["pos"][1] + 15 + 20 * place
        bend = max(60.0, abs(b[0] - a[0]) / 2)
        points = [at(*bezier(a, (a[0] + bend, a[1]), (b[0] - bend, b[1]), b, k / 24)) for k in range(25)]
        pen.line(points, fill=COLOURS.get(kind, "#9a9a9a"), width=round(5 * scale), joint="curve")
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def bezier(*given: Any) -> tuple[float, float]:
    """The point at share t of the cubic through a and d that is drawn to b and c."""
    a, b, c, d, t = given
    weights = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
    x, y = (sum(w * p[k] for w, p in zip(weights, (a, b, c, d), strict=True)) for k in (0, 1))
    return x, y
