"""What a student was trained for, as the file of its LoRA has it in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ..calibrated.about import About
from ..checks import read_number, shortened
from .step import read_student_levels

KEY = "fewstep_student"
"""The field of the metadata, with JSON."""

SAMPLERS = ("ddim", "consistency")
"""Those that students are sampled with: one step of DDIM between two levels, or noise that is added anew."""

VERSION = 1
MOST = 64
"""Evaluations that a student may need."""

_LARGEST_LEVEL = 1e6


@dataclass(frozen=True)
class Student:
    """A network that was trained to be sampled at a few levels, without guidance.

    Args:
        levels: its noise levels, [n + 1], which descend; n is the evaluations that it needs.
        flow: levels of a rectified flow.
        sampler: of `SAMPLERS`.
        about: the model that it was made from, the guidance that is in it, and how it was trained.
        training: rank, learning rate, batch and the like.
    """

    levels: tuple[float, ...]
    flow: bool = False
    sampler: str = SAMPLERS[0]
    about: About = field(default_factory=About)
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The evaluations that it was trained for."""
        return len(self.levels) - 1

    def text(self, *, brief: bool = False) -> str:
        """JSON, that `read_student` reads.

        Args:
            brief: without the words of the prompts.
        """
        about = replace(self.about, texts=()) if brief else self.about
        return json.dumps(
            {
                "version": VERSION,
                "levels": list(self.levels),
                "flow": self.flow,
                "sampler": self.sampler,
                "training": dict(self.training),
                "about": about.as_dict(),
            }
        )

    def metadata(self) -> dict[str, str]:
        """For the file of its LoRA."""
        rank = self.training.get("rank")
        known = {} if rank is None else {"ss_network_module": "networks.lora", "ss_network_dim": str(rank)}
        return {KEY: self.text(), **known}

    def is_part(self, sigmas: Sequence[float]) -> bool:
        """Whether levels are those of the student, or some of them in a row: within 0.1 %."""
        if len(sigmas) < 2:
            return True
        starts = range(len(self.levels) - len(sigmas) + 1)
        return any(all(map(_near, self.levels[k:], sigmas)) for k in starts)


def _near(ours: float, theirs: float) -> bool:
    return abs(ours - theirs) <= 1e-3 * abs(ours)


def student_in(metadata: Mapping[str, Any]) -> Student | None:
    """The student of which a file's metadata tells; None if they tell of none.

    Raises:
        ValueError: as `read_student`.
    """
    return read_student(metadata[KEY]) if KEY in metadata else None


def read_student(text: Any) -> Student:
    """The student of `text`.

    Raises:
        ValueError: naming the field at fault, whatever it holds.
    """
    try:
        given = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(f"field {KEY} is not valid JSON") from None
    if not isinstance(given, dict):
        raise ValueError(f"field {KEY} must be an object")
    version = given.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"field version is {shortened(version)}: it must be a whole number from 1 on")
    if version > VERSION:
        raise ValueError(f"field version is {version} and this Few-Step reads up to {VERSION}: update Few-Step")
    levels, flow = given.get("levels"), given.get("flow", False)
    if not isinstance(levels, list) or not 2 <= len(levels) <= MOST + 1:
        raise ValueError(f"field levels must be a list of 2 to {MOST + 1} noise levels")
    if not isinstance(flow, bool):
        raise ValueError(f"field flow = {shortened(flow)} must be true or false")
    numbers = [read_number(f"field levels[{k}]", level, 0.0, _LARGEST_LEVEL) for k, level in enumerate(levels)]
    sampler, training = given.get("sampler"), given.get("training", {})
    if sampler not in SAMPLERS:
        raise ValueError(f"field sampler = {shortened(sampler)} must be {' or '.join(SAMPLERS)}")
    if not isinstance(training, dict):
        raise ValueError("field training must be an object")
    return Student(
        read_student_levels(torch.tensor(numbers, dtype=torch.float64), flow),
        flow,
        sampler,
        About.from_dict(given.get("about", {})),
        training,
    )
