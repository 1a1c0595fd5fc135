"""A calibrated plan: a recipe that was fitted to a model, AMED's predictor if it has one, and where both come from.

It is a file (`file`), or, without a predictor, a text to be pasted into a workflow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import read_number, shortened
from ..integrate import Model, State, integrate
from ..levels import Level, read_levels
from ..phi import value
from . import file
from .about import About
from .file import FileError, naming
from .pairs import IntermediatePoint, predicted
from .predictor import Predictor, pooled_for
from .recipe import Recipe

_LARGEST_WEIGHT = 1e6  # beyond it activations could overflow in float32


@dataclass(frozen=True)
class CalibratedPlan:
    """A recipe, the predictor of AMED if it has one, and where both come from: what a user makes, saves and follows."""

    recipe: Recipe
    """The whole run. With a predictor, what it predicts without having seen a bottleneck."""

    predictor: Predictor | None = None
    """Predicts every second level and its scales, image by image; all else is that of the recipe."""

    about: About = field(default_factory=About)
    """Where it comes from."""

    @property
    def kind(self) -> str:
        return "plan" if self.predictor is None else "amed"

    @property
    def gain(self) -> float:
        """The error on samples that nothing was fitted to, as a share of what it was before. 1 if it is not known."""
        return self.about.gain

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Check that this is the kind of model it was made for. A field that one of both does not know is left out.

        Raises:
            ValueError: naming the first field that differs.
        """
        if (other := self.about.other_model(model)) is not None:
            name, wanted, found = other
            raise ValueError(
                f"this plan was made for another model: {name} is {wanted} there and {found} in the model that is "
                "sampled. Load the model it was made for, or calibrate a plan for this one"
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
                Without it the intermediate points are those of the recipe, the same for all images.
        """
        if self.predictor is None or bottleneck is None:
            return self.recipe.function(model, x, sigmas, extra_args, callback, disable, set_guidance=set_guidance)
        recipe = self.recipe if sigmas is None else self.recipe.piece(sigmas, in_pairs=True)
        if not recipe.nfe:
            return recipe.function(model, x, None, extra_args, callback, disable)
        levels = read_levels(recipe.sigmas, recipe.flow)
        predict = prediction(self.predictor, bottleneck, len(x))
        stages = predicted(recipe.stages, levels, predict, x, recipe.tunings)
        guided = recipe.guided(model, set_guidance)
        return integrate(guided, x, stages, extra_args=extra_args, callback=callback, disable=disable)

    # As fields, files and text

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without the tensors of the predictor."""
        parts = {"format": file.FORMAT, "version": file.VERSION, "kind": self.kind, "recipe": self.recipe.as_dict()}
        if self.predictor is not None:
            parts["predictor"] = dict(zip(("scale_dir", "scale_time"), self.predictor.bounds, strict=True))
        return {**parts, "about": self.about.as_dict()}

    @classmethod
    def from_fields(cls, fields: Any, tensors: Mapping[str, Tensor]) -> CalibratedPlan:
        """What the fields and tensors of a file, or the fields of a text, hold.

        Raises:
            ValueError: naming the field at fault.
        """
        fields = fields if isinstance(fields, dict) else {}
        file.check_format(fields.get("format"))
        file.check_version(fields.get("version"))
        if fields.get("kind") not in ("plan", "amed"):
            raise ValueError(f"field kind is {shortened(fields.get('kind'))}: it must be plan or amed")
        about = About.from_dict(fields.get("about", {}))
        try:
            recipe = Recipe.from_dict(fields.get("recipe", {}))
        except ValueError as error:
            raise ValueError(f"field recipe: {error}") from None
        predictor = _read_predictor(fields.get("predictor"), tensors) if fields["kind"] == "amed" else None
        return cls(recipe, predictor, about)

    def text(self) -> str:
        """One line of JSON, which `parse` reads. A predictor does not fit into it: the recipe alone is written."""
        return json.dumps(CalibratedPlan(self.recipe, about=self.about).as_dict())

    def save(self, path: Path) -> Path:
        """Write a file, as `file.write` does."""
        return file.write(path, self.as_dict(), self._tensors)

    def save_new(self, paths: Iterable[Path]) -> Path:
        """Write a file under the first of some names that no file has, as `file.write_new` does."""
        return file.write_new(paths, self.as_dict(), self._tensors)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {} if self.predictor is None else self.predictor.state_dict()


def load(path: Path) -> CalibratedPlan:
    """Read a file.

    Raises:
        FileError: naming the field at fault and what to do; no other error, whatever the file holds.
    """
    with naming(path.name):
        contents = file.read(path)
        calibrated = CalibratedPlan.from_fields(contents.fields, contents.tensors)
        if not contents.intact:  # after what is at fault in it by name
            raise file.DamagedError("its checksum is that of other contents")
        return calibrated


def parse(text: str) -> CalibratedPlan:
    """Read a text of `CalibratedPlan.text`, or the recipe of one alone.

    Raises:
        FileError: naming the field at fault.
    """
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise FileError(
            f"the text is not a plan: {error.msg} at line {error.lineno}, column {error.colno}; paste all of it, from "
            "the first { to the last }"
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of too many digits
        raise FileError(f"the text is not a plan: {error}") from None
    with naming("the text is not a plan"):
        if isinstance(fields, dict) and "recipe" not in fields and "format" not in fields:
            return CalibratedPlan(Recipe.from_dict(fields))
        return CalibratedPlan.from_fields(fields, {})


def prediction(
    predictor: Predictor, bottleneck: Callable[[], Tensor | None], batch: int
) -> Callable[..., list[IntermediatePoint]]:
    """What `predicted` asks: the points for the bottleneck of the last evaluation, for zeros where there is none."""

    def predict(state: State, s: Level, t: Level) -> list[IntermediatePoint]:
        return predictor.intermediate_points(pooled_for(predictor, bottleneck(), batch), value(s.sigma), value(t.sigma))

    return predict


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
