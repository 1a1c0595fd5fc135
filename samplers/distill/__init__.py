"""Distillation: networks that are trained to make in 1 to 8 evaluations what solvers need 10 to 50 for.

A solver leaves the network as it is, and ends at about 5 evaluations. Below that the network has to change. Four ways
are here, each a plain loop over k-diffusion denoisers, `model(x, sigma, **extra_args) -> denoised`; the student is one
with gradients:

* `TrajectoryDistillation`: each step of the student ends where a teacher's trajectory passes (SFD).
* `ProgressiveDistillation`: one step of the student does what two steps of its teacher do.
* `ConsistencyDistillation`: two neighbouring points of a trajectory lead to one image.
* `DistributionMatching`: samples of the student are as likely as those of the teacher (DMD2).

The teacher is usually the guided model, so that guidance is in the student, and a step costs one pass of the network,
not two. `Learner` keeps the weights that are trained, their optimiser and their moving average. They are those of the
network itself, or those of a LoRA (`add_lora`).
"""

from .consistency import ConsistencyDistillation
from .distribution import DistributionMatching
from .learner import Learner
from .lora import add_lora, lora_file, remove_lora
from .losses import LOSSES
from .progressive import ProgressiveDistillation
from .step import inserted
from .student import Student, read_student, student_in
from .trajectory import TrajectoryDistillation

__all__ = [
    "LOSSES",
    "ConsistencyDistillation",
    "DistributionMatching",
    "Learner",
    "ProgressiveDistillation",
    "Student",
    "TrajectoryDistillation",
    "add_lora",
    "inserted",
    "lora_file",
    "read_student",
    "remove_lora",
    "student_in",
]
