"""Puts the curated samplers and schedules into the host's own dropdowns, and tells it of the folder for plans and of
the routes of the front end.

The host has no API for samplers. It finds a sampler as `comfy.k_diffusion.sampling.sample_<name>` and a schedule in
`SCHEDULER_HANDLERS`; the dropdowns are two lists each, which are one object until some pack replaces one.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from functools import partial
from typing import Any

import comfy.samplers
from comfy.k_diffusion import sampling as k_diffusion

from ..samplers import SAMPLERS, SCHEDULES
from .host import PREFIX, sample_fewstep_plan, sampler_function, schedule_sigmas
from .plans import register_folder
from .routes import register_routes


def register() -> None:
    """Add what is not there yet. Entries that exist, the host's or ours from an earlier load, stay as they are."""
    register_folder()
    register_routes()
    # Every sampler has a name: newer hosts make a SAMPLER again from that of its function.
    for function in (sample_fewstep_plan, *map(sampler_function, SAMPLERS.values())):
        if not hasattr(k_diffusion, function.__name__):
            setattr(k_diffusion, function.__name__, function)
    host = comfy.samplers
    _extend(
        [PREFIX + s.id for s in SAMPLERS.values() if s.curated], (host.KSampler, "SAMPLERS"), (host, "SAMPLER_NAMES")
    )
    if not isinstance(host.SCHEDULER_HANDLERS, MutableMapping):
        host.SCHEDULER_HANDLERS = dict(host.SCHEDULER_HANDLERS)
    curated = [spec for spec in SCHEDULES.values() if spec.curated]
    for spec in curated:
        handler = host.SchedulerHandler(partial(schedule_sigmas, spec), use_ms=True)
        host.SCHEDULER_HANDLERS.setdefault(PREFIX + spec.id, handler)
    _extend([PREFIX + s.id for s in curated], (host.KSampler, "SCHEDULERS"), (host, "SCHEDULER_NAMES"))


def _extend(names: Sequence[str], *places: tuple[Any, str]) -> None:
    """Append names to the list that each of the places, an object and its attribute, holds.

    Where another pack has put no list (a tuple) it is replaced by one: by the same in all places that held the same.
    """
    lists: dict[int, list[str]] = {}
    for owner, attribute in places:
        found = getattr(owner, attribute)
        dropdown = lists.setdefault(id(found), found if isinstance(found, list) else list(found))
        dropdown += [name for name in names if name not in list(dropdown)]
        setattr(owner, attribute, dropdown)
