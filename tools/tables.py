"""The tables of README.md, made from the registry.

python tools/tables.py          writes them anew between their markers
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from samplers import SAMPLERS, SCHEDULES  # noqa: E402

README = ROOT / "README.md"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [header, ["---"] * len(list(header)), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _dropdown(spec) -> str:
    return f"`fewstep_{spec.id}`" if spec.curated else "in the node"


def _evaluations(spec) -> str:
    """Evaluations of a step in the middle of a run."""
    if spec.adaptive:
        return "2 or 3 a try"
    longer, shorter = ([float(s) for s in range(n, 0, -1)] for n in (9, 8))
    return str(spec.nfe(longer) - spec.nfe(shorter))


def _options(spec) -> str:
    """Its own; those that all have are said once, below the table."""
    return ", ".join(f"`{o.name}`" for o in spec.options if o not in spec.common) or "none"


def _noise(spec) -> str:
    return "yes" if spec.stochastic else ""


def tables() -> dict[str, str]:
    samplers = (
        (f"`{s.id}`", s.label, str(s.order), _evaluations(s), _noise(s), _dropdown(s), _options(s), s.help, s.paper)
        for s in SAMPLERS.values()
    )
    schedules = ((f"`{s.id}`", s.label, _dropdown(s), _options(s), s.help, s.paper) for s in SCHEDULES.values())
    return {
        "samplers": _table(
            ("id", "name", "order", "evaluations a step", "fresh noise", "dropdown", "options", "what for", "paper"),
            samplers,
        ),
        "schedules": _table(("id", "name", "dropdown", "options", "what for", "paper"), schedules),
    }


def with_tables(text: str) -> str:
    """The text with everything between `<!-- name -->` and `<!-- /name -->` replaced by the table of that name.

    Raises:
        ValueError: if a table has no place in the text.
    """
    for name, table in tables().items():
        text, found = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.S
        )
        if found != 1:
            raise ValueError(f"README.md has {found} places for the table {name!r}")
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
