"""Fits plans to the model that is loaded: calibration and the training of AMED."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..samplers import SAMPLERS, SCHEDULES
from ..samplers.calibrate import DEFAULT_BASES, DEFAULT_FREE, Goal, Progress, calibrate, plain_recipes
from ..samplers.learned import Learned
from ..samplers.recipe import Recipe
from .host import fingerprint, is_flow, learned_function, sampler_function, schedule_sigmas, time_shift
from .session import Conditioning, Sample, Session

TEACHER = "dpmpp_2m"


def teacher_schedule(session: Session) -> str:
    return "time_uniform" if is_flow(session.sampling) else "exponential"


class Calibration:
    """A recipe that is being fitted: going through it does the work, `learned` is the best so far.

        calibration = Calibration(session, evaluations=6)
        for progress in calibration:
            ...
        calibration.learned.save(path)

    Args:
        bases: plain samplers to start from.
        seed: of the first sample's noise; the others count on from it.
        samples: for the fit; as many others, with seeds and prompts of their own, say how good it is.
        teacher_steps: of the run that is to be matched.
        free: what is fitted, of `samplers.calibrate.KINDS`.
        rounds: at most so many.

    Raises:
        ValueError: naming the input at fault.
    """

    def __init__(
        self,
        session: Session,
        *,
        evaluations: int,
        bases: Sequence[str] = DEFAULT_BASES,
        seed: int = 0,
        samples: int = 16,
        teacher_steps: int = 50,
        free: Sequence[str] = DEFAULT_FREE,
        rounds: int = 8,
    ):
        for name, value in (("evaluations", evaluations), ("samples", samples), ("rounds", rounds)):
            if value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        if teacher_steps <= evaluations:
            raise ValueError(f"teacher_steps = {teacher_steps} must be more than the {evaluations} evaluations")
        self.session = session
        self.fitted, self.held = split(session.prompts, seed, samples)
        self._teacher = {"sampler": TEACHER, "schedule": teacher_schedule(session), "steps": teacher_steps}
        self._starts = _plain(session, bases, evaluations)
        self._free = [kind for kind in free if kind != "guidance" or session.guidance not in (0, 1)]
        self._rounds = rounds
        self._seed, self._samples = seed, samples
        self._baseline: Recipe | None = None
        self.progress: Progress | None = None

    def __iter__(self) -> Iterator[Progress]:
        starts = [recipe for recipe, _ in self._starts]
        fit, check = self._goal(self.fitted), self._goal(self.held)
        few = max(2, len(self.fitted) // 4)
        look = Goal(lambda recipe: self.run(recipe, self.fitted[:few]), fit.target[:few])
        for progress in calibrate(starts, look, fit, check, free=self._free, rounds=self._rounds):
            if progress.stage == "starts":
                self._baseline = progress.best
            self.progress = progress
            yield progress
        if not self.improved:
            logging.warning("calibration found nothing better than the plain sampler: the plan is that sampler")

    def run(self, recipe: Recipe, samples: Sequence[Sample]) -> Any:
        """Final latents of a recipe."""
        return self.session.run(learned_function(Learned(recipe)), recipe.sigmas, samples)

    def _goal(self, samples: Sequence[Sample]) -> Goal:
        sigmas = schedule_sigmas(SCHEDULES[self._teacher["schedule"]], self.session.sampling, self._teacher["steps"])
        target = self.session.run(sampler_function(SAMPLERS[TEACHER]), sigmas, samples)
        return Goal(lambda recipe: self.run(recipe, samples), target)

    @property
    def improved(self) -> bool:
        """Whether there is a recipe that is better than the plain ones, on samples that nothing was fitted to."""
        return self.progress is not None and self.progress.after < self.progress.before

    @property
    def learned(self) -> Learned | None:
        """The best so far; None before the plain samplers were compared."""
        progress = self.progress
        if progress is None or self._baseline is None or not math.isfinite(progress.before):
            return None
        return Learned(
            progress.best,
            about={
                **about(self.session, self._seed, self._samples),
                "teacher": self._teacher,
                "baseline": next(name for recipe, name in self._starts if recipe == self._baseline),
                "error_before": progress.before,
                "error_after": progress.after,
                "improved": self.improved,
            },
        )


def calibration(
    patcher: Any,
    positive: Conditioning,
    negative: Conditioning,
    *,
    guidance: float,
    latent: dict[str, Any],
    batch: int = 0,
    **options: Any,
) -> Calibration:
    """A `Calibration`, whose options are its own, of a model with prompts."""
    return Calibration(Session(patcher, positive, negative, guidance, latent, batch=batch), **options)


def split(prompts: int, seed: int, samples: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to fit to and samples to check with: no noise in common, and from 4 prompts on no prompt either."""
    held = [p for p in range(prompts) if p % 4 == 3] or list(range(prompts))
    fitted = [p for p in range(prompts) if prompts < 4 or p % 4 != 3]
    return (
        [Sample(fitted[k % len(fitted)], seed + k) for k in range(samples)],
        [Sample(held[k % len(held)], seed + samples + k) for k in range(samples)],
    )


def about(session: Session, seed: int, samples: int) -> dict[str, Any]:
    """Where a plan comes from, for `Learned`."""
    return {
        "model": fingerprint(session.patcher),
        "guidance": session.guidance,
        "prompts": session.prompts,
        "seeds": [seed, seed + 2 * samples - 1],
        "latent": list(session.shape),
    }


def _plain(session: Session, bases: Sequence[str], evaluations: int) -> list[tuple[Recipe, str]]:
    """Plain recipes and their names."""
    sampling = session.sampling
    flow = is_flow(sampling)
    options = {"flow": flow, "model_shift": time_shift(sampling) if flow else 1.0}
    low, high = float(sampling.sigma_min), float(sampling.sigma_max)
    recipes = plain_recipes(bases, evaluations, low, high, **options)
    return [(recipe, f"{recipe.base}, {_schedule_of(recipe, low, high, options)}") for recipe in recipes]


def _schedule_of(recipe: Recipe, low: float, high: float, options: dict[str, Any]) -> str:
    for spec in SCHEDULES.values():
        for discard in (False, True):
            try:
                sigmas = spec.function(len(recipe.sigmas) - 1, low, high, discard_penultimate=discard, **options)
            except ValueError:
                continue
            if tuple(sigmas.tolist()) == recipe.sigmas:
                return spec.id + " without its last level" * discard
    return "levels of its own"
