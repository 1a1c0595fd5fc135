"""What a sampler does with the levels it is given: one answer for the run, the plot and the comparison."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...samplers import SAMPLERS, SamplerSpec
from ...samplers.calibrated.plan import CalibratedPlan
from ...samplers.calibrated.published import PUBLISHED
from ...samplers.calibrated.recipe import Recipe
from ...samplers.checks import counted
from ...samplers.detail import DETAIL
from ...samplers.levels import read_sigmas
from ...samplers.plan import Plan, model_sigmas
from ...samplers.sampler import PreparedRun

STEPS = "fewstep_steps"
"""In the host's model_options: the levels that the steps of a run begin at, and the last, where they are not those that
the sampler was given."""

NOT_KNOWN = "the model is not known"
"""Why a published plan is not followed, although it has as many steps and begins and ends where the run does."""


class Run:
    """A sampler on the levels that it was given.

    Args:
        spec: the sampler, or the base of a plan.
        given: its levels, as the host has them.
        prepared: what the sampler does on them with the options of this run; None where a plan is followed.
        calibrated: the plan of which these levels are a part, which is followed in the place of the sampler.
        published: whether that is the sampler's published one, which has its own levels whatever the given ones are.
        predicts: whether the predictor of the plan is asked.
        why: for a sampler that has a published plan and does not follow it.

    Raises:
        ValueError: if the plan has no such levels.
    """

    def __init__(
        self,
        spec: SamplerSpec,
        given: Sequence[float],
        *,
        prepared: PreparedRun | None = None,
        calibrated: CalibratedPlan | None = None,
        published: bool = False,
        predicts: bool = False,
        why: str | None = None,
    ):
        self.spec, self.given, self.prepared = spec, tuple(given), prepared
        if calibrated is not None and not published:
            calibrated = replace(calibrated, recipe=calibrated.recipe.piece(self.given, in_pairs=predicts))
        self.calibrated, self.published, self.predicts, self.why = calibrated, published, predicts, why

    @property
    def recipe(self) -> Recipe | None:
        """That of the plan, for this run."""
        return None if self.calibrated is None else self.calibrated.recipe

    @property
    def plan(self) -> Plan:
        """The stages; for a predictor those of the numbers that it gives without having seen a network.

        Raises:
            ValueError: if the sampler is adaptive.
        """
        if self.recipe is not None:
            return self.recipe.plan()
        assert self.prepared is not None
        return self.prepared.plan

    def model_sigmas(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The levels passed to the model, one for each evaluation, rounded as `integrate` does; on the CPU."""
        return torch.tensor(model_sigmas(self.plan), dtype=dtype)

    @property
    def levels(self) -> Tensor:
        """The levels of the evaluations: those passed to the model, without the option `detail`, which lowers them."""
        if self.prepared is None or not self.prepared.options[DETAIL.name]:
            return self.model_sigmas()
        options = {**self.prepared.options, DETAIL.name: 0.0}
        levels = self.prepared.run.levels
        plain = self.spec.prepare(self.given, flow=levels.flow, model_shift=levels.shift, **options)
        return torch.tensor(model_sigmas(plain.plan))

    @property
    def steps(self) -> list[float]:
        """The levels at which the steps begin, as they are passed to the model, and the one at which the last ends."""
        starts = list(self.recipe.sigmas if self.recipe is not None else self.given)
        if not self.spec.adaptive:
            for stage in reversed(self.plan):
                if stage.sigma is not None:
                    starts[stage.step] = float(stage.sigma)
        return starts

    @property
    def factors(self) -> list[float]:
        """Of the guidance scale, one for each evaluation."""
        if self.recipe is None:
            return [1.0] * len(self.model_sigmas())
        return [tuning.guidance for tuning in self.recipe.tunings[self.recipe.afs :]]


def resolve(
    spec: SamplerSpec,
    options: Mapping[str, Any],
    sigmas: Tensor | Sequence[float],
    *,
    flow: bool,
    shift: float,
    kind: Mapping[str, Any] | None,
) -> Run:
    """What a sampler of the registry does: its options are checked and its sigmas read here, once.

    Args:
        options: those that were chosen.
        sigmas: what the host gives it.
        flow: levels of a rectified-flow model.
        shift: the time shift of that model, or 1.
        kind: what is known of the model (`fingerprint`); None where nothing is.

    Raises:
        ValueError: naming the option or the sigma at fault.
    """
    given, published, why = read_sigmas(sigmas), PUBLISHED.get(spec.id), None
    prepared = spec.prepare(given, flow=flow, model_shift=shift, **partial_options(spec, given, options))
    if published is not None:
        changed = [o.name for o in spec.options if o.name in options and prepared.options[o.name] != o.default]
        why = f"{min(changed)} was changed" if changed else _why_not(published, given, kind)
        if why is None:
            return Run(spec, given, calibrated=published, published=True)
    return Run(spec, given, prepared=prepared, why=why)


def follow(
    calibrated: CalibratedPlan, sigmas: Tensor | Sequence[float] | None = None, *, predicts: bool = False
) -> Run:
    """What a calibrated plan does.

    Args:
        sigmas: all of its levels, or a part of them; none means all.
        predicts: whether its predictor, if it has one, is asked.

    Raises:
        ValueError: if they are not its own.
    """
    given = calibrated.recipe.sigmas if sigmas is None else read_sigmas(sigmas)
    predicts = predicts and calibrated.predictor is not None
    return Run(SAMPLERS[calibrated.recipe.base], given, calibrated=calibrated, predicts=predicts)


def partial_options(spec: SamplerSpec, sigmas: Tensor | Sequence[float], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that may be the first part of one: where noise is left, no step is the final one.

    So the order is not lowered at the end of a part (`lower_order_final`), as it is not in the host's own samplers.
    """
    left = len(sigmas) > 0 and float(sigmas[-1]) > 0
    part = left and any(option.name == "lower_order_final" for option in spec.options)
    return {**options, "lower_order_final": False} if part else dict(options)


def _why_not(published: CalibratedPlan, sigmas: Sequence[float], kind: Mapping[str, Any] | None) -> str | None:
    """Why a run cannot follow published numbers; None if it can."""
    own = published.recipe.sigmas
    if len(sigmas) != len(own):
        return f"they are for {counted(len(own) - 1, 'step')} and this run has {len(sigmas) - 1}"
    if not math.isclose(sigmas[0], own[0], rel_tol=1e-3) or sigmas[-1] != 0:
        return "they are for a run from pure noise to the clean image"
    if kind is None:
        return NOT_KNOWN
    try:
        published.check_model(kind)
    except ValueError as error:
        return str(error)
    return None


# The levels of a run, for those who read them


def announce(
    run: Run, model: Callable[..., Tensor], x: Tensor, sigmas: Any, extra_args: Mapping[str, Any] | None
) -> tuple[Callable[..., Tensor], Mapping[str, Any] | None]:
    """The model and the arguments of its calls, with the levels of the run in the host's `sample_sigmas`.

    Context windows look there which step an evaluation belongs to, and models of two times which level is next. It
    holds the levels passed to the model, in order, and the one that the run ends at. Where it holds them already, as
    for a sampler that evaluates at the levels it is given, all stays as it is. The caller's dicts are not written to.

    Those of a predictor are known once they are passed, and are put there evaluation by evaluation: the first image's.
    So are those of a run that comes back to a level (`restart`, `heunpp2`): to readers each is one place in the list.
    """
    if run.spec.adaptive:
        return announce_each(model, sigmas, extra_args)
    if extra_args is None or "model_options" not in extra_args or len(run.given) < 2:
        return model, extra_args
    device = sigmas.device if isinstance(sigmas, Tensor) else x.device
    steps = run.steps
    passed = run.model_sigmas(torch.promote_types(x.dtype, torch.float32))
    passed = torch.cat([passed, passed.new_tensor(steps[-1:])])
    levels = [level for level, _ in itertools.groupby(passed.tolist())]
    if len(set(levels)) < len(levels):
        return announce_each(model, sigmas, extra_args)
    announced, options = _copied(extra_args)
    listed = options.get("sample_sigmas")
    known = run.given if listed is sigmas else () if listed is None else read_sigmas(listed)
    if not run.predicts and any(list(known[k : k + len(levels)]) == levels for k in range(len(known))):
        return model, extra_args
    if steps != list(run.given):
        announced["model_options"][STEPS] = steps
    if run.predicts:
        return _announcing(model, options, _Predicted(passed.to(device))), announced
    options["sample_sigmas"] = torch.tensor(levels, dtype=passed.dtype, device=device)
    return model, announced


def announce_each(
    model: Callable[..., Tensor], sigmas: Any, extra_args: Mapping[str, Any] | None
) -> tuple[Callable[..., Tensor], Mapping[str, Any] | None]:
    """As `announce`, where the levels passed to the model make no list: with steps that are chosen by their error they
    are not known beforehand, and some runs come back to a level. `sample_sigmas` holds those that were given, and
    among them, in its place, the one passed.
    """
    if extra_args is None or "model_options" not in extra_args:
        return model, extra_args
    announced, options = _copied(extra_args)
    given = torch.as_tensor(sigmas)
    values = given.tolist()

    def with_passed(sigma: Tensor) -> Tensor:
        now = float(sigma)
        if now in values:
            return given
        levels = sorted([*values, now], reverse=values[0] > values[-1])
        return torch.tensor(levels, dtype=sigma.dtype, device=given.device)

    return _announcing(model, options, with_passed), announced


def _copied(extra_args: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a model with dicts of their own, and the innermost of these."""
    model_options = {**extra_args["model_options"]}
    options = model_options["transformer_options"] = {**model_options.get("transformer_options", {})}
    return {**extra_args, "model_options": model_options}, options


def _announcing(
    model: Callable[..., Tensor], options: dict[str, Any], levels: Callable[[Tensor], Tensor]
) -> Callable[..., Tensor]:
    """A model whose options hold the levels that `levels` gives for the sigma passed to it."""

    def evaluate(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        options["sample_sigmas"] = levels(sigma[0])
        return model(x, sigma, **extra_args)

    return evaluate


class _Predicted:
    """The levels of a plan, each replaced by that which the first image has once it is passed."""

    def __init__(self, levels: Tensor):
        self._levels, self._made = levels, 0

    def __call__(self, sigma: Tensor) -> Tensor:
        self._levels = self._levels.clone()  # the last may be in use
        self._levels[self._made] = sigma
        self._made += 1
        return self._levels
