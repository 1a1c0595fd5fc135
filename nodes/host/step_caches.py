"""Step caches on a model: what answers for the network in some evaluations, known by what it puts into the options."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from .wrapped import unwrapped

HOSTS_OWN = "easycache"
"""The option of the host's EasyCache and LazyCache."""

_OTHERS = {
    "TeaCache": re.compile(r"tea_?cache|^rel_l1_thresh$", re.IGNORECASE),
    "MagCache": re.compile(r"mag_?cache", re.IGNORECASE),
    "First Block Cache": re.compile(r"fb_?cache|first_?block_?cache", re.IGNORECASE),
}
"""Of other packs, by the names of what they install: options, or the function that wraps the network."""


def step_cache(model_options: Mapping[str, Any]) -> str | None:
    """The name of a step cache among the options of a model; None if there is none that is known."""
    options = model_options.get("transformer_options") or {}
    if (own := options.get(HOSTS_OWN)) is not None:
        return str(getattr(own, "name", "EasyCache"))
    names = [*filter(_is_name, options), *_wrappers(model_options.get("model_function_wrapper"))]
    return next((cache for cache, pattern in _OTHERS.items() if any(map(pattern.search, names))), None)


def _is_name(key: Any) -> bool:
    return isinstance(key, str)


def _wrappers(function: Any) -> Iterator[str]:
    """Where a function that wraps the network was defined, such as `TeaCache.apply_teacache.<locals>.wrapper`."""
    for part in unwrapped(function):
        name = getattr(part, "__qualname__", type(part).__qualname__)
        yield str(name)
