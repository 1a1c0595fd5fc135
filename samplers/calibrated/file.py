"""The container of calibrated plans: safetensors with JSON in its metadata, and a checksum of both.

What the fields mean is in `plan`. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import torch
from torch import Tensor

from ..checks import shortened

FORMAT, VERSION = "fewstep-plan", 1
FIELDS = ("format", "version", "kind", "recipe", "predictor", "about")
"""Those of ours in the metadata. All but the format and the kind are JSON."""

LIMIT = 50_000_000  # bytes; a predictor has 36 kB
CHECKSUM = "sha256"  # of the fields and tensors, in the metadata beside the fields; versions without it pass it over

_WEIGHTS = {"F16", "BF16", "F32", "F64"}  # types of safetensors that a predictor's weights may have


class FileError(ValueError):
    """A file or text that holds no plan this version can follow; the message says which field and what to do."""


class DamagedError(ValueError):
    """Bytes that are no file of this kind; the message says why."""


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Whatever is raised while a file or text is read becomes a FileError that begins with its name."""
    try:
        yield
    except FileError:
        raise
    except DamagedError as error:
        raise FileError(f"{name} is damaged or was cut off ({error}): copy or download it again") from None
    except ValueError as error:
        raise FileError(f"{name}: {error}") from None
    except Exception as error:
        raise FileError(f"{name}: it holds what a plan cannot hold ({type(error).__name__}: {error})") from error


# Reading


class Contents(NamedTuple):
    """What a file holds."""

    fields: dict[str, Any]
    tensors: dict[str, Tensor]
    intact: bool
    """Whether its checksum is right. Files of earlier versions have none."""


def read(path: Path) -> Contents:
    """Raises ValueError for what is no file of ours."""
    content = _content(path)
    header = _header(content)
    metadata = header.pop("__metadata__", None) or {}
    check_format(metadata.get("format"))  # before the rest is taken for ours: a LoRA has metadata, too
    fields = {key: _decoded(key, entry) for key, entry in metadata.items() if key in FIELDS}
    check_version(fields.get("version"))
    tensors = _tensors(header, content)
    intact = CHECKSUM not in metadata or metadata[CHECKSUM] == json.dumps(_checksum(metadata, tensors))
    return Contents(fields, tensors, intact)


def check_format(found: Any) -> None:
    """Raise ValueError unless it is ours."""
    if found != FORMAT:
        raise ValueError(f"field format is {shortened(found)}, not {FORMAT!r}: this is not a file of Few-Step")


def check_version(found: Any) -> None:
    """Raise ValueError unless it is one that is read here."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"field version is {shortened(found)}: it must be a whole number from 1 on")
    if found > VERSION:
        raise ValueError(
            f"field version is {shortened(found)} and this Few-Step reads up to {VERSION}: update Few-Step"
        )


def _decoded(key: str, entry: Any) -> Any:
    """An entry of a file's metadata, of which all but the format and the kind are JSON."""
    if key in ("format", "kind"):
        return entry
    try:
        return json.loads(entry)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"field {key} is not valid JSON ({error}): copy or download it again") from None


def _content(path: Path) -> bytes:
    """All of a file, read at once: one that is mapped into memory must not be cut off meanwhile."""
    try:
        if path.exists() and not path.is_file():
            raise DamagedError("it is not a regular file")
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise FileError(f"{path.name} is not there: choose another file, or put it back") from None
    except OSError as error:  # without the path, which is nobody's business who only sees the message
        raise DamagedError(error.strerror or type(error).__name__) from None
    if len(content) > LIMIT:
        raise FileError(f"{path.name} is too large for a plan ({size:,} bytes): is it a checkpoint?")
    return content


def _header(content: bytes) -> dict[str, Any]:
    """The JSON in front of the tensors: their types, shapes and places by their names, and `__metadata__`."""
    try:
        found = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (ValueError, RecursionError):
        raise DamagedError("its header is not valid JSON") from None
    if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
        raise DamagedError("its header is not a list of tensors")
    return found


def _tensors(header: Mapping[str, Any], content: bytes) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    for key, entry in header.items():
        if entry.get("dtype") not in _WEIGHTS:
            raise ValueError(
                f"tensor {key} is of type {shortened(entry.get('dtype'))}, and weights are floating-point numbers of "
                f"16 to 64 bits ({', '.join(sorted(_WEIGHTS))}): download the file again"
            )
    try:
        return load(content)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise DamagedError(str(error)) from None


# Writing


def write(path: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a file, whole or not at all. One of that name is replaced.

    Returns:
        The path.

    Raises:
        OSError: if it cannot be written.
    """
    with _part(path.parent, fields, tensors) as part:
        os.replace(part, path)
    return path


def write_new(paths: Iterable[Path], fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Path:
    """Write a file, whole or not at all, under the first of some names in a folder that no file has.

    Others may be writing there at the same time, in this process or another: none is replaced.

    Returns:
        The path that was taken.

    Raises:
        OSError: if it cannot be written.
    """
    paths = iter(paths)
    path = next(paths)
    with _part(path.parent, fields, tensors) as part:
        while not moved(part, path):
            path = next(paths)
    return path


@contextmanager
def _part(folder: Path, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Iterator[Path]:
    """A finished file under a name that only this call knows; gone afterwards, unless it was moved."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    metadata = {key: entry if isinstance(entry, str) else json.dumps(entry) for key, entry in fields.items()}
    metadata[CHECKSUM] = json.dumps(_checksum(metadata, tensors))
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{uuid4().hex[:16]}.part"
    try:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, part, metadata)
        with part.open("rb+") as file:
            os.fsync(file.fileno())  # some drives say only now that they are full
        yield part
    except SafetensorError as error:
        raise OSError(f"{folder}: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def moved(part: Path, path: Path) -> bool:
    """Give a finished file its name; False, and nothing is done, if another file has it."""
    try:
        os.link(part, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a drive without hard links: take the name with an empty file first
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        try:
            os.replace(part, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return True


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of our fields, as they are written, and of the tensors. Fields that other programs added do not count."""
    digest = hashlib.sha256()
    for key in sorted(metadata.keys() & set(FIELDS)):
        digest.update(json.dumps([key, metadata[key]]).encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
