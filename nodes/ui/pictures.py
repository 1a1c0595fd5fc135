"""Latents as pictures, and sheets of pictures with labels, drawn with PIL."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import latent_preview
import torch
from einops import rearrange, repeat
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .plots import to_tensor

_ENLARGED = 8  # pixels of a latent's element where there is no VAE, as Stable Diffusion has
_GAP, _LINE = 6, 17  # in pixels
_INK, _FAULT, _EMPTY = "#222222", "#a02020", "#eeeeee"
_SIZE = 13  # of letters


class Tile(NamedTuple):
    """A place on a sheet."""

    picture: Tensor | None = None
    """[H, W, 3] in 0 ... 1; without one the place is grey."""

    caption: str = ""
    fault: str = ""
    """Is written instead of a picture."""


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


def sheet(rows: Sequence[Sequence[Tile]], width: int, *, top: Sequence[str] = (), left: Sequence[str] = ()) -> Tensor:
    """Tiles of a width in rows, each with its caption below, as an IMAGE of the host: [1, H, W, 3].

    Args:
        top: labels of the columns.
        left: labels of the rows; may have several lines.
    """
    columns = max(len(row) for row in rows)
    height = _tile_height(rows, width)
    font = ImageFont.load_default(_SIZE)
    margin = max((_width(label, font) + 2 * _GAP for label in left), default=_GAP)
    head = _LINE + _GAP if top else _GAP
    across, down = width + _GAP, height + _LINE + _GAP
    picture = Image.new("RGB", (margin + columns * across, head + len(rows) * down), "white")
    pen = ImageDraw.Draw(picture)
    for k, label in enumerate(top):
        pen.text((margin + k * across + width / 2, head / 2), label, _INK, font, anchor="mm")
    for j, row in enumerate(rows):
        y = head + j * down
        if left:
            pen.multiline_text((_GAP, y + height / 2), left[j], _INK, font, anchor="lm", spacing=4)
        for k, tile in enumerate(row):
            x = margin + k * across
            _draw(picture, pen, tile, (x, y, width, height), font)
            pen.text((x + width / 2, y + height + _LINE / 2), tile.caption, _INK, font, anchor="mm")
    return to_tensor(picture)[None]


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


def _draw(picture: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, box: tuple[int, ...], font: Any) -> None:
    x, y, width, height = box
    if tile.picture is not None:
        whole = to_picture(tile.picture)
        filter = Image.Resampling.LANCZOS if whole.width > width else Image.Resampling.NEAREST
        picture.paste(whole.resize((width, height), filter), (x, y))
        return
    pen.rectangle((x, y, x + width - 1, y + height - 1), _EMPTY)
    if tile.fault:
        letters = max(int((width - 2 * _GAP) / (0.55 * _SIZE)), 8)
        lines = textwrap.wrap(tile.fault, letters)[: max((height - 2 * _GAP) // _LINE, 1)]
        pen.multiline_text((x + _GAP, y + _GAP), "\n".join(lines), _FAULT, font, spacing=3)


def _width(text: str, font: Any) -> int:
    return max(round(font.getlength(line)) for line in text.split("\n"))
