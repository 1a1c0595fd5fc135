"""What is said of a student."""

from __future__ import annotations

from ...samplers.checks import counted
from ...samplers.distill import Student
from ..host.families import family_name
from .plans import error_text


def student_summary(student: Student) -> str:
    """A sentence without a full stop: what it needs, and what it was made from."""
    about = student.about
    parts = [
        f"A student of {family_name(str(about.model.get('family', 'any model'))[:80])} for "
        f"{counted(student.steps, 'evaluation')}, sampler {student.sampler}"
    ]
    if about.guidance is not None:
        parts.append(f"guidance {about.guidance:g} is in it")
    if about.measured:
        parts.append(error_text(about.error_before, about.error_after))
    return "; ".join(parts)


def student_outcome(student: Student) -> str:
    """What came out of a training, as text."""
    about, training = student.about, student.training
    teacher, shape = about.teacher, " x ".join(map(str, about.latent))
    levels = ", ".join(f"{level:.4g}" for level in student.levels)
    lines = [
        f"{counted(student.steps, 'evaluation')} at cfg 1; guidance {about.guidance:g} is in the student; noise levels "
        f"{levels}",
        error_text(about.error_before, about.error_after),
        f"against {teacher['steps']} steps of {teacher['sampler']}, {teacher['schedule']}; before: {about.baseline}",
        f"rank {training['rank']}; images: {training['images']}; prompts: {about.prompts}; latents {shape}",
    ]
    if not about.improved:
        lines.append(
            "The student is not better in validation: use more iterations or prompts, or another learning rate."
        )
    return "\n".join(lines)
