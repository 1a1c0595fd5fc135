"""The nodes that load, save, follow and show learned plans."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io, ui

from ..samplers.calibrated.file import FileError
from ..samplers.calibrated.plan import CalibratedPlan, load, parse
from ..samplers.calibrated.published import PUBLISHED
from ..samplers.calibrated.recipe import Recipe
from ..samplers.calibrated.tuning import PLAIN
from ..samplers.checks import shortened
from ..samplers.plan import DENOISED, START, P, Plan, X
from .host.model import fingerprint, plan_sampler
from .sampling import CATEGORY
from .ui.plots import Panel, line_plot
from .ui.progress import say
from .ui.search import search_words

PLAN = io.Custom("FEWSTEP_PLAN")
"""A `CalibratedPlan` on its way between nodes."""

FOLDER, EXTENSION = "fewstep", ".safetensors"

INTERRUPTED = "interrupted"
"""Name of a plan that was not finished, and the field of its `about` that says so."""

BUILT_IN = {"built-in: amed_dpm_2m (SD1.5, 10 evaluations)": PUBLISHED["amed_dpm_2m"]}
"""Published plans by their entry of the list of files; workflows keep these names."""


# The folder models/fewstep


def register_folder() -> None:
    """Make models/fewstep known to the host, beside what the user's extra_model_paths.yaml says of `fewstep`."""
    own = str(Path(folder_paths.models_dir, FOLDER))
    folder_paths.add_model_folder_path(FOLDER, own, is_default=True)
    folders, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = folders, {EXTENSION}


def find(file: str) -> Path:
    """Where an entry of the list lies. Only what is in the list is opened.

    Raises:
        FileError: if it is not there.
    """
    path = folder_paths.get_full_path(FOLDER, file) if file in folder_paths.get_filename_list(FOLDER) else None
    if path is None:
        raise FileError(
            f"file: {shortened(file)} is not in models/{FOLDER}: put it there, choose another, or paste a plan into "
            "`text`"
        )
    return Path(path)


def check_filename(filename: str) -> PurePosixPath:
    """The name of a plan without its extension, with subfolders or without.

    Raises:
        ValueError: if it is no name inside models/fewstep, or none that every system takes: plans are handed on.
    """
    parts = PureWindowsPath(filename.strip())  # takes / and \ for separators
    if parts.suffix == EXTENSION:
        parts = parts.with_suffix("")
    fault = None
    if parts.anchor or ".." in parts.parts or not parts.name:
        fault = f"must be a name, with subfolders or without, inside models/{FOLDER}, such as plan"
    elif len(parts.parts) > _DEEPEST:
        fault = f"has {len(parts.parts) - 1} folders inside each other: use at most {_DEEPEST - 1}"
    for part in parts.parts if fault is None else ():
        if (found := _UNUSABLE.search(part)) is not None:
            fault = f"holds {found[0]!r}, which not every system takes in the name of a file: leave it out"
        elif _RESERVED.fullmatch(part) or part.endswith((".", " ")):
            fault = f"holds {shortened(part)}, which cannot be the name of a file on Windows: choose another"
        elif len(part.encode()) > _LONGEST_NAME:
            fault = f"is too long: a name may have {_LONGEST_NAME} bytes, of which some letters take several"
    if fault is not None:
        raise ValueError(f"filename = {shortened(filename)} {fault}")
    return PurePosixPath(*parts.parts)


_UNUSABLE = re.compile(r'[\x00-\x1f\x7f\x85\u2028\u2029\ud800-\udfff<>:"|?*]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com[1-9¹²³]|lpt[1-9¹²³])(\..*)?", re.IGNORECASE)
_LONGEST_NAME = 200  # bytes, of the 255 of most systems: the number and the extension are added
_DEEPEST = 100  # folders and the name; Python makes them one within the other by recursion


@contextlib.contextmanager
def _naming(filename: str) -> Iterator[None]:
    """A path that is too long is the fault of `filename`."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(f"filename = {shortened(filename)} makes a path that is too long: shorten it") from None


def free_paths(filename: str, folder: str | None = None) -> Iterator[Path]:
    """Files of a name in models/fewstep, or in another folder, that do not exist yet: numbered as the host does.

    Raises:
        ValueError: if `filename` is no name inside that folder, or makes a path that is too long.
    """
    name = check_filename(filename)
    root = os.path.abspath(folder or folder_paths.get_folder_paths(FOLDER)[0])
    with _naming(filename):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(Path(root, f"{name}_00001_{EXTENSION}"))  # too long? before folders are made
        into, stem, first, *_ = folder_paths.get_save_image_path(str(name), root)
    return (Path(into, f"{stem}_{number:05}_{EXTENSION}") for number in itertools.count(first))


def save(plan: CalibratedPlan, filename: str, folder: str | None = None) -> Path:
    """Write a plan to a file that was not there before, and say which one it is.

    Raises:
        ValueError: as `free_paths`.
        OSError: if it cannot be written.
    """
    with _naming(filename):
        return plan.save_new(free_paths(filename, folder))


def keep(plan: CalibratedPlan, save_it: Callable[[], Path], filename: str = "rescued") -> Path:
    """Save a plan that took long to make. Where that fails it goes to another folder, and its text into the log.

    Raises:
        ValueError, OSError: if it failed; the message says where the plan is instead.
    """
    try:
        return save_it()
    except Exception as error:
        where = _rescued(plan, filename)
        told = (
            f"the plan could not be saved ({error}); it is {f'in {where}' if where else 'as text in the log'} instead"
        )
        logging.warning("%s. As text, for Few-Step Load Plan:\n%s", told, plan.text())
        if where is None and plan.predictor is not None:
            logging.warning(
                "its predictor is lost: the text is the fixed plan that it follows where it sees no network"
            )
        raise (ValueError if isinstance(error, ValueError) else OSError)(told) from error


def _rescued(plan: CalibratedPlan, filename: str) -> Path | None:
    """The file of a plan in the first folder that takes it; None if none does."""
    elsewhere = folder_paths.get_output_directory(), folder_paths.get_user_directory(), tempfile.gettempdir()
    for folder in (*folder_paths.get_folder_paths(FOLDER), *elsewhere):
        with contextlib.suppress(Exception):
            return save(plan, filename, folder)
    return None


def keep_newest(plan: CalibratedPlan, filename: str) -> Path:
    """`keep` under a name of which one file stays: those before it are removed once the new one is there."""
    path = keep(plan, lambda: save(plan, filename), filename)
    numbered = re.compile(rf"(.*)_(\d{{5,}})_{re.escape(EXTENSION)}")
    if (new := numbered.fullmatch(path.name)) is not None:
        for other in path.parent.iterdir():
            old = numbered.fullmatch(other.name)
            if old is not None and old[1] == new[1] and int(old[2]) < int(new[2]):
                with contextlib.suppress(OSError):
                    other.unlink()
    return path


# The nodes


class FewStepLoadPlan(io.ComfyNode):
    """A plan from a file, from those that come with the pack, or from a text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepLoadPlan",
            display_name="Few-Step Load Plan",
            category=CATEGORY,
            description="A learned plan: noise levels and solver numbers that were made for one kind of model.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[*BUILT_IN, *folder_paths.get_filename_list(FOLDER)],
                    default=next(iter(BUILT_IN)),
                    tooltip=f"A file in models/{FOLDER}, or a published plan that comes with Few-Step.",
                ),
                io.String.Input(
                    "text",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="A plan as text, as Few-Step Save Plan gives it. If there is any, it is used and the file "
                    "is not: so a workflow carries its own plan.",
                ),
            ],
            outputs=[
                PLAN.Output(display_name="PLAN", tooltip="For Few-Step Plan Sampler."),
                io.String.Output(display_name="summary", tooltip="What the plan is and was made for."),
            ],
            **search_words("amed", "calibrated plan"),
        )

    @classmethod
    def validate_inputs(cls, file: str, text: str | None = None) -> bool | str:
        # A text that another node gives is not known yet, and the file may not be needed.
        if text is None or text.strip() or file in BUILT_IN:
            return True
        try:
            find(file)
        except FileError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, file: str, text: str | None = None) -> Any:
        """Another when the file has changed."""
        if (text and text.strip()) or file in BUILT_IN:
            return file, text
        try:
            stat = find(file).stat()
        except (FileError, OSError):
            return file, text
        return file, text, stat.st_mtime_ns, stat.st_size

    @classmethod
    def execute(cls, file: str, text: str = "") -> io.NodeOutput:
        if text.strip():
            try:
                plan = parse(text)
            except FileError as error:
                raise FileError(f"text: {error}") from None
        elif file in BUILT_IN:
            plan = BUILT_IN[file]
        else:
            plan = load(find(file))
        return io.NodeOutput(plan, summary(plan))


class FewStepSavePlan(io.ComfyNode):
    """A plan to a file, and as text."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepSavePlan",
            display_name="Few-Step Save Plan",
            category=CATEGORY,
            description=f"Writes a plan to models/{FOLDER}. Files that are there already stay: the names are numbered.",
            inputs=[
                PLAN.Input("plan", tooltip="The plan to be saved."),
                io.String.Input(
                    "filename",
                    default="plan",
                    tooltip=f"Name of the file in models/{FOLDER}; may have subfolders: portraits/plan.",
                ),
            ],
            outputs=[
                PLAN.Output(display_name="PLAN", tooltip="The same plan."),
                io.String.Output(
                    display_name="text",
                    tooltip="The plan as text, to be pasted into Few-Step Load Plan. A predictor does not fit into it: "
                    "its text is the fixed plan that it follows where it sees no network.",
                ),
            ],
            is_output_node=True,
            **search_words("amed", "calibrated plan"),
        )

    @classmethod
    def validate_inputs(cls, filename: str | None = None) -> bool | str:
        """Before the run: a plan may take hours to make."""
        if filename is not None:  # else another node gives it
            try:
                check_filename(filename)
            except ValueError as error:
                return str(error)
        return True

    @classmethod
    def execute(cls, plan: CalibratedPlan, filename: str) -> io.NodeOutput:
        check_filename(filename)
        path = keep(plan, lambda: save(plan, filename))
        told = f"saved as {path}"
        say(told)
        return io.NodeOutput(plan, plan.text(), ui=ui.PreviewText(told))


class FewStepPlanSampler(io.ComfyNode):
    """A plan as SAMPLER and SIGMAS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepPlanSampler",
            display_name="Few-Step Plan Sampler",
            category=CATEGORY,
            description="Follows a learned plan. Connect both outputs to SamplerCustom or SamplerCustomAdvanced; a "
            "part of the sigmas (SplitSigmas) makes img2img.",
            inputs=[
                PLAN.Input("plan", tooltip="The plan to be followed."),
                io.Boolean.Input(
                    "see_bottleneck",
                    default=True,
                    optional=True,
                    tooltip="A predictor (AMED) reads the middle of the network while it is sampled and gives every "
                    "image numbers of its own. Off: the same fixed numbers for all. Other plans have no predictor.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that will be sampled: whether the plan was made for its kind is then checked "
                    "now, and not only when sampling begins.",
                ),
            ],
            outputs=[
                io.Sampler.Output(tooltip="Follows the plan, on the sigmas beside it or a part of them."),
                io.Sigmas.Output(tooltip="The plan's own noise levels, one more than evaluations."),
            ],
            **search_words("amed", "calibrated plan"),
        )

    @classmethod
    def execute(cls, plan: CalibratedPlan, see_bottleneck: bool = True, model: Any = None) -> io.NodeOutput:
        if model is not None:
            plan.check_model(fingerprint(model))
        if told := conditions(plan):
            say(" ".join(told))
        sampler = plan_sampler(plan, see_bottleneck=see_bottleneck)
        sigmas = torch.tensor(plan.recipe.sigmas, dtype=torch.float32)
        return io.NodeOutput(sampler, sigmas, ui={"fewstep_plan": [plan.text()]})  # drawn by the front end


class FewStepInspectPlan(io.ComfyNode):
    """A plan as a picture and a table."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FewStepInspectPlan",
            display_name="Few-Step Inspect Plan",
            category=CATEGORY,
            description="Shows what a plan does: its levels, its numbers and the coefficients that follow from them.",
            inputs=[PLAN.Input("plan", tooltip="The plan to be shown.")],
            outputs=[
                io.Image.Output(tooltip="The noise levels, the learned numbers at each, and the coefficients."),
                io.String.Output(
                    display_name="text", tooltip="Base, origin, levels, and the coefficients of each update."
                ),
            ],
            **search_words("amed", "calibrated plan"),
        )

    @classmethod
    def execute(cls, plan: CalibratedPlan) -> io.NodeOutput:
        return io.NodeOutput(line_plot(panels(plan)), description(plan))


# What is shown of a plan


def summary(plan: CalibratedPlan) -> str:
    """One line: the solver, its levels, what it was made for, and what it gained."""
    recipe, about = plan.recipe, plan.about
    parts = [
        f"{recipe.base}{' with a predictor' if plan.predictor is not None else ''}, {recipe.nfe} evaluations, "
        f"sigma {recipe.sigmas[0]:.4g} to {recipe.sigmas[-1]:.4g}",
        f"for {about.model.get('family', 'any model')}",
    ]
    if about.guidance is not None:
        parts.append(f"guidance {_spoken(about.guidance)}")
    if about.measured:
        parts.append(f"error {_spoken(about.error_before)} before, {_spoken(about.error_after)} after")
    return "; ".join(parts)


def conditions(plan: CalibratedPlan, *, known: bool = False) -> list[str]:
    """Under which conditions a plan was made, as far as they may differ from those of the run: in sentences.

    Args:
        known: whether the guidance of the run is known, and that of the plan.
    """
    told, scale, latent = [], plan.about.guidance, plan.about.latent
    if scale is not None:
        told.append(f"It was made at guidance {scale:g}{'' if known else ': sample with this cfg'}.")
    if len(latent) > 1:
        told.append(f"Its latents were of size {' x '.join(map(str, latent[1:]))}.")
    if plan.about.interrupted:
        told.append("It was not finished.")
    return told


def description(plan: CalibratedPlan) -> str:
    """Everything in a file as text, and the coefficients that follow from it."""
    recipe = plan.recipe
    lines = [summary(plan), ""]
    if plan.predictor is not None:
        lines += ["The numbers below are those that the predictor gives where it sees no network.", ""]
    lines += [f"{name}: {_spoken(value)}" for name, value in recipe.options.items()]
    lines += [f"{name}: {_spoken(value)}" for name, value in plan.about.as_dict().items()]
    if recipe.afs:
        lines.append("The first evaluation is left out.")
    lines += ["", *_numbers(plan), ""]
    lines += ["Each sample from x, start (x where the step began), D (what the model returned) and P[k] (what was"]
    lines += ["remembered k evaluations ago: D, or the noise or slope it stands for):", "", *_coefficients(recipe), ""]
    return "\n".join(lines)


def inserted(plan: CalibratedPlan) -> list[int]:
    """The evaluations at levels that AMED inserted: every second, if it is the base or has a predictor."""
    amed = plan.predictor is not None or "middle" in plan.recipe.options
    return list(range(1, len(plan.recipe.sigmas) - 1, 2)) if amed else []


def learned_numbers(recipe: Recipe) -> dict[str, list[float]]:
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
        gain = f", error {_spoken(about.error_before)} before, {_spoken(about.error_after)} after"
    shown = [
        Panel(
            f"{recipe.base}: {recipe.nfe} evaluations{gain}",
            "evaluation",
            "sigma",
            {"_levels": levels, **{name: part for name, part in parts.items() if part}},
            log_y=True,
            dots=parts,
        )
    ]
    numbers = learned_numbers(recipe)
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
    """The table of levels and learned numbers."""
    recipe = plan.recipe
    numbers, middle = learned_numbers(recipe), set(inserted(plan))
    rows = [["level", "sigma", *numbers, ""]]
    for k, sigma in enumerate(recipe.sigmas):
        calibrated = [f"{column[k]:.6g}" if k < len(column) else "" for column in numbers.values()]
        rows.append([str(k), f"{sigma:.6g}", *calibrated, "inserted" if k in middle else ""])
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
    """The table of updates: what the model is told, and the coefficients."""
    plan = recipe.plan()
    columns = coefficients(plan)
    rows = [["stage", "model at", *columns]]
    for k, stage in enumerate(plan):
        told = "-" if stage.sigma is None else f"{float(stage.sigma):.6g}"
        numbers = (column[k] for column in columns.values())
        rows.append([str(k), told, *("" if math.isnan(c) else f"{c:.6g}" for c in numbers)])
    return text_table(rows)


def text_table(rows: list[list[str]]) -> list[str]:
    """Lines with the cells of a column one below the other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _spoken(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_spoken(part)}" for name, part in value.items())
    return value if isinstance(value, str) else json.dumps(value)
