"""Levels that the user types."""

from __future__ import annotations

import re
from typing import Annotated

import torch
from torch import Tensor

from ..checks import shortened
from ..schedule import schedule

_LABEL = re.compile(r"^\s*[^\W\d][\w ]*[:：=]")
_ARGUMENT = re.compile(r"""\b(dtype|device|requires_grad)=['"]?[^\W\d][\w.:]*['"]?""")
_TYPE = re.compile(r"\b((numpy|np|torch)\.)?(float\d*|double|half|array|tensor|Decimal)\(")  # but no log(
_ARROW = re.compile(r"[-=–—]{0,3}>|[→⟶⇒]")
_BETWEEN = r"""\s;|/(){}\[\]"'，、；"""
_BETWEEN_NUMBERS = re.compile(f"[,{_BETWEEN}]+")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")  # digits are read in one way, so in linear time
_ONE_OR_TWO_NUMBERS = re.compile(r"[+-]?\d+,\d+")


def read_list(text: str) -> list[float]:
    """The numbers of a list in any form that programs print: with commas, spaces, lines, semicolons, slashes, arrows,
    brackets.

    Before it there may be a label, `sigmas: 14.6, 5.2`; around square brackets words, as in
    `sigmas = tensor([14.6, 5.2], dtype=torch.float64)`; and around each number its type, as in `np.float64(14.6)`.

    Raises:
        ValueError: naming what is not a number, or may be one or two (`14,6; 5,2`).
    """
    start, end = text.find("["), text.rfind("]")
    before, inside, after = (text[:start], text[start:end], text[end:]) if 0 <= start < end else ("", text, "")
    inside = _LABEL.sub("", inside)
    for aside in (_ARGUMENT, _TYPE, _ARROW):
        inside = aside.sub(" ", inside)
    _refuse_decimal_commas(inside)
    numbers = []
    for part in (before, inside, after):
        for word in filter(None, _BETWEEN_NUMBERS.split(part)):
            if _NUMBER.fullmatch(word):
                numbers.append(float(word))
            elif part is inside:
                raise ValueError(f"sigmas: {shortened(word)} is not a number; write the list as 14.6, 5.2, 1.4, 0")
    return numbers


def _refuse_decimal_commas(text: str) -> None:
    """Where something else than a comma is between numbers, 14,6 is 14.6 for some and 14, 6 for others."""
    words = [word.strip(",") for word in re.split(f"[{_BETWEEN}]+", text) if word.strip(",")]
    for word in words:
        if len(words) > 1 and _ONE_OR_TWO_NUMBERS.fullmatch(word):
            one, two = word.replace(",", "."), word.replace(",", ", ")
            raise ValueError(f"sigmas: {shortened(word)} may be one number or two: write {one} or {two}")


def _refuse_time_steps(given: list[float], flow: bool) -> None:
    """Lists of distilled models are often published as time steps, of 1000."""
    if not 100 < given[0] <= 1000:
        return
    if flow:
        levels = ", ".join(f"{level / 1000:.6g}" for level in given)
        raise ValueError(
            f"sigmas: these look like time steps of 1000, and noise levels of this model go from 1 to 0: write {levels}"
        )
    if all(level == int(level) for level in given):
        raise ValueError(
            "sigmas: these look like time steps of 1000, not noise levels: choose the schedule trained for a distilled "
            "model, or write levels, such as 14.6, 5.2, 1.4"
        )


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
        "A 0 at the end may be left out. For a flow model write time steps of 1000 divided by 1000: 1, 0.9375, 0.833.",
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
    _refuse_time_steps(given, flow)
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
