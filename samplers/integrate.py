"""The one loop that carries out a plan, and the piece of it that all share: evaluate, remember, combine."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .checks import counted
from .noise import BrownianNoise
from .phi import Scalar, value
from .plan import DENOISED, UNCONDITIONAL, Combination, Noise, P, Stage

Model = Callable[..., Any]
"""A k-diffusion denoiser: model(x, sigma, **extra_args) -> denoised; x [B, C, ...], sigma [B]. One that is guided may
answer with `Guided`."""


class Guided(NamedTuple):
    """The answer of a guided model to samplers that take its predictions apart (CFG++)."""

    denoised: Tensor
    """The guided prediction of the clean sample."""

    unconditional: Tensor
    """That without the prompt."""


NoiseSampler = Callable[[Tensor, Tensor], Tensor]
"""noise_sampler(sigma, sigma_next) -> unit noise shaped like x. The levels are tensors without dimensions on the device
of x, as those of k-diffusion's samplers are; `BrownianNoise`, which would have to read them back, is given numbers."""


Operands = tuple[Tensor, ...]
"""Where a run is: (*predictions, denoised, start, x), into which the keys of a `Combination` are indices. Predictions
are newest first; denoised is what the model last returned, or x as long as it has not."""


class State:
    """What a solver that decides as it goes is sent after each of its stages."""

    operands: Operands = ()

    def value(self, combination: Combination) -> Tensor:
        """The tensor that a combination of symbols stands for now: X is the sample after the stage."""
        return combine(combination, self.operands)


AdaptiveSolver = Generator[Stage, State, dict[str, int]]
"""The stages of a solver that decides as it goes, and in the end what it has to report."""


class NonFiniteError(ValueError):
    """x held NaN or infinity, the model returned it, or the sample overflowed."""


def integrate(
    model: Model,
    x: Tensor,
    plan: Sequence[Stage] | AdaptiveSolver,
    *,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    disable: bool | None = None,
    noise_sampler: NoiseSampler | BrownianNoise | None = None,
    history: Sequence[Tensor] = (),
    info: dict[str, int] | None = None,
) -> Tensor:
    """Carry out a plan: evaluate the model, combine, repeat.

    A stage costs one evaluation (unless its sigma is None) and at most one pass over memory per operand. Nothing is
    read back from the device until the end, where the predictions are checked to have been finite. `x` is not
    written to, and neither is a tensor that was handed to the model or to the callback. After a step to sigma = 0
    the result is the model's last prediction itself: copy it before writing to it. A plan without stages leaves x.

    The model must leave x as it is and answer in memory of its own, not in that of an earlier answer. It is checked,
    also at the end: x in the first evaluation, the memory wherever the plan still needs the earlier answer.

    Args:
        model: a k-diffusion denoiser, `model(x, sigma, **extra_args) -> denoised`, sigma of shape [B].
        x: the sample at the first level, [B, C, ...], 3-D to 5-D, any floating dtype; the result has its dtype.
        plan: the stages of a solver; or a generator of stages that decides as it goes, and is sent a `State` after
            each of them.
        extra_args: passed on to the model.
        callback: called once a step with `x`, `i`, `sigma`, `sigma_hat` and `denoised`, before the update. `sigma` is
            the level of the step, `sigma_hat` that of the evaluation, higher where noise was added before it.
        disable: hides the progress bar, as in tqdm.
        noise_sampler: source of noise for the stages that add some.
        history: predictions from before the first stage, newest first, for a run that goes on from another.
        info: is given `nfe`, the number of evaluations, and what a generator reports.

    Raises:
        ValueError: if x has the wrong rank or dtype, the noise sampler or the history that the plan needs is missing,
            or the model or the noise sampler answers with something else than such a tensor.
        NonFiniteError: if x or a prediction held NaN or infinity, naming the step and the sigma, or the sample
            overflowed.
    """
    check_sample(x)
    evaluate = Evaluations(model, x, extra_args)
    state = None
    if isinstance(plan, Generator):
        state, keep, total = State(), len(P), None
        evaluate.check_start()  # it may read, and would take the fault for the model's
    else:
        keep, total = history_length(plan, len(history)), plan[-1].step + 1 if plan else 0
        if noise_sampler is None and any(stage.noise for stage in plan):
            raise ValueError("this plan adds noise: a noise_sampler is needed")
    info = {} if info is None else info
    operands = (*history[:keep], *[counting(x) if plan else x] * 3)
    step, churned = -1, None

    with progress_bar(total, disable) as bar:
        for stage in stages(plan, state, info):
            operands = evaluated(stage, operands, evaluate, keep)
            if stage.sigma is None:
                churned = stage.noise.sigma if stage.noise else churned
            elif stage.step != step or (state is not None and operands[-1] is operands[-2]):  # a new try of the step
                step = stage.step
                bar.update(step - bar.n)
                if callback is not None:
                    callback(evaluate.seen(operands[-1], step, churned))
                churned = None
            operands = updated(stage, operands, noise_sampler)
            if state is not None:
                state.operands = operands
        bar.update(step + 1 - bar.n)

    info["nfe"] = evaluate.count
    evaluate.check(operands[-1], total or step + 1)
    return operands[-1]


def evaluated(stage: Stage, operands: Operands, evaluate: Evaluations, keep: int = len(P)) -> Operands:
    """The operands after the evaluation of a stage, if it has one, with what it remembers as the newest of at most
    `keep` predictions."""
    if not stage.remembers:
        return operands
    predictions, (denoised, start, x) = operands[:-3][: keep - 1], operands[-3:]
    if stage.sigma is not None:
        denoised = evaluate(x, stage.sigma, stage.step, predictions)
    if stage.prediction is UNCONDITIONAL:
        newest = evaluate.unconditional
    else:
        newest = denoised if stage.prediction is DENOISED else combine(stage.prediction, (denoised, start, x))
    return (newest, *predictions, denoised, start, x)


def updated(stage: Stage, operands: Operands, noise_sampler: NoiseSampler | BrownianNoise | None = None) -> Operands:
    """The operands after the update of a stage and its noise."""
    x = combine(stage.update, operands)
    if stage.noise is not None:
        ours = not x.requires_grad and id(x) not in map(id, operands)
        x = add_noise(x, stage.noise, noise_sampler, in_place=ours)
    return (*operands[:-2], x if stage.completes else operands[-2], x)


def stages(plan: Sequence[Stage] | AdaptiveSolver, state: State | None, info: dict[str, int]) -> Iterator[Stage]:
    """The stages one by one. A generator gets `state`, which the loop keeps, after each, and reports into `info`."""
    if not isinstance(plan, Generator) or state is None:
        yield from plan
        return
    try:
        stage = next(plan)
        while True:
            yield stage
            stage = plan.send(state)
    except StopIteration as end:
        info.update(end.value or {})


class Evaluations:
    """The evaluations of a run: `evaluate(x, sigma, step)` is what the model answers, D(x; sigma).

    The model must return a tensor like x and leave x as it is, which is checked at once, the latter where x counts how
    often it is written to (`counting`). What has to be read back from the device is checked once, by `check`: whether
    all was finite, by a sum of each tensor; and whether an answer that lies in the memory of an earlier one, which was
    still needed, changed that sum. A model may always return one and the same stored tensor.
    """

    def __init__(self, model: Model, x: Tensor, extra_args: Mapping[str, Any] | None = None):
        self._model, self._extra_args = model, extra_args or {}
        self._shape, self._dtype, self._device = x.shape, x.dtype, x.device
        self._wide = torch.promote_types(x.dtype, torch.float32)
        self._sums = [x.sum(dtype=self._wide)]  # finite only if all terms are: the cheapest check
        self._levels: list[tuple[int, Scalar]] = []  # of each answer; `Guided` is two
        self._places: dict[int, int] = {}  # the last answer in each memory
        self._over: list[tuple[int, int]] = []
        self._answer: Tensor = x
        self._unconditional: Tensor | None = None

        self.count = 0
        """How many there were (NFE)."""

    @property
    def unconditional(self) -> Tensor:
        """What the last one predicted without the prompt.

        Raises:
            ValueError: if the model gave one prediction alone.
        """
        if self._unconditional is None:
            raise ValueError(
                "this sampler (CFG++) needs two predictions of the model, the guided one and the one without the "
                "prompt, and the model gave one: let it answer with Guided(denoised, unconditional), as "
                "classifier_free does with apart=True, or choose a sampler without CFG++"
            )
        return self._unconditional

    def __call__(self, x: Tensor, sigma: Scalar, step: int, needed: Sequence[Tensor] = ()) -> Tensor:
        """The denoised sample, in the dtype of x.

        Args:
            sigma: the sigma passed to the model, for all images or for each.
            step: the number of the step, for messages.
            needed: earlier predictions that the plan still needs.

        Raises:
            ValueError: if the model wrote into x, or returned something else than a tensor like x.
        """
        self._sigma = self._level(sigma)
        written = None if x.is_inference() else x._version
        answer = self._model(x, self._sigma, **self._extra_args)
        self._answer, *rest = answer if isinstance(answer, Guided) else (answer,)
        for part in (self._answer, *rest):
            check_like(part, self._shape, "model must return the denoised sample")
            if part.device != self._device:
                raise ValueError(
                    f"the model must return the denoised sample where x is, on {self._device}; it returned a tensor on "
                    f"{part.device}: look for what moves it in the model or in what wraps it"
                )
        if written is not None and x._version != written:
            raise ValueError(
                "the model wrote into the sample x that it was given, from which the sampler goes on: look for an "
                "operation in place in the model or in what wraps it, and let it work on a copy"
            )
        self.count += 1
        denoised, *apart = (self._kept(part, sigma, step, needed) for part in (self._answer, *rest))
        self._unconditional = apart[0] if apart else None
        return denoised

    def _kept(self, answer: Tensor, sigma: Scalar, step: int, needed: Sequence[Tensor]) -> Tensor:
        """An answer in the dtype of x, and what is left to check of it."""
        kept = answer if answer.dtype == self._dtype else answer.to(self._dtype)
        self._levels.append((step, sigma))
        self._sums.append(kept.sum(dtype=self._wide))
        place, now = kept.data_ptr(), len(self._levels)
        for prediction in needed:
            if prediction.data_ptr() == place and place in self._places:
                self._over.append((self._places[place], now))
        if place:
            self._places[place] = now
        return kept

    def seen(self, x: Tensor, step: int, start: Scalar | None = None) -> dict[str, Any]:
        """What a callback is given of the evaluation that was just made, at x.

        Args:
            start: the level of the step, if noise was added before the evaluation.
        """
        sigma_hat = self._sigma[0]
        sigma = sigma_hat if start is None else self._level(start)[0]
        return {"x": x, "i": step, "sigma": sigma, "sigma_hat": sigma_hat, "denoised": self._answer}

    def _level(self, sigma: Scalar) -> Tensor:
        """A level as the sigma passed to the model, [B], on the device of x."""
        if isinstance(sigma, Tensor):
            return sigma.to(self._device, self._wide).expand(self._shape[0])
        return torch.full(self._shape[:1], sigma, dtype=self._wide, device=self._device)

    def check_start(self) -> None:
        """Raise NonFiniteError unless the first sample is finite. Waits for the device."""
        _check_start(float(self._sums[0]))

    def check(self, x: Tensor, steps: int) -> None:
        """What is left to check when the run has come to x: the one time that something is read back.

        Raises:
            NonFiniteError: if the first sample, a prediction or x is not finite, naming which.
            ValueError: if the model wrote over an answer.
        """
        first, *answers, last = sums = torch.stack([*self._sums, x.sum(dtype=self._wide)]).tolist()
        _check_start(first)
        for answer, (step, sigma) in zip(answers, self._levels, strict=True):
            if not math.isfinite(answer):
                raise non_finite(step, steps, sigma, narrow=self._dtype == torch.float16)
        if not math.isfinite(last):
            raise NonFiniteError("the sample overflowed although every prediction was finite: use a wider dtype for it")
        if any(sums[earlier] != sums[now] for earlier, now in self._over):
            raise ValueError(
                "the model wrote over a prediction that it had returned and that the sampler still needs: let it "
                "return a new tensor each time, or a copy of its buffer"
            )


def counting(x: Tensor) -> Tensor:
    """x as a tensor that counts how often it is written to: a copy of one of inference mode, which does not."""
    if not x.is_inference():
        return x
    with torch.inference_mode(False):
        return x.clone()


def add_noise(
    x: Tensor, noise: Noise, noise_sampler: NoiseSampler | BrownianNoise | None, *, in_place: bool = False
) -> Tensor:
    """x + scale * noise, in one pass over memory."""
    if noise_sampler is None:
        raise ValueError("this plan adds noise: a noise_sampler is needed")
    interval = value(noise.sigma), value(noise.sigma_next)
    if isinstance(noise_sampler, BrownianNoise):
        if not isinstance(noise.scale, Tensor):
            return noise_sampler.add(x, noise.scale, *interval, in_place=in_place)
        return x + noise.scale * noise_sampler(*interval)
    wide = torch.promote_types(x.dtype, torch.float32)
    drawn = noise_sampler(*(x.new_full((), sigma, dtype=wide) for sigma in interval))
    check_like(drawn, x.shape, "noise_sampler must return noise")
    drawn = drawn.to(x)
    if isinstance(noise.scale, Tensor) or noise.scale > _LARGE:
        return x + noise.scale * drawn
    return x.add_(drawn, alpha=noise.scale) if in_place else x.add(drawn, alpha=noise.scale)


def combine(update: Combination, operands: Sequence[Tensor]) -> Tensor:
    """The sum of coefficient times operand; at most one pass over memory per operand, none written to.

    The keys of a combination are indices into `operands`: the remembered predictions, newest first, then the
    denoised sample, the sample at the start of the step and the current sample.
    """
    if update.interpolation is not None:
        first, chain = update.interpolation
        total = operands[first]
        for i, (key, weight) in enumerate(chain):
            total = total.lerp_(operands[key], weight) if i else total.lerp(operands[key], weight)
        return total
    if not update.terms:  # of a prediction that is 0, at pure noise
        return torch.zeros_like(operands[-1])
    (key, c), *rest = update.terms.items()
    total = operands[key] * c
    for key, c in rest:
        if isinstance(c, Tensor) or abs(c) > _LARGE:
            total = total + c * operands[key]
        else:
            total.add_(operands[key], alpha=c)
    return total


_LARGE = 6e4  # from which a number may not fit into fp16, and so not be an `alpha` of torch


def history_length(plan: Sequence[Stage], given: int) -> int:
    """How many predictions a run has to remember at a time; checks that it never needs more than it then has."""
    longest, known = 1, given
    for stage in plan:
        known += stage.remembers
        needed = stage.update.reach
        if needed > known or (known == given and (needed > 0 or DENOISED.terms.keys() & stage.update.terms.keys())):
            raise ValueError(
                f"step {stage.step + 1} needs {counted(needed, 'prediction')} and there are {known} of them: a plan "
                "that goes on "
                "from another begins with an evaluation and needs the predictions before it as history"
            )
        longest = max(longest, needed)
    return longest


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], to go with samples of shape [B, ...]."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Types of samples and predictions. Those of 8 bits are for weights: torch does not even add them."""


def check_sample(x: Tensor) -> None:
    """Raise ValueError unless x is a floating-point tensor of 3 to 5 dimensions with something in it."""
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        raise ValueError(f"x must be a floating-point tensor, got {getattr(x, 'dtype', type(x).__name__)}")
    if not 3 <= x.ndim <= 5:
        raise ValueError(
            f"x must be a batch of latents with 3 to 5 dimensions ([B, C, ...]), got shape {list(x.shape)}"
        )
    if not x.numel():
        raise ValueError(f"x holds no image: its shape is {list(x.shape)}")


def check_like(answer: Any, shape: torch.Size, what: str) -> None:
    """Raise ValueError unless an answer is a dense floating-point tensor of the shape of x."""
    dense = isinstance(answer, Tensor) and answer.layout == torch.strided and not answer.is_nested
    if not dense or answer.shape != shape:
        got = type(answer).__name__
        if isinstance(answer, Tensor):
            got = f"a tensor of shape {list(answer.shape)}" if dense else "a tensor that is not dense"
        raise ValueError(f"the {what}, shaped like x, {list(shape)}; it returned {got}")
    if answer.dtype not in FLOATS:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise ValueError(f"the {what} in one of {known}; it returned a tensor of {answer.dtype}")


def _check_start(total: float) -> None:
    if not math.isfinite(total):
        raise NonFiniteError("x holds NaN or infinity: the latent or the noise that the run starts from is broken")


def non_finite(step: int, steps: int, sigma: Scalar, *, narrow: bool = False) -> NonFiniteError:
    """The error that names the step and what to try; `narrow` says that the sample is in fp16."""
    hint = "; the sample is in fp16 and may have gone beyond it: use a wider dtype for it"
    return NonFiniteError(
        f"the model returned NaN or infinity at step {step + 1} of {steps} "
        f"(sigma = {value(sigma):.6g}); try a higher precision for the model (bf16 or fp32), a lower "
        "guidance scale, or look for a broken LoRA or checkpoint" + (hint if narrow else "")
    )


def progress_bar(steps: int | None, disable: bool | None) -> Any:
    """A tqdm bar over the steps, where tqdm is installed."""
    if disable:
        return _NoBar()
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return _NoBar()
    return tqdm(total=steps, disable=disable)


class _NoBar:
    n = 0

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def update(self, steps: int) -> None:
        pass
