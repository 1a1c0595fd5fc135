"""Fast diffusion samplers in sigma space. Needs torch, and nothing of ComfyUI.

    from samplers import SAMPLERS, SCHEDULES

    sigmas = SCHEDULES["karras"].function(10, sigma_min=0.03, sigma_max=14.6)
    image = SAMPLERS["dpmpp_2m"].function(model, noise * sigmas[0], sigmas)

`model(x, sigma, **extra_args) -> denoised` is a k-diffusion denoiser.
"""

from .integrate import NonFiniteError, integrate
from .levels import Level, Levels, read_levels
from .plan import DENOISED, START, Combination, Noise, P, Plan, Stage, X
from .registry import SAMPLERS, SCHEDULES, Option, SamplerSpec, ScheduleSpec

__all__ = [
    "DENOISED",
    "SAMPLERS",
    "SCHEDULES",
    "START",
    "Combination",
    "Level",
    "Levels",
    "Noise",
    "NonFiniteError",
    "Option",
    "P",
    "Plan",
    "SamplerSpec",
    "ScheduleSpec",
    "Stage",
    "X",
    "integrate",
    "read_levels",
]
