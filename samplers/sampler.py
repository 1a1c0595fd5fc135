"""What a sampler or a schedule is to those who use it: its options and their checks, its plan, its function."""

from __future__ import annotations

import difflib
import functools
import itertools
import logging
import math
import operator
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from .checks import shortened
from .integrate import AdaptiveSolver, Model, NoiseSampler, check_sample, integrate
from .levels import REPEATS, Run, pure_noise, read_run, read_sigmas
from .noise import BrownianNoise, noise_for, random_seed
from .phi import value
from .plan import Plan, Stage, as_given, economical


@dataclass(frozen=True)
class Option:
    """One option of a sampler or schedule: its default (whose type is the option's), bounds and help text."""

    name: str
    default: float | int | bool | str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    step: float = 0.01
    """In which a widget counts it."""

    def check(self, owner: str, value: Any) -> Any:
        """The value, of the option's type; raises ValueError naming the option if it does not fit."""
        where = f"{owner}: option {self.name} = {shortened(value)}"
        if isinstance(self.default, bool):
            if not isinstance(value, (bool, int)) or value not in (0, 1):
                raise ValueError(f"{where} must be true or false")
            return bool(value)
        if isinstance(self.default, str):
            if not isinstance(value, str) or value not in self.choices:
                raise ValueError(f"{where} must be one of {', '.join(self.choices)}")
            return value
        try:
            number = operator.index(value) if isinstance(self.default, int) else float(value)
        except OverflowError:  # a whole number of more digits than a float holds
            number = math.inf if value > 0 else -math.inf
        except (TypeError, ValueError, RuntimeError):  # the last of tensors with several elements
            raise ValueError(f"{where} must be a number") from None
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if not low <= number <= high:
            raise ValueError(f"{where} must lie between {low:g} and {high:g}")
        return number


@dataclass(frozen=True, kw_only=True)
class _Spec:
    id: str
    label: str
    paper: str
    help: str
    options: tuple[Option, ...] = ()
    curated: bool = True
    """Whether the host's dropdowns show it; the nodes show all."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", (*self.options, *self.common))

    @property
    def common(self) -> tuple[Option, ...]:
        """Those of `options` that every one of its kind has."""
        return ()

    def check_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options, defaults filled in.

        Raises:
            ValueError: naming an option that is unknown or out of bounds.
        """
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                raise ValueError(
                    f"{self.id} has no option {shortened(name)}; its options are: {', '.join(known) or 'none'}"
                )
        return {name: o.check(self.id, given.get(name, o.default)) for name, o in known.items()}

    def changed_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the given options that are not at their default."""
        defaults = {option.name: option.default for option in self.options}
        return {name: value for name, value in self.check_options(given).items() if value != defaults[name]}


S_NOISE = Option("s_noise", 1.0, "Multiplies the fresh noise. Slightly above 1 brings back detail.", 0.0, 10.0)
NOISE_DEVICE = Option(
    "noise_device",
    "cpu",
    "Where fresh noise is drawn. cpu: the same image on every machine. gpu: on the device of the model, faster for "
    "large latents, other noise on another kind of device.",
    choices=("cpu", "gpu"),
)


@dataclass(frozen=True, kw_only=True)
class SamplerSpec(_Spec):
    """A sampler: its solver, what it is called, what it costs.

    A stochastic one has the options `s_noise` and `noise_device` beside its own.
    """

    solver: Callable[..., Iterator[Stage]]
    """The mathematics: levels and options in, stages out."""

    order: int
    """Order of convergence in the largest step of lambda, from exact starting history, without noise, with
    `lower_order_final` and the corrector off, and `solver_type` = `exact` where there is one (its default,
    `published`, has order 2)."""

    stochastic: bool = False
    """Whether it can add fresh noise."""

    adaptive: bool = False
    """Whether it decides its steps as it goes, so that there is no plan."""

    @property
    def common(self) -> tuple[Option, ...]:
        return (S_NOISE, NOISE_DEVICE) if self.stochastic else ()

    def plan(self, sigmas: Tensor | Sequence[float], *, flow: bool = False, **options: Any) -> Plan:
        """The stages for these sigmas; none where no two levels differ. With sigmas that require gradients, so do the
        coefficients. A level that repeats the one before is left out, its number as well.

        Raises:
            ValueError: naming the sigma or the option at fault, or if the sampler is adaptive.
        """
        if self.adaptive:
            raise ValueError(f"{self.id} decides its steps as it goes: it has no plan")
        return self._planned(sigmas, flow, options).plan

    def _planned(self, sigmas: Tensor | Sequence[float], flow: bool, options: Mapping[str, Any]) -> _Planned:
        options = self.check_options(options)
        options.pop(NOISE_DEVICE.name, None)
        if isinstance(sigmas, Tensor) and sigmas.requires_grad:
            return _make_plan(self.solver, read_run(sigmas, flow), options)
        values = read_sigmas(sigmas)
        if len(values) > _LONG:
            return _make_plan(self.solver, read_run(values, flow), options)
        return _cached_plan(self.solver, values, flow, tuple(options.items()))

    def nfe(self, sigmas: Tensor | Sequence[float], *, flow: bool = False, **options: Any) -> int:
        """The number of model evaluations (NFE) that `function` makes for these sigmas.

        Raises:
            ValueError: as `plan`.
        """
        return sum(stage.sigma is not None for stage in self.plan(sigmas, flow=flow, **options))

    @torch.no_grad()
    def function(
        self,
        model: Model,
        x: Tensor,
        sigmas: Tensor | Sequence[float],
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: NoiseSampler | None = None,
        seed: int | Sequence[int] | None = None,
        flow: bool = False,
        noise_scale: float = 1.0,
        info: dict[str, int] | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample, with the signature of k-diffusion.

        Args:
            model: a k-diffusion denoiser, `model(x, sigma, **extra_args) -> denoised`, sigma of shape [B].
            x: noise of the first level, [B, C, ...], 3-D to 5-D: sigmas[0] times unit noise (plus alpha x_0).
            sigmas: 1-D, descending, n + 1 levels for n steps, ending in 0 for a clean image; ascending inverts. A level
                that repeats the one before is no step, which the log says. Without a step x is returned as it is.
            extra_args: passed on to the model.
            callback: called once a step with a dict of `x`, `i`, `sigma`, `sigma_hat`, `denoised`.
            disable: hides the progress bar.
            noise_sampler: `noise_sampler(sigma, sigma_next)` gives the fresh noise of a stochastic sampler, shaped like
                x and of unit variance. Without one it is `BrownianNoise`.
            seed: of that noise, one number for the batch or one per image; without it `extra_args["seed"]`, and without
                that a number from torch's generator. An image in a batch is that of its own seed alone.
            flow: levels of a rectified-flow model, x_t = (1 - sigma) x_0 + sigma noise.
            noise_scale: the standard deviation of that noise, if the model was trained with another than 1; fresh noise
                is multiplied by it, beside `s_noise`.
            info: a dict that is given `nfe`, the evaluations made; by `dpm_adaptive` also `n_accept` and `n_reject`.
            options: those of this sampler.

        Returns:
            The sample at sigmas[-1], shaped and typed like x. At sigma = 0 it is the model's last prediction itself:
            copy it before writing to it.

        Raises:
            ValueError: naming the argument at fault.
            NonFiniteError: if the model returned NaN or infinity, naming the step.
        """
        check_sample(x)
        plan: Plan | AdaptiveSolver
        own_noise: BrownianNoise | None = None
        if self.adaptive:
            options, run = self.check_options(options), read_run(read_sigmas(sigmas), flow)
            decisions, repeats = self.solver(run.levels, **options), run.repeats
            assert isinstance(decisions, Generator)
            plan = _decided(decisions, run) if len(run.levels) > 1 else ()
        else:
            plan, repeats = self._planned(sigmas, flow, options)
            plan = _noise_times(noise_scale, plan)
            if noise_sampler is None and any(stage.noise for stage in plan):
                device = x.device if options.get(NOISE_DEVICE.name) == "gpu" else "cpu"
                own_noise = noise_for(plan, x, _noise_seed(seed, extra_args or {}), flow=flow, device=device)
        if repeats:
            logging.warning("%s: %s", self.id, REPEATS)
        try:
            return integrate(
                model,
                x,
                plan,
                extra_args=extra_args,
                callback=callback,
                disable=disable,
                noise_sampler=own_noise or noise_sampler,
                info=info,
            )
        finally:
            if own_noise is not None:
                own_noise.close()


def _noise_seed(seed: int | Sequence[int] | None, extra_args: Mapping[str, Any]) -> int | Sequence[int]:
    """As given, as the host gives it in extra_args, or a new one."""
    seed = extra_args.get("seed") if seed is None else seed
    return random_seed() if seed is None else seed


class _Planned(NamedTuple):
    plan: Plan
    repeats: bool
    """As of `Run`."""


def _make_plan(solver: Callable[..., Iterator[Stage]], run: Run, options: dict[str, Any]) -> _Planned:
    """The stages of a solver, their noise times s_noise.

    Raises:
        ValueError: if float64 cannot hold a coefficient.
    """
    s_noise = options.pop(S_NOISE.name, 1.0)
    if len(run.levels) < 2:
        return _Planned((), run.repeats)
    try:
        stages = _noise_times(s_noise, economical(solver(run.levels, **options)))
    except ArithmeticError as error:
        first, last = (value(run.levels[k].sigma) for k in (0, len(run.levels) - 1))
        raise ValueError(
            f"sigmas from {first:g} to {last:g} hold two levels that are too close or too far apart to compute a step "
            f"in float64 ({error})"
        ) from None
    if not run.as_given:
        stages = tuple(as_given(stage, run) for stage in stages)
    return _Planned(stages, run.repeats)


def _decided(decisions: AdaptiveSolver, run: Run) -> AdaptiveSolver:
    """The stages of a solver that decides as it goes, in the terms of who gave the levels."""
    state = None
    try:
        while True:
            state = yield as_given(decisions.send(state), run)  # type: ignore[arg-type]  # None starts it
    except StopIteration as end:
        return end.value


def _noise_times(factor: float, plan: Plan) -> Plan:
    """The plan with its fresh noise multiplied."""
    if factor == 1:
        return plan
    return tuple(_scaled(stage, factor) if stage.noise else stage for stage in plan)


def _scaled(stage: Stage, factor: float) -> Stage:
    assert stage.noise is not None
    noise = stage.noise._replace(scale=factor * stage.noise.scale) if factor else None
    return stage._replace(noise=noise)


_LONG = 200  # levels of a plan that is not worth keeping


@functools.lru_cache(maxsize=64)
def _cached_plan(
    solver: Callable[..., Iterator[Stage]], sigmas: tuple[float, ...], flow: bool, options: tuple[tuple[str, Any], ...]
) -> _Planned:
    """Artists run the same few schedules over and over."""
    return _make_plan(solver, read_run(sigmas, flow), dict(options))


SigmaT = TypeVar("SigmaT", float, Tensor)

DISCARD_PENULTIMATE = Option(
    "discard_penultimate",
    False,
    "Leave out the last level above 0, so that the final step starts one level higher. Saves a step that does "
    "little: often better below 10 steps.",
)
SHIFT = Option(
    "shift",
    0.0,
    "Time shift of rectified-flow models; above 1 it moves the steps to high noise, 1 is none. 0 is automatic: the "
    "model's own where the schedule runs in its time (time_uniform, time_quadratic, beta), none elsewhere.",
    0.0,
    100.0,
)
START_STEP = Option("start_step", 0, "Leave out the steps before this one, as in KSampler (Advanced).", 0, 10000)
END_STEP = Option("end_step", 10000, "Stop before this step, as in KSampler (Advanced): noise is left.", 1, 10000)


_MOST_STEPS = 1_000_000  # the host's 10,000 at its lowest denoise, 0.01


def _shifted(sigma: SigmaT, shift: float) -> SigmaT:
    """The time shift of rectified flow, sigma / (1 - sigma) times `shift`. That by 1 / shift undoes it.

    Esser et al. 2024 (SD3), arXiv 2403.03206, section 5.3.2.
    """
    return sigma / (sigma + (1 - sigma) / shift)  # 1 stays 1 exactly


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec(_Spec):
    """A schedule of noise levels.

    Beside its own options each has `discard_penultimate`, `shift`, `start_step` and `end_step`.
    """

    levels: Callable[..., Tensor]
    """The mathematics: n levels from sigma_max to sigma_min."""

    ends_at_sigma_min: bool = True
    """Whether the last of them is sigma_min. If not, it is a level of the schedule's own."""

    in_time: bool = False
    """Whether it runs in the time of a flow model, to which the model's own shift belongs."""

    @property
    def common(self) -> tuple[Option, ...]:
        return DISCARD_PENULTIMATE, SHIFT, START_STEP, END_STEP

    def function(
        self,
        n: int,
        sigma_min: float,
        sigma_max: float,
        *,
        flow: bool = False,
        model_shift: float = 1.0,
        denoise: float = 1.0,
        **options: Any,
    ) -> Tensor:
        """n + 1 descending sigmas, [n + 1] in float64, from sigma_max (exactly) over sigma_min to 0.

        With n = 1 they are sigma_max and 0.

        Args:
            n: number of steps.
            sigma_min: lowest level of the model above 0.
            sigma_max: its highest level.
            flow: levels of a rectified-flow model, at most 1.
            model_shift: the time shift of that model, s sigma / (1 + (s - 1) sigma).
            denoise: above 0, at most 1: the last n steps of a schedule of n / denoise steps.
            options: those of this schedule. With `discard_penultimate` it is the schedule of n + 1 steps without its
                last level above 0. `start_step` and `end_step` cut what the others give.

        Raises:
            ValueError: naming the argument at fault.
        """
        try:
            steps = operator.index(n)
        except TypeError:
            raise ValueError(f"{self.id}: steps = {shortened(n)} must be a whole number") from None
        if not 1 <= steps <= _MOST_STEPS:
            raise ValueError(f"{self.id}: steps = {shortened(steps)} must be at least 1 and at most {_MOST_STEPS:,}")
        low, given_high = self._float("sigma_min", sigma_min), self._float("sigma_max", sigma_max)
        denoise, model_shift = self._float("denoise", denoise), self._float("model_shift", model_shift)
        high = pure_noise(given_high) if flow else given_high
        if not 0 < low < high < math.inf:
            raise ValueError(
                f"{self.id}: sigma_min = {low:g} and sigma_max = {high:g} must be finite with 0 < sigma_min < sigma_max"
            )
        if flow and high > 1:
            raise ValueError(f"{self.id}: sigma_max = {high}: the levels of a rectified-flow model end at 1")
        if not 0 < denoise <= 1:
            raise ValueError(f"{self.id}: denoise = {denoise:g} must be above 0 and at most 1")
        if not 0 < model_shift < math.inf:
            raise ValueError(f"{self.id}: model_shift = {model_shift:g} must be positive and finite")
        options = self.check_options(options)
        discard, shift, start, end = (options.pop(option.name) for option in self.common)
        if not flow and shift not in (0, 1):
            raise ValueError(f"{self.id}: option shift = {shift:g} is for rectified-flow models: leave it at 0")
        end = steps if end == END_STEP.default else min(end, steps)
        if start >= end:
            raise ValueError(
                f"{self.id}: options start_step = {start} and end_step = {end} leave none of the {steps} steps"
            )
        shift = shift or (model_shift if flow and self.in_time else 1.0)
        if steps / denoise > _MOST_STEPS:
            raise ValueError(
                f"{self.id}: steps / denoise = {steps / denoise:g}, the steps of the whole schedule, must be at most "
                f"{_MOST_STEPS:,}: raise denoise, or use fewer steps"
            )
        total = max(int(steps / denoise), steps)
        if shift == 1:
            sigmas = self.levels(total + discard, low, high, flow=flow, **options)
        else:
            ends = _shifted(low, 1 / shift), _shifted(high, 1 / shift)
            sigmas = _shifted(self.levels(total + discard, *ends, flow=flow, **options), shift)
        if self.ends_at_sigma_min:
            sigmas[-1] = low  # exact, as is the first: rounding must not leave the model's range
        sigmas[0] = given_high  # 1 to rounding, as the model has it
        sigmas = torch.cat([sigmas[:total], sigmas.new_zeros(1)])[-(steps + 1) :]
        self._check_descent(sigmas)
        return sigmas[start : end + 1]

    def _float(self, name: str, given: Any) -> float:
        """Raises ValueError, naming it, if it is no number."""
        try:
            return float(given)
        except OverflowError:  # a whole number of more digits than a float holds
            return math.inf if given > 0 else -math.inf
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"{self.id}: {name} = {shortened(given)} must be a number") from None

    def _check_descent(self, sigmas: Tensor) -> None:
        """Raises ValueError if two levels are one in float32, the precision in which the host hands them on."""
        levels = sigmas.float().tolist()
        for i, (a, b) in enumerate(itertools.pairwise(levels)):
            if not a > b:
                raise ValueError(
                    f"{self.id}: with {len(levels) - 1} steps, levels {i} and {i + 1} are both {b:g} in float32: use "
                    "fewer steps, or options closer to their defaults"
                )


SpecT = TypeVar("SpecT", bound=_Spec)


class UnknownIdError(KeyError):
    """There is no sampler or schedule of that id; the message says which there are."""

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show it in quotes


class Registry(Mapping[str, SpecT], Generic[SpecT]):
    """Specs by id, in order."""

    def __init__(self, kind: str, specs: Sequence[SpecT]):
        self._kind = kind
        self._specs = {spec.id: spec for spec in specs}

    def __getitem__(self, key: str) -> SpecT:
        try:
            return self._specs[key]
        except KeyError:
            near = difflib.get_close_matches(str(key), self._specs, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self._specs)}"
            raise UnknownIdError(f"unknown {self._kind} {key!r}; {hint}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)
