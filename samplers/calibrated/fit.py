"""Calibration: fit the parameters of a recipe to a model, so that its last sample is that of a run of many steps.

What is minimised is in `objective`, by which parameters in `parameters`. `GaussNewton` takes its derivatives by
differences of whole runs: no gradient goes through the network, so that it may be quantised, offloaded, compiled or
patched; and differences of finite width see what a gradient would not, the rounding of levels to the time steps of a
discrete model. `BFGS` is the other way, by backpropagation through the run.

There are three sets of samples. Plain samplers are compared on those for *screening*, the parameters are fitted to
those for *training*, and those for *validation*, with noise and best also prompts of their own, decide which recipe is
the best, and when to stop.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..schedules import SCHEDULES
from .bfgs import BFGS
from .gauss_newton import GaussNewton
from .objective import Differentiable, Goal, Trial, geometric_mean, rmse
from .parameters import Space, parameters_of
from .recipe import Recipe

DEFAULT_BASES = ("dpmpp_2m", "ipndm_v")
DEFAULT_PARAMETERS = ("level", "slope", "curvature", "guidance", "scale_time")
FINALISTS = 3  # of the starts, that are compared on all samples
PATIENCE = 4  # steps in a row that help in training and not in validation, after which Gauss-Newton stops


class Progress(NamedTuple):
    """Where a calibration stands, after each run."""

    stage: str
    """Of the run: "starts" (plain samplers), "round 2 of 4", or "done"."""

    runs: int
    expected: int
    """Runs in all, should no round end early."""

    best: Recipe
    """The best so far in validation."""

    before: float
    """Error in validation of the best plain recipe: a geometric mean of root mean squares."""

    after: float
    """Error there of `best`; that of the plain one if nothing was better."""

    error: float
    """Error in training."""


def plain_recipes(
    bases: Sequence[str],
    evaluations: int,
    sigma_min: float,
    sigma_max: float,
    *,
    flow: bool = False,
    afs: bool = False,
    **options: Any,
) -> dict[Recipe, str]:
    """Where a calibration may start, with names: these samplers on every schedule that gives so many levels, with and
    without its last one above 0.

    Args:
        afs: whether the first evaluation is left out, so that there is one more level.
        options: those of `ScheduleSpec.function`.
    """
    recipes: dict[Recipe, str] = {}
    for base in bases:
        for spec in (spec for spec in SCHEDULES.values() if spec.starts_at_sigma_max):
            for discard in (False, True):
                try:
                    sigmas = spec.function(
                        evaluations + afs, sigma_min, sigma_max, flow=flow, discard_penultimate=discard, **options
                    )
                    recipe = Recipe(base, tuple(sigmas.tolist()), flow, afs=afs)
                except ValueError:
                    continue  # of a schedule that has no such number of steps
                recipes.setdefault(recipe, f"{base}, {spec.id}{' without its last level' * discard}")
    return recipes


def expected_runs(
    starts: Sequence[Recipe], parameters: Sequence[str], rounds: int, *, inserted: bool = False
) -> tuple[int, int]:
    """How many runs `calibrate` makes, should no round end early: of plain samplers, and of the fit."""
    count = len(parameters_of(starts[0], parameters, inserted=inserted))
    return len(starts) + 2 * min(FINALISTS, len(starts)), rounds * (count + 4)


def calibrate(
    starts: Iterable[Recipe],
    screening: Goal,
    training: Goal,
    validation: Goal,
    *,
    parameters: Sequence[str] = DEFAULT_PARAMETERS,
    rounds: int = 4,
    inserted: bool = False,
    backpropagate: Differentiable | None = None,
) -> Iterator[Progress]:
    """Fit a recipe; yields after each run, so that whoever drives it can stop at any time with the best so far.

    The starts are compared in screening, the best of them on all samples of training. From the best of those, rounds of
    Gauss-Newton follow. Validation decides which recipe is the best, and that it is enough when steps no longer help
    there; nothing is ever fitted to it.

    Args:
        starts: plain recipes, as `plain_recipes` gives them.
        screening: a few of the samples of training.
        validation: samples with other noise, better with other prompts too.
        parameters: the names of those that are fitted, of `FITTABLE`; `guidance` only where its scale can be set.
        rounds: at most so many.
        inserted: fit the parameters of every second level alone, as AMED does.
        backpropagate: the samples of training for a model that can be differentiated; then rounds of BFGS follow
            instead.

    Raises:
        ValueError: if there is no start, none gave finite samples, or `parameters` names what cannot be fitted.
    """
    starts = list(starts)
    if not starts:
        raise ValueError(
            "there are no plain levels to start from: choose another base sampler or number of evaluations"
        )
    names = (parameters,) if isinstance(parameters, str) else tuple(parameters)
    parameters_of(starts[0], names)  # complains now, not after the screening
    calibration = _Calibration(screening, training, validation, starts[0])
    return calibration.run(starts, names, rounds, inserted, backpropagate)


class _Calibration:
    """The state of one calibration: what it has run, and the best of that."""

    def __init__(self, screening: Goal, training: Goal, validation: Goal, first: Recipe):
        self._screening, self._training, self._validation = screening, training, validation
        self._runs = self._expected = 0
        self._before = self._after = self._error = math.inf
        self._best = first
        self._in_vain = 0
        """Steps since the best."""

    def run(
        self,
        starts: list[Recipe],
        parameters: Sequence[str],
        rounds: int,
        inserted: bool,
        backpropagate: Differentiable | None,
    ) -> Iterator[Progress]:
        self._expected = sum(expected_runs(starts, parameters, rounds, inserted=inserted))
        ranks = []
        for start in starts:
            ranks.append(self._errors(self._screening, start)[1])
            yield self._progress("starts")
        chosen: tuple[float, Recipe, Tensor] | None = None
        for k in sorted(range(len(starts)), key=lambda k: ranks[k])[:FINALISTS]:
            residuals, error = self._errors(self._training, starts[k])
            yield self._progress("starts")
            if error < (chosen[0] if chosen else math.inf):
                chosen = error, starts[k], residuals
            self._validate(starts[k])
            self._before = self._after
            yield self._progress("starts")
        if chosen is None:
            raise ValueError("no plain sampler gave finite samples with this model: look at the model and the guidance")
        self._error, base, residuals = chosen
        space = Space(base, parameters_of(base, parameters, inserted=inserted))
        if backpropagate is None:
            yield from self._follow(GaussNewton(self._training, space, residuals).run(rounds), PATIENCE)
        else:
            yield from self._follow(BFGS(backpropagate, space, self._error).run(rounds), math.inf)
        self._expected = self._runs
        yield self._progress("done")

    def _follow(self, trials: Iterator[Trial], patience: float) -> Iterator[Progress]:
        """A minimisation, with each recipe that it accepts compared in validation."""
        self._in_vain = 0
        for trial in trials:
            if trial.accepted is None:
                self._runs += 1
            else:
                self._error = trial.error
                self._validate(trial.accepted)
            yield self._progress(trial.stage)
            if self._in_vain == patience:
                return

    def _errors(self, goal: Goal, recipe: Recipe) -> tuple[Tensor, float]:
        """The residuals of one more run, and their geometric mean."""
        self._runs += 1
        residuals = goal.residuals(recipe)
        return residuals, geometric_mean(rmse(residuals))

    def _validate(self, recipe: Recipe) -> None:
        _, error = self._errors(self._validation, recipe)
        self._in_vain += 1
        if error < self._after:
            self._best, self._after, self._in_vain = recipe, error, 0

    def _progress(self, stage: str) -> Progress:
        self._expected = max(self._expected, self._runs)
        return Progress(stage, self._runs, self._expected, self._best, self._before, self._after, self._error)
