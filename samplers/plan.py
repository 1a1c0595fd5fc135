"""What a solver produces: stages, each a linear combination of things already known.

A solver writes its update as the paper does, on symbols:

    yield Stage(i, s.sigma, (t.sigma / s.sigma) * X + (t.alpha * -expm1(-h)) * DENOISED)

and `integrate` later puts tensors in the place of the symbols.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import torch

from .levels import GivenLevels, Levels
from .phi import Scalar, value

# Keys of a Combination; a key k >= 0 is the k-th last prediction. No operand has the key of the last one: it is P[0].
_X, _START, _DENOISED, _UNCONDITIONAL = -1, -2, -3, -4


class Combination:
    """A linear combination of symbols: adds, subtracts, scales. `terms` maps a symbol's key to its coefficient."""

    def __init__(self, terms: Mapping[int, Scalar]):
        self.terms = MappingProxyType({key: c for key, c in terms.items() if isinstance(c, torch.Tensor) or c})

    def __add__(self, other: Combination) -> Combination:
        terms: dict[int, Scalar] = dict(self.terms)
        for key, c in other.terms.items():
            terms[key] = terms[key] + c if key in terms else c
        return Combination(terms)

    def __sub__(self, other: Combination) -> Combination:
        return self + other * -1.0

    def __mul__(self, scale: Scalar) -> Combination:
        return Combination({key: scale * c for key, c in self.terms.items()})

    __rmul__ = __mul__

    def __truediv__(self, scale: Scalar) -> Combination:
        return Combination({key: c / scale for key, c in self.terms.items()})

    def __repr__(self) -> str:
        names = {_X: "x", _START: "start", _DENOISED: "denoised", _UNCONDITIONAL: "unconditional"}
        return " + ".join(f"{float(c):.6g} {names.get(k, f'P[{k}]')}" for k, c in self.terms.items())

    def replace(self, key: int, other: Combination) -> Combination:
        """The same with another combination in the place of a symbol."""
        if key not in self.terms:
            return self
        return Combination({k: c for k, c in self.terms.items() if k != key}) + self.terms[key] * other

    @property
    def differentiable(self) -> bool:
        """Whether the coefficients are scalars of torch, which may carry gradients."""
        return any(isinstance(c, torch.Tensor) for c in self.terms.values())

    @cached_property
    def reach(self) -> int:
        """How many of the last predictions it needs."""
        return max(0, 1 + max(self.terms, default=-1))

    @cached_property
    def interpolation(self) -> tuple[int, tuple[tuple[int, float], ...]] | None:
        """The same sum as a chain of interpolations, or None where the coefficients do not add up to 1.

            y = first;  y <- y + weight (operand - y) for each further operand, weight_k = c_k / (c_1 + ... + c_k)

        A deterministic update in terms of denoised samples adds up to 1 (a sample equal to its predictions stays).
        As a chain it takes one pass less over memory and keeps a constant to the last bit. Positive coefficients
        come first, so that no partial sum is small.
        """
        if self.differentiable:
            return None
        terms = sorted(((float(c), key) for key, c in self.terms.items() if c), reverse=True)
        if abs(sum(c for c, _ in terms) - 1) > 1e-12:
            return None
        (partial, first), *rest = terms
        chain = []
        for c, key in rest:
            partial += c
            chain.append((key, c / partial))
        return first, tuple(chain)


X = Combination({_X: 1.0})
"""The current sample: the one the model was last evaluated on."""

START = Combination({_START: 1.0})
"""The sample at the start of the step."""

DENOISED = Combination({_DENOISED: 1.0})
"""What the model returned for the current sample: its prediction of the clean one."""

UNCONDITIONAL = Combination({_UNCONDITIONAL: 1.0})
"""The model's prediction of the clean sample without the prompt, where DENOISED is the guided one. A stage that takes
both apart remembers it, as its `prediction`, and then finds it as P[0]."""

P = tuple(Combination({k: 1.0}) for k in range(4))
"""The last predictions that were remembered, newest first: P[0] is of this stage."""


class Noise(NamedTuple):
    """Added noise of unit variance, times `scale`, drawn for the interval between two sigmas."""

    scale: Scalar
    sigma: Scalar
    sigma_next: Scalar


class Stage(NamedTuple):
    """Evaluate the model at `sigma`, remember a prediction, then set the sample to `update`."""

    step: int
    """Index of the step that this stage belongs to, 0 ... len(sigmas) - 2."""

    sigma: Scalar | None
    """Noise level at which the model is evaluated on the current sample; None: no evaluation."""

    update: Combination
    """The next sample."""

    prediction: Combination = DENOISED
    """What is remembered of the evaluation, as P[0]: the denoised sample, the noise in terms of it and X, or
    UNCONDITIONAL."""

    completes: bool = True
    """Whether `update` is the START of the stages that follow; within a step START stays where it was."""

    noise: Noise | None = None
    """Noise added after the update."""

    @property
    def remembers(self) -> bool:
        """Whether it adds a prediction: that of its evaluation or, without one, a formula in the sample."""
        return self.sigma is not None or self.prediction is not DENOISED


Solver = Callable[..., Iterator[Stage]]
"""The mathematics of a sampler: levels and options in, stages out."""

Plan = tuple[Stage, ...]
"""All stages of a run. Plain numbers, made before the first evaluation."""


def economical(stages: Iterable[Stage]) -> Plan:
    """The same plan with nothing remembered that no later stage asks for.

    Solvers say what they remember as the papers do, the noise (x - alpha D) / sigma, say. Where only the stage itself
    uses it, its update is written in x and D instead, which saves passes over memory and keeps a constant to the bit.
    """
    plan = tuple(stages)
    made: list[int] = []  # the stage of each prediction, newest first
    wanted = set()
    for i, stage in enumerate(plan):
        if stage.remembers:
            made.insert(0, i)
        wanted |= {made[key] for key in stage.update.terms if 0 <= key < len(made) and made[key] != i}
    return tuple(
        stage
        if i in wanted or not stage.remembers or stage.prediction is UNCONDITIONAL
        else stage._replace(update=stage.update.replace(0, stage.prediction), prediction=DENOISED)
        for i, stage in enumerate(plan)
    )


def analytical_first_step(stages: Iterable[Stage], levels: Levels) -> Iterator[Stage]:
    """The stages of a solver with the first evaluation left out: at high noise the sample is nearly all noise.

        eps = x / sqrt(alpha^2 + sigma^2),    that is    D = alpha x / (h (h + sigma)),    h = sqrt(alpha^2 + sigma^2)

    Dockhorn et al. 2022 (GENIE), arXiv 2210.05475, section 3; "AFS" in AMED, for alpha = 1.
    """
    (denoised,) = DENOISED.terms
    for k, stage in enumerate(stages):
        if k == 0:
            s = levels[0]
            h = (s.alpha**2 + s.sigma**2) ** 0.5
            guess = (s.alpha / (h * (h + s.sigma))) * X
            stage = stage._replace(
                sigma=None,
                update=stage.update.replace(denoised, guess),
                prediction=stage.prediction.replace(denoised, guess),
            )
        yield stage


def takes_apart(stages: Iterable[Stage]) -> bool:
    """Whether a run needs the unconditional prediction beside the guided one."""
    return any(stage.prediction is UNCONDITIONAL for stage in stages)


def model_sigmas(plan: Iterable[Stage]) -> list[float]:
    """The sigmas passed to the model in a run, one for each evaluation, in order."""
    return [value(stage.sigma) for stage in plan if stage.sigma is not None]


def as_given(stage: Stage, run: GivenLevels) -> Stage:
    """A stage in the terms of who gave the levels: its step numbered as it stands among them, and pure noise
    passed to the model as it was given."""
    sigma = stage.sigma
    if sigma is not None and value(sigma) == 1:
        sigma = next((given for level, given in zip(run.levels, run.given, strict=True) if level.sigma == 1), sigma)
    return stage._replace(step=run.numbers[stage.step], sigma=sigma)
