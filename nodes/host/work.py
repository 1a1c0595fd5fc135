"""What calibration and training have in common: what can be stopped, and where its plan comes from."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from ...samplers.calibrated import About, CalibratedPlan
from .model import fingerprint
from .plan_files import INTERRUPTED, entry_of, keep_newest
from .session import Sample, Session


class Work(Protocol):
    """What is going on, and can be stopped."""

    session: Session

    @property
    def plan(self) -> CalibratedPlan | None:
        """The best so far, if there is anything yet."""


@contextlib.contextmanager
def kept(work: Work) -> Iterator[None]:
    """Whatever stops the work, the best plan so far is written to models/fewstep; the node says where."""

    def keep() -> str:
        plan = work.plan
        return stopped(None if plan is None else keep_newest(unfinished(plan), INTERRUPTED))

    with on_stop(keep, lambda text: work.session.progress.end(text)):
        yield


@contextlib.contextmanager
def on_stop(keep: Callable[[], str], say: Callable[[str], None]) -> Iterator[None]:
    """Whatever stops some work, what there is is kept; `say` is called with what `keep` says of it."""
    try:
        yield
    except BaseException:
        try:
            text = keep()
        except Exception as error:  # what stopped the work is what the host must hear of
            text = f"Stopped; {error}"
        logging.warning("%s", text)
        with contextlib.suppress(Exception):
            say(text)
        raise


def stopped(path: Path | None) -> str:
    """What is said when the work was stopped, of the file of its plan."""
    if path is None:
        return "Stopped before anything was fitted"
    return f"Stopped. Best plan saved as {entry_of(path)}; choose it in Load Plan"


def finished(work: Work) -> CalibratedPlan:
    """The plan of work that came to its end."""
    if (plan := work.plan) is None:
        raise RuntimeError("there is no result: the work ended before anything was measured")
    return plan


def unfinished(plan: CalibratedPlan) -> CalibratedPlan:
    """The same, marked as what was there when the work was stopped: Few-Step Auto never takes it."""
    return replace(plan, about=replace(plan.about, interrupted=True))


def origin(session: Session, samples: Sequence[Sample]) -> About:
    """Where a plan comes from."""
    seeds = [sample.seed for sample in samples]
    return About(
        model=fingerprint(session.patcher),
        guidance=session.guidance,
        prompts=session.prompts,
        texts=tuple(session.texts or ()),
        seeds=(min(seeds), max(seeds)),
        latent=tuple(session.shape),
    )


def measured(error: float) -> float | None:
    """An error, if it was measured: a file holds no other numbers."""
    return error if math.isfinite(error) else None


def check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} = {count} must be at least 1")


def check_choice(name: str, choice: str, choices: Sequence[str]) -> None:
    if choice not in choices:
        raise ValueError(f"{name} = {choice!r} must be one of {', '.join(choices)}")
