"""Calibrated plans as files in models/fewstep."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import folder_paths

from ...samplers.calibrated import CalibratedPlan, FileError, load
from ...samplers.calibrated.file import moved
from ...samplers.calibrated.published import PUBLISHED
from ...samplers.checks import shortened
from .display import tell

FOLDER, EXTENSION = "fewstep", ".safetensors"

INTERRUPTED = "interrupted"
"""Name of a plan that was not finished, and the field of its `about` that says so."""

BUILT_IN = {"built-in: amed_dpm_2m (SD1.5, 10 evaluations)": PUBLISHED["amed_dpm_2m"]}
"""Published plans by their entry of the list of files; workflows keep these names."""


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


def entry_of(path: Path, kind: str = FOLDER) -> str:
    """The entry of the list that a file has; all of its path where it lies elsewhere."""
    for folder in map(Path, map(os.path.abspath, folder_paths.get_folder_paths(kind))):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return str(path)


def entries() -> list[str]:
    """The list that Few-Step Load Plan offers: published plans, then files."""
    return [*BUILT_IN, *folder_paths.get_filename_list(FOLDER)]


def tell_of_change() -> None:
    """Send the list to the front ends: their Load Plan nodes offer it."""
    with contextlib.suppress(Exception):  # what was saved is saved
        tell("fewstep.plans", {"files": entries()})


def is_unfinished(file: str, plan: CalibratedPlan) -> bool:
    """Whether the work on a plan was stopped. Files from before the field was written are known by their name."""
    return plan.about.interrupted or PurePath(file).name.startswith(f"{INTERRUPTED}_")


def check_filename(filename: str, kind: str = FOLDER) -> PurePosixPath:
    """The name of a file without its extension, with subfolders or without.

    Args:
        kind: the folder of models that it is for.

    Raises:
        ValueError: if it is no name inside that folder, or none that every system takes: such files are handed on.
    """
    parts = PureWindowsPath(filename.strip())  # takes / and \ for separators
    if parts.suffix == EXTENSION:
        parts = parts.with_suffix("")
    fault = None
    if parts.anchor or ".." in parts.parts or not parts.name:
        fault = f"must be a name, with subfolders or without, inside models/{kind}, such as {_EXAMPLES[kind]}"
    elif len(parts.parts) > _DEEPEST:
        fault = f"has {len(parts.parts) - 1} folders inside each other: use at most {_DEEPEST - 1}"
    for part in parts.parts if fault is None else ():
        if (unusable := _UNUSABLE.search(part)) is not None:
            fault = f"holds {unusable[0]!r}, which not every system takes in the name of a file: leave it out"
        elif _RESERVED.fullmatch(part) or part.endswith((".", " ")):
            fault = f"holds {shortened(part)}, which cannot be the name of a file on Windows: choose another"
        elif len(part.encode()) > _LONGEST_NAME:
            fault = f"is too long: a name may have {_LONGEST_NAME} bytes, of which some letters take several"
    if fault is not None:
        raise ValueError(f"filename = {shortened(filename)} {fault}")
    return PurePosixPath(*parts.parts)


_EXAMPLES = {FOLDER: "plan", "loras": "student"}
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


def free_paths(filename: str, folder: str | None = None, kind: str = FOLDER) -> Iterator[Path]:
    """Files of a name in models/fewstep, or in another folder, that do not exist yet: numbered as the host does.

    Args:
        kind: the folder of models that they are for.

    Raises:
        ValueError: if `filename` is no name inside that folder, or makes a path that is too long.
    """
    name = check_filename(filename, kind)
    root = os.path.abspath(folder or folder_paths.get_folder_paths(kind)[0])
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
        path = plan.save_new(free_paths(filename, folder))
    tell_of_change()
    return path


def keep(plan: CalibratedPlan, save_it: Callable[[], Path], filename: str = "rescued") -> Path:
    """Save a plan that took long to make. Where that fails it goes to another folder, and its text into the log.

    Raises:
        ValueError, OSError: if it failed; the message says where the plan is instead.
    """
    try:
        return save_it()
    except Exception as error:
        rescued = _rescued(plan, filename)
        where = "as text in the log" if rescued is None else f"in {rescued}"
        message = f"the plan could not be saved ({error}); it is {where} instead"
        logging.warning("%s. As text, for Few-Step Load Plan:\n%s", message, plan.text())
        if rescued is None and plan.predictor is not None:
            logging.warning(
                "its predictor is lost: the text is the fixed plan that it follows where it cannot read the network"
            )
        raise (ValueError if isinstance(error, ValueError) else OSError)(message) from error


def _rescued(plan: CalibratedPlan, filename: str) -> Path | None:
    """The file of a plan in the first folder that takes it; None if none does."""
    return first_that_takes(lambda folder: save(plan, filename, folder))


def first_that_takes(save_into: Callable[[str], Path], kind: str = FOLDER) -> Path | None:
    """What is saved into the first folder that takes it, those of models first; None if none does."""
    elsewhere = folder_paths.get_output_directory(), folder_paths.get_user_directory(), tempfile.gettempdir()
    for folder in (*folder_paths.get_folder_paths(kind), *elsewhere):
        with contextlib.suppress(Exception):
            return save_into(folder)
    return None


def keep_newest(plan: CalibratedPlan, filename: str) -> Path:
    """`keep` under a name of which one file of a kind stays: earlier ones for the same model, guidance and number of
    evaluations are removed once the new one is there."""
    path = keep(plan, lambda: save(plan, filename), filename)
    remove_older(path, lambda other: _kind(load(other)))
    tell_of_change()
    return path


def remove_older(path: Path, kind: Callable[[Path], object]) -> None:
    """Remove the files of the same name with lower numbers that are of the same kind."""
    numbered = re.compile(rf"(.*)_(\d{{5,}})_{re.escape(EXTENSION)}")
    if (new := numbered.fullmatch(path.name)) is None:
        return
    for other in path.parent.iterdir():
        old = numbered.fullmatch(other.name)
        if old is not None and old[1] == new[1] and int(old[2]) < int(new[2]):
            with contextlib.suppress(OSError, ValueError):
                if kind(other) == kind(path):
                    other.unlink()


def _kind(plan: CalibratedPlan) -> tuple[object, ...]:
    """What a plan is for."""
    return plan.about.model, plan.about.guidance, plan.recipe.nfe


# Files of the user's that are renamed and deleted


def rename(file: str, name: str) -> str:
    """Give a plan another name in its folder of plans; gives its new entry of the list. No file is replaced.

    One that is known to be unfinished by its name alone gets the mark for it.

    Raises:
        ValueError: if it is no plan of ours, or `name` is no name inside that folder, or taken.
        OSError: if it cannot be renamed.
    """
    path, root, plan = _own(file)
    new = Path(root, f"{check_filename(name)}{EXTENSION}")
    with _naming(name):
        if not _inside(new.parent, root):
            raise ValueError(f"filename = {shortened(name)} leads out of models/{FOLDER}: choose another folder")
        new.parent.mkdir(parents=True, exist_ok=True)
        if is_unfinished(file, plan) and not plan.about.interrupted:
            marked = replace(plan, about=replace(plan.about, interrupted=True))
            _refuse_taken(name, new)
            marked.save_new(iter([new]))
        elif not moved(path, new):
            _refuse_taken(name, new)
    path.unlink(missing_ok=True)
    tell_of_change()
    return entry_of(new)


def delete(file: str) -> None:
    """Remove a plan of the user's.

    Raises:
        ValueError: if it is no plan of ours.
        OSError: if it cannot be removed.
    """
    path, *_ = _own(file)
    path.unlink()
    tell_of_change()


def _own(file: str) -> tuple[Path, Path, CalibratedPlan]:
    """The file of an entry, the folder of plans that it lies in, and what it holds. Nothing else may be changed: what
    is no plan, or lies behind a link that leads out of that folder, is the user's to care for."""
    if file in BUILT_IN:
        raise FileError(f"file: {file} comes with Few-Step and stays as it is")
    path = Path(os.path.abspath(find(file)))
    for root in map(Path, map(os.path.abspath, folder_paths.get_folder_paths(FOLDER))):
        if path.is_relative_to(root) and _inside(path.parent, root):
            return path, root, load(path)
    raise FileError(f"file: {shortened(file)} lies outside of models/{FOLDER}, behind a link: change it there")


def _inside(folder: Path, root: Path) -> bool:
    """Whether a folder, which need not be there yet, is one of plans, or in it, also where links lead somewhere."""
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root))


def _refuse_taken(name: str, path: Path) -> None:
    if os.path.lexists(path):
        raise ValueError(f"filename = {shortened(name)} is taken: choose another name")
