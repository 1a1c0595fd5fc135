"""Puts all samplers where the host looks for their names, and the curated ones and schedules into its own dropdowns.

The host has no API for samplers. It finds a sampler as `comfy.k_diffusion.sampling.sample_<name>` and a schedule in
`SCHEDULER_HANDLERS`; the dropdowns are two lists each, which are one object until some pack replaces one.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

import comfy.samplers
from comfy.k_diffusion import sampling as k_diffusion

from ..samplers import SAMPLERS, SCHEDULES
from .host.chain import sample_fewstep_chain
from .host.named import SpecT
from .host.sampling import PREFIX, sample_fewstep_plan, sampler_function, schedule_sigmas

SAMPLERS_FIRST = (
    "dpmpp_2m", "ipndm_v", "dpm_2m", "dpm_3m", "unipc", "res_multistep", "dpmpp_2m_sde", "euler_ancestral", "dpmpp_sde",
    "er_sde", "ddim", "deis", "dpmpp_3m", "dpmpp_2s", "res_2s", "sa_solver", "seeds_2", "gradient_estimation", "lms",
    "euler_cfg_pp", "dpmpp_2m_cfg_pp", "consistency", "amed_dpm_2m",
)  # fmt: skip
"""KSampler's list: the most used, and of the least error in docs/QUALITY.md, before special ones."""

SCHEDULES_FIRST = (
    "karras", "karras_discard", "beta", "beta_discard", "simple", "sgm_uniform", "exponential", "kl_optimal",
    "beta57", "beta57_discard", "time_quadratic_discard", "ays", "gits", "bong_tangent", "normal", "linear_quadratic",
    "ddim_uniform", "polyexponential", "laplace", "cosine", "time_uniform", "time_quadratic",
)  # fmt: skip
"""As `SAMPLERS_FIRST`."""


def curated(registry: Mapping[str, SpecT], first: Sequence[str]) -> list[SpecT]:
    """What the host's lists show: those that are named first, then the others, as the registry has them."""
    shown = {id: spec for id, spec in registry.items() if spec.curated}
    named = {id: shown[id] for id in first if id in shown}
    return list((named | shown).values())


def register_samplers() -> None:
    """Add what is not there yet. Entries that exist, the host's or ours from an earlier load, stay as they are.

    Raises:
        AttributeError: naming the lists that did not take the names.
    """
    # Newer hosts make a SAMPLER again from the name of its function: every one is to be found.
    for function in (sample_fewstep_plan, sample_fewstep_chain, *map(sampler_function, SAMPLERS.values())):
        if not hasattr(k_diffusion, function.__name__):
            setattr(k_diffusion, function.__name__, function)
    names = [PREFIX + spec.id for spec in curated(SAMPLERS, SAMPLERS_FIRST)]
    _extend(names, (comfy.samplers.KSampler, "SAMPLERS"), (comfy.samplers, "SAMPLER_NAMES"))


def register_schedules() -> None:
    """As `register_samplers`."""
    known = comfy.samplers.SCHEDULER_HANDLERS
    if not isinstance(known, MutableMapping):
        known = comfy.samplers.SCHEDULER_HANDLERS = dict(known)
    handlers = {
        PREFIX + spec.id: comfy.samplers.SchedulerHandler(partial(schedule_sigmas, spec), use_ms=True)
        for spec in curated(SCHEDULES, SCHEDULES_FIRST)
    }
    for name, handler in handlers.items():
        known.setdefault(name, handler)
    _extend(list(handlers), (comfy.samplers.KSampler, "SCHEDULERS"), (comfy.samplers, "SCHEDULER_NAMES"))


def _extend(names: Sequence[str], *places: tuple[Any, str]) -> None:
    """Append names to the list that each of the places, an object and its attribute, holds.

    Where another pack has put no list (a tuple) it is replaced by one: by the same in all places that held the same.

    Raises:
        AttributeError: naming the places that did not take them, after all others have.
    """
    lists: list[tuple[Any, list[str]]] = []  # what was found, and what takes its place
    refused = []
    for owner, attribute in places:
        found = getattr(owner, attribute, None)
        if found is None:  # a host that has one list, or none: `needs` tells of it
            continue
        try:
            dropdown = next((taken for known, taken in lists if known is found), None)
            if dropdown is None:
                dropdown = found if isinstance(found, list) else list(found)
                lists.append((found, dropdown))
            dropdown += [name for name in names if name not in list(dropdown)]
            if dropdown is not found:
                setattr(owner, attribute, dropdown)
            if not {*names} <= {*getattr(owner, attribute)}:
                raise TypeError("it is made anew whenever it is read")
        except Exception as error:  # of whatever another pack has put there
            refused.append(f"{owner.__name__}.{attribute} does not take them ({error})")
    if refused:
        raise AttributeError("; ".join(refused))
