"""Puts the curated samplers and schedules into the host's own dropdowns, and tells it of the folder for plans and of
the routes of the front end.

The host has no API for samplers. It finds a sampler as `comfy.k_diffusion.sampling.sample_<name>` and a schedule in
`SCHEDULER_HANDLERS`; the dropdowns are two lists each, which are one object until some pack replaces one.
"""

from __future__ import annotations

from functools import partial

import comfy.samplers
from comfy.k_diffusion import sampling as k_diffusion

from ..samplers import SAMPLERS, SCHEDULES
from .host import sampler_function, schedule_sigmas
from .plans import register_folder
from .routes import register_routes

PREFIX = "fewstep_"


def register() -> None:
    """Add what is not there yet. Entries that exist, the host's or ours from an earlier load, stay as they are."""
    register_folder()
    register_routes()
    for spec in SAMPLERS.values():
        if spec.curated:
            name = PREFIX + spec.id
            if not hasattr(k_diffusion, f"sample_{name}"):
                setattr(k_diffusion, f"sample_{name}", sampler_function(spec))
            _append(name, comfy.samplers.KSampler.SAMPLERS, comfy.samplers.SAMPLER_NAMES)
    for spec in SCHEDULES.values():
        if spec.curated:
            name = PREFIX + spec.id
            handler = comfy.samplers.SchedulerHandler(partial(schedule_sigmas, spec), use_ms=True)
            comfy.samplers.SCHEDULER_HANDLERS.setdefault(name, handler)
            _append(name, comfy.samplers.KSampler.SCHEDULERS, comfy.samplers.SCHEDULER_NAMES)


def _append(name: str, *dropdowns: list[str]) -> None:
    for dropdown in dropdowns:
        if name not in dropdown:
            dropdown.append(name)
