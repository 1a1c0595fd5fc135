"""Draws the pictures of the help pages (web/docs/images) and docs/graph.png in a headless Chromium: `make screenshots`.

    .host/venv/bin/python tools/screenshots.py [NodeId ...]
    .host/venv/bin/python tools/screenshots.py --looks

With --looks it shoots every node and every workflow in both designs of nodes and both themes, to be looked at, into
output/looks, with a sheet of each kind.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from browser import SCRIPTS, chromium, node, playwright
from host import ROOT, environment, server
from PIL import Image

IMAGES = ROOT / "web" / "docs" / "images"
LOOKS = ROOT / "output" / "looks"
LARGEST = 60 * 1024  # bytes of a picture
COLOURS, SURFACES = 256, 64  # of a picture, and of these the most frequent ones, which come out unchanged


def reduced(picture: Image.Image) -> Image.Image:
    """In few of its colours: those of surfaces, and others, as of thin lines, as far as they differ from these."""
    counted = sorted(picture.getcolors(picture.width * picture.height), reverse=True)
    colours = np.array([colour for _, colour in counted], dtype=np.int16)
    for near in itertools.count(1):
        chosen, left = [], colours
        while len(left) and len(chosen) < COLOURS:
            chosen.append(left[0])
            far = np.abs(left - left[0]).max(axis=1) >= near
            far[1 : max(1, 1 + SURFACES - len(chosen))] = True
            left = left[far]
        if not len(left):
            break
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.concatenate(chosen).tolist())
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def shoot(script: str, **given: object) -> None:
    """Run a script of tests/browser that takes pictures."""
    given |= {"chromium": chromium(), "modules": str(playwright())}
    subprocess.run([node(), str(SCRIPTS / script), json.dumps(given)], check=True, env=environment())


def looks() -> None:
    """Every node and every workflow, in both designs and both themes."""
    LOOKS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, server(Path(folder, "log"), "--output-directory", folder) as host:
        shoot("looks.mjs", url=host.url, root=str(ROOT), out=str(LOOKS))
    for kind, columns, width in (("node", 7, 330), ("workflow", 4, 683)):
        for seen in itertools.product(("canvas", "elements"), ("dark", "light")):
            name = " ".join([kind, *seen])
            sheet(sorted(LOOKS.glob(f"{name} *.png")), columns, width).save(LOOKS / f"{name}.png")
    print(LOOKS)


def sheet(paths: list[Path], columns: int, width: int, apart: int = 8) -> Image.Image:
    """Pictures of one width, in columns that are about as high as each other."""
    heights = [0] * columns
    placed = []
    for picture in map(Image.open, paths):
        picture = picture.convert("RGB").resize((width, round(picture.height * width / picture.width)))
        column = heights.index(min(heights))
        placed.append((picture, (column * (width + apart), heights[column])))
        heights[column] += picture.height + apart
    whole = Image.new("RGB", (columns * (width + apart), max(heights)), "grey")
    for picture, place in placed:
        whole.paste(picture, place)
    return whole


def main() -> None:
    if "--looks" in sys.argv:
        return looks()
    IMAGES.mkdir(parents=True, exist_ok=True)
    folders = (tempfile.TemporaryDirectory() for _ in range(2))
    with next(folders) as folder, next(folders) as temporary:
        arguments = ("--output-directory", folder, "--temp-directory", temporary)
        with server(Path(temporary, "log"), *arguments) as host:
            shoot("pictures.mjs", url=host.url, out=folder, only=sys.argv[1:] or None)
        for path in sorted([*Path(folder).glob("FewStep*.png"), *Path(folder).glob("graph.png")]):
            picture = Image.open(path).convert("RGB")
            target = (IMAGES if path.stem.startswith("FewStep") else ROOT / "docs") / path.name
            reduced(picture).save(target, optimize=True)
            print(f"{path.name}: {picture.width} x {picture.height}, {target.stat().st_size // 1024} KB")
            if target.stat().st_size > LARGEST:
                sys.exit(f"{path.name} has more than {LARGEST} bytes: show less in tests/browser/pictures.mjs")


if __name__ == "__main__":
    main()
