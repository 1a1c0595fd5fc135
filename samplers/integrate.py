"""The one loop that touches samples."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .noise import BrownianNoise
from .phi import Scalar, value
from .plan import DENOISED, Combination, Noise, P, Stage

Model = Callable[..., Tensor]
"""A k-diffusion denoiser: model(x, sigma, **extra_args) -> denoised; x [B, C, ...], sigma [B]."""

NoiseSampler = Callable[[Tensor, Tensor], Tensor]
"""noise_sampler(sigma, sigma_next) -> unit noise shaped like x. The levels are tensors without dimensions on the device
of x, as those of k-diffusion's samplers are; `BrownianNoise`, which would have to read them back, is given numbers."""


class State:
    """What a solver that decides as it goes is sent after each of its stages."""

    operands: tuple[Tensor, ...] = ()

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
    state = State() if isinstance(plan, Generator) else None
    if state is not None and not x.isfinite().all():  # it may read, and would take the fault for the model's
        raise NonFiniteError(_BROKEN_START)
    if isinstance(plan, Generator):
        keep, total = len(P), None
    else:
        keep, total = history_length(plan, len(history)), plan[-1].step + 1 if plan else 0
        if noise_sampler is None and any(stage.noise for stage in plan):
            raise ValueError("this plan adds noise: a noise_sampler is needed")
    extra_args = extra_args or {}
    info = {} if info is None else info
    predictions = deque(history[:keep], maxlen=keep)
    wide = torch.promote_types(x.dtype, torch.float32)
    checksums = [checksum(x, wide)]
    evaluated: list[tuple[int, Scalar]] = []
    conduct = Conduct(keep - 1)
    denoised = start = x  # denoised: until there is one
    step, churned = -1, None

    with progress_bar(total, disable) as bar:
        for stage in stages(plan, state, info):
            if stage.sigma is not None:
                sigma = level_tensor(stage.sigma, x, wide)
                before = conduct.before(x)
                answer = model(x, sigma, **extra_args)
                check_like(answer, x, "model must return the denoised sample")
                denoised = answer if answer.dtype == x.dtype else answer.to(x.dtype)
                checksums.append(checksum(denoised, wide))
                evaluated.append((stage.step, stage.sigma))
                conduct.after(x, before)
                if stage.step != step or (state is not None and x is start):  # at START: a new try of the step
                    step = stage.step
                    bar.update(step - bar.n)
                    if callback is not None:
                        level = sigma[0] if churned is None else level_tensor(churned, x, wide)[0]
                        callback({"x": x, "i": step, "sigma": level, "sigma_hat": sigma[0], "denoised": answer})
                    churned = None
            if stage.remembers:
                remember = stage.prediction
                conduct.answered(denoised if remember is DENOISED else None, len(checksums) - 1)
                predictions.appendleft(denoised if remember is DENOISED else combine(remember, (denoised, start, x)))

            operands = (*predictions, denoised, start, x)
            x = combine(stage.update, operands)
            if stage.noise is not None:
                ours = not x.requires_grad and all(x is not operand for operand in operands)
                x = add_noise(x, stage.noise, noise_sampler, in_place=ours)
                if stage.sigma is None:
                    churned = stage.noise.sigma
            del operands  # what is not needed any more must not stay in memory while the model is evaluated
            if stage.completes:
                start = x
            if state is not None:
                state.operands = (*predictions, denoised, start, x)
        bar.update(step + 1 - bar.n)

    checksums.append(checksum(x, wide))
    info["nfe"] = len(evaluated)
    found = torch.stack([*checksums, *(changed.to(wide) for changed in conduct.changed)]).tolist()  # the one read-back
    check_finite(found[: len(checksums)], evaluated, total or step + 1, x.dtype)
    conduct.check(found[: len(checksums)], any(found[len(checksums) :]))
    return x


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


_WRITTEN = (
    "the model wrote into the sample x that it was given, from which the sampler goes on: look for an operation in "
    "place in the model or in what wraps it, and let it work on a copy"
)


class Conduct:
    """What a model must not do: write into x, or over an answer that is still needed.

    A tensor counts how often it was written to, but for those of inference mode, as the host has them. There x is
    compared with a copy, in the first evaluation of a run. An answer in the memory of an earlier one is told from that
    by their checksums: a model may always return one and the same stored tensor. Nothing is read back before the end.
    """

    def __init__(self, needed: int):
        self.changed: list[Tensor] = []
        """Whether x was written to, if that is to be read back."""
        self._answers: deque[tuple[int, int]] = deque(maxlen=needed)
        self._over: list[tuple[int, int]] = []

    def before(self, x: Tensor) -> int | Tensor | None:
        """What to know of x before an evaluation."""
        if self.changed:
            return None
        return x.clone() if x.is_inference() or torch.is_inference_mode_enabled() else x._version

    def after(self, x: Tensor, before: int | Tensor | None) -> None:
        """Look whether x is what it was.

        Raises:
            ValueError: if it is known not to be.
        """
        if isinstance(before, Tensor):
            self.changed.append((x != before).any())
        elif before is not None and before != x._version:
            raise ValueError(_WRITTEN)

    def answered(self, answer: Tensor | None, number: int) -> None:
        """Note an answer that is remembered as it is, by the number of its checksum; None for one that is not."""
        place = 0 if answer is None else answer.data_ptr()
        for earlier, its_number in self._answers if place else ():
            if earlier == place:
                self._over.append((its_number, number))
        self._answers.appendleft((place, number))

    def check(self, checksums: Sequence[float], changed: bool) -> None:
        """Raise ValueError if something was written to, by what was read back."""
        if changed:
            raise ValueError(_WRITTEN)
        if any(checksums[earlier] != checksums[now] for earlier, now in self._over):
            raise ValueError(
                "the model wrote over a prediction that it had returned and that the sampler still needs: let it "
                "return a new tensor each time, or a copy of its buffer"
            )


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
    check_like(drawn, x, "noise_sampler must return noise")
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
    (key, c), *rest = [(key, c) for key, c in update.terms.items() if isinstance(c, Tensor) or c]
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
        needed = 1 + max(stage.update.terms, default=-1)
        if needed > known or (known == given and (needed > 0 or DENOISED.terms.keys() & stage.update.terms.keys())):
            raise ValueError(
                f"step {stage.step + 1} needs the last {needed} predictions and there are {known}: a plan that goes on "
                "from another begins with an evaluation and needs the predictions before it as history"
            )
        longest = max(longest, needed)
    return longest


def level_tensor(sigma: Scalar, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The sigma of an evaluation as the model wants it, [B], on the device of x."""
    if isinstance(sigma, Tensor):
        return sigma.to(x.device, dtype).expand(x.shape[0])
    return x.new_full((x.shape[0],), sigma, dtype=dtype)


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


def check_like(answer: Any, x: Tensor, what: str) -> None:
    """Raise ValueError unless an answer is a floating-point tensor shaped like x."""
    if not isinstance(answer, Tensor) or answer.shape != x.shape:
        got = f"a tensor of shape {list(answer.shape)}" if isinstance(answer, Tensor) else type(answer).__name__
        raise ValueError(f"the {what}, shaped like x, {list(x.shape)}; it returned {got}")
    if answer.dtype not in FLOATS:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOATS)
        raise ValueError(f"the {what} in one of {known}; it returned a tensor of {answer.dtype}")


def checksum(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A sum is finite only if its terms are: the cheapest check that needs no answer now."""
    return tensor.sum() if tensor.dtype == dtype else tensor.sum(dtype=dtype)


_BROKEN_START = "x holds NaN or infinity: the latent or the noise that the run starts from is broken"


def non_finite(step: int, steps: int, sigma: Scalar, dtype: torch.dtype = torch.float32) -> NonFiniteError:
    """The error that names the step and what to try; `dtype` is that of the sample."""
    narrow = "; the sample is in fp16 and may have gone beyond it: use a wider dtype for it"
    return NonFiniteError(
        f"the model returned NaN or infinity at step {step + 1} of {steps} "
        f"(sigma = {value(sigma):.6g}); try a higher precision for the model (bf16 or fp32), a lower "
        "guidance scale, or look for a broken LoRA or checkpoint" + (narrow if dtype == torch.float16 else "")
    )


def check_finite(
    checksums: Sequence[float],
    evaluated: Sequence[tuple[int, Scalar]],
    steps: int,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Were the first sample, all predictions and the last sample finite? Raises NonFiniteError, naming what was not."""
    first, *predictions, last = checksums
    if not math.isfinite(first):
        raise NonFiniteError(_BROKEN_START)
    for checked, (step, sigma) in zip(predictions, evaluated, strict=True):
        if not math.isfinite(checked):
            raise non_finite(step, steps, sigma, dtype)
    if not math.isfinite(last):
        raise NonFiniteError("the sample overflowed although every prediction was finite: use a wider dtype for it")


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
