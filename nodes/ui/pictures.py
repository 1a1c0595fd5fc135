"""Latents as pictures, and sheets of pictures with labels, drawn with PIL."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import latent_preview
import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .plots import to_tensor
from .theme import LIGHT, Theme

_ENLARGED = 8  # pixels of a latent's element where there is no VAE, as Stable Diffusion has
_GAP, _LINE = 6, 17  # in pixels
_SIZE = 13  # of letters
_MARGIN = 200  # width of the labels of rows, at most
_LONGEST = 240  # letters of a prompt in the head
_FRAME = 3  # width of the frame around what is marked


class Tile(NamedTuple):
    """A place on a sheet."""

    picture: Tensor | None = None
    """[H, W, 3] in 0 ... 1; without one the place is grey."""

    caption: str = ""
    fault: str = ""
    """Is written instead of a picture."""

    marked: bool = False
    """As the best of its column: it has a frame."""


def decode(patcher: Any, latents: Tensor, vae: Any = None) -> Tensor:
    """An IMAGE of the host, [B, H, W, 3]: of videos the first frame.

    Without a VAE it is what the host shows while it samples, of the colours that the model's latents nearly have.
    """
    if latents.ndim == 5:
        latents = latents[:, :, :1]
    if vae is not None:
        pixels = vae.decode(latents)
        return rearrange(pixels[..., :3], "... h w c -> (...) h w c").float().cpu()
    space = patcher.get_model_object("latent_format")
    factors = space.latent_rgb_factors or torch.eye(space.latent_channels, 3).tolist()
    previewer = latent_preview.Latent2RGBPreviewer(
        factors, space.latent_rgb_factors_bias, space.latent_rgb_factors_reshape
    )
    inside = space.process_in(latents.float().cpu())
    small = [to_tensor(previewer.decode_latent_to_preview(latent[None])) for latent in inside]
    return repeat(small, "b h w c -> b (h down) (w across) c", down=_ENLARGED, across=_ENLARGED)


def side_by_side(pixels: Tensor) -> Image.Image:
    """An IMAGE of the host as one picture, in rows of nearly as many columns."""
    columns = math.ceil(math.sqrt(len(pixels)))
    empty = -len(pixels) % columns
    whole = torch.cat([pixels, pixels.new_ones(empty, *pixels.shape[1:])])
    return to_picture(rearrange(whole, "(down across) h w c -> (down h) (across w) c", across=columns))


def sheet(
    rows: Sequence[Sequence[Tile]],
    width: int,
    *,
    top: Sequence[str] = (),
    left: Sequence[str] = (),
    head: Sequence[str] = (),
    first: tuple[str, Tile] | None = None,
    theme: Theme = LIGHT,
) -> Tensor:
    """Tiles of a width in rows, each with its caption below, as an IMAGE of the host: [1, H, W, 3].

    Args:
        top: labels of the columns.
        left: labels of the rows; may have several lines. Labels, captions and the head are broken where they are too
            long.
        head: lines above all, or beside the first tile.
        first: a tile above the columns, with its label.
    """
    font = ImageFont.load_default(_SIZE)
    columns, height = max(len(row) for row in rows), _tile_height(rows, width)
    labels = [
        [part for line in label.split("\n") for part in _wrapped(line, _MARGIN, font)]
        for label in (*left, *([first[0]] if first else []))
    ]
    margin = max((_width(label, font) + 2 * _GAP for label in labels), default=_GAP)
    across = width + _GAP
    beside = first is not None and columns > 1
    room = (columns - 1) * across - _GAP if beside else margin + columns * across - 2 * _GAP
    said = [part for line in head for part in _wrapped(line, max(room, _MARGIN), font)]
    captions = [[_wrapped(tile.caption, width, font) for tile in row] for row in ([first[1]] if first else [], *rows)]
    down = [height + _LINE * max(1, *map(len, lines)) + _GAP if lines else 0 for lines in captions]
    above = 0 if beside or not said else _LINE * len(said) + _GAP
    down[0] = max(down[0], _LINE * len(said) + _GAP if beside else 0)
    names = [_wrapped(label, width, font) for label in top]
    start = above + down[0] + (_LINE * max(map(len, names)) if names else 0) + _GAP
    right = margin + across if beside else _GAP
    wide = max(margin + columns * across, right + _width(said, font) + _GAP)
    picture = Image.new("RGB", (wide, start + sum(down[1:])), theme.paper)
    pen = ImageDraw.Draw(picture)

    def draw(tile: Tile, caption: Sequence[str], x: int, y: int) -> None:
        _draw(picture, pen, tile, (x, y, width, height), font, theme)
        _write(pen, caption, (x + width / 2, y + height), theme.best if tile.marked else theme.ink, font)

    def name(label: Sequence[str], y: int) -> None:
        pen.multiline_text((_GAP, y + height / 2), "\n".join(label), theme.ink, font, anchor="lm", spacing=4)

    for k, line in enumerate(said):
        pen.text((right, _GAP + (k + 0.5) * _LINE), line, theme.ink, font, anchor="lm")
    if first:
        draw(first[1], captions[0][0], margin, above + _GAP)
        name(labels[-1], above + _GAP)
    for k, label in enumerate(names):
        _write(pen, label, (margin + k * across + width / 2, start - _LINE * len(label)), theme.ink, font)
    for j, row in enumerate(rows):
        y = start + sum(down[1 : j + 1])
        if left:
            name(labels[j], y)
        for k, tile in enumerate(row):
            draw(tile, captions[j + 1][k], margin + k * across, y)
    return to_tensor(picture)[None]


def head_lines(about: Mapping[str, str]) -> list[str]:
    """What is known of a run, by name, as the head of a sheet."""
    return [f"{name}: {text[:_LONGEST]}{' ...' * (len(text) > _LONGEST)}" for name, text in about.items()]


def _write(pen: ImageDraw.ImageDraw, lines: Sequence[str], place: tuple[float, float], ink: str, font: Any) -> None:
    """Lines below a place, around its middle."""
    for k, line in enumerate(lines):
        pen.text((place[0], place[1] + (k + 0.5) * _LINE), line, ink, font, anchor="mm")


def _wrapped(text: str, width: float, font: Any) -> list[str]:
    """A text in lines of a width in pixels, broken between words, and within those that are longer."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".lstrip()
        if font.getlength(longer) <= width:
            line = longer
            continue
        lines += [line] if line else []
        line = word
        while font.getlength(line) > width and len(line) > 1:
            fits = max((k for k in range(1, len(line)) if font.getlength(line[:k]) <= width), default=1)
            lines.append(line[:fits])
            line = line[fits:]
    return [*lines, line] if line else lines


def to_picture(pixels: Tensor) -> Image.Image:
    """Of [H, W, 3] in 0 ... 1."""
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().cpu().numpy())


def _tile_height(rows: Sequence[Sequence[Tile]], width: int) -> int:
    """That of the first picture at this width; of none the width."""
    for row in rows:
        for tile in row:
            if tile.picture is not None:
                return max(round(width * tile.picture.shape[0] / tile.picture.shape[1]), 1)
    return width


def _draw(
    picture: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, box: tuple[int, ...], font: Any, theme: Theme
) -> None:
    x, y, width, height = box
    if tile.picture is None:
        pen.rectangle((x, y, x + width - 1, y + height - 1), theme.empty)
        lines, fit = _wrapped(tile.fault, width - 2 * _GAP, font), max((height - 2 * _GAP) // _LINE, 1)
        if len(lines) > fit:
            lines = [*lines[: fit - 1], f"{lines[fit - 1]} ..."]
        pen.multiline_text((x + _GAP, y + _GAP), "\n".join(lines), theme.fault, font, spacing=3)
        return
    whole = to_picture(tile.picture)
    filter = Image.Resampling.LANCZOS if whole.width > width else Image.Resampling.NEAREST
    picture.paste(whole.resize((width, height), filter), (x, y))
    if tile.marked:
        around = (x - _FRAME, y - _FRAME, x + width - 1 + _FRAME, y + height - 1 + _FRAME)
        pen.rectangle(around, None, theme.best, _FRAME)


def _width(lines: Sequence[str], font: Any) -> int:
    return max((round(font.getlength(line)) for line in lines), default=0)
