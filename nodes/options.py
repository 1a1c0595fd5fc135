"""Widgets for the options of the registry, and back again.

A node offers every option of every sampler it can choose. A number or switch on which they agree shows its default;
choices, and what they differ on, start at "default" (a number at -1), which means that of the chosen sampler.
Options that the chosen sampler does not have are ignored; a choice that it does not have is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from comfy_api.latest import io

from ..samplers import Option

DEFAULT = "default"
UNSET = -1  # "default" for a number: no option of any sampler is negative
DECIMALS = 2  # that the front end keeps of a number
_SWITCH = {"on": True, "off": False}


def option_inputs(specs: Iterable[Any]) -> list[io.Input]:
    """One input per option name, in order of first appearance."""
    uses: dict[str, list[tuple[str, Option]]] = {}
    for spec in specs:
        for option in spec.options:
            uses.setdefault(option.name, []).append((spec.id, option))
    return [_input(name, [o for _, o in used], [id for id, _ in used]) for name, used in uses.items()]


def _input(name: str, options: list[Option], ids: list[str]) -> io.Input:
    first = options[0]
    default = first.default if all(o.default == first.default for o in options) else None
    common = {"id": name, "tooltip": _tooltip(options, ids), "optional": True}
    if isinstance(first.default, bool):
        if default is None:
            return io.Combo.Input(options=[DEFAULT, *_SWITCH], default=DEFAULT, **common)
        return io.Boolean.Input(default=default, **common)
    if isinstance(first.default, str):
        choices = list(dict.fromkeys(choice for o in options for choice in o.choices))
        return io.Combo.Input(options=[DEFAULT, *choices], default=DEFAULT, **common)
    bounds = {"min": min(o.minimum for o in options), "max": max(o.maximum for o in options), "default": default}
    if default is None:
        bounds |= {"min": UNSET, "default": UNSET}
        common["tooltip"] += "\n-1 is the default of the sampler or schedule."
    if isinstance(first.default, int):
        return io.Int.Input(**bounds, **common)
    return io.Float.Input(step=10**-DECIMALS, round=False, **bounds, **common)


def _tooltip(options: list[Option], ids: list[str]) -> str:
    """The help of the option, once for those samplers that share it."""
    users: dict[str, list[str]] = {}
    for option, id in zip(options, ids, strict=True):
        choices = f"{' or '.join(option.choices)}. " if option.choices else ""
        users.setdefault(choices + option.help, []).append(id)
    return "\n".join(f"{help} ({', '.join(used)})" for help, used in users.items())


def chosen_options(spec: Any, widgets: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the widgets that are options of `spec`; those at their default are left to the spec.

    The front end rounds numbers to the step of the widget: 0.33 is the default 1/3 again.
    """
    chosen = {}
    for option in spec.options:
        value = widgets.get(option.name, DEFAULT)
        if value in (DEFAULT, UNSET) or (
            isinstance(option.default, float) and value == round(option.default, DECIMALS)
        ):
            continue
        chosen[option.name] = _SWITCH.get(value, value) if isinstance(value, str) else value
    return chosen
