"""Parameters that were fitted to one model, put into any solver of one evaluation per level.

AMED's scales, and what `calibrate` fits, change single coefficients of a plan. They are given level by level.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from ..levels import Levels
from ..phi import Scalar, value
from ..plan import DENOISED, START, Combination, P, Stage, X


class Tuning(NamedTuple):
    """What is changed where the model is evaluated, at a level m, and in the update that follows."""

    scale_dir: Scalar = 1.0
    """Factor of what the predictions move the sample by, in the solver's own kind of prediction (AMED)."""

    scale_time: Scalar = 1.0
    """Factor of the sigma that is passed to the model; the solver reckons with sigma_m (AMED)."""

    slope: Scalar = 0.0
    """Added share of the last change of the prediction: P0 becomes P0 + slope (P0 - P1). It blends between the orders:
    for 2M, minus half of h / h_1 is a step of order 1."""

    curvature: Scalar = 0.0
    """The same for the last change of the change, P0 - 2 P1 + P2."""

    guidance: float = 1.0
    """Factor of the guidance scale in this evaluation. The plan itself does not know guidance: `Recipe` sees to it."""


_SAMPLES = X.terms.keys() | START.terms.keys()

PLAIN = Tuning()
"""Changes nothing."""


def leaves_plan(tuning: Tuning) -> bool:
    """Whether the plan is the same with it. A scalar of torch may carry a gradient, and never counts as plain."""
    in_plan = tuning._replace(guidance=PLAIN.guidance)
    return not any(isinstance(n, Tensor) or n != plain for n, plain in zip(in_plan, PLAIN, strict=True))


def tuned(stages: Iterable[Stage], levels: Levels, tunings: Sequence[Tuning]) -> Iterator[Stage]:
    """The stages of a solver with these parameters; stage k is that of levels[k].

        x_t = c x + scale_dir (c_0 P_0 + c_1 P_1 ... + C (slope (P_0 - P_1) + curvature (P_0 - 2 P_1 + P_2)))

    with C = c_0 + c_1 + ..., and scale_time sigma passed to the model. But for scale_dir the coefficients add up to
    what they did, so that a constant prediction is still solved exactly.

    Raises:
        ValueError: if slope or curvature are asked for where there are no such predictions.
    """
    known = 0
    for k, (stage, tuning) in enumerate(zip(stages, tunings, strict=True)):
        known += stage.remembers
        if leaves_plan(tuning):
            yield stage
            continue
        update = in_predictions(stage)
        for order, share in ((1, tuning.slope), (2, tuning.curvature)):
            if isinstance(share, Tensor) or share:
                if order >= known or not stage.completes:
                    raise ValueError(
                        f"level {k} has no {('slope', 'curvature')[order - 1]}: it needs earlier predictions"
                    )
                update += (share * weight(update)) * (P[0] - P[1] if order == 1 else P[0] - 2.0 * P[1] + P[2])
        update = Combination({key: c if key in _SAMPLES else tuning.scale_dir * c for key, c in update.terms.items()})
        yield stage._replace(sigma=model_sigma(stage, levels, tuning.scale_time), update=update)


def in_predictions(stage: Stage) -> Combination:
    """The update of a stage in terms of X, START and what is remembered, without DENOISED.

    At pure noise in rectified flow the predicted noise is X itself and says nothing of DENOISED, which then stays.
    """
    (denoised,) = DENOISED.terms
    inverse = P[0]  # the denoised sample in terms of what is remembered of it
    if stage.prediction is not DENOISED:
        if denoised not in stage.prediction.terms:
            return stage.update
        share = stage.prediction.terms[denoised]
        inverse = (P[0] - stage.prediction.replace(denoised, Combination({}))) / share
    return stage.update.replace(denoised, inverse)


def weight(update: Combination) -> Scalar:
    """The sum of the coefficients of predictions."""
    return sum((c for key, c in update.terms.items() if key >= 0), 0.0)


def model_sigma(stage: Stage, levels: Levels, scale_time: Scalar) -> Scalar | None:
    """The sigma passed to the model: scaled, and no more than pure noise."""
    if stage.sigma is None:
        return None
    sigma = scale_time * stage.sigma
    return 1.0 if levels.flow and value(sigma) > 1 else sigma
