"""Runs samplers on schedules side by side."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import comfy.model_management
import torch
from torch import Tensor

from ...samplers import SAMPLERS, SamplerSpec, ScheduleSpec
from ...samplers.calibrated import rmse
from ...samplers.checks import counted
from ...samplers.levels import SAME_LEVEL
from .content import Content
from .model import fingerprint, level_range
from .named import Named, make_sampler, make_sigmas
from .progress import Progress
from .protocols import Conditioning, Latent, Patcher
from .reference import MANY_STEPS, many_steps_schedule
from .runs import resolve
from .sampling import sigmas_over
from .session import Guider, fitting, sample

STOPPING = comfy.model_management.InterruptProcessingException, comfy.model_management.OOM_EXCEPTION
"""What ends a comparison, and is no fault of one sampler."""


class Cell(NamedTuple):
    """A place of the table."""

    sampler: Named[SamplerSpec]
    schedule: Named[ScheduleSpec]
    steps: int

    def __str__(self) -> str:
        return f"{self.sampler.label}, {self.schedule.label}, {counted(self.steps, 'step')}"


class CellRun(NamedTuple):
    """A sampler on its levels."""

    sampler: Named[SamplerSpec]
    sigmas: tuple[float, ...]
    published: bool = False
    """Whether it follows the published plan of the sampler, on any schedule."""


class Outcome(NamedTuple):
    """What a run gave."""

    latents: Tensor
    evaluations: int


class Finished:
    """The runs of the last comparison."""

    def __init__(self) -> None:
        self._content: Content | None = None
        self._runs: dict[CellRun, Outcome] = {}

    def of(self, content: Content) -> dict[CellRun, Outcome]:
        """Those with these inputs; others are forgotten."""
        if not content.same(self._content):
            self._content, self._runs = content, {}
        return self._runs


FINISHED = Finished()


class Comparison:
    """Samplers on schedules, each with several numbers of steps, from the same noise.

    Args:
        reference_steps: of the run that errors are measured from; 0: without errors.

    Raises:
        ValueError: naming the input at fault.
    """

    def __init__(
        self,
        patcher: Patcher,
        positive: Conditioning,
        negative: Conditioning,
        latent: Latent,
        *,
        cfg: float,
        seed: int,
        samplers: Sequence[Named[SamplerSpec]],
        schedules: Sequence[Named[ScheduleSpec]],
        steps: Sequence[int],
        denoise: float = 1.0,
        reference_steps: int = 60,
    ):
        if not 0 < denoise <= 1:
            raise ValueError(f"denoise = {denoise:g} must be above 0 and at most 1: at 0 there is nothing to compare")
        fitting(patcher, latent)  # complains
        self.patcher, self.reference_steps = patcher, reference_steps
        self.rows = [(sampler, schedule) for sampler in samplers for schedule in schedules]
        self.columns = list(steps)
        self.faults: dict[Cell, str] = {}
        self._inputs = positive, negative, cfg, seed, latent
        self._runs: dict[Cell, CellRun] = {}
        self._references: dict[Cell, CellRun] = {}
        self._done = FINISHED.of(Content(patcher, *self._inputs))
        self._plan(denoise)

    @property
    def cells(self) -> list[Cell]:
        """Few steps first: a comparison that is stopped early has something of all samplers."""
        return [Cell(*row, steps) for steps in self.columns for row in self.rows]

    def outcome(self, cell: Cell) -> Outcome | None:
        """Of a cell that is finished."""
        return self._done.get(self._runs[cell]) if cell in self._runs else None

    def first(self, cell: Cell) -> Cell:
        """The first cell that is the same run: one image stands for all of them."""
        return next((other for other in self.cells if self._runs.get(other) == self._runs[cell]), cell)

    def published(self, cell: Cell) -> bool:
        """Whether the schedule makes no difference: the sampler follows its published plan."""
        return cell in self._runs and self._runs[cell].published

    def reference(self, cell: Cell) -> Outcome | None:
        """What a cell's error is measured from: for img2img it begins at the same level."""
        return self._done.get(self._references[cell]) if cell in self._references else None

    def error(self, cell: Cell) -> float | None:
        """Root mean square difference to the reference, in the units of latents: the mean over the images."""
        outcome, reference = self.outcome(cell), self.reference(cell)
        if outcome is None or reference is None:
            return None
        return float(rmse((outcome.latents - reference.latents).flatten(1)).mean())

    def run(self, progress: Progress) -> None:
        """Do what is not done yet.

        Args:
            progress: each step counts.

        Raises:
            InterruptProcessingException, OutOfMemoryError: as the host does. What is finished is kept, also for the
                next comparison.
        """
        waiting: dict[CellRun, str] = {}
        for number, cell in enumerate(self.cells, 1):
            if cell in self._references:
                waiting.setdefault(self._references[cell], f"Reference of {counted(self.reference_steps, 'step')}")
            if cell in self._runs:
                waiting.setdefault(self._runs[cell], f"{number} of {len(self.cells)}: {cell}")
        waiting = {run: text for run, text in waiting.items() if run not in self._done}
        left = sum(len(run.sigmas) - 1 for run in waiting)
        progress.estimate(counted(len(waiting), "run"))
        for run, text in waiting.items():
            steps = len(run.sigmas) - 1
            left -= steps
            progress.stage(text, cost=steps, after=left)
            try:
                self._done[run] = self._sample(run, progress)
            except STOPPING:
                raise
            except Exception as error:  # of one sampler: the others go on
                logging.warning("Few-Step Compare, %s: %s", text, error, exc_info=not isinstance(error, ValueError))
                for cell, its in (*self._runs.items(), *self._references.items()):
                    if its == run:
                        self.faults[cell] = str(error) or type(error).__name__

    def _plan(self, denoise: float) -> None:
        """Which runs the cells are, and which their references."""
        sampling = self.patcher.get_model_object("model_sampling")
        for cell in self.cells:
            try:
                sigmas = make_sigmas(*cell[:2], sampling, cell.steps, denoise)
                run = self._run(cell.sampler, sigmas)
                if self.reference_steps:
                    start = float(sampling.sigma_max if denoise > 0.9999 else sigmas[0])
                    self._references[cell] = _reference(sampling, self.reference_steps, start)
                self._runs[cell] = run
            except Exception as error:  # of a schedule; the host's raise what they like
                self.faults[cell] = str(error) or type(error).__name__

    def _run(self, sampler: Named[SamplerSpec], sigmas: Tensor) -> CellRun:
        """A cell by what it does: all schedules from one level are one run where a published plan is followed."""
        given = tuple(sigmas.tolist())
        if sampler.spec is None:
            return CellRun(sampler, given)
        levels = level_range(self.patcher.get_model_object("model_sampling"))
        kind = fingerprint(self.patcher)
        resolved = resolve(sampler.spec, sampler.options, given, flow=levels.flow, shift=levels.shift, kind=kind)
        if resolved.recipe is None:
            return CellRun(sampler, given)
        for run in self._runs.values():
            if run.sampler == sampler and run.published and math.isclose(run.sigmas[0], given[0], rel_tol=SAME_LEVEL):
                return run
        return CellRun(sampler, (given[0], *resolved.recipe.sigmas[1:]), published=True)

    def _sample(self, run: CellRun, progress: Progress) -> Outcome:
        positive, negative, cfg, seed, latent = self._inputs
        evaluations = 0

        def count(_: Tensor, __: Tensor) -> None:
            nonlocal evaluations
            evaluations += 1

        latents = sample(
            Guider(self.patcher, positive, negative, cfg, count, progress), seed, make_sampler(run.sampler),
            torch.tensor(run.sigmas), latent, lambda i, denoised, x, total: progress.done(1, denoised),
        ).cpu()  # fmt: skip
        if not latents.isfinite().all():
            raise ValueError("the image holds NaN or infinity")
        return Outcome(latents, evaluations)


def _reference(sampling: Any, steps: int, start: float) -> CellRun:
    """Many steps from a level: any sampler without noise comes near to it, the more its steps."""
    sigmas = sigmas_over(many_steps_schedule(sampling), level_range(sampling)._replace(sigma_max=start), steps)
    return CellRun(Named("reference", MANY_STEPS, SAMPLERS[MANY_STEPS]), tuple(sigmas.tolist()))
