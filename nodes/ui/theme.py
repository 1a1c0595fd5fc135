"""The colours of pictures with words and lines: on white paper, and for those who work in the dark."""

from __future__ import annotations

from typing import NamedTuple


class Theme(NamedTuple):
    """Colours as "#rrggbb". Lines have a contrast of at least 3:1 with the paper, which WCAG asks of graphics; words
    one of 4.5:1."""

    paper: str
    ink: str
    quiet: str
    """Of words that say less."""

    faint: str
    """Of the grid behind lines."""

    empty: str
    """Of a place without a picture."""

    fault: str
    best: str
    """Of what is marked as the best."""

    lines: tuple[str, ...]


LIGHT = Theme(
    paper="#ffffff", ink="#222222", quiet="#666666", faint="#dddddd", empty="#eeeeee", fault="#a02020", best="#0a7a2f",
    lines=(
        "#0072b2", "#d55e00", "#00856f", "#b8479a", "#9a6a00", "#666666", "#332288", "#882255", "#117733", "#7a7a1f",
        "#aa4499", "#661100", "#1f8a7a", "#2a88c8",
    ),
)  # fmt: skip
DARK = Theme(
    paper="#1e1e1e", ink="#e6e6e6", quiet="#a8a8a8", faint="#3c3c3c", empty="#2e2e2e", fault="#ff8a8a", best="#52d273",
    lines=(
        "#4db8ff", "#ff8c42", "#35c99a", "#e79ac4", "#f0c05a", "#bbbbbb", "#a99bff", "#ff7fa8", "#6fd08c", "#d6d66b",
        "#e08be0", "#e0a080", "#7fe0d0", "#8ad1ff",
    ),
)  # fmt: skip
THEMES = {"light": LIGHT, "dark": DARK}
"""By the choice of the nodes. The lines have the colours of Okabe and Ito and of Tol, which the colour-blind tell
apart, darker or lighter where they had less contrast."""
