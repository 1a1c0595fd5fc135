"""Options of samplers and schedules: how they are described, and the checks of what is given for them.

An option is a keyword argument of the function. Its annotation says its type, its bounds or choices, and its help:

    r: Annotated[float, Bounds(0.05, 1.0), "Where in the step the second evaluation lies."] = 0.5
    solver_type: Annotated[Literal["midpoint", "heun"], "Form of the update."] = "midpoint"
    sigmas: Annotated[str, "Noise levels, descending."] = ""
"""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from .checks import shortened


class Bounds(NamedTuple):
    """The least and the largest value of a number, both allowed, and the step in which a widget counts it."""

    minimum: float
    maximum: float
    step: float = 0.01


@dataclass(frozen=True)
class Option:
    """One option of a sampler or schedule: its default (whose type is the option's), bounds and help text."""

    name: str
    default: float | int | bool | str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    """Of a word. One without choices is free text."""

    step: float = 0.01
    """In which a widget counts it."""

    def check(self, owner: str, value: Any) -> Any:
        """The value, of the option's type; raises ValueError naming the option if it does not fit."""
        where = f"{owner}: option {self.name} = {shortened(value)}"
        if isinstance(self.default, bool):
            if not isinstance(value, (bool, int)) or value not in (0, 1):
                raise ValueError(f"{where} must be true or false")
            return bool(value)
        if isinstance(self.default, str):
            if not isinstance(value, str) or (self.choices and value not in self.choices):
                wanted = f"one of {', '.join(self.choices)}" if self.choices else "a text"
                raise ValueError(f"{where} must be {wanted}")
            return value
        try:
            number = operator.index(value) if isinstance(self.default, int) else float(value)
        except OverflowError:  # a whole number of more digits than a float holds
            number = math.inf if value > 0 else -math.inf
        except (TypeError, ValueError, RuntimeError):  # the last of tensors with several elements
            raise ValueError(f"{where} must be a number") from None
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if not low <= number <= high:
            raise ValueError(f"{where} must lie between {low:g} and {high:g}")
        return number


def options_of(function: Callable[..., Any], filled_in: Collection[str] = ()) -> tuple[Option, ...]:
    """The keyword-only arguments of a function as options, in order.

    Args:
        filled_in: names of those that are no options, but known from the run.

    Raises:
        TypeError: naming an argument that is not described, or whose default does not fit the description.
    """
    hints = get_type_hints(function, include_extras=True)
    arguments = inspect.signature(function).parameters.values()
    return tuple(
        _option(function.__name__, argument, hints.get(argument.name))
        for argument in arguments
        if argument.kind is argument.KEYWORD_ONLY and argument.name not in filled_in
    )


def _option(owner: str, argument: inspect.Parameter, hint: Any) -> Option:
    name, default = argument.name, argument.default
    kind, *described = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    help = next((text for text in described if isinstance(text, str)), None)
    bounds = next((bounds for bounds in described if isinstance(bounds, Bounds)), None)
    choices = get_args(kind) if get_origin(kind) is Literal else ()
    if help is None or not (choices or kind in (bool, str) or bounds):
        raise TypeError(
            f"{owner}: option {name} must be Annotated with its help text and, if it is a number, with its Bounds"
        )
    if type(default) is not (str if choices else kind):
        raise TypeError(f"{owner}: option {name} needs a default of its type, and has {default!r}")
    option = Option(name, default, help, choices=choices, **(bounds._asdict() if bounds else {}))
    option.check(owner, default)
    return option
