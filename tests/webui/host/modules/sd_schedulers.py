"""Schedules, since 1.9."""

import dataclasses

import k_diffusion.sampling


@dataclasses.dataclass
class Scheduler:
    name: str
    label: str
    function: object
    default_rho: float = -1
    need_inner_model: bool = False
    aliases: list = None


schedulers = [
    Scheduler("automatic", "Automatic", None),
    Scheduler("karras", "Karras", k_diffusion.sampling.get_sigmas_karras, default_rho=7.0),
    Scheduler("sgm_uniform", "SGM Uniform", lambda n, device, inner_model, **_: inner_model.get_sigmas(n), -1, True,
              ["SGMUniform"]),
    Scheduler("ddim", "DDIM", lambda n, device, inner_model, **_: inner_model.get_sigmas(n), -1, True),
    Scheduler("beta", "Beta", lambda n, device, inner_model, **_: inner_model.get_sigmas(n), -1, True),
]  # fmt: skip
schedulers_map = {name: entry for entry in schedulers for name in (entry.name, entry.label)}
