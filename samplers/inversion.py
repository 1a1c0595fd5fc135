"""Inversion: the noise from which a deterministic sampler makes a given image.

Following the probability-flow ODE from the image up to the noise (DDIM inversion: Song, Meng, Ermon 2020, arXiv
2010.02502; with DPM-Solver++ it is diffusers' DPMSolverMultistepInverse) gives noise that samples back to the image
only as far as the steps are small. Here the sampler's own steps are solved backward instead. Each is

    x_(i+1) = a_i x_i + sum over j of b_ij P_(i-j),        P_i the prediction of the model at x_i,

an implicit equation for x_i: fixed-point inversion (Pan et al. 2023, AIDI, arXiv 2309.04907; Meiri et al. 2023, arXiv
2312.12540), carried over to multistep solvers (Hong et al. 2023, arXiv 2311.18387). `invert` spends one evaluation on
it at each level (`solve_backward`), and then, if asked, corrects the whole way by what the round trip has lost.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import detail
from .integrate import Evaluations, Model, NonFiniteError, check_sample, combine, evaluated, per_image, progress_bar
from .levels import REPEATS, GivenLevels, Level, Levels, read_run
from .phi import Scalar, value
from .plan import DENOISED, START, Combination, Stage, X, as_given
from .sampler import SamplerSpec

Callback = Callable[[dict[str, Any]], None]


class Inversion(NamedTuple):
    """What `invert` has found."""

    sample: Tensor
    """The sample at the first level, from which the sampler makes the image."""

    path: tuple[Tensor, ...]
    """The samples on the way there, one for each level; the last is the image, at its level."""

    errors: tuple[Tensor, ...]
    """Relative round-trip errors, [B] for each run that measured them: root mean square of the difference to the image,
    over that of the image. None where there was no such run."""

    nfe: int
    """Evaluations of the model."""

    @property
    def error(self) -> Tensor | None:
        """That of `sample`, [B], if it was measured."""
        return torch.stack(self.errors).amin(dim=0) if self.errors else None


@torch.no_grad()
def invert(
    sampler: SamplerSpec,
    model: Model,
    image: Tensor,
    sigmas: Tensor | Sequence[float],
    extra_args: Mapping[str, Any] | None = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    *,
    flow: bool = False,
    refinements: int = 0,
    measure: bool = False,
    **options: Any,
) -> Inversion:
    """The noise from which `sampler` makes `image` on these sigmas.

    For a sampler that evaluates once at each level the way up is `solve_backward`, with one evaluation at each level,
    too. If its steps depend on nothing but their sample (DDIM), a refinement is one more evaluation at each level, and
    the limit is exact. For one that does more (2S, Heun ...) the way up is a run over the ascending sigmas: at the
    lowest level above 0, where such a run has to begin, the image is taken as it is, x = alpha image.

    Either is an approximate inverse A of the sampler's run F. A refinement of the others corrects the image that goes
    in by what the round trip loses,

        u <- u + (y - F(A(u))),        starting from the image, u = y,

    a fixed-point iteration with the limit F(A(u)) = y. It converges as fast as A is good, and measures the error as it
    goes: the best for each image is kept, and it ends early when none has gained.

    Args:
        sampler: one without added noise, or with that set to 0.
        model: a k-diffusion denoiser, as in `SamplerSpec.function`.
        image: clean, [B, C, ...].
        sigmas: 1-D, descending, as the sampler will use them. If they end above 0, the image is taken for alpha_n x_0.
        extra_args: passed on to the model.
        callback: as in `SamplerSpec.function`; `i` counts the steps of all runs up and down, of `steps` in all.
        disable: hides the progress bar.
        flow: levels of a rectified-flow model.
        refinements: at most so many. Each costs an evaluation at each level, or a run down and one up.
        measure: run the sampler on what was found, to know the error; runs up and down do so in any case.
        options: those of the sampler.

    Raises:
        ValueError: naming the argument at fault.
        NonFiniteError: if the model returned NaN or infinity.
    """
    check_sample(image)
    if refinements < 0:
        raise ValueError(f"refinements = {refinements} must not be negative")
    run = _read_levels(sampler, sigmas, flow)
    way = _Way(sampler, model, run, dict(extra_args or {}), callback, options)
    target = image * run.levels[len(run.levels) - 1].alpha
    at_each_level, rounds = (refinements, 0) if way.memoryless else (0, refinements)
    trips = rounds + (measure or rounds > 0)
    way.steps = (1 + rounds) * (1 + at_each_level) * way.steps_up + trips * way.steps_down
    with progress_bar(way.steps, disable) as way.bar:
        path = way.up(target, 1 + at_each_level)
        path, errors = _corrected(way, target, path, trips)
    return Inversion(path[0], path, errors, way.nfe)


def _read_levels(sampler: SamplerSpec, sigmas: Tensor | Sequence[float], flow: bool) -> GivenLevels:
    """The levels of a run that can be gone back.

    Raises:
        ValueError: naming what is wrong with the sigmas.
    """
    run = read_run(sigmas, flow)
    levels = run.levels
    if len(levels) < 2:
        raise ValueError(f"sigmas must hold at least two levels (one step), got {list(run.given)}: raise the steps")
    if run.repeats:
        logging.warning("%s: %s", sampler.id, REPEATS)
    if value(levels[1].sigma) > value(levels[0].sigma):
        raise ValueError("sigmas ascend: give them descending, as the sampler uses them")
    if not value(levels[len(levels) - 2].alpha) and not value(levels[len(levels) - 1].sigma):
        raise ValueError(
            "sigmas hold one step, from pure noise to the clean image, and every noise fits that: take more steps"
        )
    return run


def _corrected(
    way: _Way, target: Tensor, path: tuple[Tensor, ...], trips: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The best path for each image, and the errors of so many round trips. Between two, the image that goes in is
    corrected by what the last one has lost."""
    given, best = target, path
    best_error: Tensor | None = None
    errors: list[Tensor] = []
    for trip in range(trips):
        try:
            path = way.up(given) if trip else path
            lost = target - way.down(path[0])
        except NonFiniteError:
            if not trip:
                raise
            break  # the best so far is kept
        given = given + lost
        errors.append(_relative(lost, target))
        if best_error is None:
            best_error = errors[0]
            continue
        gained = errors[-1] < best_error
        best_error = torch.where(gained, errors[-1], best_error)
        best = tuple(torch.where(per_image(gained, a), a, b) for a, b in zip(path, best, strict=True))
        if not gained.any():
            break
    return best, tuple(errors)


class _Way:
    """The runs of one sampler up and down some levels, and what they cost."""

    steps = 0
    bar: Any = None

    def __init__(
        self,
        sampler: SamplerSpec,
        model: Model,
        run: GivenLevels,
        extra_args: dict[str, Any],
        callback: Callback | None,
        options: dict[str, Any],
    ):
        self.sampler, self.model, self.levels, self.extra_args = sampler, model, run.levels, extra_args
        self.callback, self.options, self.given = callback, options, run.given
        self.stages = tuple(as_given(stage, run) for stage in _single_steps(sampler, run.levels, options))
        self.rising = [sigma for sigma in reversed(run.given) if sigma]
        self.memoryless = bool(self.stages) and not any(_reach(stage) for stage in self.stages)
        self.steps_down = len(run.levels) - 1
        self.steps_up = self.steps_down if self.stages else len(self.rising) - 1
        self.nfe = self.done = 0

    def up(self, sample: Tensor, evaluations: int = 1) -> tuple[Tensor, ...]:
        """From the last level to the first: the samples of all levels, first to last."""
        if not self.stages:
            return self._ascending(sample)
        return solve_backward(
            self._counted, sample, self.stages, self.levels, self._after_step, evaluations=evaluations
        )

    def down(self, sample: Tensor) -> Tensor:
        return self._run(sample, self.given, self._after_step)

    def _ascending(self, sample: Tensor) -> tuple[Tensor, ...]:
        seen: list[Tensor] = [] if self.levels[len(self.levels) - 1].sigma else [sample]

        def record(step: dict[str, Any]) -> None:
            seen.append(step["x"])
            self._after_step(step)

        lowest = self.levels.at_sigma(self.rising[0])
        start = sample * (lowest.alpha / self.levels[len(self.levels) - 1].alpha)
        seen.append(self._run(start, self.rising, record) if len(self.rising) > 1 else start)
        return tuple(reversed(seen))

    def _run(self, sample: Tensor, sigmas: Sequence[float], callback: Callback) -> Tensor:
        return self.sampler.function(
            self._counted, sample, sigmas, {}, callback, True, flow=self.levels.flow, **self.options
        )

    def _counted(self, x: Tensor, sigma: Tensor) -> Tensor:
        self.nfe += 1
        return self.model(x, sigma, **self.extra_args)

    def _after_step(self, step: dict[str, Any]) -> None:
        if self.callback is not None:
            self.callback(step | {"i": self.done, "steps": self.steps})
        self.done += 1
        self.bar.update(1)


def solve_backward(
    model: Model,
    sample: Tensor,
    stages: Sequence[Stage],
    levels: Levels,
    callback: Callback | None = None,
    *,
    evaluations: int = 1,
) -> tuple[Tensor, ...]:
    """The samples of all levels, first to last, if the sampler is to end at `sample`.

    From the last level up, x_i is found from x_(i+1) in two moves:

    1. A guess: the step solved for x_i with predictions from the line in lambda through those at the last two levels,
       an explicit inversion of order 2. At the last level there are none: the image is taken as it is, x = alpha image.
    2. With each evaluation there, a Newton step with the Jacobian m_i that the step has for data of unit variance:

           x_i <- x_i + (x_(i+1) - step(x_i)) / m_i,        dD/dx = alpha / (alpha^2 + sigma^2).

       From the second on it is accelerated (`Anderson`). Predictions from before the step, which a multistep solver
       asks for and which lie ahead on this way, are taken from the line through this one and the one below.

    Args:
        stages: those of a sampler that evaluates once at each level.
        callback: called at each evaluation as in `integrate`, its `i` counted from the last level.
        evaluations: at each level.
    """
    n = len(stages)
    path = [sample]
    denoised: dict[int, Tensor] = {}
    predictions: dict[int, Tensor] = {}
    evaluate = Evaluations(model, sample)

    def on_line(known: Mapping[int, Tensor], j: int, near: int) -> Tensor:
        """What it would be at level j, from the levels `near` and `near` + 1."""
        if near + 1 not in known:
            return known[near]
        return known[near].lerp(known[near + 1], _weight(levels, j, near))

    for i in reversed(range(n)):
        stage, below = stages[i]._replace(step=n - 1 - i), path[-1]
        if i + 1 < n:
            expected = [on_line(predictions, i - j, i + 1) for j in range(_reach(stage) + 1)]
            nothing = torch.zeros_like(below)
            rest = combine(stage.update, (*expected, on_line(denoised, i, i + 1), nothing, nothing))
            x = (below - rest) / _coefficient(stage.update, X, START)
        else:
            x = below * (levels[i].alpha / levels[n].alpha)

        jacobian, accelerated = _jacobian(stage, levels, i, n), Anderson()
        for _ in range(evaluations):
            predictions[i], denoised[i], *_ = evaluated(stage, (x, x, x), evaluate)
            if callback is not None:
                callback(evaluate.seen(x, stage.step))
            older = [on_line(predictions, i - j, i) for j in range(1, _reach(stage) + 1)]
            reached = combine(stage.update, (predictions[i], *older, denoised[i], x, x))
            x = accelerated(x, (below - reached) / jacobian)
        path.append(x)
        denoised.pop(i + 2, None)
        predictions.pop(i + 2, None)
    evaluate.check(path[-1], n)
    return tuple(reversed(path))


class Anderson:
    """Anderson acceleration of x <- x + r(x), for each image on its own.

        x_next = x + r - sum over k of gamma_k (dx_k + dr_k),        gamma = argmin |r - sum gamma_k dr_k|,

    over the last `memory` differences of samples, dx, and of residuals, dr. Anderson 1965; for inversion Pan et al.
    2023, arXiv 2309.04907.
    """

    def __init__(self, memory: int = 3):
        self.seen: deque[tuple[Tensor, Tensor]] = deque(maxlen=memory + 1)

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        self.seen.appendleft((x, residual))
        if len(self.seen) == 1:
            return x + residual
        dx, dr = (torch.stack([self.seen[0][k] - old[k] for old in list(self.seen)[1:]], dim=-1) for k in (0, 1))
        wide = torch.promote_types(x.dtype, torch.float32)
        basis, target = dr.flatten(1, -2).to(wide), residual.flatten(1).to(wide)[..., None]
        gram, right = (basis.mT @ basis).cpu().nan_to_num(), (basis.mT @ target).cpu().nan_to_num()
        gamma = torch.linalg.lstsq(gram, right, driver="gelsd").solution  # small, and singular at the solution
        shift = (dx + dr).flatten(1, -2).to(wide) @ gamma.to(x.device)
        return x + residual - shift.to(x.dtype).view_as(x)


def _single_steps(sampler: SamplerSpec, levels: Levels, options: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The stages of a sampler that evaluates once at each level and remembers no sample; none of another.

    Raises:
        ValueError: naming the option at fault, or if the sampler adds noise.
    """
    arguments = sampler.solver_arguments(options)
    if sampler.adaptive:
        return ()
    if sampler.takes_apart:
        raise ValueError(f"{sampler.id} (CFG++) cannot be inverted: its steps have two predictions; take ddim or euler")
    stages = tuple(sampler.solver(levels, **arguments))  # as the papers have them: all remember the same kind
    if any(stage.noise for stage in stages):
        amount = sampler.noise_option
        raise ValueError(
            f"{sampler.id} adds noise, so that no noise leads back to the image: "
            + (f"set {amount.name} to 0" if amount else "take ddim or another sampler without")
        )
    single = [stage.sigma for stage in stages] == [levels[i].sigma for i in range(len(levels) - 1)]
    if not single or not all(stage.completes for stage in stages):
        return ()
    of_detail = {option.name: options[option.name] for option in detail.OPTIONS if option.name in options}
    return tuple(detail.with_detail(stages, levels, **of_detail))


def _reach(stage: Stage) -> int:
    """How many predictions from before the step its update asks for."""
    return max(0, stage.update.reach - 1)


def _coefficient(combination: Combination, *symbols: Combination) -> float:
    return sum(value(combination.terms.get(key, 0.0)) for symbol in symbols for key in symbol.terms)


def _weight(levels: Levels, j: int, near: int) -> float:
    """Of the prediction at level `near` + 1, on the line in lambda through it and the one at `near`, for level j."""
    place, start, end = (value(levels[k].lam) for k in (j, near, near + 1))
    return (place - start) / (end - start) if math.isfinite(place) else 0.0


def _jacobian(stage: Stage, levels: Levels, i: int, n: int) -> float:
    """The derivative of the step by its sample, for data of unit variance, as `solve_backward` takes the step."""
    level: Level = levels[i]
    slope = value(level.alpha) / value(level.alpha**2 + level.sigma**2)  # of the denoised sample

    def derivative(combination: Combination) -> float:
        return _coefficient(combination, X, START) + slope * _coefficient(combination, DENOISED)

    own = 0.0  # how much of the predictions is that of this level
    for j in range(_reach(stage) + 1):
        weight: Scalar = _weight(levels, i - j, i) if j and i + 1 < n else 0.0
        own += value(stage.update.terms.get(j, 0.0)) * (1 - value(weight))
    return derivative(stage.update) + own * derivative(stage.prediction)


def _relative(difference: Tensor, image: Tensor) -> Tensor:
    """Root mean squares, one over the other, [B]."""
    above, below = (tensor.flatten(1).double().pow(2).mean(dim=1).sqrt() for tensor in (difference, image))
    return above / below.clamp(min=1e-12)
