"""Line plots, drawn with PIL: matplotlib does not come with ComfyUI."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from PIL import Image, ImageDraw, ImageFont

from .theme import LIGHT, Theme

WIDTH, HEIGHT = 560, 400  # of a panel
_LEFT, _TOP, _RIGHT, _BOTTOM = 68, 62, 16, 46  # from the edges of a panel to its axes
_TEXT = 12  # height of letters
_FINE = 2  # drawn that much larger, for smooth lines
_LEGEND = 16  # height of a line of the legend below the axes
_COINCIDE = 0.015  # points of two lines that are nearer, in heights of a panel, hide each other

Point = tuple[float, float]


class Panel(NamedTuple):
    """One pair of axes. Numbers that cannot be drawn (NaN, infinity, 0 on a log axis) leave a gap."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Point]]
    """Lines by their name in the legend, which is above the axes, or below them where it is too long for that. A name
    that begins with "_" is not listed there."""

    log_y: bool = False
    dots: Collection[str] = ()
    """Names of the series whose points are drawn, instead of the line through them."""

    markers: bool = False
    """Whether each series has a mark of its own at its points, too, and lines that others hide are wider than these."""


def line_plot(panels: Sequence[Panel], theme: Theme = LIGHT) -> torch.Tensor:
    """The panels in rows of two, as an IMAGE of the host: [1, H, W, 3] in 0 ... 1."""
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    height = HEIGHT + max(map(_legend_height, panels))
    sheet = Image.new("RGB", (columns * WIDTH * _FINE, rows * height * _FINE), theme.paper)
    for k, panel in enumerate(panels):
        _Axes(sheet, panel, (k % columns * WIDTH, k // columns * height), theme).draw()
    sheet = sheet.resize((columns * WIDTH, rows * height), Image.Resampling.LANCZOS)
    return to_tensor(sheet)[None]


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """[H, W, 3] in 0 ... 1."""
    pixels = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    return pixels.view(picture.height, picture.width, 3).float() / 255


class _Axes:
    """A panel at its place on the sheet. Lengths are in pixels of the finished image."""

    def __init__(self, sheet: Image.Image, panel: Panel, corner: tuple[int, int], theme: Theme = LIGHT):
        self.pen, self.panel, self.corner, self.theme = ImageDraw.Draw(sheet), panel, corner, theme
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

    def text(self, right: float, down: float, text: str, anchor: str, size: int = _TEXT, colour: str = "") -> None:
        font = ImageFont.load_default(size * _FINE)
        self.pen.text(self.sheet(right, down), text, colour or self.theme.ink, font, anchor=anchor)

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
            self.line([(right, bottom), top], self.theme.faint)
            self.text(right / _FINE - self.corner[0], HEIGHT - _BOTTOM + 12, f"{x:g}", "mm")
        for y in _ticks(self.y, panel.log_y):
            (left, down), end = self.at(self.x[0], y), self.at(self.x[1], y)
            self.line([(left, down), end], self.theme.faint)
            self.text(_LEFT - 6, down / _FINE - self.corner[1], f"{y:g}", "rm")
        corners = [self.at(self.x[i], self.y[j]) for i, j in ((0, 1), (0, 0), (1, 0))]
        self.line(corners, self.theme.ink)
        self._draw_series()
        self._draw_legend()

    def _draw_legend(self) -> None:
        """Above the axes, from the right; or below them, as `_legend_height` has made room for it."""
        widths = _legend_widths(self.panel)
        if _legend_height(self.panel):
            across = max(1, (WIDTH - _LEFT) // max(widths.values()))
            for k, name in enumerate(widths):
                right, down = _LEFT + k % across * (WIDTH - _LEFT) // across, HEIGHT + k // across * _LEGEND
                self._draw_key(name, right, down)
            return
        right = float(WIDTH - _RIGHT)
        for name, width in reversed(widths.items()):
            right -= width
            self._draw_key(name, right, _TOP - 16)

    def _draw_key(self, name: str, right: float, down: float) -> None:
        colour = self.colour(name)
        if self.panel.markers:
            ends = [self.sheet(right + x, down) for x in (0, _KEY - 4)]
            self.line(ends, colour, 1.8)
            self.mark(self.sheet(right + _KEY / 2 - 2, down), name)
        self.text(right + (_KEY if self.panel.markers else 0), down, name, "lm", colour=colour)

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
                self.mark(place, name) if self.panel.markers else self.dot(place, self.colour(name))
        elif run:
            self.line(run, self.colour(name), 1.8 + 3 * self._hiding(name))
            if self.panel.markers:
                for place in run:
                    self.mark(place, name)

    def _hiding(self, name: str) -> int:
        """How many of the series that are drawn later hide this one."""
        if not self.panel.markers:
            return 0
        places = {
            other: [self.at(*point) for point in points if self.shows(point)]
            for other, points in self.panel.series.items()
        }
        later = list(places)[list(places).index(name) + 1 :]
        return sum(_coincide(places[name], places[other]) for other in later)

    def mark(self, place: Point, name: str) -> None:
        """A hollow sign of one's own: what lies below stays in sight."""
        (x, y), r = place, 4.5 * _FINE
        sides, turn = _SIGNS[list(self.panel.series).index(name) % len(_SIGNS)]
        corners = [
            (x + r * math.sin(2 * math.pi * (k / sides + turn)), y - r * math.cos(2 * math.pi * (k / sides + turn)))
            for k in range(sides)
        ]
        self.line([*corners, *corners[:2]], self.colour(name), 1.6)

    def colour(self, name: str) -> str:
        return self.theme.lines[list(self.panel.series).index(name) % len(self.theme.lines)]


def _coincide(one: Sequence[Point], other: Sequence[Point]) -> bool:
    """Whether two successive points of one line lie on points of the other."""
    near = _COINCIDE * HEIGHT * _FINE
    on = [any(math.dist(point, its) < near for its in other) for point in one]
    return any(a and b for a, b in itertools.pairwise(on))


_KEY = 26  # width of the sign before a name in the legend
_SIGNS = ((24, 0), (4, 0.125), (3, 0), (4, 0), (3, 0.5), (5, 0), (6, 0))
"""Corners, and the turn of the first: circle, square, triangle, diamond, triangle downwards, pentagon, hexagon."""


def _legend_widths(panel: Panel) -> dict[str, float]:
    font = ImageFont.load_default(_TEXT)
    sign = _KEY if panel.markers else 0
    return {name: font.getlength(name) + sign + 14 for name in panel.series if not name.startswith("_")}


def _legend_height(panel: Panel) -> int:
    """Of the legend below the axes; 0 where it fits above them, beside the name of the axis."""
    widths = _legend_widths(panel)
    room = WIDTH - _RIGHT - 16 - ImageFont.load_default(_TEXT).getlength(panel.y_label)
    if sum(widths.values()) <= room:
        return 0
    across = max(1, (WIDTH - _LEFT) // max(widths.values()))
    return -(-len(widths) // int(across)) * _LEGEND + 4


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


class Trained(Protocol):
    """Where a training stands."""

    @property
    def iteration(self) -> int: ...
    @property
    def loss(self) -> float: ...


def training_plot(steps: Sequence[Trained], errors: Mapping[str, Sequence[float]]) -> torch.Tensor:
    """Loss of a training, and errors by their name in the legend, one for each step; an IMAGE."""
    iterations = [step.iteration for step in steps]

    def line(values: Sequence[float]) -> list[Point]:
        return points(list(zip(iterations, values, strict=True)))

    losses = {"loss": line([step.loss for step in steps])}
    lines = {name: line(values) for name, values in errors.items()}
    return line_plot(
        [
            Panel("Training", "iterations", "loss", losses, log_y=True),
            Panel("Validation images", "iterations", "error", lines, log_y=True),
        ]
    )


def points(pairs: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """Those that can be drawn."""
    return [(float(x), y) for x, y in pairs if math.isfinite(y)]
