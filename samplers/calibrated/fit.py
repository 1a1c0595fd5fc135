"""Calibration: fit the few numbers of a recipe to a model, so that its last sample is that of a run of many steps.

The residuals are the differences of final samples to the teacher's, for the same starting noise, and the numbers are
some dozens: a least-squares problem with many equations and few unknowns. Gauss-Newton with the Jacobian taken by
differences (Levenberg 1944, Marquardt 1963), and updated by Broyden's rule (1965) between two full ones, needs a
hundred runs or so where a search that only compares errors needs thousands. No gradient goes through the network, so
that it may be quantised, offloaded, compiled or patched; and differences of finite width see what a gradient would
not, the rounding of levels to the time steps of a discrete model.

Where a network can be differentiated, and is told its levels exactly, `DifferentiableGoal` is the other way: the
gradient of the same objective in all numbers at once, by backpropagation through the run, for BFGS.

Samples are weighted by the inverse of their error (iteratively reweighted least squares), so that the geometric mean of
the errors falls and not only the largest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..integrate import Model, NonFiniteError, integrate
from ..levels import Levels, read_levels
from ..phi import Scalar
from ..schedules import SCHEDULES
from .recipe import Recipe
from .tuning import Tuning


class Kind(NamedTuple):
    """One kind of number: how far it is moved to take a difference, and how far it is expected to go."""

    step: float
    scale: float
    first: int
    """The first evaluation that has one."""

    most: float = math.inf
    """How far it may go: a factor of 1/2 or 3/2 is no longer a correction."""


KINDS = {
    "level": Kind(0.05, 0.5, 1),
    "slope": Kind(0.05, 0.5, 1),
    "curvature": Kind(0.03, 0.3, 2),
    "guidance": Kind(0.05, 0.3, 0, 0.9),
    "scale_time": Kind(0.03, 0.2, 1, 0.5),
    "scale_dir": Kind(0.01, 0.05, 1, 0.5),
}
"""What can be fitted. `level` is in lambda; all others are 0 or 1 in the base solver, to which a penalty of the
squares, in units of `scale`, draws them. All keep a constant prediction exact but AMED's `scale_dir`, in the data
prediction."""

PENALTY = 1e-3  # of the squares; the data's squares are 1 at the start
CLOSEST = 0.02  # in lambda: levels do not come nearer to each other
ENOUGH = 0.01  # relative gain of a round that is worth another one
PATIENCE = 4  # steps in a row that help the samples of the fit and not the others, after which it stops
STEPS_PER_ROUND = 10  # of BFGS
LONGEST = 0.5  # step of BFGS, in units of the scales
HALVINGS = 12  # of a step, at most


class Unknown(NamedTuple):
    """One number of a recipe."""

    kind: str
    at: int


def unknowns(recipe: Recipe, kinds: Sequence[str], *, inserted: bool = False) -> list[Unknown]:
    """The numbers of a recipe that can be fitted, of these kinds; with `inserted` those of every second level alone.

    Raises:
        ValueError: for a kind that there is not, or a recipe without a step.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"free = {kind!r}: what can be fitted is {', '.join(KINDS)}")
    if not recipe.tunings:
        raise ValueError("sigmas hold no step: raise the number of steps")
    levels, stages = read_levels(recipe.sigmas, recipe.flow), list(recipe.plan())
    found = []
    for kind in kinds:
        for k in range(KINDS[kind].first, len(stages)):
            if kind in ("slope", "curvature") and not (stages[k].completes and stages[k - 1].completes):
                continue  # within a step of several evaluations
            if kind == "level" and not math.isfinite(float(levels[k].lam)):
                continue
            if kind == "guidance" and stages[k].sigma is None:
                continue  # the analytical first step
            if inserted and k % 2 == 0:
                continue
            found.append(Unknown(kind, k))
    return found


def moved(recipe: Recipe, numbers: Sequence[Unknown], by: Sequence[float]) -> Recipe | None:
    """The recipe with numbers added; None where that is no recipe (levels out of order, a number out of bounds)."""
    if any(abs(change) > KINDS[unknown.kind].most for unknown, change in zip(numbers, by, strict=True)):
        return None
    try:
        levels, tunings = placed(recipe, numbers, by)
        lams = [float(level.lam) for level in levels]
        if any(b < a + CLOSEST for a, b in itertools.pairwise(lams)):
            return None
        return replace(recipe, sigmas=tuple(map(float, levels.sigmas)), tunings=tuple(tunings))
    except (ValueError, OverflowError):
        return None


def placed(recipe: Recipe, numbers: Sequence[Unknown], by: Sequence[Scalar]) -> tuple[Levels, list[Tuning]]:
    """The levels and tunings of a recipe with numbers added, unchecked. Scalars of torch keep their gradients."""
    levels = read_levels(recipe.sigmas, recipe.flow)
    sigmas, tunings = list(levels.sigmas), [t._asdict() for t in recipe.tunings]
    for (kind, k), change in zip(numbers, by, strict=True):
        if kind != "level":
            tunings[k][kind] = tunings[k][kind] + change
        elif isinstance(change, Tensor) or change:  # else the level stays to the last bit
            sigmas[k] = levels.at_lambda(levels[k].lam + change).sigma
    return Levels(tuple(sigmas), recipe.flow), [Tuning(**t) for t in tunings]


@dataclass(frozen=True)
class Goal:
    """Samples that are to be matched: `run` gives the final samples of a recipe, [N, ...], `target` the teacher's."""

    run: Callable[[Recipe], Tensor]
    target: Tensor

    def differences(self, recipe: Recipe) -> Tensor:
        """[N, M] in float32 on the CPU; infinite where the run came to something that is not finite."""
        found = (self.run(recipe).to("cpu", torch.float32) - self.target.to("cpu", torch.float32)).flatten(1)
        return torch.where(found.isfinite(), found, torch.inf)


class Differentiable(Protocol):
    """What a calibration by backpropagation needs of its samples."""

    def slope(
        self, recipe: Recipe, numbers: Sequence[Unknown], by: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As in `DifferentiableGoal`."""


@dataclass(frozen=True)
class DifferentiableGoal:
    """Samples that are to be matched, by a model that autograd can go through.

    Each evaluation is a checkpoint: its intermediate results are computed once more on the way back, so that memory is
    that of one evaluation, however many there are.

    The gradient is that of the model as a smooth function of sigma. What it cannot see is rounding: a discrete model
    that rounds its levels to time steps seems not to depend on `scale_time` at all, and on `level` only through the
    coefficients of the solver. For such a model take differences instead.
    """

    model: Model
    """A k-diffusion denoiser."""

    x: Tensor
    """Starting noise at the recipe's first level, [N, C, ...]."""

    target: Tensor
    """The teacher's samples, as `measured` gives them."""

    extra_args: Mapping[str, Any] | None = None
    """Passed on to the model."""

    set_guidance: Callable[[Scalar], None] | None = None
    """As in `Recipe.function`; its factor may be a scalar of torch that carries a gradient."""

    measured: Callable[[Tensor], Tensor] = lambda x: x
    """What of the last samples is compared with the target."""

    def slope(
        self, recipe: Recipe, numbers: Sequence[Unknown], by: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The mean squared error of each sample, [N], and the gradient in `by` of their weighted mean, both in float64
        on the CPU. Without weights they are the inverse of the squared errors. Raises what `squares` does."""
        leaf = by.clone().requires_grad_()
        squares = self.squares(recipe, numbers, leaf.unbind()).double().cpu()
        weights = weights_for(squares.detach()) if weights is None else weights
        (slope,) = torch.autograd.grad((weights * squares).mean(), leaf)
        return squares.detach(), slope

    def squares(self, recipe: Recipe, numbers: Sequence[Unknown], by: Sequence[Scalar]) -> Tensor:
        """The mean squared error of each sample, [N], with gradients in `by`.

        Raises:
            NonFiniteError: if the run came to NaN or infinity.
            ValueError: if there is guidance and nothing to set it with, or no gradient goes through the model.
        """
        levels, tunings = placed(recipe, numbers, by)
        model = self._checkpointed([tuning.guidance for tuning in tunings][recipe.afs :])
        with torch.enable_grad():
            plan = recipe.plan_on(levels, tunings)
            found = self.measured(integrate(model, self.x, plan, extra_args=self.extra_args, disable=True))
            wide = torch.promote_types(found.dtype, torch.float32)
            differences = (found.to(wide) - self.target.to(found.device, wide)).flatten(1)
            return differences.square().mean(dim=1)

    def _checkpointed(self, factors: Sequence[Scalar]) -> Model:
        """The model as a chain of checkpoints, each of which sets its own guidance, also when it is run again."""
        if self.set_guidance is None and any(isinstance(factor, Tensor) or factor != 1 for factor in factors):
            raise ValueError("guidance: there is no set_guidance to change that of single evaluations with")
        remaining = iter(factors)

        def evaluate(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
            factor = next(remaining)

            def once(x: Tensor, sigma: Tensor) -> Tensor:
                if self.set_guidance is not None:
                    self.set_guidance(factor)
                return self.model(x, sigma, **extra_args)

            denoised = checkpoint(once, x, sigma, use_reentrant=False, preserve_rng_state=False)
            if x.requires_grad and not denoised.requires_grad:
                raise ValueError("no gradient goes through this model: calibrate it by differences")
            return denoised

        return evaluate


def weights_for(squares: Tensor) -> Tensor:
    """The weights of samples that make the mean of squared errors one of their logarithms."""
    return 1 / squares.clamp(min=1e-18)


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
        afs: whether the first evaluation is left out, so that there is a level more.
        options: those of `ScheduleSpec.function`.
    """
    found: dict[Recipe, str] = {}
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
                found.setdefault(recipe, f"{base}, {spec.id}{' without its last level' * discard}")
    return found


DEFAULT_BASES = ("dpmpp_2m", "ipndm_v")
DEFAULT_FREE = ("level", "slope", "curvature", "guidance", "scale_time")


def calibrate(
    starts: Iterable[Recipe],
    look: Goal,
    fit: Goal,
    check: Goal,
    *,
    free: Sequence[str] = DEFAULT_FREE,
    rounds: int = 4,
    inserted: bool = False,
    backpropagate: Differentiable | None = None,
) -> Iterator[Progress]:
    """Fit a recipe; yields after each run, so that whoever drives it can stop at any time with the best so far.

    The starts are compared on `look` (a few of the samples of `fit`), the three best on all of `fit`. From the best,
    rounds of Gauss-Newton follow. `check` holds samples with other noise, better with other prompts too. It decides
    which recipe is the best, and that it is enough when steps no longer help there; it is never fitted to.

    Args:
        starts: plain recipes, as `plain_recipes` gives them.
        free: what is fitted, of `KINDS`; `guidance` only where the guidance scale can be set.
        rounds: at most so many.
        inserted: fit the numbers of every second level alone, as AMED does.
        backpropagate: the samples of `fit` for a model that can be differentiated; then rounds of BFGS follow instead.

    Raises:
        ValueError: if there is no start, none gave finite samples, or `free` names what cannot be fitted.
    """
    starts = list(starts)
    if not starts:
        raise ValueError("there is no plain recipe to start from: choose another base sampler or number of steps")
    kinds = (free,) if isinstance(free, str) else tuple(free)
    unknowns(starts[0], kinds)  # complains now, not after the first look
    return _Calibration(look, fit, check, rounds, inserted, backpropagate).go(starts, kinds)


class _Calibration:
    """The state of one calibration: what it has run, and the best of that."""

    def __init__(
        self,
        look: Goal,
        fit: Goal,
        check: Goal,
        rounds: int,
        inserted: bool,
        backpropagate: Differentiable | None,
    ):
        self.look, self.fit, self.check = look, fit, check
        self.rounds, self.inserted, self.backpropagate = rounds, inserted, backpropagate
        self.runs = self.expected = 0
        self.before = self.after = math.inf
        self.error = math.inf
        self.best: Recipe
        self.in_vain = 0
        """Steps since the best."""

    def differences(self, goal: Goal, recipe: Recipe) -> Tensor:
        """Those of one more run."""
        self.runs += 1
        return goal.differences(recipe)

    def progress(self, stage: str) -> Progress:
        self.expected = max(self.expected, self.runs)
        return Progress(stage, self.runs, self.expected, self.best, self.before, self.after, self.error)

    def judge(self, recipe: Recipe) -> None:
        """One more run, on the samples that nothing is fitted to."""
        error = geometric_mean(rmse(self.differences(self.check, recipe)))
        self.in_vain += 1
        if error < self.after:
            self.best, self.after, self.in_vain = recipe, error, 0

    def go(self, starts: list[Recipe], free: Sequence[str]) -> Iterator[Progress]:
        self.best = starts[0]
        count = len(unknowns(starts[0], free, inserted=self.inserted))
        finalists = min(3, len(starts))
        self.expected = len(starts) + 2 * finalists + self.rounds * (count + 4)

        looks = []
        for start in starts:
            looks.append(geometric_mean(rmse(self.differences(self.look, start))))
            yield self.progress("starts")
        chosen: tuple[float, Recipe, Tensor] | None = None
        for k in sorted(range(len(starts)), key=lambda k: looks[k])[:finalists]:
            start = starts[k]
            found = self.differences(self.fit, start)
            yield self.progress("starts")
            error = geometric_mean(rmse(found))
            if math.isfinite(error) and (chosen is None or error < chosen[0]):
                chosen = error, start, found
            self.judge(start)
            self.before = self.after
            yield self.progress("starts")
        if chosen is None:
            raise ValueError("no plain sampler gave finite samples with this model: look at the model and the guidance")
        self.error, base, found = chosen
        self.in_vain = 0
        numbers = unknowns(base, free, inserted=self.inserted)
        if self.backpropagate is None:
            yield from self.descend(base, found, numbers)
        elif numbers:
            yield from self.descend_by_gradient(self.backpropagate, base, numbers)
        self.expected = self.runs
        yield self.progress("done")

    def descend(self, base: Recipe, found: Tensor, numbers: list[Unknown]) -> Iterator[Progress]:
        """Levenberg-Marquardt on u, the numbers in units of their scale."""
        scales = _scales(numbers)
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
                    trial = self.differences(self.fit, recipe)
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
                if self.in_vain == PATIENCE:
                    return
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
            result = self.differences(self.fit, recipe)
            yield self.progress("slopes of the error")
            if result.isfinite().all():
                return (result - found) / step
        return torch.zeros_like(found)  # neither side is possible: it stays where it is

    def descend_by_gradient(
        self, goal: Differentiable, base: Recipe, numbers: list[Unknown]
    ) -> Generator[Progress, None, None]:
        """BFGS on u, the numbers in units of their scale, with steps that are halved until the cost falls.

        The weights of the samples stay for a round. J. Nocedal, S. Wright: Numerical Optimization. 2006, algorithm 6.1
        and eq. 6.20.
        """
        scales, identity = _scales(numbers), torch.eye(len(numbers), dtype=torch.float64)
        u, inverse, fresh = torch.zeros(len(numbers), dtype=torch.float64), identity, True
        for round_ in range(self.rounds):
            stage, earlier = f"round {round_ + 1} of {self.rounds}", self.error
            cost, slope, squares = self.slope(goal, base, numbers, u, scales)
            weights = weights_for(squares)
            yield self.progress(stage)
            for _ in range(STEPS_PER_ROUND):
                direction = -inverse @ slope
                direction *= min(1.0, LONGEST / max(float(direction.norm()), 1e-12))
                accepted = None
                for share in (2.0**-k for k in range(HALVINGS)):
                    there = u + share * direction
                    recipe = moved(base, numbers, (there * scales).tolist())
                    if recipe is None:
                        continue
                    new_cost, new_slope, squares = self.slope(goal, base, numbers, there, scales, weights)
                    yield self.progress(stage)
                    if new_cost < cost + 1e-4 * share * float(direction @ slope):
                        accepted = recipe
                        break
                if accepted is None:
                    if fresh:  # not even down the slope
                        break
                    inverse, fresh = identity, True
                    continue
                step, change = there - u, new_slope - slope
                product = float(step @ change)
                if product > 1e-10:
                    inverse = inverse * (product / float(change @ change)) if fresh else inverse
                    mixing = identity - torch.outer(step, change) / product
                    inverse = mixing @ inverse @ mixing.T + torch.outer(step, step) / product
                    fresh = False
                u, cost, slope = there, new_cost, new_slope
                self.error = geometric_mean(squares.sqrt())
                self.judge(accepted)
                yield self.progress(stage)
            if self.error > (1 - ENOUGH) * earlier:
                return

    def slope(
        self,
        goal: Differentiable,
        base: Recipe,
        numbers: list[Unknown],
        u: Tensor,
        scales: Tensor,
        weights: Tensor | None = None,
    ) -> tuple[float, Tensor, Tensor]:
        """The cost, its gradient in u, and the squared errors of the samples, by one run there and back.

        Without weights they are the inverse of the squared errors.
        """
        self.runs += 1
        try:
            squares, slope = goal.slope(base, numbers, u * scales, weights)
        except NonFiniteError:
            return math.inf, torch.zeros_like(u), torch.full((len(self.fit.target),), torch.inf)
        weights = weights_for(squares) if weights is None else weights
        cost = float((weights * squares).mean() + PENALTY * u.square().sum())
        slope = slope * scales + 2 * PENALTY * u
        return cost if bool(slope.isfinite().all()) else math.inf, slope, squares


def _scales(numbers: Sequence[Unknown]) -> Tensor:
    return torch.tensor([KINDS[number.kind].scale for number in numbers], dtype=torch.float64)


def _normal_equations(jacobian: Tensor, found: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """J W^2 J^T and J W^2 r, sample by sample, in float64."""
    gram = torch.zeros(len(jacobian), len(jacobian), dtype=torch.float64)
    gradient = torch.zeros(len(jacobian), dtype=torch.float64)
    for i, weight in enumerate(weights.double()):
        rows = jacobian[:, i].double() * weight
        gram += rows @ rows.T
        gradient += rows @ (found[i].double() * weight)
    return gram, gradient
