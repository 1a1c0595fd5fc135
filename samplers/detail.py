"""Detail: over a part of a run the model is told of a little less noise than there is, and leaves more of it as detail.

The sample and its steps stay what they are; only the sigma that the network is conditioned on is lowered,

    sigma' = (1 - detail b(u)) sigma,        b = (1 - cos 2 pi u) / 2,        u = (p - start) / (end - start)

in the steps between two shares of the run, p running from 0 in the first step to 1 in the last. It is what the
extension Detail Daemon does (muerrilla, sd-webui-detail-daemon) with its default curve; there the amount is multiplied
by a tenth of the guidance scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from .levels import Levels
from .options import Option
from .phi import value
from .plan import Stage

DETAIL = Option(
    "detail",
    0.0,
    "Gives the model a noise level that is this share below the true one, in the middle of the run, so that it leaves "
    "more detail: 0.05 to 0.15 is usual. Below 0: smoother images. 0: off. The method of Detail Daemon.",
    -0.5,
    0.5,
)
DETAIL_START = Option("detail_start", 0.2, "The share of the steps after which detail begins.", 0.0, 1.0)
DETAIL_END = Option("detail_end", 0.8, "The share of the steps after which detail ends.", 0.0, 1.0)
OPTIONS = (DETAIL, DETAIL_START, DETAIL_END)


def with_detail(
    stages: Iterable[Stage], levels: Levels, *, detail: float = 0.0, detail_start: float = 0.2, detail_end: float = 0.8
) -> Iterator[Stage]:
    """The stages with lowered sigmas; the levels are those of the run.

    Raises:
        ValueError: if it ends before it begins.
    """
    if not detail:
        yield from stages
        return
    if detail_start >= detail_end:
        raise ValueError(f"detail_start = {detail_start:g} must be smaller than detail_end = {detail_end:g}")
    progress = progress_of(levels)
    for stage in stages:
        if stage.sigma is not None:
            share = bump(progress(value(stage.sigma)), detail_start, detail_end)
            if share:
                sigma = (1 - detail * share) * stage.sigma
                stage = stage._replace(sigma=1.0 if levels.flow and value(sigma) > 1 else sigma)
        yield stage


def bump(p: float, start: float, end: float) -> float:
    """A smooth curve from 0 at `start` over 1 in the middle to 0 at `end`, and 0 beyond."""
    if not start < p < end:
        return 0.0
    return (1 - math.cos(2 * math.pi * (p - start) / (end - start))) / 2


def progress_of(levels: Levels) -> Callable[[float], float]:
    """How far a run has come where the model is evaluated at a level: 0 in the first step, 1 in the last, and between
    two levels on the line in sigma. On the way up it is the same at the same level."""
    sigmas = sorted((value(sigma) for sigma in levels.sigmas), reverse=True)
    steps = len(sigmas) - 1

    def progress(sigma: float) -> float:
        passed = sum(level >= sigma for level in sigmas)
        if passed in (0, len(sigmas)) or steps < 2:
            return 0.0 if passed == 0 or steps < 2 else 1.0
        s, t = sigmas[passed - 1], sigmas[passed]
        return min(1.0, (passed - 1 + (s - sigma) / (s - t)) / (steps - 1))

    return progress
