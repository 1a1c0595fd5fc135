"""What lies inside the model that a sampler was given, however often other packs have wrapped it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_INSIDE = ("inner_model", "__wrapped__", "__self__", "func")
"""Where wrappers keep what they wrap: those of k-diffusion, functools.wraps, bound methods, functools.partial."""


def unwrapped(model: Any) -> Iterator[Any]:
    """The model and all that it wraps, from the outside to the inside, each once."""
    waiting: list[Any] = [model]
    seen: list[Any] = []
    while waiting:
        part = waiting.pop(0)
        if not any(part is one for one in seen):
            seen.append(part)
            yield part
            waiting += [inner for inner in (getattr(part, name, None) for name in _INSIDE) if inner is not None]
