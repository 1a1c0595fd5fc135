"""What a calibrated plan says of itself: for what it was made, how, and what it gained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..checks import read_number, shortened

_ERRORS = (0.0, 1e9)
_BOUNDS = {"guidance": (-1e6, 1e6), "error_before": _ERRORS, "error_after": _ERRORS}
_LARGEST = 2.0**64  # of all other numbers: a seed
_DEPTH = 8  # of objects and lists within each other


@dataclass(frozen=True)
class About:
    """Where a calibrated plan comes from. A field that is not known has its default.

    `from_dict` and `as_dict` give back what a file holds as it was there: fields in the same order, and those that this
    version does not know.
    """

    model: Mapping[str, Any] = field(default_factory=dict)
    """What the host knows of the model it was made for, see `CalibratedPlan.check_model`."""

    guidance: float | None = None
    """The scale it was made at."""

    prompts: int | None = None
    """How many there were."""

    texts: Sequence[str] = ()
    """The prompts as they were written."""

    seeds: Sequence[int] = ()
    """The least and the greatest."""

    latent: Sequence[int] = ()
    """Shape of one latent, (channels, height, width)."""

    teacher: Mapping[str, Any] = field(default_factory=dict)
    """`sampler`, `schedule` and `steps` of the run that was to be matched."""

    baseline: str | None = None
    """The sampler and schedule, or the plan, whose error is `error_before`."""

    iterations: int | None = None
    """Batches of a training."""

    error_before: float | None = None
    """In validation, which nothing is fitted to, of the baseline."""

    error_after: float | None = None
    """In validation, of the plan."""

    improved: bool | None = None
    """Whether it is better than the baseline."""

    trained: Mapping[str, Any] = field(default_factory=dict)
    """What training image by image came to, where that followed."""

    interrupted: bool = False
    """Whether the work was stopped before it was done."""

    source: str | None = None
    """Of numbers that were published."""

    more: Mapping[str, Any] = field(default_factory=dict)
    """Fields that this version does not know, or that hold something else here than they do today."""

    written: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """The fields of the file it was read from, in order."""

    @property
    def measured(self) -> bool:
        """Whether both errors are known."""
        return self.error_before is not None and self.error_after is not None

    @property
    def gain(self) -> float:
        """The error after, as a share of that before. 1 if it is not known."""
        return self.error_after / self.error_before if self.error_before and self.error_after is not None else 1.0

    def other_model(self, model: Mapping[str, Any]) -> tuple[str, str, str] | None:
        """The first field in which another model differs, what it is here and what there; None for one of this kind.

        A field that one of both does not know is left out.
        """
        for name, wanted in self.model.items():
            if name in model and not _agree(model[name], wanted):
                return name, _short(wanted), _short(model[name])
        return None

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not known is left out."""
        known = {name: getattr(self, name) for name in _DEFAULTS}
        kept = dict(self.more) | {name: entry for name, entry in known.items() if entry != _DEFAULTS[name]}
        order = dict.fromkeys((*self.written, *kept))
        return {name: _as_json(kept[name] if name in kept else known[name]) for name in order}

    @classmethod
    def from_dict(cls, given: Any) -> About:
        """The record of `as_dict`.

        Raises:
            ValueError: naming the field at fault, for what could not be compared, or shown.
        """
        if not isinstance(given, dict) or not isinstance(given.get("model", {}), dict):
            raise ValueError("field about must be an object, and its field model too")
        for name, bounds in _BOUNDS.items():
            if name in given:
                read_number(f"field about: {name}", given[name], *bounds)
        for name in ("improved", "interrupted"):
            if not isinstance(given.get(name, False), bool):
                raise ValueError(f"field about: {name} = {shortened(given[name])} must be true or false")
        _check_numbers("about", given, _DEPTH)
        known = {name: _as_field(entry) for name, entry in given.items() if name in _FITS and _FITS[name](entry)}
        more = {name: entry for name, entry in given.items() if name not in known}
        return cls(**known, more=more, written=tuple(given))


def _agree(found: Any, wanted: Any) -> bool:
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return abs(found - wanted) <= 1e-3 * abs(wanted)
    return bool(found == wanted)


def _short(field: Any) -> str:
    return f"{field:.5g}" if isinstance(field, float) else str(field)[:80]


def _as_field(entry: Any) -> Any:
    return tuple(entry) if isinstance(entry, list) else entry


def _as_json(entry: Any) -> Any:
    return list(entry) if isinstance(entry, tuple) else entry


def _whole(entry: Any) -> bool:
    return isinstance(entry, int) and not isinstance(entry, bool)


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda entry: isinstance(entry, list) and all(map(fits, entry))


def _of(kind: type) -> Callable[[Any], bool]:
    return lambda entry: isinstance(entry, kind)


def _checked(entry: Any) -> bool:
    return True


_FITS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("model", *_BOUNDS, "improved", "interrupted"), _checked),
    **dict.fromkeys(("prompts", "iterations"), _whole),
    **dict.fromkeys(("seeds", "latent"), _list_of(_whole)),
    **dict.fromkeys(("baseline", "source"), _of(str)),
    **dict.fromkeys(("teacher", "trained"), _of(dict)),
    "texts": _list_of(_of(str)),
}
"""Whether an entry of a file is what a field holds, by the field's name."""

_DEFAULTS = {f.name: getattr(About(), f.name) for f in fields(About) if f.name in _FITS}


def _check_numbers(name: str, given: Any, depth: int) -> None:
    if depth == 0:
        raise ValueError(f"field {name} is nested too deeply")
    if isinstance(given, dict | list):
        named = given.items() if isinstance(given, dict) else ((None, part) for part in given)
        for key, part in named:
            _check_numbers(name if key is None else f"{name}: {key[:40]}", part, depth - 1)
    elif isinstance(given, int | float) and not isinstance(given, bool):
        read_number(f"field {name}", given, -_LARGEST, _LARGEST)
