"""Recognises inputs of a node that were connected before."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Content:
    """What was connected, to be recognised: tensors and numbers by their content, all else by being the same object.

    Objects are not kept alive by it, but for the few that know no weak references.
    """

    def __init__(self, *inputs: Any):
        self._objects: list[Callable[[], Any]] = []
        self._numbers: dict[int, int] = {}
        self._kept: list[Any] = []  # an id is of use while its object is there
        digest = hashlib.sha256()
        for part in self._parts(inputs):
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        self._digest = digest.digest()
        del self._numbers, self._kept

    def same(self, other: Content | None) -> bool:
        """Whether both were made from the same inputs."""
        if other is None or self._digest != other._digest:
            return False
        return all(reference() is not None for reference in other._objects)  # else an id may be another's now

    def _parts(self, inputs: Any) -> Iterator[bytes]:
        """What distinguishes values, however deep they lie. What is met again is given by its number: it may hold
        itself."""
        waiting = [inputs]
        while waiting:
            value = waiting.pop()
            if id(value) in self._numbers:
                yield f"met {self._numbers[id(value)]}".encode()
                continue
            yield type(value).__name__.encode()
            if isinstance(value, int):
                yield hex(value).encode()  # decimal digits have a limit
            elif value is None or isinstance(value, float | complex | str | torch.dtype | torch.device):
                yield repr(value).encode()
            elif isinstance(value, bytes | bytearray):
                yield bytes(value)
            elif isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
                yield repr((value.shape, value.dtype)).encode()
                yield value.tobytes()
            elif isinstance(value, Tensor) and (content := _bytes_of(value)) is not None:
                yield repr((value.shape, value.dtype)).encode()
                yield content
            elif isinstance(value, Mapping | list | tuple):
                self._numbers[id(value)] = len(self._numbers)
                self._kept.append(value)
                yield str(len(value)).encode()
                waiting += reversed(list(value.items() if isinstance(value, Mapping) else value))
            else:
                self._objects.append(_weakly(value))
                yield str(id(value)).encode()


def _bytes_of(tensor: Tensor) -> bytes | None:
    """Its numbers; None for kinds that cannot be read so (sparse, quantised, without memory)."""
    try:
        return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    except (RuntimeError, NotImplementedError, TypeError):
        return None


def _weakly(value: Any) -> Callable[[], Any]:
    """A weak reference, or one that keeps what knows no weak ones: its id must not become another's."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value
