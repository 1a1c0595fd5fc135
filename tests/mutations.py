"""JSON with faults put in by chance, for tests of what is read from outside."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any


def mutated(given: Any, source: random.Random, odd: Sequence[Any], names: Sequence[str]) -> Any:
    """A copy of some JSON with one part of it replaced, left out, or written over another.

    Args:
        odd: what takes the place of a part.
        names: the keys that an object may get beside its own, or instead of one.
    """
    if not isinstance(given, dict | list) or not given or source.random() < 0.12:
        return source.choice(odd)
    copied = dict(given) if isinstance(given, dict) else list(given)
    key = source.choice(list(copied)) if isinstance(copied, dict) else source.randrange(len(copied))
    chance = source.random()
    if chance < 0.1:
        del copied[key]
    elif chance < 0.22 and isinstance(copied, dict):
        copied[source.choice(names)] = source.choice(odd)
    else:
        copied[key] = mutated(copied[key], source, odd, names)
    return copied
