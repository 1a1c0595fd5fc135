"""The schedules. Each is declared beside its function, and has its place in the list here."""

from __future__ import annotations

from collections.abc import Mapping

from ..schedule import DECLARED, ScheduleSpec
from ..spec import Registry
from . import analytic, flow, manual, renamed, tables, timesteps, trained  # noqa: F401  # they declare

SCHEDULES: Mapping[str, ScheduleSpec] = Registry(
    "schedule",
    (
        "karras",
        "exponential",
        "time_uniform",
        "time_quadratic",
        "polyexponential",
        "vp",
        "cosine",
        "edm",
        "laplace",
        "beta",
        "lu_lambda",
        "linear_quadratic",
        "ays",
        "gits",
        "normal",
        "simple",
        "sgm_uniform",
        "ddim_uniform",
        "beta57",
        "bong_tangent",
        "kl_optimal",
        "karras_discard",
        "time_quadratic_discard",
        "beta_discard",
        "beta57_discard",
        "optimal_steps",
        "flux",
        "flux2",
        "trained",
        "manual",
    ),
    DECLARED,
)
"""Every schedule, by id, in the order in which nodes and tables show them."""
