"""What long work comes to, whether that is a plan or a student: for who starts either."""

from __future__ import annotations

from pathlib import Path

from ...samplers.calibrated import CalibratedPlan
from ..host.distillation import Distillation
from ..host.students import StudentLora
from ..host.students import stopped as student_stopped
from ..host.work import Work
from ..host.work import stopped as plan_stopped
from ..host.work import unfinished as unfinished_plan
from .plans import outcome as plan_outcome
from .students import student_outcome

Result = CalibratedPlan | StudentLora


def result(done: Work | Distillation) -> Result | None:
    """The best so far, if there is anything yet."""
    return done.student if isinstance(done, Distillation) else done.plan


def unfinished(found: Result) -> Result:
    """The same, marked as what was there when the work was stopped."""
    return found.unfinished() if isinstance(found, StudentLora) else unfinished_plan(found)


def stopped(done: Work | Distillation, path: Path | None) -> str:
    """What is said when the work was stopped, of the file of what there was."""
    return student_stopped(path) if isinstance(done, Distillation) else plan_stopped(path)


def outcome(found: Result) -> str:
    """What came out, as text."""
    return student_outcome(found.student) if isinstance(found, StudentLora) else plan_outcome(found)
