"""Fits plans to the model that is loaded: calibration, the training of AMED, and the nodes for both."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from comfy_api.latest import io
from torch import Tensor

from ..samplers import SAMPLERS, SCHEDULES
from ..samplers.calibrated.about import About
from ..samplers.calibrated.fit import DEFAULT_BASES, DEFAULT_FREE, Progress, calibrate, plain_recipes
from ..samplers.calibrated.objective import DifferentiableGoal, Goal, geometric_mean, rmse
from ..samplers.calibrated.parameters import Parameter
from ..samplers.calibrated.plan import CalibratedPlan
from ..samplers.calibrated.predictor import Predictor
from ..samplers.calibrated.recipe import Recipe
from ..samplers.calibrated.train_amed import Trainer
from ..samplers.levels import read_levels
from .host.bottleneck import Bottleneck
from .host.model import (
    MANY_STEPS,
    fingerprint,
    guidance_of,
    is_flow,
    level_range,
    many_steps_schedule,
    plan_function,
    sampler_function,
    schedule_sigmas,
)
from .host.runs import announce_each
from .host.session import Conditioning, Sample, Session
from .plans import INTERRUPTED, PLAN, keep_newest
from .sampling import CATEGORY
from .ui.plots import Panel, line_plot
from .ui.progress import Display
from .ui.search import search_words

DERIVATIVES = ("differences", "backpropagation")
GOALS = ("last sample", "each step")
AMED_BASES = (
    "amed", "amed_dpm_2s", "amed_dpm_2m", "euler", "ipndm", "dpmpp_2m", "dpmpp_3m", "dpm_2m", "dpm_3m", "ipndm_v",
    "deis",
)  # fmt: skip
SLOWEST = 0.1  # of the learning rate, at the end


class Work(Protocol):
    """What is going on, and can be stopped."""

    @property
    def calibrated(self) -> CalibratedPlan | None:
        """The best so far, if there is anything yet."""


# Calibration


class Calibration:
    """A recipe that is being fitted: going through it does the work, `learned` is the best so far.

        work = Calibration(session, evaluations=6)
        for progress in work:
            ...
        work.learned.save(path)

    Args:
        bases: plain samplers to start from.
        seed: of the first sample's noise; the others count on from it.
        samples: for the fit; as many others, with seeds and prompts of their own, say how good it is.
        teacher_steps: of the run that is to be matched.
        free: what is fitted, of `samplers.calibrated.parameters.FITTABLE`; guidance only where there is any.
        rounds: at most so many.
        inserted: fit the numbers of every second level alone, those of AMED.
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
        free: Sequence[str] = DEFAULT_FREE,
        rounds: int = 4,
        inserted: bool = False,
        afs: bool = False,
        derivatives: str = DERIVATIVES[0],
    ):
        _check_counts(evaluations=evaluations, samples=samples, rounds=rounds)
        _check_choice("derivatives", derivatives, DERIVATIVES)
        for base in bases:
            Recipe(base, (2.0, 1.0))  # complains of one that no plan can follow
        self.session, self.progress = session, None
        self.fitted, self.held = split(session.prompts, seed, samples, samples)
        self._teacher = Teacher(session, teacher_steps, evaluations)
        self._starts = _plain_recipes(session, bases, evaluations, afs)
        self._free = [kind for kind in free if kind != "guidance" or session.guidance not in (0, 1)]
        self._rounds, self._inserted = rounds, inserted
        self._backpropagate = derivatives == DERIVATIVES[1]
        self._baseline = next(iter(self._starts), None)

    progress: Progress | None

    def __iter__(self) -> Iterator[Progress]:
        training, validation = (
            Goal(
                lambda recipe, samples=samples: run(self.session, CalibratedPlan(recipe), samples),
                self._teacher(samples),
            )
            for samples in (self.fitted, self.held)
        )
        few = self.fitted[: max(2, len(self.fitted) // 4)]
        screening = Goal(lambda recipe: run(self.session, CalibratedPlan(recipe), few), training.target[: len(few)])
        for progress in calibrate(
            self._starts,
            screening,
            training,
            validation,
            free=self._free,
            rounds=self._rounds,
            inserted=self._inserted,
            backpropagate=Gradients(self.session, self.fitted, training.target) if self._backpropagate else None,
        ):
            if progress.stage == "starts":
                self._baseline = progress.best
            self.progress = progress
            yield progress
        if not self.improved:
            logging.warning("nothing was better than the plain sampler on other samples: the plan is that sampler")

    @property
    def improved(self) -> bool:
        """Whether a recipe is better than the plain ones, on samples that nothing was fitted to."""
        return self.progress is not None and self.progress.after < self.progress.before

    @property
    def calibrated(self) -> CalibratedPlan | None:
        """The best so far; None before plain samplers were compared on samples that nothing is fitted to."""
        progress = self.progress
        if progress is None or not math.isfinite(progress.before):
            return None
        return CalibratedPlan(
            progress.best,
            about=replace(
                _about(self.session, [*self.fitted, *self.held]),
                teacher=self._teacher.about,
                baseline=self._starts[self._baseline],
                **_known(error_before=progress.before, error_after=progress.after),
                improved=self.improved,
            ),
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


@dataclass(frozen=True)
class Gradients:
    """The samples that a plan is fitted to by backpropagation: a `Differentiable` of the host's model."""

    session: Session
    samples: Sequence[Sample]
    target: Tensor

    def slope(
        self, recipe: Recipe, parameters: Sequence[Parameter], by: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As that of `DifferentiableGoal`.

        Raises:
            ValueError: if no gradient goes through the model. Any other error of the run is raised as it is.
        """
        count = len(self.samples)
        squares, slope = torch.zeros(count, dtype=torch.float64), torch.zeros_like(by)

        def add(group: list[int]) -> None:
            found = self._slope(recipe, parameters, by, group, None if weights is None else weights[group])
            squares[group] = found[0]
            slope.add_(found[1] * len(group) / count)

        self.session.in_groups(self.samples, add)
        return squares, slope

    def _slope(
        self, recipe: Recipe, parameters: Sequence[Parameter], by: Tensor, group: list[int], weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        found: list[tuple[Tensor, Tensor]] = []

        def follow(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Tensor:
            network = model.inner_model.inner_model
            announced, arguments = announce_each(model, sigmas, extra_args)
            with (
                guidance_of(model) as set_guidance,
                torch.inference_mode(False),
                differentiable(network),
                checked(announced, network.diffusion_model) as evaluate,
            ):
                target, there, given = (None if t is None else t.clone() for t in (self.target[group], by, weights))
                zero = network.process_latent_out(torch.zeros_like(x)).clone()  # what it does is affine
                scale = network.process_latent_out(torch.ones_like(x)) - zero
                goal = DifferentiableGoal(
                    evaluate, x.clone(), target, arguments, set_guidance, measured=lambda x: zero + scale * x
                )
                found.append(goal.slope(recipe, parameters, there, given))
            return x

        try:
            self.session.run(follow, recipe.sigmas, [self.samples[k] for k in group], together=True)
        except (NoGradientError, RuntimeError) as error:
            if not _of_autograd(error):
                raise
            raise ValueError(
                f"derivatives: backpropagation does not go through this model ({error}); choose differences"
            ) from error
        return found[0]


class NoGradientError(ValueError):
    """The network lets no gradient through."""


def _of_autograd(error: Exception) -> bool:
    """Whether autograd complains. It raises plain RuntimeErrors, as all of torch does for anything."""
    return isinstance(error, NoGradientError) or _AUTOGRAD.search(str(error)) is not None


_AUTOGRAD = re.compile(
    r"\b(autograd|backward|derivatives?|gradients?|grad|grad_fn|requires?_grad|inference[ _](tensors?|mode))\b",
    re.IGNORECASE,
)


@contextlib.contextmanager
def differentiable(network: torch.nn.Module) -> Iterator[None]:
    """A network that autograd can go through: in the place of weights that were made in inference mode stand copies."""
    replaced = []
    for module in network.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and (tensor.is_inference() or tensor.requires_grad):
                    replaced.append((tensors, name, tensor))
                    copy_ = tensor.detach().clone() if tensor.is_inference() else tensor.detach()
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    tensors[name] = torch.nn.Parameter(copy_, requires_grad=False) if is_parameter else copy_
    try:
        yield
    finally:
        for tensors, name, tensor in replaced:
            tensors[name] = tensor


@contextlib.contextmanager
def checked(model: Any, network: torch.nn.Module) -> Iterator[Any]:
    """A denoiser that complains if its network lets no gradient through."""
    found: list[bool] = []
    handle = network.register_forward_hook(lambda _, arguments, output: found.append(output.requires_grad))

    def evaluate(x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        found.clear()
        denoised = model(x, *arguments, **options)
        if x.requires_grad and not all(found):
            raise NoGradientError("the network lets no gradient through")
        return denoised

    try:
        yield evaluate
    finally:
        handle.remove()


# Training of AMED


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
    """A predictor of AMED that is being trained: going through it does the work, `learned` is the best so far.

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
        _check_counts(iterations=iterations, batch=batch, samples=samples, teacher_extra=teacher_extra)
        if evaluations < 2:
            raise ValueError(f"evaluations = {evaluations} must be at least 2: every second level is learned")
        _check_choice("base", base, AMED_BASES)
        _check_choice("schedule", schedule, tuple(SCHEDULES))
        _check_choice("goal", goal, GOALS)
        if start is not None:
            _check_start(start, session, evaluations)
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate = {learning_rate} must be above 0")
        self._rank, self._processes = _place()
        if batch < self._processes:
            raise ValueError(f"batch = {batch} must be at least the number of processes, {self._processes}")
        self.session = session
        self.trained, self.held = split(session.prompts, seed, iterations * batch, samples)
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
        self._iterations, self._done = iterations, 0
        self.before = self.after = math.inf

    def __iter__(self) -> Iterator[Step]:
        first = self._rank == 0
        if first:
            target = self._teacher(self.held)
            self.before = self._error(self.start, target)
            if self._best is not None:  # what it began with stays until something is better
                self.after = self.before
        for k in range(self._iterations):
            loss = self._learn(self._batch_of(k))
            self._pace.step()
            self._done = k + 1
            if first and (self._done % max(1, self._iterations // 8) == 0 or self._done == self._iterations):
                found = self._current()
                error = self._error(found, target)
                if error < self.after:
                    self._best, self.after = found, error
            yield Step(self._done, self._iterations, loss, self.before, self.after)
        if first and not self.improved:
            logging.warning(
                "the trained predictor is not better on other samples than %s: train it for longer", self._baseline
            )

    @property
    def improved(self) -> bool:
        """Whether it is better than what it began with, on samples that it was not trained on."""
        return self.after < self.before

    @property
    def calibrated(self) -> CalibratedPlan | None:
        """The best so far, else the latest; None before the first iteration."""
        if not self._done:
            return None
        found = self._best or self._current()
        about = replace(
            _about(self.session, [*self.trained, *self.held]),
            teacher=self._teacher.about,
            baseline=self._baseline,
            iterations=self._done,
            **_known(error_before=self.before, error_after=self.after),
            improved=self.improved,
        )
        return CalibratedPlan(found.recipe, found.predictor, about)

    def _batch_of(self, k: int) -> list[Sample]:
        """The samples of an iteration: all processes know of all, and take theirs."""
        samples = self.trained[k * self._batch : (k + 1) * self._batch]
        if not self.session.alike:  # such prompts take turns
            prompts = list(dict.fromkeys(sample.prompt for sample in self.trained))
            samples = [sample._replace(prompt=prompts[k % len(prompts)]) for sample in samples]
        return samples[self._rank :: self._processes]

    def _learn(self, samples: Sequence[Sample]) -> float:
        losses: list[float] = []

        def learn(model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Tensor:
            network = model.inner_model.model_patcher.model.diffusion_model
            with guidance_of(model) as set_guidance, Bottleneck(network) as bottleneck:
                common = {"batch": self._batch, "set_guidance": set_guidance}
                evaluate, arguments = announce_each(model, sigmas, extra_args)
                watched = bottleneck.watch(evaluate)
                if self._goal == "each step":
                    losses.extend(self._trainer.learn(watched, x, bottleneck, arguments, **common))
                else:
                    target = self._teacher.function(model, x, self._teacher.sigmas, extra_args, disable=True)
                    losses.append(self._trainer.learn_end(watched, x, target, bottleneck, arguments, **common))
            return x

        self.session.run(learn, self.start.recipe.sigmas, samples, together=True)
        loss = _total(sum(losses))
        return loss if self._goal == "each step" else math.exp(loss)

    @torch.no_grad()
    def _current(self) -> CalibratedPlan:
        """The predictor as it is now."""
        recipe = self.start.recipe
        with torch.inference_mode(False):
            predictor = copy.deepcopy(self._predictor).eval().requires_grad_(False)
            levels, tunings = predictor.fixed(read_levels(recipe.sigmas, recipe.flow), recipe.tunings)
        return CalibratedPlan(replace(recipe, sigmas=levels.sigmas, tunings=tuple(tunings)), predictor)

    def _error(self, calibrated: CalibratedPlan, target: Tensor) -> float:
        return geometric_mean(rmse((run(self.session, calibrated, self.held) - target).flatten(1)))


# What both need


class Teacher:
    """A run of many steps, whose final latents are to be matched."""

    def __init__(self, session: Session, steps: int, evaluations: int):
        if steps <= evaluations:
            raise ValueError(f"teacher_steps = {steps} must be more than evaluations = {evaluations}")
        self._session = session
        schedule = many_steps_schedule(session.sampling)
        self.about = {"sampler": MANY_STEPS, "schedule": schedule.id, "steps": steps}
        self.function = sampler_function(SAMPLERS[MANY_STEPS])
        self.sigmas = schedule_sigmas(schedule, session.sampling, steps)

    def __call__(self, samples: Sequence[Sample]) -> Tensor:
        return self._session.run(self.function, self.sigmas, samples)


def run(session: Session, calibrated: CalibratedPlan, samples: Sequence[Sample]) -> Tensor:
    """Final latents of a plan."""
    return session.run(plan_function(calibrated), calibrated.recipe.sigmas, samples)


def split(prompts: int, seed: int, fitted: int, held: int) -> tuple[list[Sample], list[Sample]]:
    """Samples to fit to and samples to check with: no noise in common, and from 4 prompts on no prompt either."""
    everyone = range(prompts)
    kept = [p for p in everyone if p % 4 == 3] or list(everyone)
    others = [p for p in everyone if p not in kept] or list(everyone)
    return (
        [Sample(others[k % len(others)], seed + held + k) for k in range(fitted)],
        [Sample(kept[k % len(kept)], seed + k) for k in range(held)],
    )


def _check_start(start: CalibratedPlan, session: Session, evaluations: int) -> None:
    """Raise ValueError unless training can begin with this plan."""
    recipe = start.recipe
    if recipe.base not in AMED_BASES:
        raise ValueError(f"start: its base {recipe.base!r} is none that AMED helps: {', '.join(AMED_BASES)}")
    if recipe.nfe != evaluations:
        raise ValueError(
            f"start is a plan of {recipe.nfe} evaluations, and evaluations = {evaluations}: give both the same number"
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


def _about(session: Session, samples: Sequence[Sample]) -> About:
    """Where a plan comes from, without what came out of it."""
    seeds = [sample.seed for sample in samples]
    return About(
        model=fingerprint(session.patcher),
        guidance=session.guidance,
        prompts=session.prompts,
        texts=session.texts,
        seeds=(min(seeds), max(seeds)),
        latent=tuple(session.shape),
    )


def _known(**errors: float) -> dict[str, float]:
    """Those that were measured; a file holds no other numbers."""
    return {name: error for name, error in errors.items() if math.isfinite(error)}


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} = {count} must be at least 1")


def _check_choice(name: str, choice: str, choices: Sequence[str]) -> None:
    if choice not in choices:
        raise ValueError(f"{name} = {choice!r} must be one of {', '.join(choices)}")


def _plain_recipes(session: Session, bases: Sequence[str], evaluations: int, afs: bool) -> dict[Recipe, str]:
    """Where a calibration starts, with names."""
    found = level_range(session.sampling)
    return plain_recipes(
        bases, evaluations, found.sigma_min, found.sigma_max, flow=found.flow, afs=afs, model_shift=found.shift
    )


def _place() -> tuple[int, int]:
    """Which process this is, and of how many."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _total(number: float) -> float:
    """The sum over all processes."""
    if _place()[1] == 1:
        return number
    shared = torch.tensor(number, dtype=torch.float64)
    torch.distributed.all_reduce(shared)
    return float(shared)


# The nodes


def unfinished(calibrated: CalibratedPlan) -> CalibratedPlan:
    """The same, marked as what was there when the work was stopped: Few-Step Auto never takes it."""
    return replace(calibrated, about=replace(calibrated.about, interrupted=True))


@contextlib.contextmanager
def kept(work: Work) -> Iterator[None]:
    """Whatever stops the work, the best so far is written to models/fewstep."""
    try:
        yield
    except BaseException:
        try:
            if (calibrated := work.calibrated) is not None:
                path = keep_newest(unfinished(calibrated), INTERRUPTED)
                logging.warning("stopped; the best plan so far is in %s, the only one of this name that is kept", path)
        except Exception as error:  # what stopped the work is what the host must hear of
            logging.warning("stopped; %s", error)
        raise


def told(before: float, after: float) -> str:
    """Errors in a few words."""
    if not math.isfinite(before):
        return ""
    if not math.isfinite(after):
        return f"error {before:.4g} before"
    return f"error {before:.4g} before, {after:.4g} now ({after / before:.0%})"


def counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def report(calibrated: CalibratedPlan) -> str:
    """What came out of it, for a person."""
    about = calibrated.about
    teacher = about.teacher
    shape = " x ".join(map(str, about.latent))
    lines = [
        f"{calibrated.recipe.base}, {counted(calibrated.recipe.nfe, 'evaluation')}, guidance {about.guidance:g}",
        told(*(math.inf if error is None else error for error in (about.error_before, about.error_after))),
        f"against {teacher['steps']} steps of {teacher['sampler']}, {teacher['schedule']}; before: {about.baseline}",
        f"{counted(about.prompts, 'prompt')}, seeds {about.seeds[0]} to {about.seeds[1]}, latents {shape}",
    ]
    if not about.improved:
        lines.append("Not better on samples that nothing was fitted to: use more samples or prompts, or train longer.")
    return "\n".join(lines)


def _common_inputs(evaluations: str, samples: str) -> tuple[list[io.Input], list[io.Input]]:
    """Those before and after a node's own, with what it says of two."""
    return [
        io.Model.Input("model", tooltip="The model to be tuned for, with its LoRAs and patches. It is not changed."),
        io.Conditioning.Input(
            "positive",
            tooltip="The prompts, one or several: join them with Conditioning (Combine). With 4 or more a quarter is "
            "kept to see whether the plan is good for prompts that it was not made with.",
        ),
        io.Conditioning.Input("negative", tooltip="The negative prompt, the same for all."),
        io.Latent.Input("latent_image", tooltip="An empty latent: its width and height are those of the images."),
        io.Float.Input(
            "cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="The guidance that the plan is to be used with."
        ),
        io.Int.Input("evaluations", default=6, min=1, max=100, tooltip=evaluations),
    ], [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=0xFFFFFFFF,
            control_after_generate=False,
            tooltip="Of the first image's noise; the others count on from it. The same seed gives the same plan.",
        ),
        io.Int.Input("samples", default=16, min=1, max=4096, tooltip=samples),
        io.Int.Input(
            "teacher_steps",
            default=50,
            min=2,
            max=1000,
            tooltip="Steps of the long run (DPM-Solver++ 2M) whose images are taken as right.",
        ),
    ]


def _outputs() -> list[io.Output]:
    return [
        PLAN.Output(display_name="PLAN", tooltip="For Few-Step Plan Sampler and Few-Step Save Plan."),
        io.Image.Output(display_name="plot", tooltip="How the error went."),
        io.String.Output(display_name="report", tooltip="The error before and after, on images kept apart."),
    ]


def _usable_bases() -> list[str]:
    """Samplers that a recipe can follow."""
    found = []
    for id in SAMPLERS:
        with contextlib.suppress(ValueError):
            Recipe(id, (3.0, 2.0, 1.0, 0.0))
            found.append(id)
    return found


def _points(pairs: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    return [(float(x), y) for x, y in pairs if math.isfinite(y)]


class FewStepCalibrate(io.ComfyNode):
    """Fits noise levels and solver numbers to a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        first, second = _common_inputs(
            "Evaluations of the model per image that the plan will make.",
            "Images to fit to; as many others say how good it is. More is better and takes longer.",
        )
        return io.Schema(
            node_id="FewStepCalibrate",
            display_name="Few-Step Calibrate",
            category=CATEGORY,
            description="Fits noise levels and a sampler's numbers to the connected model, so that a few evaluations "
            "give the image of many. It takes some hundred short runs: minutes for SD1.5. Stopping it keeps the best.",
            inputs=[
                *first,
                io.Combo.Input(
                    "base",
                    options=["auto", *_usable_bases()],
                    default="auto",
                    tooltip=f"The sampler to start from, on its best schedule. auto: the best of "
                    f"{' and '.join(DEFAULT_BASES)}.",
                ),
                *second,
                io.Int.Input(
                    "rounds", default=4, min=1, max=100, tooltip="At most so many rounds of the fit: the effort."
                ),
                io.Int.Input(
                    "batch",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="At most so many images at once. 0: all, or what fits into memory.",
                ),
                io.Combo.Input(
                    "derivatives",
                    options=list(DERIVATIVES),
                    default=DERIVATIVES[0],
                    optional=True,
                    tooltip="How it finds out which way to change the numbers. differences: works with every model and "
                    "is nearly always better. backpropagation: for models that gradients go through (not quantised "
                    "ones); needs more memory, and sees nothing of the rounding of noise levels to time steps, which "
                    "all models but flow ones do.",
                ),
            ],
            outputs=_outputs(),
            **search_words("plan", "amed", "fit a sampler"),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: dict[str, Any],
        cfg: float,
        evaluations: int,
        base: str,
        seed: int,
        samples: int,
        teacher_steps: int,
        rounds: int,
        batch: int,
        derivatives: str = DERIVATIVES[0],
    ) -> io.NodeOutput:
        session = Session(model, positive, negative, cfg, latent_image, batch=batch)
        work = Calibration(
            session,
            evaluations=evaluations,
            bases=DEFAULT_BASES if base == "auto" else (base,),
            seed=seed,
            samples=samples,
            teacher_steps=teacher_steps,
            rounds=rounds,
            derivatives=derivatives,
        )
        display, seen = Display(), []
        with kept(work):
            for progress in work:
                seen.append(progress)
                display.show(progress.runs, progress.expected, told(progress.before, progress.after))
            calibrated = work.calibrated
            series = {
                "fitted": _points([(p.runs, p.error) for p in seen]),
                "kept apart, best": _points([(p.runs, p.after) for p in seen]),
            }
            plot = line_plot([Panel("Calibration", "runs", "error", series, log_y=True)])
            return io.NodeOutput(calibrated, plot, report(calibrated))


class FewStepTrainAMED(io.ComfyNode):
    """Trains the network of AMED for a model."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        first, second = _common_inputs(
            "Evaluations of the model per image that the plan will make; at least 2.",
            "Images that are not trained on and say how good it is.",
        )
        return io.Schema(
            node_id="FewStepTrainAMED",
            display_name="Few-Step Train AMED",
            category=CATEGORY,
            description="Trains a small network that sees the middle of the model's and places every second "
            "evaluation, image by image. No gradient goes through the model: memory is that of sampling. Stopping it "
            "keeps what was learned.",
            inputs=[
                *first,
                io.Combo.Input(
                    "base", options=list(AMED_BASES), default="amed_dpm_2m", tooltip="The solver that is helped."
                ),
                io.Boolean.Input(
                    "afs",
                    default=False,
                    tooltip="Leaves out the first evaluation: at high noise the sample is nearly all noise.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default="karras",
                    tooltip="Levels of all evaluations; every second is then learned.",
                ),
                *second,
                io.Int.Input(
                    "iterations",
                    default=60,
                    min=1,
                    max=100000,
                    tooltip="Batches to learn from: the effort. The paper takes 10,000 images in all.",
                ),
                io.Int.Input("batch", default=8, min=1, max=4096, tooltip="Images of a batch."),
                io.Float.Input(
                    "scale_dir",
                    default=0.01,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="How far the factor of the direction may be from 1. 0 leaves it.",
                ),
                io.Float.Input(
                    "scale_time",
                    default=0.2,
                    min=0.0,
                    max=0.5,
                    step=0.01,
                    tooltip="How far the factor of the noise level that the model is told may be from 1. 0 leaves it.",
                ),
                io.Int.Input(
                    "teacher_extra",
                    default=3,
                    min=1,
                    max=100,
                    tooltip="Levels that the teacher has more in each step that is learned.",
                ),
                io.Float.Input(
                    "learning_rate", default=0.005, min=1e-6, max=1.0, step=0.001, round=False, tooltip="Of Adam."
                ),
                io.Combo.Input(
                    "goal",
                    options=list(GOALS),
                    default=GOALS[0],
                    optional=True,
                    tooltip="last sample: the images are to be those of the teacher; takes longer. each step: every "
                    "step is to end where the teacher's does, as in the paper.",
                ),
                PLAN.Input(
                    "start",
                    optional=True,
                    tooltip="A plan to begin with, from Few-Step Calibrate, or a predictor to be trained further, from "
                    "Few-Step Load Plan. base, afs and schedule are then its own, and scale_dir and scale_time count "
                    "only if they are wider than it needs. If training does not help, it comes out again.",
                ),
            ],
            outputs=_outputs(),
            **search_words("plan", "amed predictor"),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent_image: dict[str, Any],
        cfg: float,
        **options: Any,
    ) -> io.NodeOutput:
        work = Training(Session(model, positive, negative, cfg, latent_image), **options)
        display, seen = Display(), []
        with kept(work):
            for step in work:
                seen.append(step)
                display.show(step.iteration, step.iterations, f"loss {step.loss:.4g}; {told(step.before, step.after)}")
            calibrated = work.calibrated
            panels = [
                Panel(
                    "Training",
                    "iterations",
                    "loss",
                    {"loss": _points([(s.iteration, s.loss) for s in seen])},
                    log_y=True,
                ),
                Panel(
                    "Images kept apart",
                    "iterations",
                    "error",
                    {
                        "base": _points([(s.iteration, s.before) for s in seen]),
                        "AMED, best": _points([(s.iteration, s.after) for s in seen]),
                    },
                    log_y=True,
                ),
            ]
            return io.NodeOutput(calibrated, line_plot(panels), report(calibrated))
