"""Fits a plan to the host's model."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from ...samplers.calibrated import CalibratedPlan, Goal
from ...samplers.calibrated.fit import (
    DEFAULT_BASES,
    DEFAULT_PARAMETERS,
    Progress,
    calibrate,
    expected_runs,
    plain_recipes,
)
from ...samplers.calibrated.recipe import Recipe
from ...samplers.checks import counted
from .gradients import Gradients
from .model import level_range
from .reference import Teacher, final_samples, split
from .session import Sample, Session
from .work import check_choice, check_counts, measured, origin

DERIVATIVES = ("differences", "backpropagation")
"""How those of the error are taken."""


class Calibration:
    """A recipe that is being fitted to the host's model: going through it does the work, `plan` is the best so far.

        work = Calibration(session, evaluations=6)
        for progress in work:
            ...
        work.plan.save(path)

    Args:
        bases: plain samplers to start from.
        seed: of the first sample's noise; the others count on from it.
        samples: for the fit; as many others, with seeds and prompts of their own, say how good it is.
        teacher_steps: of the run that is to be matched.
        parameters: the names of those that are fitted, as in `calibrate`; guidance only where there is any.
        rounds: at most so many.
        inserted: fit the parameters of every second level alone, those of AMED.
        afs: whether the first evaluation is left out (`analytical_first_step`).
        derivatives: how the error's are taken, of `DERIVATIVES`.

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
        parameters: Sequence[str] = DEFAULT_PARAMETERS,
        rounds: int = 4,
        inserted: bool = False,
        afs: bool = False,
        derivatives: str = DERIVATIVES[0],
    ):
        check_counts(evaluations=evaluations, samples=samples, rounds=rounds)
        check_choice("derivatives", derivatives, DERIVATIVES)
        for base in bases:
            Recipe(base, (2.0, 1.0))  # complains of one that no plan can follow
        self.session = session
        self.progress: Progress | None = None
        self.training, self.validation = split(session.prompts, seed, samples, samples)
        self._few = self.training[: max(2, samples // 4)]
        self._teacher, self._evaluations = Teacher(session, teacher_steps, evaluations), evaluations
        self._starts = _plain_recipes(session, bases, evaluations, afs)
        self._parameters = [name for name in parameters if name != "guidance" or session.guidance not in (0, 1)]
        self._rounds, self._inserted = rounds, inserted
        self._backpropagate = derivatives == DERIVATIVES[1]
        self._baseline: Recipe | None = next(iter(self._starts), None)

    def __iter__(self) -> Iterator[Progress]:
        if self._starts:  # else `calibrate` tells of the error
            self._begin()
        training, validation = (Goal(self._runs_on(s), self._teacher(s)) for s in (self.training, self.validation))
        screening = Goal(self._runs_on(self._few), training.target[: len(self._few)])
        self._show("starts", 0)
        for progress in calibrate(
            self._starts,
            screening,
            training,
            validation,
            parameters=self._parameters,
            rounds=self._rounds,
            inserted=self._inserted,
            backpropagate=Gradients(self.session, self.training, training.target) if self._backpropagate else None,
        ):
            if progress.stage == "starts":
                self._baseline = progress.best
            self.progress = progress
            self._show(progress.stage, progress.runs, progress.expected)
            yield progress
        if not self.improved:
            logging.warning("nothing was better than the plain sampler in validation: the plan is that sampler")

    def _begin(self) -> None:
        """Say what there is to do, and begin with the images that are to be matched."""
        self._plain, fitting = expected_runs([*self._starts], self._parameters, self._rounds, inserted=self._inserted)
        self._expected, images = self._plain + fitting, len(self.training)
        self.session.progress.estimate(f"about {counted(self._expected, 'run')} of {counted(images, 'image')}")
        cost, after = 2 * images * self._teacher.steps, self._cost(0, self._expected)
        self.session.progress.stage("Reference images", 2 * images, cost, after=after)

    def _show(self, stage: str, runs: int, expected: int = 0) -> None:
        """Say what the next run is for, from the stage of the last."""
        show, expected = self.session.progress.stage, expected or self._expected
        if runs < self._plain:
            after = self._cost(self._plain, expected)
            show("Plain samplers", self._plain, self._cost(runs, self._plain), done=runs, after=after)
        elif stage != "done":
            round_ = f"round 1 of {self._rounds}" if stage == "starts" else stage
            show(f"Fitting, {round_}", cost=self._cost(runs, expected))

    def _cost(self, first: int, last: int) -> int:
        """Of the runs from one number up to another, in evaluations for one image: the first are of a few images."""
        screening = len(self._starts)
        short = max(0, min(last, screening) - first)
        return self._evaluations * (short * len(self._few) + (last - first - short) * len(self.training))

    def _runs_on(self, samples: Sequence[Sample]) -> Callable[[Recipe], Tensor]:
        """Final latents of a recipe, from these samples."""
        return lambda recipe: final_samples(self.session, CalibratedPlan(recipe), samples)

    @property
    def improved(self) -> bool:
        """Whether a recipe is better than the plain ones, on samples that nothing was fitted to."""
        return self.progress is not None and self.progress.after < self.progress.before

    @property
    def plan(self) -> CalibratedPlan | None:
        """The best so far; None before plain samplers were compared on samples that nothing is fitted to."""
        progress = self.progress
        if progress is None or not math.isfinite(progress.before):
            return None
        return CalibratedPlan(
            progress.best,
            about=replace(
                origin(self.session, [*self.training, *self.validation]),
                teacher=self._teacher.about,
                baseline=self._starts[self._baseline] if self._baseline else None,
                error_before=measured(progress.before),
                error_after=measured(progress.after),
                improved=self.improved,
            ),
        )


def _plain_recipes(session: Session, bases: Sequence[str], evaluations: int, afs: bool) -> dict[Recipe, str]:
    """Where a calibration starts, with names."""
    levels = level_range(session.sampling)
    return plain_recipes(
        bases, evaluations, levels.sigma_min, levels.sigma_max, flow=levels.flow, afs=afs, model_shift=levels.shift
    )
