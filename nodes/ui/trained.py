"""What is said of the levels that a distilled model was trained on, where the run differs from the training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...samplers import SCHEDULES
from ...samplers.distill import Student
from ...samplers.schedules.trained import of_flow, trained_models
from ..host.families import distilled_model
from ..host.model import LevelRange
from ..host.students import other_cfg
from .options import chosen_options, followed_student
from .students import student_summary


def notes_of_schedule(
    levels: LevelRange,
    schedule: str,
    steps: int,
    denoise: float,
    widgets: Mapping[str, Any],
    cfg: float | None = None,
    student: Student | None = None,
) -> list[str]:
    """`trained_notes` for the values of the widgets of a node that chooses a schedule; none of another schedule.

    Args:
        student: that the model is.
    """
    if schedule != "trained" or denoise <= 0:
        return []
    if (followed := followed_student(schedule, widgets, student)) is not None:
        return student_notes(followed, steps, cfg)
    spec = SCHEDULES[schedule]
    distilled = spec.check_options(chosen_options(spec, widgets))["distilled"]
    return trained_notes(levels, distilled, int(steps / denoise), cfg)


def student_notes(student: Student, steps: int | None = None, cfg: float | None = None) -> list[str]:
    """Sentences for the node, of a student whose levels are taken.

    Args:
        steps: that were asked for; None where its own are taken anyway.
        cfg: the scale of guidance of the run; None where it is not known.
    """
    notes = [f"{student_summary(student)}. The noise levels are its own."]
    if steps is not None and steps != student.steps:
        own = student.steps
        notes.append(f"Warning: steps is {steps}, and the student was trained for {own}: it is sampled in {own}.")
    if cfg is None:
        notes.append("It is sampled at cfg 1.")
    return [*notes, *(f"Warning: {fault}." for fault in other_cfg(student, cfg))]


def trained_notes(levels: LevelRange, distilled: str, steps: int, cfg: float | None = None) -> list[str]:
    """Sentences for the node.

    Args:
        levels: of the model that is connected.
        distilled: the id of a distilled model, as `trained` has it.
        steps: of the whole schedule.
        cfg: the scale of guidance of the run; None where it is not known.
    """
    entry, model = trained_models()[distilled], distilled_model(distilled)
    notes = []
    shift = entry.get("shift")
    if levels.flow and of_flow(entry) and shift and not math.isclose(shift, levels.shift, rel_tol=0.01):
        notes.append(
            f"{entry['name']} was trained at shift {shift:.4g} and the model is set to {levels.shift:.4g}. The levels "
            "of this schedule are levels of noise, the same for any shift; but nodes that count in percent of the run, "
            f"such as ControlNet's start and end, go by the shift of the model: set it to {shift:.4g} for these."
        )
    if steps in model.predicts_x0:
        notes.append(
            f"With steps = {steps}, {entry['name']} predicts the image itself and not the noise: set the model to x0 "
            "with ModelSamplingDiscrete before this node."
        )
    low, high = model.cfg
    wanted = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    if cfg is None:
        notes.append(f"{entry['name']} is sampled at cfg {wanted}.")
    elif not low - 0.01 <= cfg <= high + 0.01:
        notes.append(
            f"{entry['name']} was trained for cfg {wanted} and this run has {cfg:g}, which changes colours and "
            f"contrast: set cfg to {low:g}."
        )
    return notes
