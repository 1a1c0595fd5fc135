"""Students in the host: which is connected, what its file holds, where a run differs from what it was trained for."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import comfy.sd
import torch
from comfy_execution.utils import get_executing_context
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...samplers.calibrated.file import write, write_new
from ...samplers.distill import Student, read_student, student_in
from ...samplers.guidance import NONE
from ...samplers.integrate import FLOATS
from .display import server, telling
from .families import family_name, files_of, metadata_of
from .guider import guidance_scale, guider_of, run_guidance
from .model import fingerprint
from .plan_files import entry_of, first_that_takes, free_paths, remove_older
from .protocols import Patcher
from .work import on_stop

FOLDER = "loras"
"""Of models, as the host's loaders of LoRAs have it."""

INTERRUPTED = "interrupted_student"
"""Name of a student whose training was stopped."""

STUDENT = "student"
"""Fact of a model beside its `fingerprint`: `Student.text`."""

PREFIX = "lora_unet_"
"""Of the names of layers in a LoRA, as ComfyUI and the WebUIs read them; what follows has _ for dots."""

_KEY = "fewstep_student"


# Which one is connected


def with_student(patcher: Any, student: Student, tensors: Mapping[str, Tensor]) -> Any:
    """The MODEL with a student's LoRA on it, by the code of the host's own loader, which knows that it is one."""
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, dict(tensors), 1.0, 0.0)
    patched.set_attachments(_KEY, student)
    return patched


def student_of(patcher: Any, prompt: Mapping[str, Any] | None, node: Any) -> Student | None:
    """The student that a MODEL is, by what Few-Step Distill left on it, or by the files of the LoRAs it comes through.

    Args:
        prompt: the workflow that runs; None where that is not known.
        node: the id of the node that is asking, which has the MODEL, or its guider, as an input.
    """
    attached: Student | None = patcher.get_attachment(_KEY)
    if attached is not None or prompt is None:
        return attached
    inputs = prompt.get(str(node), {}).get("inputs", {})
    input = "model" if "model" in inputs else "guider"
    for file, folder in files_of(prompt, str(node), input):
        if folder == FOLDER and (student := student_of_file(file)) is not None:
            return student
    return None


def connected_student(patcher: Any) -> Student | None:
    """`student_of` for the node that is running."""
    context, host = get_executing_context(), server()
    if context is None or host is None:
        return student_of(patcher, None, None)
    prompt = None
    with telling("the graph that runs is not known, nor what its LoRAs were trained for"):
        queue = host.prompt_queue
        running, _ = getattr(queue, "get_current_queue_volatile", queue.get_current_queue)()  # the former copies less
        prompt = next((item[2] for item in running if item[1] == context.prompt_id), None)
    return student_of(patcher, prompt, context.node_id)


def fitting_student(patcher: Any) -> Student | None:
    """`connected_student`, if it is one of this kind of model."""
    student = connected_student(patcher)
    return None if student is None or why_not(student, fingerprint(patcher)) else student


def student_of_file(file: str) -> Student | None:
    """The student in a file of models/loras; None for any other LoRA. One that cannot be read is logged."""
    metadata = metadata_of(file, FOLDER)
    try:
        return student_in(metadata)
    except ValueError as error:
        logging.warning("%s is no student that can be followed: %s", file, error)
        return None


def facts_of(student: Student | None) -> dict[str, str]:
    """Facts for a `fingerprint`."""
    return {} if student is None else {STUDENT: student.text(brief=True)}


@functools.lru_cache(maxsize=16)
def _read(text: str) -> Student:
    return read_student(text)


def student_in_facts(model: Mapping[str, Any] | None) -> Student | None:
    """The student of `facts_of`.

    Raises:
        ValueError: if it is none.
    """
    text = (model or {}).get(STUDENT)
    return None if text is None else _read(text)


def why_not(student: Student, model: Mapping[str, Any]) -> str | None:
    """Why a student is none of this kind of model (`fingerprint`); None if it is."""
    wanted, found = (facts.get("family") for facts in (student.about.model, model))
    if wanted is not None and found is not None and wanted != found:
        return (
            f"this student is for {family_name(str(wanted)[:80])}; your model is {family_name(found)}. Load the model "
            "that it was made from, or take its LoRA out"
        )
    other = student.about.other_model(model)
    if other is None:
        return None
    name, there, here = other
    return (
        f"this student was made for another model: {name} is {there} there and {here} in the model that is sampled. "
        "Load the model that it was made from, or take its LoRA out"
    )


def student_sigmas(student: Student, denoise: float = 1.0) -> Tensor:
    """Its levels, or with `denoise` below 1 the last ones, at least one step: float32 as the host wants it."""
    kept = max(1, round(student.steps * denoise))
    return torch.tensor(student.levels[-kept - 1 :], dtype=torch.float32)


# Where a run differs


def student_warnings(model: Any, sampler: str, sigmas: Sequence[float]) -> list[str]:
    """What is wrong with a run of a student, in sentences without a full stop; nothing for other models.

    Args:
        model: what the host gives a sampler.
        sampler: its id.
    """
    guider = guider_of(model)
    student = connected_student(guider.model_patcher)
    if student is None:
        return []
    guidance = run_guidance(guider)
    scale = guidance_scale(guider) if guidance is None else guidance.of_run
    other = why_not(student, fingerprint(guider.model_patcher))
    return (
        [other]
        if other
        else [*other_steps(student, sigmas), *other_sampler(student, sampler), *other_cfg(student, scale)]
    )


def other_steps(student: Student, sigmas: Sequence[float]) -> list[str]:
    """Where a run has other steps than the student was trained for."""
    steps = len(sigmas) - 1
    if student.is_part(sigmas):
        return []
    if steps != student.steps:
        return [
            f"this student was trained for steps = {student.steps} and this run has {steps}, so the image is worse "
            "than it could be: sample with Few-Step Auto, or with the schedule trained, which have its noise levels"
        ]
    return [
        f"this student was trained at the noise levels {_written(student.levels)} and this run has {_written(sigmas)}, "
        "so the image is worse than it could be: sample with Few-Step Auto, or with the schedule trained, which have "
        "its noise levels"
    ]


def other_sampler(student: Student, sampler: str) -> list[str]:
    """Where a run has another sampler than the student was trained for."""
    wanted = ("ddim", "euler") if student.sampler == "ddim" else (student.sampler,)
    if sampler in wanted:
        return []
    return [f"this student was trained for the sampler {student.sampler} and this run has {sampler}: choose that one"]


def other_cfg(student: Student, scale: float | None) -> list[str]:
    """Where a run has guidance."""
    if scale is None or scale <= NONE + 0.01:
        return []
    baked = student.about.guidance
    inside = "its guidance" if baked is None else f"guidance {baked:g}"
    return [
        f"this student has {inside} in it and was trained for cfg 1, and this run has cfg {scale:g}, which burns the "
        "image: set cfg to 1"
    ]


def _written(levels: Sequence[float]) -> str:
    return ", ".join(f"{level:.4g}" for level in levels)


# Files


class StudentLora(NamedTuple):
    """A student and the tensors of its LoRA."""

    student: Student
    tensors: dict[str, Tensor]

    def unfinished(self) -> StudentLora:
        """The same, marked as what was there when the training was stopped."""
        about = replace(self.student.about, interrupted=True)
        return self._replace(student=replace(self.student, about=about))

    def on(self, patcher: Patcher) -> Any:
        """The MODEL with the LoRA on it."""
        return with_student(patcher, self.student, self.tensors)

    def save(self, filename: str, folder: str | None = None) -> Path:
        """Write it to a file in models/loras, or in another folder, that was not there before.

        Raises:
            ValueError: as `free_paths`.
            OSError: if it cannot be written.
        """
        return write_new(free_paths(filename, folder, FOLDER), self.student.metadata(), self.tensors)

    def write(self, path: Path) -> Path:
        """Write it to a file. One of that name is replaced.

        Raises:
            OSError: if it cannot be written.
        """
        return write(path, self.student.metadata(), self.tensors)

    def keep(self, save_it: Callable[[], Path], filename: str = "rescued_student") -> Path:
        """Save what took long to make. Where that fails it goes to another folder.

        Raises:
            ValueError, OSError: if it failed; the message says where the student is instead.
        """
        try:
            return save_it()
        except Exception as error:
            rescued = first_that_takes(lambda folder: self.save(filename, folder), FOLDER)
            message = f"the student could not be saved ({error}), and no other folder took it"
            if rescued is not None:
                message = f"the student could not be saved ({error}); it is in {rescued} instead"
            logging.warning("%s", message)
            raise (ValueError if isinstance(error, ValueError) else OSError)(message) from error

    def keep_interrupted(self) -> Path:
        """`keep` what there is under a name of which one file of a kind stays."""
        found = self.unfinished()
        path = found.keep(lambda: found.save(INTERRUPTED), INTERRUPTED)
        remove_older(path, _kind)
        return path


class FoundLora(NamedTuple):
    """A student to go on with."""

    tensors: dict[str, Tensor]
    rank: int
    images: int
    """That it was trained on."""


def read_lora(path: Path) -> FoundLora:
    """The student in a file.

    Raises:
        ValueError: beginning with `start_from`, if it is none.
    """
    try:
        with safe_open(path, "pt") as file:
            student = student_in(file.metadata() or {})
            tensors = {} if student is None else {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name, tensor in tensors.items():
            if tensor.dtype not in FLOATS or not tensor.isfinite().all():
                raise ValueError(f"tensor {name} does not hold finite floating-point numbers of 16 to 64 bits")
    except (OSError, SafetensorError, ValueError) as error:
        raise ValueError(f"start_from: {path.name} cannot be read ({error}): choose another") from None
    if student is None:
        raise ValueError(f"start_from: {path.name} is no student of Few-Step Distill: choose one, or none")
    ranks = [tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".lora_down.weight") and tensor.ndim]
    images = student.training.get("images", 0)
    known = isinstance(images, int) and not isinstance(images, bool) and 0 <= images < _MOST_IMAGES
    return FoundLora(tensors, max(ranks, default=1), images if known else 0)


_MOST_IMAGES = 2**31


def _kind(path: Path) -> object:
    """What a student of ours is for."""
    if (student := student_of_file(entry_of(path, FOLDER))) is None:
        raise ValueError(path.name)
    return student.steps, student.about.model, student.about.guidance


@contextlib.contextmanager
def kept_student(work: Any) -> Iterator[None]:
    """Whatever stops a training (`Distillation`), the best student so far is written to models/loras."""

    def keep() -> str:
        found = work.student
        return stopped(None if found is None else found.keep_interrupted())

    with on_stop(keep, work.session.progress.end):
        yield


def stopped(path: Path | None) -> str:
    """What is said when a training was stopped, of the file of its student."""
    if path is None:
        return "Stopped before anything was learned"
    return f"Stopped. Best student saved as {entry_of(path, FOLDER)}; choose it in Load LoRA"
