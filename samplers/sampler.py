"""A sampler: its solver, what it is called, and the way from sigmas and options to a sample."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, get_type_hints

import torch
from torch import Tensor

from . import detail
from .gaussian import too_long
from .integrate import AdaptiveSolver, Model, NoiseSampler, check_sample, integrate
from .levels import REPEATS, GivenLevels, Levels, check_run, read_run, read_sigmas
from .noise import BrownianNoise, noise_for, random_seed
from .options import Option, options_of
from .phi import Scalar, value
from .plan import Plan, Solver, Stage, as_given, economical, takes_apart
from .spec import Spec, declare

S_NOISE = Option("s_noise", 1.0, "Multiplies the added noise. Slightly above 1 gives more detail.", 0.0, 10.0)
NOISE_DEVICE = Option(
    "noise_device",
    "cpu",
    "Where the added noise is drawn. cpu: the same image on every machine. gpu: on the device of the model, faster for "
    "large latents, other noise on another kind of device.",
    choices=("cpu", "gpu"),
)


@dataclass(frozen=True, kw_only=True)
class SamplerSpec(Spec):
    """A sampler: its solver, what it is called, what it costs.

    Each that has a plan has the options of `detail` beside its own, a stochastic one also `s_noise` and `noise_device`.
    """

    solver: Solver
    """The mathematics: levels and options in, stages out."""

    order: int
    """Order of convergence in the largest step of lambda, from exact starting history, without noise, with
    `lower_order_final` and the corrector off, and `solver_type` = `exact` where there is one (its default,
    `published`, has order 2)."""

    @cached_property
    def solver_options(self) -> tuple[Option, ...]:
        """Those of the solver."""
        return options_of(self.solver)

    @cached_property
    def options(self) -> tuple[Option, ...]:
        return *self.solver_options, *self.common

    @property
    def common(self) -> tuple[Option, ...]:
        noise = (S_NOISE, NOISE_DEVICE) if self.stochastic else ()
        return noise if self.adaptive else (*noise, *detail.OPTIONS)

    @cached_property
    def adaptive(self) -> bool:
        """Whether it decides its steps as it goes, so that there is no plan: its solver says that it returns an
        `AdaptiveSolver`."""
        return bool(get_type_hints(self.solver).get("return") == AdaptiveSolver)

    @cached_property
    def stochastic(self) -> bool:
        """Whether it can add noise."""
        return self.noise_option is not None or self.adds_noise

    @cached_property
    def adds_noise(self) -> bool:
        """Whether it does with the options at their defaults."""
        return self._adds_noise({})

    @cached_property
    def noise_option(self) -> Option | None:
        """The option that says how much noise is added: at 0 there is none, at its maximum there is."""
        amounts = (option for option in self.solver_options if option.minimum == 0)
        noisy = self._adds_noise
        return next(
            (o for o in amounts if noisy({o.name: o.maximum}) and not noisy({o.name: type(o.default)(0)})), None
        )

    @cached_property
    def paired(self) -> bool:
        """Whether it evaluates once at each level and takes two of them for a step: the first and the second, the third
        and the fourth, and so on."""
        stages = () if self.adaptive else tuple(self.solver(_SOME_LEVELS))
        return [stage.completes for stage in stages] == [k % 2 == 1 for k in range(len(_SOME_LEVELS) - 1)]

    @cached_property
    def singlestep(self) -> bool:
        """Whether no step uses a prediction from before it."""
        made, started = 0, True
        for stage in () if self.adaptive else self.solver(_SOME_LEVELS):
            made = stage.remembers + (0 if started else made)
            if stage.update.reach > made:
                return False
            started = stage.completes
        return True

    @cached_property
    def takes_apart(self) -> bool:
        """Whether it needs a model that gives the prediction without the prompt beside the guided one (`Guided`)."""
        return not self.adaptive and takes_apart(self.solver(_SOME_LEVELS))

    @cached_property
    def at_given_levels(self) -> Mapping[str, str]:
        """The choices by which it evaluates at the levels that it is given, where it evaluates as often by default, but
        moves some of them."""

        def evaluated(**choice: str) -> list[Scalar | None]:
            return [stage.sigma for stage in self.solver(_UNEVEN_LEVELS, **choice)]

        given = [*_UNEVEN_LEVELS.sigmas[:-1]]
        if self.adaptive or len(default := evaluated()) != len(given) or default == given:
            return {}
        choices = ({option.name: choice} for option in self.solver_options for choice in option.choices)
        return next((choice for choice in choices if evaluated(**choice) == given), {})

    def solver_arguments(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of the solver alone, defaults filled in; raises ValueError as `check_options`."""
        checked = self.check_options(given)
        return {option.name: checked[option.name] for option in self.solver_options}

    def stages(self, levels: Levels, options: Mapping[str, Any]) -> Iterator[Stage]:
        """Those of the solver under all of the options, checked: its noise times `s_noise`, with `detail`."""
        return _stages(self.solver, levels, options)

    def _adds_noise(self, options: Mapping[str, Any]) -> bool:
        return not self.adaptive and any(stage.noise for stage in self.solver(_SOME_LEVELS, **options))

    def prepare(
        self, sigmas: Tensor | Sequence[float], *, flow: bool = False, model_shift: float = 1.0, **options: Any
    ) -> PreparedRun:
        """A run on these sigmas with these options, which are read and checked here, once.

        Raises:
            ValueError: naming the sigma, the shift or the option at fault.
        """
        checked = self.check_options(options)
        if self.adaptive:
            return PreparedRun(self, check_run(read_sigmas(sigmas), flow, model_shift), (), checked)
        of_solver = {name: given for name, given in checked.items() if name != NOISE_DEVICE.name}
        if isinstance(sigmas, Tensor) and sigmas.requires_grad:
            run = read_run(sigmas, flow, model_shift)
            return PreparedRun(self, run, _make_plan(self.solver, run, of_solver), checked)
        values = read_sigmas(sigmas)
        planned = _planned if len(values) > _LONG else _cached_plan
        run, stages, missed_by = planned(self.solver, values, flow, model_shift, tuple(of_solver.items()))
        return PreparedRun(self, run, stages, checked, missed_by)

    def plan(
        self, sigmas: Tensor | Sequence[float], *, flow: bool = False, model_shift: float = 1.0, **options: Any
    ) -> Plan:
        """The stages for these sigmas; none where no two levels differ. With sigmas that require gradients, so do the
        coefficients. A level that repeats the one before is left out, its number as well.

        Raises:
            ValueError: naming the sigma or the option at fault, or if the sampler is adaptive.
        """
        return self.prepare(sigmas, flow=flow, model_shift=model_shift, **options).plan

    def nfe(self, sigmas: Tensor | Sequence[float], *, flow: bool = False, **options: Any) -> int:
        """The number of model evaluations (NFE) that `function` makes for these sigmas.

        Raises:
            ValueError: as `plan`.
        """
        return sum(stage.sigma is not None for stage in self.plan(sigmas, flow=flow, **options))

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
        model_shift: float = 1.0,
        noise_scale: float = 1.0,
        info: dict[str, int] | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample, with the signature of k-diffusion.

        Args:
            model: a k-diffusion denoiser, `model(x, sigma, **extra_args) -> denoised`, sigma of shape [B]; for
                a sampler that `takes_apart` one that answers with `Guided`.
            x: noise of the first level, [B, C, ...], 3-D to 5-D: sigmas[0] times unit noise (plus alpha x_0).
            sigmas: 1-D, descending, n + 1 levels for n steps, ending in 0 for a clean image; ascending inverts. A level
                that repeats the one before is no step, which the log says. Without a step x is returned as it is.
            extra_args: passed on to the model.
            callback: called once a step with a dict of `x`, `i`, `sigma`, `sigma_hat`, `denoised`.
            disable: hides the progress bar.
            noise_sampler: `noise_sampler(sigma, sigma_next)` gives the noise that a stochastic sampler adds, shaped
                like x and of unit variance. Without one it is `BrownianNoise`.
            seed: of that noise, one number for the batch or one per image; without it `extra_args["seed"]`, and without
                that a number from torch's generator. An image in a batch is that of its own seed alone.
            flow: levels of a rectified-flow model, x_t = (1 - sigma) x_0 + sigma noise.
            model_shift: the time shift of that model, s sigma / (1 + (s - 1) sigma), for `sa_solver`, which adds noise
                in a part of the model's time.
            noise_scale: the standard deviation of that noise, if the model was trained with another than 1; added noise
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
        return self.prepare(sigmas, flow=flow, model_shift=model_shift, **options).sample(
            model,
            x,
            extra_args,
            callback,
            disable,
            noise_sampler=noise_sampler,
            seed=seed,
            noise_scale=noise_scale,
            info=info,
        )


_SOME_LEVELS = Levels((8.0, 4.0, 2.0, 1.0, 0.5))
_UNEVEN_LEVELS = Levels((8.0, 5.0, 2.0, 0.7, 0.5))


class PreparedRun(NamedTuple):
    """A sampler with the levels and options of a run."""

    spec: SamplerSpec
    run: GivenLevels
    stages: Plan
    """None for an adaptive sampler."""

    options: Mapping[str, Any]
    """All of the sampler's, checked."""

    missed_by: float | None = None
    """See `too_long`."""

    @property
    def warnings(self) -> list[str]:
        """What is to be said of the levels."""
        said = [REPEATS] if self.run.repeats else []
        if self.missed_by is not None:
            said.append(
                "a step is too long for this sampler: even normally distributed data would come out wrong by "
                f"{self.missed_by:.1f} standard deviations, and ddim does better with the same sigmas. Use more steps, "
                "another sampler or a plan"
            )
        return said

    @property
    def plan(self) -> Plan:
        """The stages.

        Raises:
            ValueError: if the sampler is adaptive.
        """
        if self.spec.adaptive:
            raise ValueError(f"{self.spec.id} decides its steps as it goes: it has no plan")
        return self.stages

    @torch.no_grad()
    def sample(
        self,
        model: Model,
        x: Tensor,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        *,
        noise_sampler: NoiseSampler | None = None,
        seed: int | Sequence[int] | None = None,
        noise_scale: float = 1.0,
        info: dict[str, int] | None = None,
    ) -> Tensor:
        """The sample; arguments and errors as in `SamplerSpec.function`."""
        check_sample(x)
        plan: Plan | AdaptiveSolver
        own_noise: BrownianNoise | None = None
        if self.spec.adaptive and len(self.run.levels) > 1:
            decides = self.spec.solver(self.run.levels, **self.options)
            assert isinstance(decides, Generator)
            plan = _decided(decides, self.run)
        else:
            plan = stages = tuple(_noise_times(noise_scale, self.stages))
            if noise_sampler is None and any(stage.noise for stage in stages):
                device = x.device if self.options.get(NOISE_DEVICE.name) == "gpu" else "cpu"
                seeds, flow = _noise_seed(seed, extra_args or {}), self.run.levels.flow
                own_noise = noise_for(stages, x, seeds, flow=flow, device=device)
        for text in self.warnings:
            logging.warning("%s: %s", self.spec.id, text)
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


_NOT_OF_SOLVERS = {option.name for option in (S_NOISE, NOISE_DEVICE, *detail.OPTIONS)}


def _stages(solver: Solver, levels: Levels, options: Mapping[str, Any]) -> Iterator[Stage]:
    """The stages of a solver, their noise times `s_noise`, with `detail`."""
    of_solver = {name: given for name, given in options.items() if name not in _NOT_OF_SOLVERS}
    of_detail = {option.name: options[option.name] for option in detail.OPTIONS if option.name in options}
    stages = _noise_times(options.get(S_NOISE.name, 1.0), solver(levels, **of_solver))
    return detail.with_detail(stages, levels, **of_detail)


def _make_plan(solver: Solver, run: GivenLevels, options: Mapping[str, Any]) -> Plan:
    """The stages of a run.

    Raises:
        ValueError: if float64 cannot hold a coefficient.
    """
    if len(run.levels) < 2:
        return ()
    try:
        stages = economical(_stages(solver, run.levels, options))
    except ArithmeticError as error:
        first, last = (value(run.levels[k].sigma) for k in (0, len(run.levels) - 1))
        raise ValueError(
            f"sigmas from {first:g} to {last:g} hold two levels that are too close or too far apart to compute a step "
            f"in float64 ({error})"
        ) from None
    return stages if run.as_given else tuple(as_given(stage, run) for stage in stages)


def _decided(stages: AdaptiveSolver, run: GivenLevels) -> AdaptiveSolver:
    """The stages of a solver that decides as it goes, in the terms of who gave the levels."""
    state = None
    try:
        while True:
            state = yield as_given(stages.send(state), run)  # type: ignore[arg-type]  # None starts it
    except StopIteration as end:
        return end.value


def _noise_times(factor: float, stages: Iterable[Stage]) -> Iterator[Stage]:
    """The stages with their noise multiplied."""
    return (_scaled(stage, factor) if stage.noise and factor != 1 else stage for stage in stages)


def _scaled(stage: Stage, factor: float) -> Stage:
    assert stage.noise is not None
    noise = stage.noise._replace(scale=factor * stage.noise.scale) if factor else None
    return stage._replace(noise=noise)


_LONG = 200  # levels of a plan that is not worth keeping


def _planned(
    solver: Solver, sigmas: tuple[float, ...], flow: bool, shift: float, options: tuple[tuple[str, Any], ...]
) -> tuple[GivenLevels, Plan, float | None]:
    run, chosen = check_run(sigmas, flow, shift), dict(options)
    stages = _make_plan(solver, run, chosen)
    leaves_path = chosen.get(detail.DETAIL.name) or chosen.get(S_NOISE.name) == 0  # on purpose, whatever its steps
    return run, stages, None if leaves_path else too_long(stages, run.levels)


_cached_plan = functools.lru_cache(maxsize=64)(_planned)  # artists run the same few schedules over and over


DECLARED: dict[str, SamplerSpec] = {}
"""Every sampler that a decorator has declared, by id."""

SolverT = TypeVar("SolverT", bound=Solver)


def sampler(label: str, *, paper: str, help: str, order: int, curated: bool = False) -> Callable[[SolverT], SolverT]:
    """Declare a solver to be a sampler; see `SamplerSpec`. Its name is the id, its keyword arguments are the options.

    It stays the function that it is. `SAMPLERS` lists the id as well, in its place.
    """

    def declared(solver: SolverT) -> SolverT:
        spec = SamplerSpec(
            id=solver.__name__, label=label, paper=paper, help=help, order=order, curated=curated, solver=solver
        )
        declare(spec, DECLARED)
        return solver

    return declared
