"""Files of what was learned: a recipe, the predictor of AMED if it has one, and where both come from.

A file is safetensors with JSON in its metadata; a recipe alone can also be a text, to be pasted into a workflow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .amed import Middle, predicted
from .integrate import Model, State, integrate
from .levels import Level, read_levels
from .phi import value
from .predictor import Predictor, pooled_for
from .recipe import Recipe

FORMAT, VERSION = "fewstep-plan", 1
KINDS = ("plan", "amed")
LIMIT = 50_000_000  # bytes; a predictor has 36 kB


class FileError(ValueError):
    """A file or text that holds no plan this version can follow; the message says which field and what to do."""


@dataclass(frozen=True)
class Learned:
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
        return json.dumps(Learned(self.recipe, about=self.about).as_dict())

    def save(self, path: Path) -> None:
        """Write a file, whole or not at all."""
        from safetensors.torch import save_file

        tensors = {} if self.predictor is None else {k: t.contiguous() for k, t in self.predictor.state_dict().items()}
        metadata = {k: v if isinstance(v, str) else json.dumps(v) for k, v in self.as_dict().items()}
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, part, metadata)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def prediction(
    predictor: Predictor, bottleneck: Callable[[], Tensor | None], batch: int
) -> Callable[..., list[Middle]]:
    """What `predicted` asks: the numbers for the bottleneck of the last evaluation, for zeros where there is none."""

    def predict(state: State, s: Level, t: Level) -> list[Middle]:
        return predictor.middles(pooled_for(predictor, bottleneck(), batch), value(s.sigma), value(t.sigma))

    return predict


def load(path: Path) -> Learned:
    """Read a file.

    Raises:
        FileError: naming the field at fault and what to do.
    """
    from safetensors import SafetensorError, safe_open

    if path.exists() and path.stat().st_size > LIMIT:
        raise FileError(f"{path.name} is too large for a plan ({path.stat().st_size:,} bytes): is it a checkpoint?")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise FileError(f"{path.name} is not there: choose another file, or put it back") from None
    except (SafetensorError, OSError) as error:
        raise FileError(f"{path.name} is damaged or was cut off ({error}): copy or download it again") from None
    try:
        check_format(metadata.get("format"))  # before the rest is taken for ours: a LoRA has metadata, too
        return _read({key: _decoded(key, entry) for key, entry in metadata.items()}, tensors)
    except ValueError as error:
        raise FileError(f"{path.name}: {error}") from None


def parse(text: str) -> Learned:
    """Read a text of `Learned.text`, or the recipe of one alone.

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
    try:
        if isinstance(fields, dict) and "recipe" not in fields and "format" not in fields:
            return Learned(Recipe.from_dict(fields))
        return _read(fields, {})
    except ValueError as error:
        raise FileError(f"the text is no plan: {error}") from None


def check_format(found: Any) -> None:
    """Raise ValueError unless it is ours."""
    if found != FORMAT:
        raise ValueError(f"field format is {found!r}, not {FORMAT!r}: this is no file of Few-Step")


def _decoded(key: str, entry: str) -> Any:
    """An entry of a file's metadata, of which all but the format and the kind are JSON."""
    if key in ("format", "kind"):
        return entry
    try:
        return json.loads(entry)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"field {key} is no JSON ({error}): copy or download it again") from None


def _read(fields: Any, tensors: Mapping[str, Tensor]) -> Learned:
    """What the fields of a file or text hold. Raises ValueError, naming the field at fault."""
    fields = fields if isinstance(fields, dict) else {}
    check_format(fields.get("format"))
    version = fields.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"field version is {version!r}: it must be a whole number from 1 on")
    if version > VERSION:
        raise ValueError(f"field version is {version} and this Few-Step reads up to {VERSION}: update Few-Step")
    if fields.get("kind") not in KINDS:
        raise ValueError(f"field kind is {fields.get('kind')!r}: it must be {' or '.join(KINDS)}")
    about = fields.get("about", {})
    if not isinstance(about, dict) or not isinstance(about.get("model", {}), dict):
        raise ValueError("field about must be an object, and its field model too")
    try:
        recipe = Recipe.from_dict(fields.get("recipe", {}))
    except ValueError as error:
        raise ValueError(f"field recipe: {error}") from None
    predictor = _read_predictor(fields.get("predictor"), tensors) if fields["kind"] == "amed" else None
    return Learned(recipe, predictor, about)


def _read_predictor(bounds: Any, tensors: Mapping[str, Tensor]) -> Predictor:
    try:
        predictor = Predictor(float(bounds["scale_dir"]), float(bounds["scale_time"]))
    except (TypeError, KeyError, ValueError, OverflowError) as error:
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
    predictor.load_state_dict(dict(tensors))
    return predictor.eval().requires_grad_(False)


def _agree(found: Any, wanted: Any) -> bool:
    if isinstance(found, int | float) and isinstance(wanted, int | float):
        return abs(found - wanted) <= 1e-3 * abs(wanted)
    return bool(found == wanted)


def _short(field: Any) -> str:
    return f"{field:.5g}" if isinstance(field, float) else str(field)[:80]
