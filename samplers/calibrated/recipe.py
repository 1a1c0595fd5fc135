"""A recipe: a solver with levels and parameters that were fitted to one model, which a run then follows.

It is the numbers of a calibrated plan (`CalibratedPlan`) without where they come from. The coefficients that follow
from it are a `Plan`, as those of any run.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..checks import counted, shortened
from ..detail import DETAIL
from ..integrate import Model, integrate
from ..levels import SAME_LEVEL, Levels, read_levels, read_run, read_sigmas
from ..phi import value
from ..plan import Plan, Stage, analytical_first_step, economical
from ..solvers import SAMPLERS
from .tuning import PLAIN, Tuning, tuned

MOST_LEVELS = 1000
"""Of a recipe. Every reader of a file or text makes its plan."""

_SIGMA = (1e-6, 1e6)  # above 0; models have 2e-4 to 5e3

_BOUNDS = {
    "scale_dir": (0.1, 10.0),
    "scale_time": (0.1, 10.0),
    "slope": (-10.0, 10.0),
    "curvature": (-10.0, 10.0),
    "guidance": (0.0, 100.0),
}


@dataclass(frozen=True)
class Recipe:
    """A base solver on levels of its own, with a `Tuning` for each of them but the last.

    Raises:
        ValueError: naming the field at fault.
    """

    base: str
    """Id of a sampler without noise that evaluates the model once at each level. It may take two of them for a step."""

    sigmas: tuple[float, ...]
    """Descending levels, n + 1 for n evaluations; one alone is a part without a step."""

    flow: bool = False
    """Levels of a rectified-flow model."""

    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Of the base solver."""

    tunings: tuple[Tuning, ...] = ()
    """One for each evaluation; none at all for the base solver as it is."""

    afs: bool = False
    """Whether the first evaluation is left out (`analytical_first_step`)."""

    _plan: Plan = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.sigmas) > MOST_LEVELS:
            raise ValueError(f"sigmas: {len(self.sigmas):,} levels, and a recipe has at most {MOST_LEVELS:,}")
        levels = _reading("sigmas", lambda: _levels_of(self.sigmas, self.flow))
        if len(levels) > 1 and levels[1].sigma > levels[0].sigma:
            raise ValueError("sigmas must descend: a recipe is for sampling")
        for k, sigma in enumerate(levels.sigmas):
            if sigma and not _SIGMA[0] <= sigma <= _SIGMA[1]:
                raise ValueError(f"sigmas[{k}] = {sigma:g} must be 0 or lie between {_SIGMA[0]:g} and {_SIGMA[1]:g}")
        object.__setattr__(self, "sigmas", levels.sigmas)
        if self.base not in SAMPLERS:
            raise ValueError(
                f"base = {shortened(self.base)} is not a sampler of this version; known: {', '.join(SAMPLERS)}"
            )
        options = {**self.options, **SAMPLERS[self.base].at_given_levels}
        _reading("options", lambda: SAMPLERS[self.base].check_options(options))
        if options.get(DETAIL.name):
            raise ValueError(
                "options: a plan takes no detail: its scale_time sets the noise level that the model is given"
            )
        object.__setattr__(self, "options", MappingProxyType(options))
        tunings = tuple(Tuning(*t) for t in self.tunings) or (PLAIN,) * (len(levels) - 1)
        object.__setattr__(self, "tunings", tunings)
        if len(tunings) != len(levels) - 1:
            raise ValueError(
                f"tunings: {len(tunings)} of them for {len(levels)} sigmas; each level but the last has one"
            )
        for k, tuning in enumerate(tunings):
            for name, number in tuning._asdict().items():
                low, high = _BOUNDS[name]
                if not low <= number <= high:  # NaN as well
                    raise ValueError(f"{name}[{k}] = {number} must lie between {low:g} and {high:g}")
        try:
            plan = self.plan_on(levels, tunings)
        except ArithmeticError as error:
            raise ValueError(f"sigmas: no plan of {self.base} can be made on these levels ({error})") from None
        object.__setattr__(self, "_plan", plan)

    def plan(self) -> Plan:
        """The stages of the run."""
        return self._plan

    def plan_on(self, levels: Levels, tunings: Sequence[Tuning]) -> Plan:
        """The stages with other levels and tunings. Where these are scalars of torch, so are the coefficients."""
        if len(levels) < 2:
            return ()
        stages = tuned(self._base_stages(levels), levels, tunings)
        return economical(analytical_first_step(stages, levels) if self.afs else stages)

    def stages(self, levels: Levels) -> Iterator[Stage]:
        """Those of the base solver on other levels, without the tunings."""
        stages = self._base_stages(levels)
        return analytical_first_step(stages, levels) if self.afs else stages

    def _base_stages(self, levels: Levels) -> Iterator[Stage]:
        """Those of the base solver as it is.

        Raises:
            ValueError: at the first stage by which it is none that can follow a recipe.
        """
        spec, expected = SAMPLERS[self.base], iter(levels.sigmas[:-1])
        for stage in (
            () if spec.adaptive or spec.takes_apart else spec.solver(levels, **spec.solver_arguments(self.options))
        ):
            sigma = next(expected, None)
            if stage.noise or stage.sigma is None or sigma is None or value(stage.sigma) != value(sigma):
                break
            yield stage
        else:
            if next(expected, None) is None:
                return
        raise ValueError(
            f"base = {self.base!r} cannot follow a recipe: it must evaluate the model once at each level, add no "
            "noise, and not take guidance apart (CFG++), as dpmpp_2m or ipndm_v"
        )

    @property
    def nfe(self) -> int:
        """Number of model evaluations."""
        return len(self.sigmas) - 1 - self.afs

    def piece(self, sigmas: Tensor | Sequence[float], *, in_pairs: bool = False) -> Recipe:
        """The recipe for a part of its levels: image to image, or a run that is split in two.

        A part without a step has one level, and no evaluations.

        Args:
            in_pairs: whether every second level was inserted by a predictor, so that a part cannot begin with one.

        Raises:
            ValueError: if they are no part of the recipe's own, or begin with an inserted level.
        """
        given = read_sigmas(sigmas)
        if not given:
            return replace(self, sigmas=self.sigmas[-1:], tunings=(), afs=False)
        for first in range(len(self.sigmas) - len(given) + 1):
            last = first + len(given)
            if all(math.isclose(a, b, rel_tol=SAME_LEVEL) for a, b in zip(given, self.sigmas[first:last], strict=True)):
                break
        else:
            raise ValueError(
                f"sigmas: this run was given {_listed(given)}, and its plan has levels of its own, "
                f"{_listed(self.sigmas)}: connect the sigmas that come with the plan, whole or a part of them"
            )
        if (first, last) == (0, len(self.sigmas)):
            return self
        if last - first > 1 and ((in_pairs and first % 2) or self._within_step(first)):
            raise ValueError(
                f"sigmas: this part of the plan begins at its level {first}, in the middle of a step: begin one level "
                "earlier or later"
            )
        kept = [
            t._replace(slope=t.slope if k > 0 else 0.0, curvature=t.curvature if k > 1 else 0.0)
            for k, t in enumerate(self.tunings[first : last - 1])
        ]
        return replace(self, sigmas=self.sigmas[first:last], tunings=tuple(kept), afs=self.afs and first == 0)

    def _within_step(self, k: int) -> bool:
        """Whether a step of a singlestep solver goes over level k."""
        return k > 0 and SAMPLERS[self.base].singlestep and not self.plan()[k - 1].completes

    @property
    def guides(self) -> bool:
        """Whether it sets the guidance scale of single evaluations."""
        return any(tuning.guidance != 1 for tuning in self.tunings)

    @torch.no_grad()
    def function(
        self,
        model: Model,
        x: Tensor,
        sigmas: Tensor | Sequence[float] | None = None,
        extra_args: Mapping[str, Any] | None = None,
        callback: Callable[[dict[str, Any]], None] | None = None,
        disable: bool | None = None,
        *,
        set_guidance: Callable[[float], None] | None = None,
    ) -> Tensor:
        """Sample along the recipe, with the signature of k-diffusion; see `SamplerSpec.function`.

        Args:
            sigmas: all of the recipe's own levels or a part of them; none means all.
            set_guidance: called before each evaluation with the factor of the guidance scale, if the recipe has any.

        Raises:
            ValueError: naming the argument at fault.
        """
        recipe = self if sigmas is None else self.piece(sigmas)
        return integrate(
            recipe.guided(model, set_guidance),
            x,
            recipe.plan(),
            extra_args=extra_args,
            callback=callback,
            disable=disable,
        )

    def guidance_setter(self, given: Callable[[float], None] | None) -> Callable[[float], None]:
        """What sets the guidance scale of a run of this recipe: `given`, or nothing to do.

        Raises:
            ValueError: if the recipe has guidance and nothing to set it with.
        """
        if given is None and self.guides:
            raise ValueError(
                "this plan changes the guidance of single evaluations, and this run has no guidance scale: sample with "
                "one cfg and a negative prompt, or calibrate a plan without guidance"
            )
        return given or (lambda factor: None)

    def guided(self, model: Model, set_guidance: Callable[[float], None] | None) -> Model:
        """The model with the guidance of each evaluation set before it.

        Raises:
            ValueError: if the recipe has such guidance and nothing to set it with.
        """
        if not self.guides:
            return model
        set_guidance = self.guidance_setter(set_guidance)
        factors = iter([tuning.guidance for tuning in self.tunings][self.afs :])

        def evaluate(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
            set_guidance(next(factors))
            return model(x, sigma, **extra_args)

        return evaluate

    # As text

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON. Lists of numbers that change nothing are left out."""
        columns = {name: [getattr(t, name) for t in self.tunings] for name in Tuning._fields}
        return {
            "base": self.base,
            "options": dict(self.options),
            "flow": self.flow,
            "afs": self.afs,
            "sigmas": list(self.sigmas),
            **{name: column for name, column in columns.items() if set(column) != {getattr(PLAIN, name)}},
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe of `as_dict`.

        Raises:
            ValueError: naming the field that is missing or does not fit.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"a plan is an object with fields base, sigmas and others; got {shortened(fields)}")
        known = {"base", "options", "flow", "afs", "sigmas", *Tuning._fields}
        unknown = fields.keys() - known
        if unknown:
            raise ValueError(f"unknown field {shortened(min(unknown))}; this version knows {', '.join(sorted(known))}")
        for name in ("base", "sigmas"):
            if name not in fields:
                raise ValueError(f"field {name!r} is missing")
        sigmas = _numbers("sigmas", fields["sigmas"])
        if len(sigmas) < 2:
            raise ValueError(f"sigmas must hold at least two levels (one step), got {list(sigmas)}")
        columns = {name: _numbers(name, fields[name]) for name in Tuning._fields if name in fields}
        for name, column in columns.items():
            if len(column) != len(sigmas) - 1:
                raise ValueError(
                    f"{name} has {counted(len(column), 'number')} for {len(sigmas)} sigmas; it needs one less than "
                    "those"
                )
        tunings = [Tuning(**{name: c[k] for name, c in columns.items()}) for k in range(len(sigmas) - 1)]
        options = fields.get("options", {})
        if not isinstance(options, Mapping):
            raise ValueError(f"options = {shortened(options)} must be an object")
        flow, afs = (_switch(name, fields.get(name, False)) for name in ("flow", "afs"))
        return cls(str(fields["base"]), sigmas, flow, options, tuple(tunings), afs)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copied, and sent to other processes, as plain numbers: the read-only options cannot be pickled."""
        return Recipe.from_dict, (self.as_dict(),)


def usable_bases() -> tuple[str, ...]:
    """The samplers that can follow a recipe."""
    found = []
    for id in SAMPLERS:
        with contextlib.suppress(ValueError):
            found.append(Recipe(id, (3.0, 2.0, 1.0, 0.0)).base)
    return tuple(found)


def _reading(name: str, read: Callable[[], Any]) -> Any:
    """What `read` gives, with the name of the field in front of its complaint."""
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _levels_of(sigmas: Sequence[float], flow: bool) -> Levels:
    """Those of a recipe: one alone, or two and more that all differ."""
    run = read_run(sigmas, flow)
    return run.levels if run.numbers == (0,) else read_levels(sigmas, flow)


def _numbers(name: str, given: Any) -> tuple[float, ...]:
    fits = isinstance(given, list | tuple)
    if not fits or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in given):
        raise ValueError(f"{name} must be a list of numbers")
    try:
        return tuple(map(float, given))
    except OverflowError:  # a whole number of JSON may have any length
        raise ValueError(f"{name} holds a number that is too large") from None


def _switch(name: str, given: Any) -> bool:
    if not isinstance(given, bool):
        raise ValueError(f"{name} = {shortened(given)} must be true or false")
    return given


def _listed(sigmas: Sequence[float]) -> str:
    return ", ".join(f"{sigma:.4g}" for sigma in sigmas)
