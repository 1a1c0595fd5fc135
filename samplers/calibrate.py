"""Calibration: fit the few numbers of a recipe to a model, so that its last sample is that of a run of many steps.

The residuals are the differences of final samples to the teacher's, for the same starting noise, and the numbers are
some dozens: a least-squares problem with many equations and few unknowns. Gauss-Newton with the Jacobian taken by
differences (Levenberg 1944, Marquardt 1963), and updated by Broyden's rule (1965) between two full ones, needs a
hundred runs or so where a search that only compares errors needs thousands. No gradient goes through the network, so
that it may be quantised, offloaded, compiled or patched; and differences of finite width see what a gradient would
not, the rounding of levels to the time steps of a discrete model.

Samples are weighted by the inverse of their error (iteratively reweighted least squares), so that the geometric mean of
the errors falls and not only the largest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .levels import read_levels
from .recipe import Recipe
from .registry import SCHEDULES
from .tuned import Tuning


class Kind(NamedTuple):
    """One kind of number: how far it is moved to take a difference, and how far it is expected to go."""

    step: float
    scale: float
    first: int
    """The first evaluation that has one."""


KINDS = {
    "level": Kind(0.05, 0.5, 1),
    "slope": Kind(0.05, 0.5, 1),
    "curvature": Kind(0.03, 0.3, 2),
    "guidance": Kind(0.05, 0.3, 0),
    "scale_time": Kind(0.03, 0.2, 1),
}
"""What can be fitted. `level` is in lambda, `guidance` and `scale_time` are factors. All keep constants exact, and all
are 0 or 1 in the base solver, to which a penalty of their squares, in units of `scale`, draws them."""

PENALTY = 1e-3  # of the squares; the data's squares are 1 at the start
CLOSEST = 0.02  # in lambda: levels do not come nearer to each other
ENOUGH = 0.01  # relative gain of a round that is worth another one


class Unknown(NamedTuple):
    """One number of a recipe."""

    kind: str
    at: int


def unknowns(recipe: Recipe, kinds: Sequence[str]) -> list[Unknown]:
    """The numbers of a recipe that can be fitted, of these kinds.

    Raises:
        ValueError: for a kind that there is not.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"free = {kind!r}: what can be fitted is {', '.join(KINDS)}")
    levels, stages = read_levels(recipe.sigmas, recipe.flow), list(recipe.plan())
    found = []
    for kind in kinds:
        for k in range(KINDS[kind].first, len(stages)):
            if kind in ("slope", "curvature") and not (stages[k].completes and stages[k - 1].completes):
                continue  # within a step of several evaluations
            if kind == "level" and not math.isfinite(float(levels[k].lam)):
                continue
            found.append(Unknown(kind, k))
    return found


def moved(recipe: Recipe, numbers: Sequence[Unknown], by: Sequence[float]) -> Recipe | None:
    """The recipe with numbers added; None where that is no recipe (levels out of order, a number out of bounds)."""
    levels = read_levels(recipe.sigmas, recipe.flow)
    lams = [float(level.lam) for level in levels]
    tunings = [t._asdict() for t in recipe.tunings]
    for (kind, k), change in zip(numbers, by, strict=True):
        if kind == "level":
            lams[k] += change
        else:
            tunings[k][kind] += change
    if any(b < a + CLOSEST for a, b in itertools.pairwise(lams)):
        return None
    sigmas = [
        sigma if lam == float(level.lam) else float(levels.at_lambda(lam).sigma)
        for sigma, lam, level in zip(recipe.sigmas, lams, levels, strict=True)
    ]
    try:
        return replace(recipe, sigmas=tuple(sigmas), tunings=tuple(Tuning(**t) for t in tunings))
    except ValueError:
        return None


@dataclass(frozen=True)
class Goal:
    """Samples that are to be matched: `run` gives the final samples of a recipe, [N, ...], `target` the teacher's."""

    run: Callable[[Recipe], Tensor]
    target: Tensor

    def differences(self, recipe: Recipe) -> Tensor:
        """[N, M] in float32 on the CPU; infinite where the run came to something that is not finite."""
        found = (self.run(recipe).to("cpu", torch.float32) - self.target.to("cpu", torch.float32)).flatten(1)
        return torch.where(found.isfinite(), found, torch.inf)


def rmse(differences: Tensor) -> Tensor:
    """The error of each sample, [N]."""
    return differences.square().mean(dim=1).sqrt()


def geometric_mean(errors: Tensor) -> float:
    return float(errors.double().clamp(min=1e-12).log().mean().exp())


class Progress(NamedTuple):
    """Where a calibration stands, after each run."""

    stage: str
    runs: int
    expected: int
    """Runs in all, should no round end early."""

    best: Recipe
    """The best so far on the samples that nothing is fitted to."""

    before: float
    """Error there of the best plain recipe: a geometric mean of root mean squares."""

    after: float
    """Error there of `best`; that of the plain one if nothing was better."""

    error: float
    """Error on the samples of the fit."""


def plain_recipes(
    bases: Sequence[str], evaluations: int, sigma_min: float, sigma_max: float, *, flow: bool = False, **options: Any
) -> list[Recipe]:
    """Where a calibration may start: these samplers on every schedule that gives so many levels, with and without
    its last one above 0. `options` are those of `ScheduleSpec.function`."""
    found: list[Recipe] = []
    for base in bases:
        for spec in SCHEDULES.values():
            for discard in (False, True):
                try:
                    sigmas = spec.function(
                        evaluations, sigma_min, sigma_max, flow=flow, discard_penultimate=discard, **options
                    )
                    recipe = Recipe(base, tuple(sigmas.tolist()), flow)
                except ValueError:
                    continue  # of a schedule that has no such number of steps
                if recipe not in found:
                    found.append(recipe)
    return found


DEFAULT_BASES = ("dpmpp_2m", "ipndm_v")
DEFAULT_FREE = ("level", "slope", "curvature", "guidance", "scale_time")


def calibrate(
    starts: Sequence[Recipe],
    look: Goal,
    fit: Goal,
    check: Goal,
    *,
    free: Sequence[str] = DEFAULT_FREE,
    rounds: int = 8,
) -> Iterator[Progress]:
    """Fit a recipe; yields after each run, so that whoever drives it can stop at any time with the best so far.

    The starts are compared on `look` (a few of the samples of `fit`), the three best on all of `fit`. From the best,
    rounds of Gauss-Newton follow. `check` holds samples with other noise, better with other prompts too, and decides
    which recipe is the best and when to stop; it is never fitted to.

    Args:
        starts: plain recipes, as `plain_recipes` gives them.
        free: what is fitted, of `KINDS`; `guidance` only where the guidance scale can be set.
        rounds: at most so many.

    Raises:
        ValueError: if there is no start, or none gave finite samples.
    """
    if not starts:
        raise ValueError("there is no plain recipe to start from: choose another base sampler or number of steps")
    return _Calibration(look, fit, check, rounds).go(list(starts), free)


class _Calibration:
    def __init__(self, look: Goal, fit: Goal, check: Goal, rounds: int):
        self.look, self.fit, self.check, self.rounds = look, fit, check, rounds
        self.runs = self.expected = 0
        self.before = self.after = math.inf
        self.error = math.inf
        self.best: Recipe

    def progress(self, stage: str) -> Progress:
        self.runs += 1
        self.expected = max(self.expected, self.runs)
        return Progress(stage, self.runs, self.expected, self.best, self.before, self.after, self.error)

    def judge(self, recipe: Recipe) -> None:
        error = geometric_mean(rmse(self.check.differences(recipe)))
        if error < self.after:
            self.best, self.after = recipe, error

    def go(self, starts: list[Recipe], free: Sequence[str]) -> Iterator[Progress]:
        self.best = starts[0]
        count = len(unknowns(starts[0], free))
        finalists = min(3, len(starts))
        self.expected = len(starts) + 2 * finalists + self.rounds * (count + 4)

        looks = []
        for start in starts:
            looks.append(geometric_mean(rmse(self.look.differences(start))))
            yield self.progress("starts")
        chosen: tuple[float, Recipe, Tensor] | None = None
        for k in sorted(range(len(starts)), key=lambda k: looks[k])[:finalists]:
            start = starts[k]
            found = self.fit.differences(start)
            error = geometric_mean(rmse(found))
            if math.isfinite(error) and (chosen is None or error < chosen[0]):
                chosen = error, start, found
            self.judge(start)
            self.before = self.after
            yield self.progress("starts")
        if chosen is None:
            raise ValueError("no plain sampler gave finite samples with this model: look at the model and the guidance")
        self.error, base, found = chosen
        self.judge(base)
        yield from self.descend(base, found, unknowns(base, free))
        self.expected = self.runs + 1
        yield self.progress("done")

    def descend(self, base: Recipe, found: Tensor, numbers: list[Unknown]) -> Iterator[Progress]:
        """Levenberg-Marquardt on u, the numbers in units of their scale."""
        scales = torch.tensor([KINDS[u.kind].scale for u in numbers], dtype=torch.float64)
        u = torch.zeros(len(numbers), dtype=torch.float64)
        jacobian: Tensor | None = None
        exact, damping, round_ = False, 1e-2, 0
        while numbers and round_ < self.rounds:
            if jacobian is None:
                jacobian, exact = torch.empty(len(numbers), *found.shape), True
                for k in range(len(numbers)):
                    jacobian[k] = yield from self.difference(base, numbers, u, scales, found, k)
            weights = 1 / rmse(found).clamp(min=1e-9) / math.sqrt(found.numel())
            gram, gradient = _normal_equations(jacobian, found, weights)
            cost = float((found * weights[:, None]).square().sum()) + PENALTY * float(u.square().sum())
            accepted = None
            for _ in range(4):
                identity = torch.eye(len(u), dtype=torch.float64)
                step = torch.linalg.solve(gram + (PENALTY + damping) * identity, -(gradient + PENALTY * u))
                recipe = moved(base, numbers, ((u + step) * scales).tolist())
                if recipe is not None:
                    trial = self.fit.differences(recipe)
                    yield self.progress(f"round {round_ + 1} of {self.rounds}")
                    new_cost = float((trial * weights[:, None]).square().sum())
                    new_cost += PENALTY * float((u + step).square().sum())
                    if new_cost < cost:
                        accepted = recipe, trial, step
                        break
                damping *= 5
            gained = 0.0
            if accepted:
                recipe, trial, step = accepted
                change = trial - found - torch.einsum("k,kij->ij", step.float(), jacobian)
                jacobian += torch.einsum("k,ij->kij", (step / step.square().sum()).float(), change)
                error = geometric_mean(rmse(trial))
                gained = 1 - error / self.error
                u, found, self.error = u + step, trial, error
                damping = max(damping / 5, 1e-6)
                self.judge(recipe)
                yield self.progress(f"round {round_ + 1} of {self.rounds}")
            if gained < 3 * ENOUGH:  # take a new Jacobian; stop if that was one
                if exact and gained < ENOUGH:
                    return
                jacobian, round_ = None, round_ + 1
            exact = False

    def difference(
        self, base: Recipe, numbers: list[Unknown], u: Tensor, scales: Tensor, found: Tensor, k: int
    ) -> Generator[Progress, None, Tensor]:
        """The derivative of the differences in u_k, by a run on one side."""
        for sign in (1, -1):
            step = sign * KINDS[numbers[k].kind].step / float(scales[k])
            there = u.clone()
            there[k] += step
            recipe = moved(base, numbers, (there * scales).tolist())
            if recipe is None:
                continue
            result = self.fit.differences(recipe)
            yield self.progress("slopes of the error")
            if result.isfinite().all():
                return (result - found) / step
        return torch.zeros_like(found)  # neither side is possible: it stays where it is


def _normal_equations(jacobian: Tensor, found: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """J W^2 J^T and J W^2 r, sample by sample, in float64."""
    gram = torch.zeros(len(jacobian), len(jacobian), dtype=torch.float64)
    gradient = torch.zeros(len(jacobian), dtype=torch.float64)
    for i, weight in enumerate(weights.double()):
        rows = jacobian[:, i].double() * weight
        gram += rows @ rows.T
        gradient += rows @ (found[i].double() * weight)
    return gram, gradient
