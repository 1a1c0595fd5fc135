"""Puts the samplers and schedules into the host's lists.

There is no API for it. A sampler is a `SamplerData` in a list and a table by name, a schedule a `Scheduler` in a list
and a table by both of its names. The host builds its dropdowns after it has run the scripts, and runs them again at
"Reload UI", while its lists stay.
"""

from __future__ import annotations

import inspect
import sys
from functools import partial
from pathlib import Path
from typing import Any

from modules import script_callbacks, sd_samplers, sd_samplers_common, sd_samplers_kdiffusion

from ..samplers import SamplerSpec
from .host import plan_sigmas, sample_plan, sampler_function, schedule_function
from .names import MARK, PLAN, PREFIX, SAMPLER_NAMES, SCHEDULE_NAMES
from .options import reset_pasted

try:
    from modules import sd_schedulers
except ImportError:  # before 1.9: a sampler's name says the schedule
    sd_schedulers = None

ROOT = Path(__file__).resolve().parents[1]


def register() -> None:
    """Add the samplers and schedules, those of an earlier load replaced."""
    remove()
    for name, spec in SAMPLER_NAMES.items():
        _add_sampler(name, spec.id, sampler_function(spec), scheduler="karras", second_order=_is_second_order(spec))
    if sd_schedulers is not None:
        for label, spec in SCHEDULE_NAMES.items():
            _add_schedule(label, spec.id, schedule_function(spec))
        _add_sampler(PLAN, "plan", sample_plan, scheduler=f"{PREFIX}plan")
        _add_schedule(PLAN, "plan", plan_sigmas)
    _refresh()
    script_callbacks.on_script_unloaded(remove)
    script_callbacks.on_before_ui(hide_modules)
    script_callbacks.on_infotext_pasted(reset_pasted)


def remove() -> None:
    """Take all of them out again."""
    sd_samplers.all_samplers[:] = [data for data in sd_samplers.all_samplers if not data.name.endswith(MARK)]
    tables = [sd_samplers.all_samplers_map]
    if sd_schedulers is not None:
        sd_schedulers.schedulers[:] = [entry for entry in sd_schedulers.schedulers if not entry.label.endswith(MARK)]
        tables.append(sd_schedulers.schedulers_map)
    for table in tables:
        for name in [name for name in table if name.startswith(PREFIX) or name.endswith(MARK)]:
            del table[name]
    extra = sd_samplers_kdiffusion.sampler_extra_params
    for function in [f for f in extra if getattr(f, "__name__", "").startswith(f"sample_{PREFIX}")]:
        del extra[function]
    _refresh()


def hide_modules() -> None:
    """Take the pack's folder off `sys.path`, where Forge and reForge leave it: our `nodes` is nobody else's."""
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != ROOT]


def _add_sampler(name: str, id: str, function: Any, **options: Any) -> None:
    make = partial(sd_samplers_kdiffusion.KDiffusionSampler, function)
    data = sd_samplers_common.SamplerData(name, make, [PREFIX + id], options)
    sd_samplers.all_samplers.append(data)
    sd_samplers.all_samplers_map[name] = data
    if "s_noise" in inspect.signature(function).parameters:
        sd_samplers_kdiffusion.sampler_extra_params[function] = ["s_noise"]


def _add_schedule(label: str, id: str, function: Any) -> None:
    entry = sd_schedulers.Scheduler(PREFIX + id, label, function, need_inner_model=True)
    sd_schedulers.schedulers.append(entry)
    sd_schedulers.schedulers_map.update({entry.name: entry, entry.label: entry})


def _is_second_order(spec: SamplerSpec) -> bool:
    """Whether a step takes two evaluations, by which the host counts them for prompt editing and the refiner."""
    steps = 10
    return spec.nfe([float(sigma) for sigma in range(steps, -1, -1)]) > 1.5 * steps


def _refresh() -> None:
    """Have the host see what is in its lists."""
    sd_samplers.set_samplers()
    cached = getattr(sd_samplers, "get_sampler_and_scheduler", None)
    if cached is not None:
        cached.cache_clear()
