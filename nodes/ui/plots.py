"""Line plots, drawn with PIL: matplotlib does not come with ComfyUI."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 560, 400  # of a panel
_LEFT, _TOP, _RIGHT, _BOTTOM = 68, 62, 16, 46  # from the edges of a panel to its axes
_TEXT = 12  # height of letters
_FINE = 2  # drawn that much larger, for smooth lines
_INK, _FAINT = "#222222", "#dddddd"
_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#666666",  # Okabe and Ito
    "#332288", "#882255", "#117733", "#999933", "#aa4499", "#661100", "#44aa99",  # Tol
)  # fmt: skip

Point = tuple[float, float]


class Panel(NamedTuple):
    """One pair of axes. Numbers that cannot be drawn (NaN, infinity, 0 on a log axis) leave a gap."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Point]]
    """Lines by their name in the legend, which is above the axes, or in their upper right corner where it is too long
    for that. A name that begins with "_" is not listed there."""

    log_y: bool = False
    dots: Collection[str] = ()
    """Names of the series whose points are drawn, instead of the line through them."""


def line_plot(panels: Sequence[Panel]) -> torch.Tensor:
    """The panels in rows of two, as an IMAGE of the host: [1, H, W, 3] in 0 ... 1."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * WIDTH * _FINE, rows * HEIGHT * _FINE), "white")
    for k, panel in enumerate(panels):
        _Axes(sheet, panel, (k % columns * WIDTH, k // columns * HEIGHT)).draw()
    sheet = sheet.resize((columns * WIDTH, rows * HEIGHT), Image.Resampling.LANCZOS)
    return to_tensor(sheet)[None]


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """[H, W, 3] in 0 ... 1."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).float() / 255


class _Axes:
    """A panel at its place on the sheet. Lengths are in pixels of the finished image."""

    def __init__(self, sheet: Image.Image, panel: Panel, corner: tuple[int, int]):
        self.pen, self.panel, self.corner = ImageDraw.Draw(sheet), panel, corner
        points = [point for points in panel.series.values() for point in points if self.shows(point)]
        self.x = _range([x for x, _ in points], log=False)
        self.whole = all(x == round(x) for x, _ in points)
        self.y = _range([y for _, y in points], log=panel.log_y)

    def shows(self, point: Point) -> bool:
        return all(map(math.isfinite, point)) and (point[1] > 0 or not self.panel.log_y)

    def at(self, x: float, y: float) -> Point:
        """A pair of numbers as a place on the sheet."""
        right = _fraction(x, self.x, log=False) * (WIDTH - _LEFT - _RIGHT)
        up = _fraction(y, self.y, self.panel.log_y) * (HEIGHT - _TOP - _BOTTOM)
        return self.sheet(_LEFT + right, HEIGHT - _BOTTOM - up)

    def sheet(self, right: float, down: float) -> Point:
        return (self.corner[0] + right) * _FINE, (self.corner[1] + down) * _FINE

    def line(self, points: Sequence[Point], colour: str, width: float = 1) -> None:
        self.pen.line(points, colour, round(width * _FINE), joint="curve")

    def text(self, right: float, down: float, text: str, anchor: str, size: int = _TEXT, colour: str = _INK) -> None:
        font = ImageFont.load_default(size * _FINE)
        self.pen.text(self.sheet(right, down), text, colour, font, anchor=anchor)

    def dot(self, place: Point, colour: str) -> None:
        x, y = place
        self.pen.ellipse((x - 4 * _FINE, y - 4 * _FINE, x + 4 * _FINE, y + 4 * _FINE), colour)

    def draw(self) -> None:
        panel = self.panel
        self.text(WIDTH / 2, 14, panel.title, "mm", 15)
        self.text((WIDTH + _LEFT - _RIGHT) / 2, HEIGHT - 12, panel.x_label, "mm")
        self.text(8, _TOP - 16, panel.y_label, "lm")
        for x in _ticks(self.x, log=False, whole=self.whole):
            (right, bottom), top = self.at(x, self.y[0]), self.at(x, self.y[1])
            self.line([(right, bottom), top], _FAINT)
            self.text(right / _FINE - self.corner[0], HEIGHT - _BOTTOM + 12, f"{x:g}", "mm")
        for y in _ticks(self.y, panel.log_y):
            (left, down), end = self.at(self.x[0], y), self.at(self.x[1], y)
            self.line([(left, down), end], _FAINT)
            self.text(_LEFT - 6, down / _FINE - self.corner[1], f"{y:g}", "rm")
        corners = [self.at(self.x[i], self.y[j]) for i, j in ((0, 1), (0, 0), (1, 0))]
        self.line(corners, _INK)
        self._draw_series()
        self._draw_legend()

    def _draw_legend(self) -> None:
        listed = [name for name in self.panel.series if not name.startswith("_")]
        font = ImageFont.load_default(_TEXT * _FINE)
        widths = [self.pen.textlength(name, font) / _FINE + 14 for name in listed]
        right, line = float(WIDTH - _RIGHT), _TOP - 16
        stacked = sum(widths) > right - 8 - self.pen.textlength(self.panel.y_label, font) / _FINE
        for k, (name, width) in reversed(list(enumerate(zip(listed, widths, strict=True)))):
            if stacked:
                self.text(right - 6, _TOP + 8 + 15 * k, name, "rm", colour=self.colour(name))
            else:
                self.text(right, line, name, "rm", colour=self.colour(name))
                right -= width

    def _draw_series(self) -> None:
        for name, points in self.panel.series.items():
            run: list[Point] = []
            for point in points:
                if not self.shows(point):
                    self._draw_run(name, run)
                    run = []
                else:
                    run.append(self.at(*point))
            self._draw_run(name, run)

    def _draw_run(self, name: str, run: list[Point]) -> None:
        if name in self.panel.dots or len(run) == 1:
            for place in run:
                self.dot(place, self.colour(name))
        elif run:
            self.line(run, self.colour(name), 1.8)

    def colour(self, name: str) -> str:
        return _COLOURS[list(self.panel.series).index(name) % len(_COLOURS)]


def _range(numbers: Sequence[float], log: bool) -> tuple[float, float]:
    """The ends of an axis: those of the numbers and a little more."""
    low, high = (min(numbers), max(numbers)) if numbers else (1.0, 10.0)
    if log:
        margin = (high / low) ** 0.05 if high > low else 2.0
        return low / margin, high * margin
    margin = 0.05 * (high - low) or 0.5 * abs(high) or 1.0
    return low - margin, high + margin


def _fraction(number: float, ends: tuple[float, float], log: bool) -> float:
    """Where on its axis a number lies, 0 ... 1."""
    low, high = ends
    if log:
        return math.log(number / low) / math.log(high / low)
    return (number - low) / (high - low)


def _ticks(ends: tuple[float, float], log: bool, whole: bool = False) -> list[float]:
    """Round numbers on an axis, about five; `whole` numbers only, if asked for."""
    low, high = ends
    if log and high / low > 10:
        decades = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        some = list(decades)[:: -(-len(decades) // 6)]
        digits = (1, 2, 5) if len(decades) < 3 else (1,)
        ticks = [d * 10.0**e for e in ([some[0] - 1, *some] if len(digits) > 1 else some) for d in digits]
        return [tick for tick in ticks if low <= tick <= high]
    raw = (high - low) / 5
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 5, 10) if m * scale >= raw * 0.99)
    step = max(step, 1.0) if whole else step
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1) if not log or k * step > 0]
