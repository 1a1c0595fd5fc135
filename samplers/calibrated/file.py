"""Files of what was learned: a recipe, the predictor of AMED if it has one, and where both come from.

A file is safetensors with JSON in its metadata; a recipe alone can also be a text, to be pasted into a workflow.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from ..checks import read_number, shortened
from ..integrate import Model, State, integrate
from ..levels import Level, read_levels
from ..phi import value
from .pairs import IntermediatePoint, predicted
from .predictor import Predictor, pooled_for
from .recipe import Recipe

FORMAT, VERSION = "fewstep-plan", 1
KINDS = ("plan", "amed")
LIMIT = 50_000_000  # bytes; a predictor has 36 kB
CHECKSUM = "sha256"  # of the fields and tensors, in the metadata beside the fields; versions without it pass it over

_WEIGHTS = {"F16", "BF16", "F32", "F64"}  # types of safetensors that a predictor's weights may have
_LARGEST_WEIGHT = 1e6  # beyond it activations could overflow in float32
_ERRORS = (0.0, 1e9)
_ABOUT = {"guidance": (-1e6, 1e6), "error_before": _ERRORS, "error_after": _ERRORS}
_LARGEST = 2.0**64  # of all other numbers in `about`: a seed
_DEPTH = 8  # of objects and lists within each other there


class FileError(ValueError):
    """A file or text that holds no plan this version can follow; the message says which field and what to do."""


@dataclass(frozen=True)
class CalibratedPlan:
    """What a file holds."""

    recipe: Recipe
    """The whole run. With a predictor, what it predicts without having seen a bottleneck."""

    predictor: Predictor | None = None
    """Predicts every second level and its scales, image by image; all else is that of the recipe."""

    about: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: `model` (what the host knows of it, see `check_model`), `guidance`, `teacher`, `seeds`,
    `prompts`, `error_before` and `error_after` on samples that nothing was fitted to."""

    @property
    def kind(self) -> str:
        return KINDS[self.predictor is not None]

    @property
    def gain(self) -> float:
        """The error on samples that nothing was fitted to, as a share of what it was before. 1 if it is not known."""
        before, after = self.about.get("error_before"), self.about.get("error_after")
        return after / before if before and after is not None else 1.0

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Check that this is the kind of model it was made for. A field that one of both does not know is left out.

        Raises:
            ValueError: naming the first field that differs.
        """
        for name, wanted in self.about.get("model", {}).items():
            if name in model and not _agree(model[name], wanted):
                raise ValueError(
                    f"this plan was made for another model: {name} is {_short(wanted)} there and "
                    f"{_short(model[name])} in the model that is sampled. Load the model it was made for, or calibrate "
                    "a plan for this one"
                )

    @torch.no_grad()
    def function(
        self,
        model: Model,
        x: Tensor,
        sigmas: Tensor | Sequence[float] | None = None,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        *,
        set_guidance: Callable[[float], None] | None = None,
        bottleneck: Callable[[], Tensor | None] | None = None,
    ) -> Tensor:
        """Sample; as `Recipe.function`.

        Args:
            bottleneck: gives the network's bottleneck of the last evaluation, [B, C, H, W], or None where it has none.
                Without it the predictor's numbers are those of the recipe, the same for all images.
        """
        if self.predictor is None or bottleneck is None:
            return self.recipe.function(model, x, sigmas, extra_args, callback, disable, set_guidance=set_guidance)
        recipe = self.recipe if sigmas is None else self.recipe.piece(sigmas, in_pairs=True)
        if not recipe.nfe:
            return recipe.function(model, x, None, extra_args, callback, disable)
        levels = read_levels(recipe.sigmas, recipe.flow)
        predict = prediction(self.predictor, bottleneck, len(x))
        decisions = predicted(recipe.stages, levels, predict, x, recipe.tunings)
        guided = recipe.guided(model, set_guidance)
        return integrate(guided, x, decisions, extra_args=extra_args, callback=callback, disable=disable)

    # As files and text

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without the tensors of the predictor."""
        parts = {"format": FORMAT, "version": VERSION, "kind": self.kind, "recipe": self.recipe.as_dict()}
        if self.predictor is not None:
            parts["predictor"] = dict(zip(("scale_dir", "scale_time"), self.predictor.bounds, strict=True))
        return {**parts, "about": dict(self.about)}

    def text(self) -> str:
        """One line of JSON, which `parse` reads. A predictor does not fit into it: the recipe alone is written."""
        return json.dumps(CalibratedPlan(self.recipe, about=self.about).as_dict())

    def save(self, path: Path) -> Path:
        """Write a file, whole or not at all. One of that name is replaced.

        Returns:
            The path.

        Raises:
            OSError: if it cannot be written.
        """
        with self._part(path.parent) as part:
            os.replace(part, path)
        return path

    def save_new(self, paths: Iterable[Path]) -> Path:
        """Write a file, whole or not at all, under the first of some names in a folder that no file has.

        Others may be writing there at the same time, in this process or another: none is replaced.

        Returns:
            The path that was taken.

        Raises:
            OSError: if it cannot be written.
        """
        paths = iter(paths)
        path = next(paths)
        with self._part(path.parent) as part:
            while not _moved(part, path):
                path = next(paths)
        return path

    @contextmanager
    def _part(self, folder: Path) -> Iterator[Path]:
        """A finished file under a name that only this call knows; gone afterwards, unless it was moved."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {} if self.predictor is None else {k: t.contiguous() for k, t in self.predictor.state_dict().items()}
        metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.as_dict().items()}
        metadata[CHECKSUM] = json.dumps(_checksum(metadata, tensors))
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f".{uuid4().hex[:16]}.part"
        try:
            save_file(tensors, part, metadata)
            with part.open("rb+") as file:
                os.fsync(file.fileno())  # some drives say only now that they are full
            yield part
        except SafetensorError as error:
            raise OSError(f"{folder}: {error}") from None
        finally:
            part.unlink(missing_ok=True)


def _moved(part: Path, path: Path) -> bool:
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
    for key in sorted(_FIELDS & metadata.keys()):
        digest.update(json.dumps([key, metadata[key]]).encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


_FIELDS = {"format", "version", "kind", "recipe", "predictor", "about"}


def prediction(
    predictor: Predictor, bottleneck: Callable[[], Tensor | None], batch: int
) -> Callable[..., list[IntermediatePoint]]:
    """What `predicted` asks: the numbers for the bottleneck of the last evaluation, for zeros where there is none."""

    def predict(state: State, s: Level, t: Level) -> list[IntermediatePoint]:
        return predictor.middles(pooled_for(predictor, bottleneck(), batch), value(s.sigma), value(t.sigma))

    return predict


def load(path: Path) -> CalibratedPlan:
    """Read a file.

    Raises:
        FileError: naming the field at fault and what to do; no other error, whatever the file holds.
    """
    with _telling(path.name):
        content = _content(path)
        header = _header(content)
        metadata = header.pop("__metadata__", None) or {}
        check_format(metadata.get("format"))  # before the rest is taken for ours: a LoRA has metadata, too
        fields = {key: _decoded(key, entry) for key, entry in metadata.items() if key in _FIELDS}
        check_version(fields.get("version"))
        tensors = _tensors(header, content)
        calibrated = _read(fields, tensors)
        if CHECKSUM in metadata and metadata[CHECKSUM] != json.dumps(_checksum(metadata, tensors)):
            raise _Damaged("its checksum is that of other contents")  # files of earlier versions have none
        return calibrated


def _content(path: Path) -> bytes:
    """All of a file, read at once: one that is mapped into memory must not be cut off meanwhile."""
    try:
        if path.exists() and not path.is_file():
            raise _Damaged("it is no plain file")
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise FileError(f"{path.name} is not there: choose another file, or put it back") from None
    except OSError as error:  # without the path, which is nobody's business who only sees the message
        raise _Damaged(error.strerror or type(error).__name__) from None
    if len(content) > LIMIT:
        raise FileError(f"{path.name} is too large for a plan ({size:,} bytes): is it a checkpoint?")
    return content


def _header(content: bytes) -> dict[str, Any]:
    """The JSON in front of the tensors: their types, shapes and places by their names, and `__metadata__`."""
    try:
        found = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    except (ValueError, RecursionError):
        raise _Damaged("its header is no JSON") from None
    if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
        raise _Damaged("its header is no list of tensors")
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
        raise _Damaged(str(error)) from None


class _Damaged(ValueError):
    """Bytes that are no file of this kind; the message says why."""


@contextmanager
def _telling(name: str) -> Iterator[None]:
    """Whatever is raised while a file or text is read becomes a FileError that begins with its name."""
    try:
        yield
    except FileError:
        raise
    except _Damaged as error:
        raise FileError(f"{name} is damaged or was cut off ({error}): copy or download it again") from None
    except ValueError as error:
        raise FileError(f"{name}: {error}") from None
    except Exception as error:
        raise FileError(f"{name}: it holds what no plan does ({type(error).__name__}: {error})") from error


def parse(text: str) -> CalibratedPlan:
    """Read a text of `CalibratedPlan.text`, or the recipe of one alone.

    Raises:
        FileError: naming the field at fault.
    """
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(
            f"the text is no plan: {error.msg} at line {error.lineno}, column {error.colno}; paste all of it, from the "
            "first { to the last }"
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of too many digits
        raise FileError(f"the text is no plan: {error}") from None
    with _telling("the text is no plan"):
        if isinstance(fields, dict) and "recipe" not in fields and "format" not in fields:
            return CalibratedPlan(Recipe.from_dict(fields))
        return _read(fields, {})


def check_format(found: Any) -> None:
    """Raise ValueError unless it is ours."""
    if found != FORMAT:
        raise ValueError(f"field format is {shortened(found)}, not {FORMAT!r}: this is no file of Few-Step")


def _decoded(key: str, entry: Any) -> Any:
    """An entry of a file's metadata, of which all but the format and the kind are JSON."""
    if key in ("format", "kind"):
        return entry
    try:
        return json.loads(entry)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"field {key} is no JSON ({error}): copy or download it again") from None


def check_version(found: Any) -> None:
    """Raise ValueError unless it is one that is read here."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise ValueError(f"field version is {shortened(found)}: it must be a whole number from 1 on")
    if found > VERSION:
        raise ValueError(
            f"field version is {shortened(found)} and this Few-Step reads up to {VERSION}: update Few-Step"
        )


def _read(fields: Any, tensors: Mapping[str, Tensor]) -> CalibratedPlan:
    """What the fields of a file or text hold. Raises ValueError, naming the field at fault."""
    fields = fields if isinstance(fields, dict) else {}
    check_format(fields.get("format"))
    check_version(fields.get("version"))
    if fields.get("kind") not in KINDS:
        raise ValueError(f"field kind is {shortened(fields.get('kind'))}: it must be {' or '.join(KINDS)}")
    about = fields.get("about", {})
    if not isinstance(about, dict) or not isinstance(about.get("model", {}), dict):
        raise ValueError("field about must be an object, and its field model too")
    _check_about(about)
    try:
        recipe = Recipe.from_dict(fields.get("recipe", {}))
    except ValueError as error:
        raise ValueError(f"field recipe: {error}") from None
    predictor = _read_predictor(fields.get("predictor"), tensors) if fields["kind"] == "amed" else None
    return CalibratedPlan(recipe, predictor, about)


def _check_about(about: Mapping[str, Any]) -> None:
    """Raise ValueError for what could not be compared, or shown."""
    for name, bounds in _ABOUT.items():
        if name in about:
            read_number(f"field about: {name}", about[name], *bounds)
    if not isinstance(about.get("improved", False), bool):
        raise ValueError(f"field about: improved = {shortened(about['improved'])} must be true or false")
    _check_numbers("about", about, _DEPTH)


def _check_numbers(name: str, given: Any, depth: int) -> None:
    if depth == 0:
        raise ValueError(f"field {name} is nested too deeply")
    if isinstance(given, dict | list):
        named = given.items() if isinstance(given, dict) else ((None, part) for part in given)
        for key, part in named:
            _check_numbers(name if key is None else f"{name}: {key[:40]}", part, depth - 1)
    elif isinstance(given, int | float) and not isinstance(given, bool):
        read_number(f"field {name}", given, -_LARGEST, _LARGEST)


def _read_predictor(bounds: Any, tensors: Mapping[str, Tensor]) -> Predictor:
    try:
        predictor = Predictor(*(read_number(name, bounds[name]) for name in ("scale_dir", "scale_time")))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"field predictor must give scale_dir and scale_time ({error!r})") from None
    wanted = {key: list(tensor.shape) for key, tensor in predictor.state_dict().items()}
    found = {key: list(tensor.shape) for key, tensor in tensors.items()}
    for key in sorted(wanted.keys() | found.keys()):
        if key not in found:
            raise ValueError(f"tensor {key} is missing: download the file again")
        if key not in wanted:
            raise ValueError(f"tensor {key} is unknown to this version: update Few-Step, or download the file again")
        if wanted[key] != found[key]:
            raise ValueError(
                f"tensor {key} has shape {found[key]} and should have {wanted[key]}: download the file again"
            )
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"tensor {key} holds NaN or infinity: train the predictor again")
        if tensor.abs().max() > _LARGEST_WEIGHT:
            raise ValueError(f"tensor {key} holds numbers above {_LARGEST_WEIGHT:g}: train the predictor again")
    predictor.load_state_dict(dict(tensors))
    return predictor.eval().requires_grad_(False)


def _agree(found: Any, wanted: Any) -> bool:
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return abs(found - wanted) <= 1e-3 * abs(wanted)
    return bool(found == wanted)


def _short(field: Any) -> str:
    return f"{field:.5g}" if isinstance(field, float) else str(field)[:80]
