"""Fast diffusion samplers in sigma space. Needs torch, and nothing of ComfyUI.

    from samplers import SAMPLERS, SCHEDULES

    sigmas = SCHEDULES["karras"].function(10, sigma_min=0.03, sigma_max=14.6)
    image = SAMPLERS["dpmpp_2m"].function(model, noise * sigmas[0], sigmas)

`model(x, sigma, **extra_args) -> denoised` is a k-diffusion denoiser; `Denoiser` makes one of a network.
"""

from .denoisers import Denoiser, classifier_free, classifier_guided
from .integrate import Guided, NonFiniteError, State, integrate
from .levels import Level, Levels, read_levels
from .noise import BrownianNoise
from .options import Option
from .plan import DENOISED, START, UNCONDITIONAL, Combination, Noise, P, Plan, Stage, X
from .processes import CosineVP, DiscreteVP, LinearVP, RectifiedFlow
from .sampler import SamplerSpec
from .schedule import ScheduleSpec
from .schedules import SCHEDULES
from .solvers import SAMPLERS
from .spec import UnknownIdError

__all__ = [
    "DENOISED",
    "SAMPLERS",
    "SCHEDULES",
    "START",
    "UNCONDITIONAL",
    "BrownianNoise",
    "Combination",
    "CosineVP",
    "Denoiser",
    "DiscreteVP",
    "Guided",
    "Level",
    "Levels",
    "LinearVP",
    "Noise",
    "NonFiniteError",
    "Option",
    "P",
    "Plan",
    "RectifiedFlow",
    "SamplerSpec",
    "ScheduleSpec",
    "Stage",
    "State",
    "UnknownIdError",
    "X",
    "classifier_free",
    "classifier_guided",
    "integrate",
    "read_levels",
]
