"""Trains AMED's predictor for the host's model."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...samplers import SCHEDULES
from ...samplers.calibrated import CalibratedPlan, geometric_mean, rmse
from ...samplers.calibrated.predictor import Predictor
from ...samplers.calibrated.recipe import Recipe, usable_bases
from ...samplers.calibrated.train_amed import Trainer
from ...samplers.checks import counted
from ...samplers.distributed import add_over_processes, rank_and_count
from ...samplers.levels import read_levels
from .bottleneck import Bottleneck
from .guider import guidance_factor
from .model import fingerprint, is_flow
from .reference import Teacher, final_samples, split
from .runs import announce_each
from .sampling import schedule_sigmas
from .session import Inside, Sample, Session
from .work import check_choice, check_counts, measured, origin

GOALS = ("last sample", "each step")
"""What is to be matched with the teacher."""

_FIRST = (
    "amed", "amed_dpm_2s", "amed_dpm_2m", "euler", "ipndm", "dpmpp_2m", "dpmpp_3m", "dpm_2m", "dpm_3m", "ipndm_v",
    "deis",
)  # fmt: skip
AMED_BASES = (*_FIRST, *(id for id in usable_bases() if id not in (*_FIRST, "ddim")))
"""Solvers that a predictor can be trained for, in the order of the node: those that can follow a recipe, but `ddim`,
which is then `euler`."""

AMED_SCHEDULES = tuple(id for id, spec in SCHEDULES.items() if spec.starts_at_sigma_max)
"""Schedules that training can begin with: those that reach from full noise down, as calibration takes them."""

SLOWEST = 0.1  # of the learning rate, at the end


class Step(NamedTuple):
    """Where a training stands, after each batch."""

    iteration: int
    iterations: int
    loss: float
    """For each step: squared distance to the teacher, mean over images, sum over steps. For the last sample: the
    geometric mean of root mean squares."""

    before: float
    """Error of the base on the plain levels, or of the plan it began with, on samples that are not trained on."""

    after: float
    """Error there of the best predictor so far; infinite until one was looked at."""


class Training:
    """A predictor of AMED that is being trained: going through it does the work, `plan` is the best so far.

    With torch.distributed every process takes its share of each batch; the first one knows the errors and the best.

    Args:
        start: a plan or predictor for as many evaluations, to begin with; base, schedule and afs are then its own, and
            the bounds of the scales those of its predictor, or wider than asked for where its numbers are.
        base: a solver of `AMED_BASES`.
        schedule: of the levels of all evaluations; every second is then learned.
        afs: whether the first evaluation is left out (`analytical_first_step`).
        batch: images of one iteration, of all processes together.
        samples: that are not trained on and say how good it is.
        teacher_steps: of the run that those are compared with.
        teacher_extra: levels that the teacher has more in each step.
        scale_dir, scale_time: bounds of the predictor.
        learning_rate: of Adam; it falls to a tenth until the end.
        goal: of `GOALS`; "each step" is the paper's.

    Raises:
        ValueError: naming the input at fault.
    """

    def __init__(
        self,
        session: Session,
        *,
        evaluations: int,
        base: str = "amed_dpm_2m",
        schedule: str = "karras",
        afs: bool = False,
        seed: int = 0,
        iterations: int = 60,
        batch: int = 8,
        samples: int = 16,
        teacher_steps: int = 50,
        teacher_extra: int = 3,
        scale_dir: float = 0.01,
        scale_time: float = 0.2,
        learning_rate: float = 5e-3,
        goal: str = GOALS[0],
        start: CalibratedPlan | None = None,
    ):
        check_counts(iterations=iterations, batch=batch, samples=samples, teacher_extra=teacher_extra)
        if evaluations < 2:
            raise ValueError(f"evaluations = {evaluations} must be at least 2: every second level is learned")
        check_choice("base", base, AMED_BASES)
        check_choice("schedule", schedule, AMED_SCHEDULES)
        check_choice("goal", goal, GOALS)
        if start is not None:
            _check_start(start, session, evaluations)
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate = {learning_rate} must be above 0")
        self._rank, self._processes = rank_and_count()
        if batch < self._processes:
            raise ValueError(f"batch = {batch} must be at least the number of processes, {self._processes}")
        self.session = session
        self.training, self.validation = split(session.prompts, seed, iterations * batch, samples)
        self._batch, self._goal = batch, goal
        self._teacher = Teacher(session, teacher_steps, evaluations)
        self._best: CalibratedPlan | None = None
        if start is None:
            sigmas = schedule_sigmas(SCHEDULES[schedule], session.sampling, evaluations + afs)
            start = CalibratedPlan(Recipe(base, tuple(sigmas.tolist()), is_flow(session.sampling), afs=afs))
            self._baseline = f"{base}, {schedule}"
        else:
            self._baseline = "the plan that it started from"
            self._best = start
        self.start, recipe = start, start.recipe
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):  # its weights must have gradients
            torch.manual_seed(seed)
            self._predictor = _beginning(start, scale_dir, scale_time)
            self._trainer = Trainer(self._predictor, recipe, extra=teacher_extra, learning_rate=learning_rate)
        self._pace = torch.optim.lr_scheduler.LinearLR(self._trainer.optimizer, 1.0, SLOWEST, iterations)
        self._iterations, self._done, self._every = iterations, 0, max(1, iterations // 8)
        self.before = self.after = math.inf

    def __iter__(self) -> Iterator[Step]:
        first, progress = self._rank == 0, self.session.progress
        if first:
            images = len(self.validation)
            progress.estimate(
                f"about {counted(self._iterations, 'batch', 'batches')} of {counted(self._batch, 'image')}"
            )
            cost, after = images * self._teacher.steps, images * self.start.recipe.nfe + self._cost(0)
            progress.stage("Reference images", images, cost, after=after)
            target = self._teacher(self.validation)
            self.before = self._error(self.start, target)
            if self._best is not None:  # what it began with stays until something is better
                self.after = self.before
        for k in range(self._iterations):
            progress.stage("Training batches", self._iterations, self._cost(k), done=k)
            loss = self._learn(self._batch_of(k))
            self._pace.step()
            self._done = k + 1
            if first and (self._done % self._every == 0 or self._done == self._iterations):
                current = self._current()
                error = self._error(current, target)
                if error < self.after:
                    self._best, self.after = current, error
            yield Step(self._done, self._iterations, loss, self.before, self.after)
        if first and not self.improved:
            logging.warning(
                "the trained predictor is not better on other samples than %s: train it for longer", self._baseline
            )

    def _cost(self, done: int) -> int:
        """Of the batches that are left, in evaluations for one image by this process."""
        each = self._trainer.evaluations
        if self._goal == GOALS[0]:
            each = self._teacher.steps + self._trainer.evaluations_to_end
        images = (self._iterations - done) * self._batch // self._processes
        validations = -(-self._iterations // self._every) - done // self._every if self._rank == 0 else 0
        return images * each + validations * len(self.validation) * self.start.recipe.nfe

    @property
    def improved(self) -> bool:
        """Whether it is better than what it began with, on samples that it was not trained on."""
        return self.after < self.before

    @property
    def plan(self) -> CalibratedPlan | None:
        """The best so far, else the latest; None before the first iteration."""
        if not self._done:
            return None
        plan = self._best or self._current()
        about = replace(
            origin(self.session, [*self.training, *self.validation]),
            teacher=self._teacher.about,
            baseline=self._baseline,
            iterations=self._done,
            error_before=measured(self.before),
            error_after=measured(self.after),
            improved=self.improved,
        )
        return CalibratedPlan(plan.recipe, plan.predictor, about)

    def _batch_of(self, k: int) -> list[Sample]:
        """The samples of an iteration: all processes know of all, and take theirs."""
        samples = self.training[k * self._batch : (k + 1) * self._batch]
        if not self.session.alike:  # such prompts take turns
            prompts = list(dict.fromkeys(sample.prompt for sample in self.training))
            samples = [sample._replace(prompt=prompts[k % len(prompts)]) for sample in samples]
        return samples[self._rank :: self._processes]

    def _learn(self, samples: Sequence[Sample]) -> float:
        """The loss of a batch, from which the predictor is changed."""

        def learn(run: Inside) -> float:
            network = run.guider.inner_model.diffusion_model
            with guidance_factor(run.model) as set_guidance, Bottleneck(network) as bottleneck:
                common: dict[str, Any] = {"batch": self._batch, "set_guidance": set_guidance}
                evaluate, arguments = announce_each(run.model, run.sigmas, run.extra_args)
                watched = bottleneck.watch(evaluate)
                if self._goal == "each step":
                    return sum(self._trainer.learn(watched, run.x, bottleneck, arguments, **common))
                target = self._teacher.function(run.model, run.x, self._teacher.sigmas, run.extra_args, disable=True)
                return self._trainer.learn_end(watched, run.x, target, bottleneck, arguments, **common)

        loss = sum_over_processes(self.session.inside(learn, self.start.recipe.sigmas, samples))
        return loss if self._goal == "each step" else math.exp(loss)

    @torch.no_grad()
    def _current(self) -> CalibratedPlan:
        """The predictor as it is now."""
        recipe = self.start.recipe
        with torch.inference_mode(False):
            predictor = copy.deepcopy(self._predictor).eval().requires_grad_(False)
            levels, tunings = predictor.fixed(read_levels(recipe.sigmas, recipe.flow), recipe.tunings)
        return CalibratedPlan(
            replace(recipe, sigmas=tuple(map(float, levels.sigmas)), tunings=tuple(tunings)), predictor
        )

    def _error(self, plan: CalibratedPlan, target: Tensor) -> float:
        return geometric_mean(rmse((final_samples(self.session, plan, self.validation) - target).flatten(1)))


def _check_start(start: CalibratedPlan, session: Session, evaluations: int) -> None:
    """Raise ValueError unless training can begin with this plan."""
    recipe = start.recipe
    if recipe.base not in AMED_BASES:
        raise ValueError(
            f"start: its base {recipe.base!r} is not one that AMED can be added to: {', '.join(AMED_BASES)}"
        )
    if recipe.nfe != evaluations:
        raise ValueError(
            f"start is a plan of {counted(recipe.nfe, 'evaluation')}, and evaluations = {evaluations}: give both the "
            "same number"
        )
    try:
        start.check_model(fingerprint(session.patcher))
    except ValueError as error:
        raise ValueError(f"start: {error}") from None


def _beginning(start: CalibratedPlan, scale_dir: float, scale_time: float) -> Predictor:
    """A predictor that gives the numbers of a plan; a copy of its own if it has one."""
    recipe = start.recipe
    if start.predictor is None:
        return Predictor.giving(read_levels(recipe.sigmas, recipe.flow), recipe.tunings, scale_dir, scale_time)
    predictor = Predictor(*start.predictor.bounds)
    predictor.load_state_dict(start.predictor.state_dict())
    return predictor


def sum_over_processes(number: float) -> float:
    """The sum over all processes."""
    shared = torch.tensor(number, dtype=torch.float64)
    add_over_processes([shared])
    return float(shared)
