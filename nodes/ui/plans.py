"""What is shown of a calibrated plan: as text, as tables, as plots."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ...samplers.calibrated import CalibratedPlan
from ...samplers.calibrated.recipe import Recipe
from ...samplers.calibrated.tuning import PLAIN
from ...samplers.checks import counted
from ...samplers.plan import DENOISED, START, P, Plan, X
from ..host.families import family_name
from .plots import Panel
from .tables import text_table


def summary(plan: CalibratedPlan) -> str:
    """One line: the solver, its levels, what it was made for, and what it gained."""
    recipe, about = plan.recipe, plan.about
    parts = [
        f"{recipe.base}{' with a predictor' if plan.predictor is not None else ''}, "
        f"{counted(recipe.nfe, 'evaluation')}, "
        f"sigma {recipe.sigmas[0]:.4g} to {recipe.sigmas[-1]:.4g}",
        f"for {family_name(str(about.model.get('family', 'any model'))[:80])}",
    ]
    if about.guidance is not None:
        parts.append(f"guidance {_written(about.guidance)}")
    if about.measured:
        parts.append(error_text(about.error_before, about.error_after))
    return "; ".join(parts)


def conditions(plan: CalibratedPlan, *, known: bool = False) -> list[str]:
    """In sentences, the conditions under which a plan was made, as far as they may differ from those of the run.

    Args:
        known: whether the guidance of the run is known, and that of the plan.
    """
    scale, latent = plan.about.guidance, plan.about.latent
    sentences = []
    if scale is not None:
        sentences.append(f"It was made at guidance {scale:g}{'' if known else ': set cfg to this'}.")
    if len(latent) > 1:
        sentences.append(f"It was made with latents of the size {' x '.join(map(str, latent[1:]))}.")
    if plan.about.interrupted:
        sentences.append("It was not finished.")
    return sentences


def description(plan: CalibratedPlan) -> str:
    """Everything in a file as text, and the coefficients that follow from it."""
    recipe = plan.recipe
    lines = [summary(plan), ""]
    if plan.predictor is not None:
        lines += ["The parameters below are those that the predictor gives where it cannot read the network.", ""]
    lines += [f"{name}: {_written(value)}" for name, value in recipe.options.items()]
    lines += [f"{name}: {_written(value)}" for name, value in plan.about.as_dict().items()]
    if recipe.afs:
        lines.append("The first evaluation is left out.")
    lines += ["", *_numbers(plan), ""]
    lines += ["Each sample is a weighted sum of x, start, D and P[k]. Here start is x where the step began,"]
    lines += ["D is what the model returned, and P[k] is what was remembered k evaluations ago:"]
    lines += ["D, or the noise or slope that it stands for.", "", *_coefficients(recipe), ""]
    return "\n".join(lines)


def inserted(plan: CalibratedPlan) -> list[int]:
    """The evaluations at levels that AMED inserted: every second, if it is the base or has a predictor."""
    amed = plan.predictor is not None or "middle" in plan.recipe.options
    return list(range(1, len(plan.recipe.sigmas) - 1, 2)) if amed else []


def changed_numbers(recipe: Recipe) -> dict[str, list[float]]:
    """Those numbers, level by level, of which any changes something."""
    columns = {name: [getattr(tuning, name) for tuning in recipe.tunings] for name in PLAIN._fields}
    return {name: column for name, column in columns.items() if set(column) != {getattr(PLAIN, name)}}


def panels(plan: CalibratedPlan) -> list[Panel]:
    """The levels, then the numbers of a kind in one pair of axes each, then the coefficients."""
    recipe, about = plan.recipe, plan.about
    levels = [(float(k), sigma) for k, sigma in enumerate(recipe.sigmas)]
    middle = set(inserted(plan))
    parts = {
        "steps": [level for k, level in enumerate(levels) if k not in middle],
        "inserted": [level for k, level in enumerate(levels) if k in middle],
    }
    gain = ""
    if about.measured:
        gain = f", {error_text(about.error_before, about.error_after)}"
    shown = [
        Panel(
            f"{recipe.base}: {counted(recipe.nfe, 'evaluation')}{gain}",
            "evaluation",
            "sigma",
            {"_levels": levels, **{name: part for name, part in parts.items() if part}},
            log_y=True,
            dots=parts,
        )
    ]
    numbers = changed_numbers(recipe)
    for title, names in (
        ("Scales", ("scale_dir", "scale_time")),
        ("Order", ("slope", "curvature")),
        ("Guidance", ("guidance",)),
    ):
        series = {name: [(float(k), n) for k, n in enumerate(numbers[name])] for name in names if name in numbers}
        if series:
            shown.append(Panel(title, "evaluation", "share" if title == "Order" else "factor", series))
    factors = {name: list(enumerate(column)) for name, column in coefficients(recipe.plan()).items()}
    return [*shown, Panel("Coefficients of the next sample", "evaluation", "factor", factors)]


def _numbers(plan: CalibratedPlan) -> list[str]:
    """The table of levels and calibrated numbers."""
    recipe = plan.recipe
    numbers, middle = changed_numbers(recipe), set(inserted(plan))
    rows = [["level", "sigma", *numbers, ""]]
    for k, sigma in enumerate(recipe.sigmas):
        cells = [f"{column[k]:.6g}" if k < len(column) else "" for column in numbers.values()]
        rows.append([str(k), f"{sigma:.6g}", *cells, "inserted" if k in middle else ""])
    return text_table(rows)


_SYMBOLS = {"x": X, "start": START, "D": DENOISED, **{f"P[{k}]": p for k, p in enumerate(P)}}


def coefficients(plan: Plan) -> dict[str, list[float]]:
    """What the next sample is made of, by symbol and stage; NaN where a stage does without one."""
    columns = {
        name: [float(stage.update.terms.get(key, math.nan)) for stage in plan]
        for name, symbol in _SYMBOLS.items()
        for key in symbol.terms
    }
    return {name: column for name, column in columns.items() if not all(map(math.isnan, column))}


def _coefficients(recipe: Recipe) -> list[str]:
    """The table of updates: the sigma passed to the model, and the coefficients."""
    plan = recipe.plan()
    columns = coefficients(plan)
    rows = [["stage", "model at", *columns]]
    for k, stage in enumerate(plan):
        passed = "-" if stage.sigma is None else f"{float(stage.sigma):.6g}"
        numbers = (column[k] for column in columns.values())
        rows.append([str(k), passed, *("" if math.isnan(c) else f"{c:.6g}" for c in numbers)])
    return text_table(rows)


def _written(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_written(part)}" for name, part in value.items())
    return value if isinstance(value, str) else json.dumps(value)


# What came out of making one


def outcome(plan: CalibratedPlan) -> str:
    """What came out of a calibration or a training, as text."""
    about = plan.about
    teacher = about.teacher
    shape = " x ".join(map(str, about.latent))
    lines = [
        f"{plan.recipe.base}, {counted(plan.recipe.nfe, 'evaluation')}, guidance {about.guidance:g}",
        error_text(about.error_before, about.error_after),
        f"against {counted(teacher['steps'], 'step')} of {teacher['sampler']}, {teacher['schedule']}; before: "
        f"{about.baseline}",
        f"{counted(about.prompts or 0, 'prompt')}, seeds {about.seeds[0]} to {about.seeds[1]}, latents {shape}",
    ]
    if not about.improved:
        lines.append("The plan is not better in validation: use more samples or prompts, or train for longer.")
    return "\n".join(lines)


def so_far(progress: Any) -> str:
    """What a calibration or a training has come to, in a few words."""
    loss = f"loss {progress.loss:.2g}" if hasattr(progress, "loss") else ""
    return "; ".join(part for part in (loss, error_text(progress.before, progress.after)) if part)


def error_text(before: float | None, after: float | None) -> str:
    """Errors in validation, in a few words: 'error 0.030 -> 0.017 (43 % less)'."""
    if before is None or not math.isfinite(before):
        return ""
    if after is None or not math.isfinite(after):
        return f"error {_two_digits(before)} before"
    change = 100 * (after / before - 1) if before else 0.0
    by = f"{abs(change):.0f} % {'less' if change < 0 else 'more'}" if abs(change) >= 0.5 else "not smaller"
    return f"error {_two_digits(before)} -> {_two_digits(after)} ({by})"


def _two_digits(error: float) -> str:
    return f"{error:#.2g}" if 1e-4 <= error < 10 else f"{error:.2g}"
