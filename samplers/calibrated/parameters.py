"""What calibration can fit: the parameters of a recipe, and the recipe with some of them moved."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..levels import Levels, read_levels
from ..phi import Scalar
from .recipe import Recipe
from .tuning import Tuning


class Fittable(NamedTuple):
    """What can be fitted at a level: how far it is moved to take a difference, and how far it is expected to go."""

    step: float
    scale: float
    first: int
    """The first evaluation that has one."""

    most: float = math.inf
    """How far it may go: a factor of 1/2 or 3/2 is no longer a correction."""


FITTABLE = {
    "level": Fittable(0.05, 0.5, 1),
    "slope": Fittable(0.05, 0.5, 1),
    "curvature": Fittable(0.03, 0.3, 2),
    "guidance": Fittable(0.05, 0.3, 0, 0.9),
    "scale_time": Fittable(0.03, 0.2, 1, 0.5),
    "scale_dir": Fittable(0.01, 0.05, 1, 0.5),
}
"""By name. `level` is in lambda; all others are 0 or 1 in the base solver, to which a penalty of the squares, in units
of `scale`, draws them. All keep a constant prediction exact but AMED's `scale_dir`, in the data prediction."""

CLOSEST = 0.02  # in lambda: levels do not come nearer to each other


class Parameter(NamedTuple):
    """One number of a recipe."""

    name: str
    """Of `FITTABLE`."""

    at: int
    """The evaluation, counted from 0."""


def parameters_of(recipe: Recipe, names: Sequence[str], *, inserted: bool = False) -> list[Parameter]:
    """The parameters of a recipe that have these names; with `inserted` those of every second level alone.

    Raises:
        ValueError: for a name that there is not, or a recipe without a step.
    """
    for name in names:
        if name not in FITTABLE:
            raise ValueError(f"parameters = {name!r}: what can be fitted is {', '.join(FITTABLE)}")
    if not recipe.tunings:
        raise ValueError("sigmas hold no step: raise the number of steps")
    levels, stages = read_levels(recipe.sigmas, recipe.flow), list(recipe.plan())

    def exists(name: str, k: int) -> bool:
        if inserted and k % 2 == 0:
            return False
        if name in ("slope", "curvature"):  # not within a step of several evaluations
            return stages[k].completes and stages[k - 1].completes
        if name == "level":
            return math.isfinite(float(levels[k].lam))
        return name != "guidance" or stages[k].sigma is not None  # it is None at the analytical first step

    return [Parameter(name, k) for name in names for k in range(FITTABLE[name].first, len(stages)) if exists(name, k)]


def moved(recipe: Recipe, parameters: Sequence[Parameter], by: Sequence[float]) -> Recipe | None:
    """The recipe with parameters changed by so much; None where that is no recipe (levels out of order, a number out of
    bounds)."""
    if any(abs(change) > FITTABLE[parameter.name].most for parameter, change in zip(parameters, by, strict=True)):
        return None
    try:
        levels, tunings = placed(recipe, parameters, by)
        lams = [float(level.lam) for level in levels]
        if any(b < a + CLOSEST for a, b in itertools.pairwise(lams)):
            return None
        return replace(recipe, sigmas=tuple(map(float, levels.sigmas)), tunings=tuple(tunings))
    except (ValueError, OverflowError):
        return None


def placed(recipe: Recipe, parameters: Sequence[Parameter], by: Sequence[Scalar]) -> tuple[Levels, list[Tuning]]:
    """The levels and tunings of a recipe with parameters changed by so much, unchecked. Scalars of torch keep their
    gradients."""
    levels = read_levels(recipe.sigmas, recipe.flow)
    sigmas, tunings = list(levels.sigmas), [t._asdict() for t in recipe.tunings]
    for (name, k), change in zip(parameters, by, strict=True):
        if name != "level":
            tunings[k][name] = tunings[k][name] + change
        elif isinstance(change, Tensor) or change:  # else the level stays to the last bit
            sigmas[k] = levels.at_lambda(levels[k].lam + change).sigma
    return Levels(tuple(sigmas), recipe.flow), [Tuning(**t) for t in tunings]


@dataclass(frozen=True)
class Space:
    """The recipes around a base: u, [K] in float64, is by how much each parameter is changed, in units of its scale."""

    base: Recipe
    parameters: Sequence[Parameter]

    def origin(self) -> Tensor:
        return torch.zeros(len(self.parameters), dtype=torch.float64)

    @property
    def scales(self) -> Tensor:
        return torch.tensor([FITTABLE[parameter.name].scale for parameter in self.parameters], dtype=torch.float64)

    def recipe(self, u: Tensor) -> Recipe | None:
        """As `moved`."""
        return moved(self.base, self.parameters, (u * self.scales).tolist())
