"""Checks of numbers that come from outside: from a file, a text, a workflow or a request; numbers in messages."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any


def read_number(name: str, given: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """The number as a float.

    A switch is no number, nor is a text.

    Raises:
        ValueError: naming it, unless it is a finite number between the bounds.
    """
    if isinstance(given, bool) or not isinstance(given, Real):
        raise ValueError(f"{name} = {shortened(given)} must be a number")
    try:
        number = float(given)
    except OverflowError:  # a whole number of JSON may have any length
        number = math.inf
    if not (low <= number <= high and math.isfinite(number)):
        raise ValueError(f"{name} = {shortened(given)} must be a finite number between {low:g} and {high:g}")
    return number


def shortened(given: Any, most: int = 60) -> str:
    """What was given, as a message can hold it."""
    if isinstance(given, int) and abs(given) >= 10**most:  # Python does not even write those of some thousand digits
        return f"a whole number of more than {most} digits"
    text = repr(given)
    return text if len(text) <= most else f"{text[:most]} ..."


def counted(count: int | str, one: str, many: str | None = None) -> str:
    """A number of things: "1 step", "6 steps", "4 or 8 steps"; `many` where it is not `one` with an s."""
    return f"{count} {one if str(count) == '1' else many or one + 's'}"
