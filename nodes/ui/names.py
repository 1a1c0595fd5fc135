"""Samplers and schedules by the lines of a text: ours and the host's."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import comfy.samplers

from ...samplers import SAMPLERS, SCHEDULES, SamplerSpec, ScheduleSpec
from ...samplers.checks import read_number, shortened
from ..host.named import Named, SpecT
from ..host.sampling import PREFIX
from .menu import KNOWN_NAMES

_LINES = "Lines that begin with # are left out."
SAMPLERS_SYNTAX = (
    f"One sampler in each line, by its name in KSampler's list: `dpmpp_2m` is ComfyUI's, `{PREFIX}dpmpp_2m` is ours. "
    f"Options follow the name: `{PREFIX}unipc order=2`. {_LINES}"
)
SCHEDULES_SYNTAX = (
    f"One schedule in each line, by its name in KSampler's list of schedulers: `karras` is ComfyUI's, "
    f"`{PREFIX}karras` is ours. Options follow the name: `{PREFIX}karras rho=5`. A * after the name of one of ours "
    f"leaves out its last level above 0 (discard_penultimate). {_LINES}"
)


def read_samplers(text: str) -> list[Named[SamplerSpec]]:
    """The samplers of a text.

    Raises:
        ValueError: naming the line at fault.
    """
    return _read("samplers", "sampler", text, SAMPLERS, comfy.samplers.KSampler.SAMPLERS, _host_options)


def read_schedules(text: str) -> list[Named[ScheduleSpec]]:
    """The schedules of a text. As in our tables, * stands for `discard_penultimate`.

    Raises:
        ValueError: naming the line at fault.
    """
    return _read("schedules", "schedule", text, SCHEDULES, comfy.samplers.KSampler.SCHEDULERS, lambda name: {})


def known_names() -> dict[str, list[dict[str, Any]]]:
    """What a text may name, ours first: by the input, each with its name, and ours with a label, a line of help and
    their options as they are written."""

    def listed(registry: Mapping[str, SpecT], host: Iterable[str]) -> list[dict[str, Any]]:
        own: list[dict[str, Any]] = [
            {
                "name": PREFIX + id,
                "label": spec.label,
                "help": spec.help,
                "options": [f"{option.name}={_written(option.default)}" for option in spec.options],
            }
            for id, spec in registry.items()
        ]
        return [*own, *({"name": name} for name in host if not name.startswith(PREFIX))]

    return {
        "samplers": listed(SAMPLERS, comfy.samplers.KSampler.SAMPLERS),
        "schedules": listed(SCHEDULES, comfy.samplers.KSampler.SCHEDULERS),
    }


def _written(default: Any) -> str:
    """A default as it would be typed."""
    if isinstance(default, bool):
        return "on" if default else "off"
    return f"{default:.4g}" if isinstance(default, float) else str(default)


def read_steps(text: str) -> list[int]:
    """Numbers of steps.

    Raises:
        ValueError: naming the one at fault.
    """
    found = []
    for part in re.split(r"[\s,;]+", checked_length("steps", text).strip()):
        if not (part.isdecimal() and len(part) <= 9 and 1 <= int(part) <= 1000):
            raise ValueError(f"steps: {shortened(part)} must be a whole number from 1 to 1000; write them as 5, 8, 12")
        found.append(int(part))
    return list(dict.fromkeys(found))


READERS: Mapping[str, Callable[[str], Any]] = {
    "samplers": read_samplers,
    "schedules": read_schedules,
    "steps": read_steps,
}


def faults(texts: Mapping[str, str | None]) -> dict[str, str]:
    """What is wrong in which of the boxes that are typed in; those without a text are fed by another node."""
    found = {}
    for name, read in READERS.items():
        text = texts.get(name)
        try:
            if text is not None:
                read(text)
        except ValueError as error:
            found[name] = str(error)
    return found


# Reading


def _read(
    input: str,
    kind: str,
    text: str,
    registry: Mapping[str, SpecT],
    host: Iterable[str],
    host_options: Callable[[str], Mapping[str, Any]],
) -> list[Named[SpecT]]:
    theirs: list[str] = [name for name in host if not name.startswith(PREFIX)]
    ours: dict[str, SpecT] = {PREFIX + id: spec for id, spec in registry.items()}
    ours |= {id: spec for id, spec in registry.items() if id not in theirs}
    read: list[Named[SpecT]] = []
    for number, line in enumerate(checked_length(input, text).splitlines(), 1):
        words = " ".join(line.replace("*", " discard_penultimate=on ").split())
        name, *parts = re.split(r"[ ,()]+", re.sub(" ?= ?", "=", words))
        if not name or name.startswith("#"):
            continue
        where = f"{input}, line {number}"
        if name not in ours and name not in theirs:
            whole = " ".join(part for part in words.split() if "=" not in part)  # names elsewhere have spaces
            for wanted in (whole, name):
                if there := _elsewhere(input, wanted):
                    raise ValueError(f"{where}: there is no {kind} {shortened(wanted)}; {there}")
            raise ValueError(f"{where}: there is no {kind} {shortened(name)}; {_near(name, [*theirs, *ours])}")
        spec = ours.get(name)
        known = {o.name: o.default for o in spec.options} if spec is not None else host_options(name)
        options = dict(_option(where, name, part, known) for part in parts if part)
        if spec is not None:
            try:
                options = spec.changed_options(options)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from None
        read.append(Named(" ".join(line.split()), name, spec, options))
    if not read:
        raise ValueError(f"{input}: the text names none; write at least one {kind}, each in a line of its own")
    return read


_LONGEST = 20_000


def checked_length(input: str, text: str, longest: int = _LONGEST) -> str:
    """A text that is read in the server's event loop, or with the lock of Python held.

    Raises:
        ValueError: if it is longer than anybody writes.
    """
    if len(text) > longest:
        raise ValueError(f"{input}: {len(text):,} characters, and at most {longest:,} are read: shorten the text")
    return text


def _elsewhere(input: str, name: str) -> str:
    """What a name of another program is here, as it is written in the box; empty if nobody calls anything so."""
    known = {other: ours for names in KNOWN_NAMES[input].values() for other, ours in names.items()}
    in_lower_case = {other.lower(): ours for other, ours in known.items()}
    name = name.removeprefix(PREFIX)
    ours = known.get(name, in_lower_case.get(name.lower()))
    if ours is None:
        return ""
    if isinstance(ours, str):
        return f"here it is {PREFIX}{ours}"
    return f"the nearest here is {PREFIX}{ours[0]}"  # with a remark


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else "the names are those of KSampler's list"


def _option(where: str, name: str, part: str, known: Mapping[str, Any]) -> tuple[str, Any]:
    """`key=value`, of the type of the option's default."""
    key, equals, value = part.partition("=")
    if not equals:
        raise ValueError(f"{where}: {shortened(part)} after {name} is not an option: write options as name=value")
    if key not in known:
        has = f"its options are {', '.join(known)}" if known else "it has none"
        raise ValueError(f"{where}: {name} has no option {shortened(key)}; {has}")
    default = known[key]
    if isinstance(default, bool):
        switch = {"on": True, "true": True, "1": True, "off": False, "false": False, "0": False}.get(value.lower())
        if switch is None:
            raise ValueError(f"{where}: option {key} = {shortened(value)} must be on or off")
        return key, switch
    if isinstance(default, int | float):
        whole = re.fullmatch(r"-?\d{1,18}", value) is not None
        try:
            return key, int(value) if whole else read_number(key, float(value))
        except ValueError:
            raise ValueError(f"{where}: option {key} = {shortened(value)} must be a number") from None
    return key, value


_SIGNATURE = ("model", "x", "sigmas", "extra_args", "callback", "disable")


@functools.cache
def _host_options(name: str) -> dict[str, Any]:
    """Options of a sampler of the host that are numbers, switches or words, with their defaults."""
    parameters = inspect.signature(comfy.samplers.sampler_object(name).sampler_function).parameters
    return {
        key: parameter.default
        for key, parameter in parameters.items()
        if key not in _SIGNATURE and isinstance(parameter.default, bool | int | float | str)
    }
