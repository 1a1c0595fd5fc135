"""Trains a student of the host's model, as a LoRA."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import comfy.model_management
import torch
import torch.utils.checkpoint
from comfy.weight_adapter import LoRAAdapter
from comfy_extras.nodes_train import find_all_highest_child_module_with_forward
from torch import Tensor, nn

from ...samplers import SAMPLERS, SCHEDULES
from ...samplers.calibrated import CalibratedPlan, geometric_mean, rmse
from ...samplers.distill import Learner, Student, TrajectoryDistillation
from ...samplers.distributed import rank_and_count
from .gradients import NoGradientError, complaining, differentiable
from .guider import guidance_factor, guidance_of_run, same_guidance
from .model import check_plan, fingerprint, level_range
from .reference import split
from .runs import announce, announce_each, follow, resolve
from .sampling import schedule_sigmas
from .session import Inside, Sample, Session
from .students import PREFIX, StudentLora, read_lora
from .training import AMED_SCHEDULES, SLOWEST, sum_over_processes
from .work import check_choice, check_counts, measured, origin

MOST = 8
"""Evaluations of a student."""

TEACHERS = tuple(
    id
    for id, spec in SAMPLERS.items()
    if not (spec.adaptive or spec.adds_noise or spec.takes_apart or id.startswith("amed") or id == "dpm_fast")
)
"""Samplers whose trajectories can be followed: each of their steps ends where the next begins."""

AUTO = "auto"
TEACHER_SCHEDULES = (AUTO, *AMED_SCHEDULES)
"""Schedules that reach from full noise down. auto: the usual one for the kind of model."""

LARGE = 100_000_000
"""Weights of a network from which on its activations are computed a second time, in place of being kept."""

_RARELY = 100  # iterations between two validations, at most
_BACKWARD = 1  # cost of a gradient beside its evaluation, in guided evaluations


class Step(NamedTuple):
    """Where a training stands, after each iteration."""

    iteration: int
    iterations: int
    loss: float
    """Mean over the steps of the student, of what its predictions differ from those that lead to the teacher."""

    before: float
    """Error of the model at the student's levels without guidance, on samples that are not trained on."""

    after: float
    """Error there of the best student so far; infinite until one was looked at."""

    samples: Tensor | None
    """Latents of the student there, if it was looked at in this iteration."""


class Distillation:
    """A student that is being trained: going through it does the work, `student` is the best so far.

    It follows the trajectories of the guided model (SFD, see `TrajectoryDistillation`), so that guidance is in it, and
    an evaluation is one pass of the network. Each iteration has trajectories of its own. The student is a LoRA on all
    linear and convolutional layers, by the host's own adapters.

    With torch.distributed every process takes its share of each batch; the first one knows the errors and the best.

    Args:
        evaluations: of the student, 1 to 8.
        rank: of the LoRA; at most that of a layer.
        iterations: batches, each with one update for each step of the student.
        learning_rate: of AdamW; it falls to a tenth until the end.
        batch: images of one iteration, of all processes together.
        samples: that are not trained on and say how good it is.
        teacher: a plan whose levels are followed; those of the student are every so many of them.
        teacher_sampler, teacher_schedule, teacher_steps: what is followed without one. The steps are rounded up to a
            multiple of the evaluations.
        start: the file of a student of this model, to go on with; the rank is then its own.

    Raises:
        ValueError: naming the input at fault.
    """

    def __init__(
        self,
        session: Session,
        *,
        evaluations: int = 4,
        rank: int = 32,
        iterations: int = 500,
        learning_rate: float = 2e-4,
        batch: int = 8,
        seed: int = 0,
        samples: int = 8,
        teacher: CalibratedPlan | None = None,
        teacher_sampler: str = "dpmpp_2m",
        teacher_schedule: str = AUTO,
        teacher_steps: int = 24,
        start: Path | None = None,
    ):
        check_counts(evaluations=evaluations, rank=rank, iterations=iterations, batch=batch, samples=samples)
        if evaluations > MOST:
            raise ValueError(
                f"evaluations = {evaluations} must be at most {MOST}: above, plans and samplers are as good"
            )
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate = {learning_rate} must be above 0")
        check_choice("teacher_sampler", teacher_sampler, TEACHERS)
        check_choice("teacher_schedule", teacher_schedule, TEACHER_SCHEDULES)
        self._rank, self._processes = rank_and_count()
        if batch % self._processes:
            raise ValueError(f"batch = {batch} must be a multiple of the number of processes, {self._processes}")
        self.session = session
        _, _, self._flow, self._shift = level_range(session.sampling)
        self._teacher = teacher
        if teacher is not None:
            self._sigmas = _levels_of_plan(teacher, session, evaluations)
            self._followed: dict[str, Any] = {"sampler": teacher.recipe.base, "schedule": "plan"}
        else:
            check_counts(teacher_steps=teacher_steps)
            if teacher_steps <= evaluations:
                raise ValueError(f"teacher_steps = {teacher_steps} must be more than evaluations = {evaluations}")
            schedule = _schedule(teacher_schedule, self._flow)
            steps = -(-teacher_steps // evaluations) * evaluations
            self._sigmas = tuple(schedule_sigmas(SCHEDULES[schedule], session.sampling, steps).tolist())
            self._followed = {"sampler": teacher_sampler, "schedule": schedule}
        every, rest = divmod(len(self._sigmas) - 1, evaluations)
        if rest or every < 2:
            raise ValueError(
                f"teacher: its number of steps, {len(self._sigmas) - 1}, must be 2, 3 or more times evaluations = "
                f"{evaluations}: each step of the student replaces several of the teacher's"
            )
        self._followed["steps"] = len(self._sigmas) - 1
        self.levels = self._sigmas[::every]
        found = None if start is None else read_lora(start)
        self._numbers: dict[str, Any] = {
            "method": "SFD", "rank": rank if found is None else found.rank, "learning_rate": learning_rate,
            "batch": batch, "seed": seed,
        }  # fmt: skip
        self._goes_on = found is not None
        self._before = 0 if found is None else found.images
        """Images that the student it began with was trained on."""

        training, self.validation = split(session.prompts, seed, session.prompts, samples)
        self._prompts, self._first = list(dict.fromkeys(sample.prompt for sample in training)), seed + samples
        self._batch, self._iterations, self._done = batch, iterations, 0
        self._every = max(1, min(iterations // 8, _RARELY))
        self._patcher = session.patcher.clone()
        with torch.inference_mode(False):
            self._change = _Change(self._patcher, self._numbers["rank"], seed, None if found is None else found.tensors)
            self._learner = Learner(
                self._change.weights, updates=iterations * evaluations, learning_rate=learning_rate,
                last_rate=SLOWEST * learning_rate,
            )  # fmt: skip
        self._distillation = TrajectoryDistillation(self._learner, self.levels, flow=self._flow, every=every)
        self._guided, self._own = session.on(self._patcher, session.guidance), session.on(self._patcher, 1.0)
        self._best: dict[str, Tensor] | None = None
        self.before = self.after = math.inf

    def __iter__(self) -> Iterator[Step]:
        first, progress = self._rank == 0, self.session.progress
        if first:
            images = len(self.validation)
            progress.estimate(f"about {self._iterations} batches of {self._batch} images")
            cost = images * (len(self._sigmas) - 1 + (1 + self._goes_on) * self._steps)
            progress.stage("Reference images", images, cost, after=self._cost(0))
            target = self._guided.run(self._taught_whole, self._sigmas, self.validation)
            self.before = self._error(self._own.run(self._plain, self.levels, self.validation), target)
            if self._goes_on:  # what it began with stays until something is better
                self._best, self.after = _kept(self._learner.average), self._error(self._samples(), target)
        for k in range(self._iterations):
            progress.stage("Training batches", self._iterations, self._cost(k), done=k)
            loss = self._learn(self._batch_of(k))
            self._done, samples = k + 1, None
            if first and (self._done % self._every == 0 or self._done == self._iterations):
                samples = self._samples()
                error = self._error(samples, target)
                if error < self.after:
                    self._best, self.after = _kept(self._learner.average), error
            yield Step(self._done, self._iterations, loss, self.before, self.after, samples)
        if first and not self.improved:
            logging.warning("the student is not better on other samples than the model without it: train it for longer")

    def _samples(self) -> Tensor:
        """Latents of the student, as it is now, on the validation samples."""
        with self._learner.averaged(), self._change.on():
            return self._own.run(self._plain, self.levels, self.validation)

    @property
    def _steps(self) -> int:
        return len(self.levels) - 1

    def _cost(self, done: int) -> int:
        """Of the iterations that are left, in guided evaluations for one image by this process."""
        steps = self._steps
        each = len(self._sigmas) - 1 + (1 + _BACKWARD) * steps
        images = (self._iterations - done) * self._batch // self._processes
        validations = -(-self._iterations // self._every) - done // self._every if self._rank == 0 else 0
        return images * each + validations * len(self.validation) * steps

    @property
    def improved(self) -> bool:
        """Whether it is better than the model at its levels without guidance, on samples it was not trained on."""
        return self.after < self.before

    @property
    def student(self) -> StudentLora | None:
        """The best so far, else the latest; None before the first iteration."""
        if not self._done:
            return None
        last = Sample(0, self._first + self._before + self._done * self._batch - 1)
        about = replace(
            origin(self.session, [*self.validation, last]),
            teacher=self._followed,
            baseline="the model at the same levels without guidance",
            iterations=self._done,
            error_before=measured(self.before),
            error_after=measured(self.after),
            improved=self.improved,
        )
        training = self._numbers | {"images": self._before + self._done * self._batch}
        student = Student(self.levels, self._flow, about=about, training=training)
        return StudentLora(student, self._change.tensors(self._best or self._learner.average))

    def finished(self) -> StudentLora:
        """The student of a training that came to its end."""
        found = self.student
        assert found is not None
        return found

    def _batch_of(self, k: int) -> list[Sample]:
        """The samples of an iteration: all processes know of all, and take theirs."""
        places = range(self._before + k * self._batch, self._before + (k + 1) * self._batch)
        samples = [Sample(self._prompts[n % len(self._prompts)], self._first + n) for n in places]
        return samples[self._rank :: self._processes]

    # What is done with a batch

    def _learn(self, samples: Sequence[Sample]) -> float:
        """The loss of a batch, from which the student is changed at each of its steps.

        What fits into memory at once is added up, so that a batch that is taken in parts teaches the same.
        """
        x: list[Tensor] = [torch.empty(0)] * len(samples)
        goals: list[Sequence[Tensor]] = [()] * len(samples)

        def teach(group: list[int]) -> None:
            rows, found = self._guided.inside(self._taught, self._sigmas, [samples[k] for k in group])
            for row, k in enumerate(group):
                x[k], goals[k] = rows[row], [goal[row] for goal in found]

        self._guided.in_groups(samples, teach)
        losses = []
        for step in range(self._steps):

            def learn(group: list[int], step: int = step) -> None:
                work = partial(
                    self._learned,
                    step,
                    [x[k] for k in group],
                    [goals[k][step] for k in group],
                    len(group) / len(samples),
                )
                loss, rows = self._own.inside(work, self.levels, [samples[k] for k in group])
                losses.append(loss)
                for row, k in enumerate(group):
                    x[k] = rows[row]

            self._own.in_groups(samples, learn)
            with torch.inference_mode(False):
                self._learner.step()
        return sum_over_processes(sum(losses)) / (self._processes * self._steps)

    def _taught(self, run: Inside) -> tuple[Tensor, list[Tensor]]:
        """The noise that a batch starts from, and the teacher's samples at each level of the student but the first."""
        with torch.inference_mode(False):  # what is learned from must be no tensor of inference mode
            x = run.x.clone()
            return x, self._distillation.teach(partial(self._follow, run), x)

    def _follow(self, run: Inside, x: Tensor, callback: Callable[..., None] | None = None) -> Tensor:
        """The teacher's sample."""
        if self._teacher is not None:
            with guidance_factor(run.model) as set_guidance:
                evaluate, arguments = announce(follow(self._teacher), run.model, x, run.sigmas, run.extra_args)
                return self._teacher.function(
                    evaluate, x, None, arguments, callback, True, set_guidance=set_guidance
                )  # fmt: skip
        spec = SAMPLERS[self._followed["sampler"]]
        resolved = resolve(spec, {}, self._sigmas, flow=self._flow, shift=self._shift, kind=None)
        assert resolved.prepared is not None
        evaluate, arguments = announce(resolved, run.model, x, run.sigmas, run.extra_args)
        return resolved.prepared.sample(evaluate, x, arguments, callback, True)

    def _taught_whole(
        self, model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any
    ) -> Tensor:
        """The teacher as a sampler of the host."""
        return self._follow(Inside(model, x, sigmas, extra_args, disable), x)

    def _plain(self, model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: Any) -> Tensor:
        """DDIM at the student's levels as a sampler of the host."""
        run = SAMPLERS["ddim"].prepare(self.levels, flow=self._flow)
        return run.sample(model, x, extra_args, None, True)

    def _learned(
        self, step: int, x: Sequence[Tensor], goals: Sequence[Tensor], share: float, run: Inside
    ) -> tuple[float, Tensor]:
        """The gradient of a part of a batch for a step: its part of the loss, and what the step leads to."""
        whole = run.guider.inner_model
        evaluate, arguments = announce_each(run.model, run.sigmas, run.extra_args)
        large = sum(weight.numel() for weight in whole.diffusion_model.parameters()) >= LARGE
        with (
            guidance_of_run(run.guider) as guidance,
            torch.inference_mode(False),
            differentiable(whole, self._change.modules),
            checkpointed(whole.diffusion_model) if large else contextlib.nullcontext(),
            self._change.on(),
            complaining(lambda error: f"model: no gradient goes through it ({error}); {_PLAIN_WEIGHTS}"),
        ):
            loss, reached = self._distillation.loss(step, evaluate, torch.stack([*x]), torch.stack([*goals]), arguments)
            if guidance is not None and max(guidance.seen, default=1.0) > 1:
                raise ValueError(
                    f"model: it sets its guidance by itself, to {max(guidance.seen):g}, and a student is sampled "
                    "without: take Few-Step Guidance Patch or CFG Override out, and set cfg here"
                )
            if not loss.requires_grad:
                raise NoGradientError("the network lets no gradient through")
            self._learner.add(loss * share)
        self.session.progress.done(_BACKWARD * len(x))
        return float(loss) * share, reached

    @staticmethod
    def _error(samples: Tensor, target: Tensor) -> float:
        return geometric_mean(rmse((samples - target).flatten(1)))


_PLAIN_WEIGHTS = "load the model with fp32, bf16, fp16 or fp8 weights, without GGUF, nf4 or a compiler"


def _kept(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.detach().cpu().clone() for name, weight in weights.items()}


def _schedule(name: str, flow: bool) -> str:
    return name if name != AUTO else "time_uniform" if flow else "karras"


def _levels_of_plan(plan: CalibratedPlan, session: Session, evaluations: int) -> tuple[float, ...]:
    """The levels of a plan that is to be a teacher.

    Raises:
        ValueError: if it cannot be one for this model at this guidance.
    """
    if plan.predictor is not None:
        raise ValueError(
            "teacher: this plan has a predictor, which gives each image its own levels: connect a plan of Few-Step "
            "Calibrate"
        )
    try:
        check_plan(plan, fingerprint(session.patcher))
    except ValueError as error:
        raise ValueError(f"teacher: {error}") from None
    if not same_guidance(plan, session.guidance):
        raise ValueError(
            f"teacher: this plan was made at guidance {plan.about.guidance:g} and cfg is {session.guidance:g}: set cfg "
            f"to {plan.about.guidance:g}"
        )
    levels = tuple(map(float, plan.recipe.sigmas))
    if len({stage.step for stage in plan.recipe.plan()}) != len(levels) - 1:
        raise ValueError(
            f"teacher: the plan is one of {plan.recipe.base}, whose steps visit several levels: choose another"
        )
    return levels


# The LoRA


class _Change:
    """The LoRA on the layers of a MODEL, by the host's own adapters: it is there within `on`, and not elsewhere.

    Args:
        patcher: gets a function of the weight for each layer.
        tensors: of a file to begin with.

    Raises:
        ValueError: if no gradient goes through the weights of this network, or the tensors are those of another.
    """

    def __init__(self, patcher: Any, rank: int, seed: int, tensors: Mapping[str, Tensor] | None):
        found = {
            name: module
            for name, module in patcher.model.diffusion_model.named_modules()
            if hasattr(module, "weight_function")
            and getattr(module, "weight", None) is not None
            and module.weight.ndim >= 2
            and not isinstance(module, nn.Embedding)
        }
        if not found:
            raise ValueError("model: no layer of its network is one of ComfyUI's own, which a LoRA can be put on")
        for name, module in found.items():
            if not module.weight.dtype.is_floating_point:
                raise ValueError(
                    f"model: {name} has weights of {module.weight.dtype}, which no gradient goes through: "
                    f"{_PLAIN_WEIGHTS}"
                )
        _avoid_fp16(patcher)
        device = patcher.load_device
        self.modules = set(found.values())
        self._shapes = {name: tuple(module.weight.shape) for name, module in found.items()}
        self._adapters: dict[str, Any] = {}
        self._active = False
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for name, shape in self._shapes.items():
                most = min(rank, shape[0], math.prod(shape[1:]))
                adapter = LoRAAdapter.create_train(torch.empty(()).expand(shape), rank=most, alpha=float(most))
                self._adapters[name] = adapter.to(device).requires_grad_(False)
        if tensors is not None:
            self._take(tensors)
        self.weights: dict[str, Tensor] = {}
        for name, adapter in self._adapters.items():
            self.weights[f"{name}.up"], self.weights[f"{name}.down"] = adapter.lora_up.weight, adapter.lora_down.weight
            patcher.add_weight_wrapper(f"diffusion_model.{name}.weight", _Wrapper(self, adapter, found[name]))

    @property
    def active(self) -> bool:
        return self._active

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Inside, the network is the student."""
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def tensors(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the file, from those of `weights` or from an average of them: in fp16, as files of LoRAs mostly are."""
        found: dict[str, Tensor] = {}
        for name, shape in self._shapes.items():
            key = PREFIX + name.replace(".", "_")
            up, down = (weights[f"{name}.{part}"].detach().cpu().half() for part in ("up", "down"))
            found[f"{key}.lora_up.weight"] = up.reshape(*up.shape, *[1] * (len(shape) - 2)).clone()
            found[f"{key}.lora_down.weight"] = down.reshape(len(down), *shape[1:]).clone()
            found[f"{key}.alpha"] = torch.tensor(float(len(down)))
        return found

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin with the weights of a file."""
        for name, adapter in self._adapters.items():
            key = f"{PREFIX}{name.replace('.', '_')}"
            parts = [tensors.get(f"{key}.lora_{part}.weight") for part in ("up", "down")]
            wanted = adapter.lora_up.weight, adapter.lora_down.weight
            scale = tensors.get(f"{key}.alpha", torch.tensor(float(len(adapter.lora_down.weight))))
            for part, weight in zip(parts, wanted, strict=True):
                if part is None or part.ndim < 2 or part.flatten(1).shape != weight.shape or scale.numel() != 1:
                    raise ValueError(
                        f"start_from: it is no student of this model: {key} is missing or has another shape"
                    )
                weight.copy_(part.flatten(1))
            adapter.lora_up.weight.mul_(float(scale) / len(adapter.lora_down.weight))


class _Wrapper:
    """What the host does to the weight of a layer before it is used."""

    def __init__(self, change: _Change, adapter: Any, layer: Any):
        self._change, self._adapter, self._layer = change, adapter, layer

    def __call__(self, weight: Tensor) -> Tensor:
        if not self._change.active:
            return weight
        scale = getattr(self._layer, "scale_weight", None)  # of fp8 weights, which comes after this
        if scale is None:
            return self._adapter(weight)
        scale = scale.detach().to(weight).clone()
        return self._adapter(weight * scale) / scale

    def passive_memory_usage(self) -> int:
        return int(self._adapter.passive_memory_usage())

    def move_to(self, device: torch.device) -> int:
        """It stays where it is trained."""
        return self.passive_memory_usage()


def _avoid_fp16(patcher: Any) -> None:
    """Gradients leave the range of fp16: such a model computes in bf16, or in fp32 where the device has no bf16."""
    if (patcher.get_model_object("manual_cast_dtype") or patcher.model.get_dtype()) == torch.float16:
        wide = comfy.model_management.should_use_bf16(patcher.load_device)
        patcher.set_model_compute_dtype(torch.bfloat16 if wide else torch.float32)


@contextlib.contextmanager
def checkpointed(network: nn.Module) -> Iterator[None]:
    """A network whose blocks do not keep their activations for the gradient, but compute them a second time."""
    blocks = find_all_highest_child_module_with_forward(network)
    for block in blocks:
        block.forward = partial(torch.utils.checkpoint.checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
