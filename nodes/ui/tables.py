"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first row its head: with the cells of a column one below the other as plain text, and a
    table to what reads Markdown, as the host's Preview Any does. Columns of numbers are flush right."""
    written = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    columns = list(zip(*written, strict=True))
    right = [all(_is_number(cell) for cell in column[1:] if cell) and any(column[1:]) for column in columns]
    widths = [max(3, *map(len, column)) for column in columns]
    lines = [[_flush(*cell) for cell in zip(row, widths, right, strict=True)] for row in written]
    rule = ["-" * (width - 1) + (":" if flush else "-") for width, flush in zip(widths, right, strict=True)]
    return [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]


def _flush(cell: str, width: int, right: bool) -> str:
    return cell.rjust(width) if right else cell.ljust(width)


def _is_number(cell: str) -> bool:
    try:
        float(cell.rstrip("%"))
    except ValueError:
        return cell == "-"
    return True
