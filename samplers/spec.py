"""What a sampler and a schedule have in common: a description with options, and a place in a list."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from .checks import shortened
from .options import Option


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What is said of a sampler or schedule where it is declared."""

    id: str
    """The name of its function. It is saved in workflows: it stays."""

    label: str
    paper: str
    help: str
    curated: bool = False
    """Whether the host's dropdowns show it; the nodes show all."""

    @property
    def options(self) -> tuple[Option, ...]:
        """Its own, in the order of its function's arguments, then those in `common`."""
        raise NotImplementedError

    @property
    def common(self) -> tuple[Option, ...]:
        """Those of `options` that every one of its kind has."""
        return ()

    def check_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options, defaults filled in.

        Raises:
            ValueError: naming an option that is unknown or out of bounds.
        """
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                raise ValueError(
                    f"{self.id} has no option {shortened(name)}; its options are: {', '.join(known) or 'none'}"
                )
        return {name: o.check(self.id, given.get(name, o.default)) for name, o in known.items()}

    def changed_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the given options that are not at their default."""
        defaults = {option.name: option.default for option in self.options}
        return {name: value for name, value in self.check_options(given).items() if value != defaults[name]}


SpecT = TypeVar("SpecT", bound=Spec)


def declare(spec: SpecT, declared: dict[str, SpecT]) -> None:
    """Enter it among those that are declared. Raises ValueError if there is one of its id."""
    if spec.id in declared:
        raise ValueError(f"{spec.id} is declared twice: the name of the function is its id")
    declared[spec.id] = spec


class UnknownIdError(KeyError):
    """There is no sampler or schedule of that id; the message says which there are."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show it in quotes


class Registry(Mapping[str, SpecT], Generic[SpecT]):
    """Specs by id, in the order of `ids`.

    Raises:
        ValueError: naming an id that is listed and not declared, declared and not listed, or listed twice.
    """

    def __init__(self, kind: str, ids: Iterable[str], declared: Mapping[str, SpecT]):
        self._kind = kind
        ids = list(ids)
        for id in [*ids, *declared]:
            if id not in declared:
                raise ValueError(f"{kind} {id!r} is listed and not declared: no {kind} function has this name")
            if ids.count(id) != 1:
                raise ValueError(f"{kind} {id!r} is declared and stands {ids.count(id)} times in the list of ids")
        self._specs = {id: declared[id] for id in ids}

    def __getitem__(self, key: str) -> SpecT:
        try:
            return self._specs[key]
        except KeyError:
            near = difflib.get_close_matches(str(key), self._specs, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self._specs)}"
            raise UnknownIdError(f"unknown {self._kind} {shortened(key)}; {hint}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
