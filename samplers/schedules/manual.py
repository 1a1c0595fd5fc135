"""Levels that the user types."""

from __future__ import annotations

import re
from typing import Annotated

import torch
from torch import Tensor

from ..checks import shortened
from ..schedule import schedule

_BETWEEN_NUMBERS = re.compile(r"""[\s,;|(){}\[\]"'，、；]+""")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def read_list(text: str) -> list[float]:
    """The numbers of a list in any form that programs print: with commas, spaces, lines, semicolons, brackets.

    What stands around square brackets may be words, as in `sigmas = tensor([14.6, 5.2], dtype=torch.float64)`.

    Raises:
        ValueError: naming what is not a number.
    """
    start, end = text.find("["), text.rfind("]")
    before, inside, after = (text[:start], text[start:end], text[end:]) if 0 <= start < end else ("", text, "")
    numbers = []
    for part in (before, inside, after):
        for word in filter(None, _BETWEEN_NUMBERS.split(part)):
            if _NUMBER.fullmatch(word):
                numbers.append(float(word))
            elif part is inside:
                raise ValueError(f"sigmas: {shortened(word)} is not a number; write the list as 14.6, 5.2, 1.4, 0")
    return numbers


@schedule(
    "Manual",
    paper="a typed list",
    help="The levels that you type, as many as there are steps.",
    starts_at_sigma_max=False,
    ends_at_sigma_min=False,
    any_steps=False,
)
def manual(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    sigmas: Annotated[
        str,
        "Noise levels (sigmas) from high to low, as many as steps, with anything between them: 14.6, 5.2, 1.4, 0.3. "
        "A 0 at the end may be left out.",
    ] = "",
    flow: bool = False,
) -> Tensor:
    """The given levels, which end at 0 whether that is written or not.

    Raises:
        ValueError: naming the level at fault, or the number of steps.
    """
    given = read_list(sigmas)
    for i, level in enumerate(given, 1):
        if i > 1 and level == given[i - 2]:
            raise ValueError(f"sigmas: number {i}, {level:g}, repeats the one before: each must be lower than the last")
        if i > 1 and level > given[i - 2]:
            raise ValueError(
                f"sigmas: number {i}, {level:g}, is above the one before, {given[i - 2]:g}: give them from high to low"
            )
        if level < 0:
            raise ValueError(f"sigmas: number {i}, {level:g}, is below 0: noise levels are positive")
    if given and given[-1] == 0:
        given.pop()
    if not given:
        raise ValueError("sigmas: there is none above 0; write the list as 14.6, 5.2, 1.4, 0")
    if given[0] > sigma_max * (1 if flow else 1.001):  # lists that are printed are rounded: 14.615
        raise ValueError(
            f"sigmas: number 1, {given[0]:g}, is above {sigma_max:g}, the highest level of this model: this list "
            "is for another model"
        )
    if len(given) != n:
        raise ValueError(
            f"sigmas: there are {len(given)} above 0, and the whole schedule has {n} (steps / denoise, one more with "
            f"discard_penultimate): set steps to {len(given)}, or give {n}"
        )
    return torch.tensor(given, dtype=torch.float64)
