"""Tables as text."""


def text_table(rows: list[list[str]]) -> list[str]:
    """Lines with the cells of a column one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
