"""The one list of samplers and schedules. Nodes, dropdowns, tests, benchmarks and tables follow from it.

Adding a sampler is one function and one row.
"""

from __future__ import annotations

import difflib
import functools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from . import adams, classic, dpm_solver, schedules, unipc
from .integrate import Model, NoiseSampler, check_sample, integrate
from .levels import pure_noise, read_levels, read_sigmas
from .plan import Plan, Stage


@dataclass(frozen=True)
class Option:
    """One option of a sampler or schedule: its default (whose type is the option's), bounds and help text."""

    name: str
    default: float | int | bool | str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, owner: str, value: Any) -> Any:
        """The value, of the option's type; raises ValueError naming the option if it does not fit."""
        where = f"{owner}: option {self.name} = {value!r}"
        if isinstance(self.default, bool):
            if not isinstance(value, (bool, int)) or value not in (0, 1):
                raise ValueError(f"{where} must be true or false")
            return bool(value)
        if isinstance(self.default, str):
            if value not in self.choices:
                raise ValueError(f"{where} must be one of {', '.join(self.choices)}")
            return value
        try:
            number = operator.index(value) if isinstance(self.default, int) else float(value)
        except (TypeError, ValueError):
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

    def check_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options, defaults filled in.

        Raises:
            ValueError: naming an option that is unknown or out of bounds.
        """
        known = {option.name: option for option in self.options}
        for name in given:
            if name not in known:
                raise ValueError(f"{self.id} has no option {name!r}; its options are: {', '.join(known) or 'none'}")
        return {name: o.check(self.id, given.get(name, o.default)) for name, o in known.items()}


@dataclass(frozen=True, kw_only=True)
class SamplerSpec(_Spec):
    """A sampler: its solver, what it is called, what it costs."""

    solver: Callable[..., Iterator[Stage]]
    """The mathematics: levels and options in, stages out."""

    order: int
    """Order of convergence in the largest step of lambda, from exact starting history, with `lower_order_final` and
    the corrector off, and `solver_type` = `exact` where there is one (its default, `published`, has order 2)."""

    def plan(self, sigmas: Tensor | Sequence[float], *, flow: bool = False, **options: Any) -> Plan:
        """The stages for these sigmas. With sigmas that require gradients, so do the coefficients.

        Raises:
            ValueError: naming the sigma or the option at fault.
        """
        options = self.check_options(options)
        if isinstance(sigmas, Tensor) and sigmas.requires_grad:
            return tuple(self.solver(read_levels(sigmas, flow), **options))
        return _cached_plan(self.solver, read_sigmas(sigmas), flow, tuple(options.items()))

    def nfe(self, sigmas: Tensor | Sequence[float], *, flow: bool = False, **options: Any) -> int:
        """The number of model evaluations (NFE) that `function` makes for these sigmas."""
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
        flow: bool = False,
        **options: Any,
    ) -> Tensor:
        """Sample, with the signature of k-diffusion.

        Args:
            model: a k-diffusion denoiser, `model(x, sigma, **extra_args) -> denoised`, sigma of shape [B].
            x: noise of the first level, [B, C, ...], 3-D to 5-D: sigmas[0] times unit noise (plus alpha x_0).
            sigmas: 1-D, descending, n + 1 levels for n steps, ending in 0 for a clean image; ascending inverts.
            extra_args: passed on to the model.
            callback: called once a step with a dict of `x`, `i`, `sigma`, `sigma_hat`, `denoised`.
            disable: hides the progress bar.
            noise_sampler: `noise_sampler(sigma, sigma_next)` gives the noise of a stochastic sampler.
            flow: levels of a rectified-flow model, x_t = (1 - sigma) x_0 + sigma noise.
            options: those of this sampler.

        Returns:
            The sample at sigmas[-1], shaped and typed like x. At sigma = 0 it is the model's last prediction itself:
            copy it before writing to it.

        Raises:
            ValueError: naming the argument at fault.
            NonFiniteError: if the model returned NaN or infinity, naming the step.
        """
        check_sample(x)
        plan = self.plan(sigmas, flow=flow, **options)
        return integrate(
            model, x, plan, extra_args=extra_args, callback=callback, disable=disable, noise_sampler=noise_sampler
        )


@functools.lru_cache(maxsize=64)
def _cached_plan(
    solver: Callable[..., Iterator[Stage]], sigmas: tuple[float, ...], flow: bool, options: tuple[tuple[str, Any], ...]
) -> Plan:
    """Artists run the same few schedules over and over."""
    return tuple(solver(read_levels(sigmas, flow), **dict(options)))


DISCARD_PENULTIMATE = Option(
    "discard_penultimate",
    False,
    "Leave out the last level above 0, so that the final step starts one level higher. Saves a step that does "
    "little: often better below 10 steps.",
)


@dataclass(frozen=True, kw_only=True)
class ScheduleSpec(_Spec):
    """A schedule of noise levels. Every schedule has the option `discard_penultimate` beside its own."""

    levels: Callable[..., Tensor]
    """The mathematics: n levels from sigma_max to sigma_min."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", (*self.options, DISCARD_PENULTIMATE))

    def function(self, n: int, sigma_min: float, sigma_max: float, *, flow: bool = False, **options: Any) -> Tensor:
        """n + 1 descending sigmas, [n + 1] in float64, from sigma_max (exactly) over sigma_min to 0.

        With n = 1 they are sigma_max and 0. With `discard_penultimate` the schedule of n + 1 steps without its
        sigma_min. `flow`: levels of a rectified-flow model, at most 1.

        Raises:
            ValueError: naming the argument at fault.
        """
        try:
            steps = operator.index(n)
        except TypeError:
            raise ValueError(f"{self.id}: steps = {n!r} must be a whole number") from None
        if steps < 1:
            raise ValueError(f"{self.id}: steps = {steps} must be at least 1")
        low, high = float(sigma_min), float(sigma_max)
        if not 0 < low < high < math.inf:
            raise ValueError(
                f"{self.id}: sigma_min = {low:g} and sigma_max = {high:g} must be finite with 0 < sigma_min < sigma_max"
            )
        high = pure_noise(high) if flow else high
        if flow and high > 1:
            raise ValueError(f"{self.id}: sigma_max = {high}: the levels of a rectified-flow model end at 1")
        options = self.check_options(options)
        discard = options.pop(DISCARD_PENULTIMATE.name)
        sigmas = self.levels(steps + discard, low, high, flow=flow, **options)
        sigmas[-1] = low  # exact, as is the first: rounding must not leave the model's range
        sigmas[0] = high
        return torch.cat([sigmas[:steps], sigmas.new_zeros(1)])


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


def _lower_order_final(default: bool) -> Option:
    return Option(
        "lower_order_final",
        default,
        "Lower the order over the last steps. Steadier with few steps; no effect on the step to sigma 0, "
        "which always has order 1.",
    )


_CORRECTED_START = Option(
    "corrected_start",
    False,
    "Take the first step again, with a higher order, once the second prediction is known. Costs no evaluation.",
)
_R = Option("r", 0.5, "Where in the step (in log-SNR) the second evaluation lies.", 0.05, 1.0)
_R1_R2 = (
    Option("r1", 1 / 3, "Where in the step the second evaluation lies; smaller than r2.", 0.05, 0.95),
    Option("r2", 2 / 3, "Where in the step the third evaluation lies. Order 3 needs 2/3.", 0.1, 1.0),
)
_FORM = Option("solver_type", "midpoint", "Form of the update; midpoint is the paper's.", choices=("midpoint", "heun"))
_FORM_3M = Option(
    "solver_type",
    "published",
    "published: the formula of every implementation, which takes half the curvature (order 2 in the limit of many "
    "steps); exact: all of it (order 3).",
    choices=("published", "exact"),
)
_DPM = "Lu et al. 2022, arXiv 2206.00927"
_DPMPP = "Lu et al. 2022, arXiv 2211.01095"

SAMPLERS: Mapping[str, SamplerSpec] = Registry(
    "sampler",
    [
        SamplerSpec(
            id="ddim",
            label="DDIM (DPM-Solver++ 1)",
            paper="Song et al. 2020, arXiv 2010.02502",
            help="First order: robust, soft; the Euler method of sigma space. Good with very high guidance.",
            solver=dpm_solver.ddim,
            order=1,
        ),
        SamplerSpec(
            id="dpmpp_2s",
            label="DPM-Solver++ 2S",
            paper=_DPMPP,
            help="Second order, two evaluations a step. Remembers nothing between steps: it forgives strong guidance.",
            solver=dpm_solver.dpmpp_2s,
            order=2,
            options=(_R, _FORM, _lower_order_final(False)),
        ),
        SamplerSpec(
            id="dpmpp_3s",
            label="DPM-Solver++ 3S",
            paper=_DPMPP,
            help="Third order, three evaluations a step. For exact results with many evaluations and low guidance.",
            solver=dpm_solver.dpmpp_3s,
            order=3,
            options=(*_R1_R2, _FORM, _lower_order_final(False)),
            curated=False,
        ),
        SamplerSpec(
            id="dpmpp_2m",
            label="DPM-Solver++ 2M",
            paper=_DPMPP,
            help="Second order at one evaluation a step. The best all-rounder, with a schedule that fits the steps.",
            solver=dpm_solver.dpmpp_2m,
            order=2,
            options=(_FORM, _lower_order_final(True), _CORRECTED_START),
        ),
        SamplerSpec(
            id="dpmpp_3m",
            label="DPM-Solver++ 3M",
            paper=_DPMPP,
            help="Third order from the last three predictions, one evaluation a step. From 20 steps on, low guidance.",
            solver=dpm_solver.dpmpp_3m,
            order=3,
            options=(_FORM_3M, _lower_order_final(True), _CORRECTED_START),
        ),
        SamplerSpec(
            id="dpm_2s",
            label="DPM-Solver 2S",
            paper=_DPM,
            help="Second order in the noise prediction, two evaluations a step. For low guidance.",
            solver=dpm_solver.dpm_2s,
            order=2,
            options=(_R, _FORM, _lower_order_final(False)),
            curated=False,
        ),
        SamplerSpec(
            id="dpm_3s",
            label="DPM-Solver 3S",
            paper=_DPM,
            help="Third order in the noise prediction, three evaluations a step. For many evaluations, low guidance.",
            solver=dpm_solver.dpm_3s,
            order=3,
            options=(*_R1_R2, _FORM, _lower_order_final(False)),
            curated=False,
        ),
        SamplerSpec(
            id="dpm_2m",
            label="DPM-Solver 2M",
            paper=_DPMPP,
            help="Second order in the noise prediction, one evaluation a step. The base of AMED-Plugin.",
            solver=dpm_solver.dpm_2m,
            order=2,
            options=(_FORM, _lower_order_final(True), _CORRECTED_START),
            curated=False,
        ),
        SamplerSpec(
            id="dpm_3m",
            label="DPM-Solver 3M",
            paper=_DPMPP,
            help="Third order from the last three noise predictions, one evaluation a step. For low guidance.",
            solver=dpm_solver.dpm_3m,
            order=3,
            options=(_FORM_3M, _lower_order_final(True), _CORRECTED_START),
            curated=False,
        ),
        SamplerSpec(
            id="euler",
            label="Euler",
            paper="Karras et al. 2022, arXiv 2206.00364",
            help="First order, the same numbers as ddim.",
            solver=classic.euler,
            order=1,
            curated=False,
        ),
        SamplerSpec(
            id="heun",
            label="Heun",
            paper="Karras et al. 2022, arXiv 2206.00364",
            help="Second order in sigma, two evaluations a step. Steady with low guidance.",
            solver=classic.heun,
            order=2,
            curated=False,
        ),
        SamplerSpec(
            id="rk4",
            label="Runge-Kutta 4",
            paper="Kutta 1901",
            help="Fourth order in sigma, four evaluations a step. For reference images with very many evaluations.",
            solver=classic.rk4,
            order=4,
            curated=False,
        ),
        SamplerSpec(
            id="unipc",
            label="UniPC",
            paper="Zhao et al. 2023, arXiv 2302.04867",
            help="Predictor and corrector at one evaluation a step. A good second opinion to dpmpp_2m.",
            solver=unipc.unipc,
            order=3,
            options=(
                Option("order", 3, "Number of predictions that the predictor uses.", 1, 3),
                Option(
                    "solver_type",
                    "bh2",
                    "The function B(h) of the paper; bh2 is the usual one.",
                    choices=("bh1", "bh2"),
                ),
                Option(
                    "prediction",
                    "data",
                    "What is extrapolated: the data, for guided images, or the noise, for low guidance.",
                    choices=("data", "noise"),
                ),
                Option("corrector", True, "Correct each step with the next prediction; costs no evaluation."),
                _lower_order_final(True),
            ),
        ),
        SamplerSpec(
            id="ipndm",
            label="iPNDM",
            paper="Zhang and Chen 2023, arXiv 2204.13902",
            help="Adams-Bashforth with weights for equal steps of sigma, at one evaluation a step. Order 2 on levels "
            "that are not uniform in sigma, yet often good at few steps.",
            solver=adams.ipndm,
            order=2,
            options=(Option("order", 4, "Number of derivatives used.", 1, 4),),
            curated=False,
        ),
        SamplerSpec(
            id="ipndm_v",
            label="iPNDM, variable steps",
            paper="Zhang and Chen 2023, arXiv 2204.13902",
            help="Adams-Bashforth with the weights of the steps as they are, at one evaluation a step.",
            solver=adams.ipndm_v,
            order=4,
            options=(Option("order", 4, "Number of derivatives used.", 1, 4),),
            curated=False,
        ),
    ],
)
"""Every sampler, by id. The ids and option names are saved in workflows: they stay."""

SCHEDULES: Mapping[str, ScheduleSpec] = Registry(
    "schedule",
    [
        ScheduleSpec(
            id="karras",
            label="Karras",
            paper="Karras et al. 2022, arXiv 2206.00364",
            help="Many steps at low noise. The usual choice from 10 steps on.",
            levels=schedules.karras,
            options=(
                Option("rho", 7.0, "Warp: larger puts more steps at low noise; 1 is uniform in sigma.", 1.0, 100.0),
            ),
        ),
        ScheduleSpec(
            id="exponential",
            label="Exponential (uniform log-SNR)",
            paper="Lu et al. 2022, arXiv 2206.00927",
            help="Equal steps in log-SNR, the solvers' own time.",
            levels=schedules.exponential,
        ),
        ScheduleSpec(
            id="time_uniform",
            label="Time uniform (VP)",
            paper="Song et al. 2021, arXiv 2011.13456",
            help="Equal steps in diffusion time: few at low noise. For flow models equal steps in sigma, unshifted.",
            levels=schedules.time_uniform,
        ),
        ScheduleSpec(
            id="time_quadratic",
            label="Time quadratic (VP)",
            paper="Song et al. 2020, arXiv 2010.02502",
            help="Between uniform time and log-SNR. With discard_penultimate good at 4 to 8 steps.",
            levels=schedules.time_quadratic,
        ),
    ],
)
"""Every schedule, by id."""
