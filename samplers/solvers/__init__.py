"""The samplers. Each is declared beside its solver, and has its place in the list here."""

from __future__ import annotations

from collections.abc import Mapping

from ..sampler import DECLARED, SamplerSpec
from ..spec import Registry
from . import (  # noqa: F401  # they declare
    adams,
    adaptive,
    amed,
    ancestral,
    dpm_solver,
    er_sde,
    exponential,
    restart,
    runge_kutta,
    sa_solver,
    sde,
    unipc,
)

SAMPLERS: Mapping[str, SamplerSpec] = Registry(
    "sampler",
    (
        "dpmpp_2s",
        "dpmpp_3s",
        "dpmpp_2m",
        "dpmpp_3m",
        "dpm_2s",
        "dpm_3s",
        "dpm_2m",
        "dpm_3m",
        "euler",
        "heun",
        "rk4",
        "unipc",
        "ipndm",
        "ipndm_v",
        "ddim",
        "dpmpp_2m_sde",
        "dpmpp_3m_sde",
        "dpmpp_sde",
        "dpmpp_2s_ancestral",
        "euler_ancestral",
        "ddpm",
        "edm",
        "deis",
        "plms",
        "dpm_fast",
        "dpm_adaptive",
        "consistency",
        "amed",
        "amed_dpm_2s",
        "amed_dpm_2m",
        "lms",
        "gradient_estimation",
        "heunpp2",
        "dpm_2_ancestral",
        "res_2s",
        "res_3s",
        "res_5s",
        "res_6s",
        "res_multistep",
        "seeds_2",
        "seeds_3",
        "exp_heun_2_x0",
        "exp_heun_2_x0_sde",
        "res_multistep_ancestral",
        "er_sde",
        "sa_solver",
        "restart",
    ),
    DECLARED,
)
"""Every sampler, by id, in the order in which nodes and tables show them."""
