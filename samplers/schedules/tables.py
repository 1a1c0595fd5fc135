"""Schedules that were optimised for a model and published as tables of levels."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from ..options import Bounds
from ..schedule import schedule
from .analytic import level_of, log_ends


@functools.cache
def published(file: str) -> Any:
    """What a JSON file of this folder holds."""
    return json.loads(Path(__file__).with_name(file).read_text())


def interpolated(table: Tensor, points: int) -> Tensor:
    """So many values, linear in the index between those of a table; a single one is the first."""
    return torch.nn.functional.interpolate(table[None, None], points, mode="linear", align_corners=True)[0, 0]


def _from_table(table: list[float], points: int, n: int, sigma_min: float, sigma_max: float, flow: bool) -> Tensor:
    """The first n of so many levels, by interpolating the logarithms of a published table linearly in the step index.

    They are stretched affinely in log(sigma / alpha), so that the ends of the table fall on sigma_max and sigma_min.
    """
    logs = torch.tensor(table, dtype=torch.float64).log()
    height = interpolated((logs - logs[-1]) / (logs[0] - logs[-1]), points)[:n]
    start, end = log_ends(sigma_min, sigma_max, flow)
    return level_of(end + height * (start - end), flow)


# Those of the Stable Diffusion models for 10 steps are the levels of the published time steps.
Table = Literal["sd15", "sdxl", "svd", "sd15_32", "sdxl_32"]

AYS_TABLES: dict[Table, list[float]] = {
    "sd15": [14.6146412293, 6.4745760956, 3.8636745985, 2.6946151520, 1.8841921177, 1.3943805092, 0.9642583904,
             0.6523686016, 0.3977456272, 0.1515232662, 0.0291671582],
    "sdxl": [14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289,
             0.3798540708, 0.2332364134, 0.1114188177, 0.0291671582],
    "svd": [700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002],
    "sd15_32": [14.615, 11.23951352, 8.64363081, 6.64729424, 5.57250862, 4.71648546, 3.99196065, 3.5195609, 3.13490466,
                2.79228788, 2.48773628, 2.21663865, 1.97508351, 1.7793172, 1.61475335, 1.46540953, 1.314849, 1.16642497,
                1.03475547, 0.91573744, 0.80748169, 0.71202361, 0.621739, 0.53065202, 0.4529096, 0.37491455, 0.27461819,
                0.2011529, 0.14105873, 0.06682881, 0.03166121, 0.015],
    "sdxl_32": [14.615, 11.1491618, 8.50522127, 6.48827151, 5.43707402, 4.60398619, 3.89854704, 3.27407457, 2.74396527,
                2.29968659, 1.95448514, 1.67108715, 1.42878152, 1.23181009, 1.06789649, 0.92579443, 0.80290886,
                0.69660121, 0.60436903, 0.52852552, 0.46773344, 0.41393379, 0.36258186, 0.31008517, 0.26518925,
                0.22326461, 0.17653877, 0.13959192, 0.10587381, 0.05519369, 0.02877334, 0.015],
}  # fmt: skip


@schedule(
    "Align Your Steps",
    paper="Sabour et al. 2024, arXiv 2404.14507",
    help="Optimised for one model and 10 steps, or 32; interpolated for others.",
    curated=True,
    ends_at_sigma_min=False,
)
def ays(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    table: Annotated[Table, "The model that the levels were optimised for; for others they are stretched."] = "sd15",
    flow: bool = False,
) -> Tensor:
    """Align Your Steps: the levels optimised for a model, published for 10 steps.

    Sabour, Fidler, Kreis 2024, arXiv 2404.14507. Other numbers of steps are log-linear in between, other ranges are
    stretched in log-SNR. As published, the last entry of the table gives way to 0: the last level is not sigma_min.

    The tables of 32 levels are those of Stable Diffusion WebUI Forge ("Align Your Steps 32"); there 0 follows the last.
    """
    points = n if table.endswith("_32") else n + 1
    return _from_table(AYS_TABLES[table], points, n, sigma_min, sigma_max, flow)


@functools.cache
def _gits_tables() -> list[list[list[float]]]:
    """The published tables, by coefficient (0.80, 0.85 ... 1.50) and number of steps (2 ... 20)."""
    gits = published("gits.json")
    return [[[gits["levels"][i] for i in row] for row in rows] for rows in gits["steps"].values()]


@schedule(
    "GITS",
    paper="Chen et al. 2024, arXiv 2405.11326",
    help="Published levels for each number of steps from 2 to 20, derived from the curvature of trajectories.",
    curated=True,
    ends_at_sigma_min=False,
)
def gits(
    n: int,
    sigma_min: float,
    sigma_max: float,
    *,
    coeff: Annotated[
        float, Bounds(0.8, 1.5, step=0.05), "Which table: larger puts more steps at low noise. In steps of 0.05."
    ] = 1.2,
    flow: bool = False,
) -> Tensor:
    """Geometry-inspired time scheduling: published tables for 2 to 20 steps of Stable Diffusion.

    Chen, Zhou, Wang, Shen, Lyu 2024, arXiv 2405.11326. `coeff` is taken to the nearest of the published 0.80, 0.85 ...
    1.50. More than 20 steps are log-linear in the table of 20, other ranges are stretched in log-SNR. As published, the
    last entry of a table gives way to 0: the last level is not sigma_min.
    """
    tables = _gits_tables()[round(20 * coeff) - 16]
    return _from_table(tables[min(max(n, 2), 20) - 2], n + 1, n, sigma_min, sigma_max, flow)
