"""A chain: one sampler up to a step of a run, another one after it.

Each is a plan over all levels of the run, and the chain is the beginning of one and the end of the other. A multistep
solver then goes on from the predictions of the one before, where both remember the same (the denoised sample, or the
noise) at the same levels. Otherwise it begins anew, with its order rising from 1.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import detail
from .detail import DETAIL
from .levels import Levels, first_below
from .options import Option
from .phi import Scalar, value
from .plan import Combination, Stage
from .sampler import NOISE_DEVICE, SamplerSpec


@dataclass(frozen=True, kw_only=True)
class Chain(SamplerSpec):
    """Two samplers as one. What can be asked of a run alone depends on where it changes from one to the other, so what
    is known of both is said here."""

    parts: tuple[SamplerSpec, SamplerSpec]

    part_options: tuple[tuple[tuple[str, Any], ...], ...]
    """Of each part."""

    step: int
    sigma: float

    @functools.cached_property
    def plain(self) -> Chain:
        """The same without detail."""
        parts = tuple(spec.plain if isinstance(spec, Chain) else spec for spec in self.parts)
        options = tuple(tuple(_plain(dict(given)).items()) for given in self.part_options)
        return _chained((parts[0], parts[1]), options, self.step, self.sigma)

    @functools.cached_property
    def stochastic(self) -> bool:
        return any(spec.stochastic for spec in self.parts)

    @functools.cached_property
    def takes_apart(self) -> bool:
        return any(spec.takes_apart for spec in self.parts)

    @property
    def common(self) -> tuple[Option, ...]:
        return (NOISE_DEVICE,) if self.stochastic else ()


def chained(
    first: SamplerSpec,
    first_options: Mapping[str, Any],
    second: SamplerSpec,
    second_options: Mapping[str, Any],
    *,
    step: int = 0,
    sigma: float = 0.0,
) -> Chain:
    """`first` with its options up to a step, `second` with its own after it.

    Where a run has as many steps or fewer it is all of `first`'s; from step 0 it is all of `second`'s.

    Args:
        step: how many steps are of `first`.
        sigma: above 0: instead of that, `first` takes the steps that begin at this level or above.

    Raises:
        ValueError: naming an option at fault, or a sampler that decides its steps as it goes.
    """
    for spec in (first, second):
        if spec.adaptive:
            raise ValueError(f"{spec.id} decides its steps as it goes: it has no plan that could be part of a chain")
    checked = (first.check_options(first_options), second.check_options(second_options))
    return _chained((first, second), tuple(tuple(options.items()) for options in checked), step, sigma)


@functools.lru_cache(maxsize=32)  # one solver for the same chain, by which plans are kept
def _chained(
    parts: tuple[SamplerSpec, SamplerSpec], options: tuple[tuple[tuple[str, Any], ...], ...], step: int, sigma: float
) -> Chain:
    first, second = parts
    of_first, of_second = map(dict, options)

    def solver(levels: Levels) -> Iterator[Stage]:
        sigmas = [value(level.sigma) for level in levels]
        last = len(sigmas) - 1
        if sigma and sigmas[0] < sigmas[-1]:
            raise ValueError(
                f"sigma = {sigma:g}: the sigmas ascend, and a chain by noise level is for sampling: set step"
            )
        k = first_below(sigmas, sigma) if sigma else min(step, last)
        one, other = _Whole(first, of_first, levels), _Whole(second, of_second, levels)
        if k in (0, last):
            yield from (one if k else other).stages
            return
        begun, goes_on = one.cut(k), other.cut(k)
        if begun.leads_to(goes_on):
            yield from begun.before if goes_on.open else _completed(begun.before)
            yield from goes_on.after
            return
        here = begun.next == levels[k].sigma  # else a solver with levels of its own, which is to end at this one
        yield from _completed(begun.before if here else tuple(_anew(first, of_first, levels, 0, k)))
        for stage in _anew(second, of_second, levels, k, last):
            yield stage._replace(step=stage.step + k)

    return Chain(
        id="chain",
        label=f"{first.label}, then {second.label}",
        paper=f"{first.paper}; {second.paper}",
        help="One sampler up to a step, another one after it.",
        order=min(first.order, second.order),
        solver=solver,
        parts=parts,
        part_options=options,
        step=step,
        sigma=sigma,
    )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without detail."""
    return {name: DETAIL.default if name == DETAIL.name else given for name, given in options.items()}


def _anew(spec: SamplerSpec, options: Mapping[str, Any], levels: Levels, first: int, last: int) -> Iterator[Stage]:
    """The stages of a sampler that begins anew at level `first`; its detail is that of the whole run."""
    amounts = {option.name: options[option.name] for option in detail.OPTIONS if option.name in options}
    return detail.with_detail(spec.stages(levels.part(first, last), _plain(options)), levels, **amounts)


def _completed(stages: Sequence[Stage]) -> Iterator[Stage]:
    """The stages, at whose end the next one starts."""
    yield from stages[:-1]
    yield stages[-1]._replace(completes=True)


class _Whole:
    """The stages of one of the two over some levels: as they are carried out, and as the solver writes them, by which
    the two are compared (`detail` changes what the model is told, not what is remembered)."""

    def __init__(self, spec: SamplerSpec, options: Mapping[str, Any], levels: Levels):
        self.stages = tuple(spec.stages(levels, options))
        plain = spec.plain if isinstance(spec, Chain) else spec
        self.written = tuple(plain.stages(levels, _plain(options)))

    def cut(self, k: int) -> _Cut:
        """At the beginning of step k."""
        i = sum(stage.step < k for stage in self.stages)
        return _Cut(self.stages[:i], self.stages[i:], self.written[:i], self.written[i:])


class _Cut(NamedTuple):
    """A run that is cut at the beginning of a step."""

    before: tuple[Stage, ...]
    after: tuple[Stage, ...]
    written_before: tuple[Stage, ...]
    written_after: tuple[Stage, ...]

    @property
    def next(self) -> Scalar | None:
        """Where the stages that follow evaluate first."""
        return self.written_after[0].sigma if self.written_after else None

    @property
    def remembered(self) -> list[Any]:
        """The predictions that were remembered, newest first."""
        made = (stage for stage in reversed(self.written_before) if stage.remembers)
        return [(stage.sigma, _terms(stage.prediction)) for stage in made]

    @property
    def open(self) -> list[Any]:
        """What was done since START, newest first, where that is not the sample at the cut."""
        since = itertools.takewhile(lambda stage: not stage.completes, reversed(self.written_before))
        return [(stage.sigma, _terms(stage.update), _terms(stage.prediction)) for stage in since]

    @property
    def depth(self) -> int:
        """How many predictions from before the cut are asked for after it."""
        made = deepest = 0
        for stage in self.written_after:
            made += stage.remembers
            deepest = max(deepest, stage.update.reach - made)
        return deepest

    def leads_to(self, other: _Cut) -> bool:
        """Whether this beginning has all that the end of the other one looks back at."""
        depth = other.depth
        known = self.remembered[:depth] == other.remembered[:depth]
        return known and self.next == other.next and (not other.open or self.open == other.open)


def _terms(combination: Combination) -> dict[int, float]:
    return {key: value(c) for key, c in combination.terms.items()}
