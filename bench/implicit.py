"""What implicit methods give for as many evaluations as explicit ones: prints the table of docs/SAMPLERS.md.

    .host/venv/bin/python bench/implicit.py

Exponential collocation with two inner levels (Hochbruck and Ostermann 2005): at the Gauss points it is gl_2s, of
classical order 4, at those of Radau IIA radau_2s, of order 3. The predictions D_1, D_2 at the inner levels fulfil

    D_i = D(x(c_i)),     x(c) = e^(-c h) x + integral over tau in (0, c h) of e^(tau - c h) p(tau) d tau

with p the line through D_1 and D_2. They are found by iteration: a sweep evaluates the model at both levels, first on
the line of the step before. The problem is the Gaussian mixture of the tests, whose solution is known, in float64.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from mixture import SIGMA_MAX, SIGMA_MIN, X1, denoiser, levels, relative_error, solution  # noqa: E402

from samplers import SAMPLERS  # noqa: E402
from samplers.checks import counted  # noqa: E402
from samplers.phi import phi  # noqa: E402

COLLOCATION = {
    "gl_2s": (0.5 - math.sqrt(3) / 6, 0.5 + math.sqrt(3) / 6),
    "radau_2s": (1 / 3, 1.0),
}
SWEEPS = (1, 2, 3)
EXPLICIT = ("dpmpp_3m", "res_3s", "res_5s", "rk4")
BUDGETS = (12, 24, 60, 120, 240)


def at(sigma: float, x: Tensor) -> Tensor:
    """The prediction at a level."""
    return denoiser(x, torch.full((len(x),), sigma, dtype=torch.float64))


def collocated(sigmas: list[float], places: tuple[float, float], sweeps: int) -> Tensor:
    """The end of a run of an iterated method with the inner levels at these places of a step."""
    (c1, c2), x = places, solution(sigmas[0])
    d1 = d2 = at(sigmas[0], x)  # of the first step, whose first sweep has no line before it
    h_before = 1.0
    for s, t in itertools.pairwise(sigmas):
        h = math.log(s / t)

        def inside(c: float, d1: Tensor, d2: Tensor, x: Tensor = x, h: float = h) -> Tensor:
            z = -c * h
            slope = (d2 - d1) / (c2 - c1)  # in the unit of the step
            mean = c * h * phi(1, z) * (d1 - c1 * slope) + c * c * h * phi(2, z) * slope
            return math.exp(z) * x + mean

        slope = (d2 - d1) / (c2 - c1)
        d1, d2 = (d1 + slope * (1 + c * h / h_before - c1) for c in places)
        for _ in range(sweeps):
            d1, d2 = (at(s * math.exp(-c * h), inside(c, d1, d2)) for c in places)
        x, h_before = inside(1.0, d1, d2), h
    return x


def run_collocated(name: str, sweeps: int, budget: int) -> float:
    """The relative error of the most steps that the budget allows, beside the evaluation at the start."""
    sigmas = levels((budget - 1) // (2 * sweeps)).tolist()
    return relative_error(collocated(sigmas, COLLOCATION[name], sweeps), solution(SIGMA_MIN))


def run_explicit(name: str, budget: int) -> float:
    """The relative error of the most steps that the budget allows."""
    spec = SAMPLERS[name]
    fits = [n for n in range(1, budget + 1) if spec.nfe(levels(n).tolist()) <= budget]
    x = spec.function(denoiser, SIGMA_MAX * X1, levels(max(fits)), disable=True)
    return relative_error(x, solution(SIGMA_MIN))


def rows() -> Iterator[tuple[str, list[float]]]:
    for name in EXPLICIT:
        yield f"`{name}`", [run_explicit(name, budget) for budget in BUDGETS]
    for name in COLLOCATION:
        for sweeps in SWEEPS:
            yield f"{name}, {counted(sweeps, 'sweep')}", [run_collocated(name, sweeps, budget) for budget in BUDGETS]


def main() -> None:
    print(f"| evaluations | {' | '.join(map(str, BUDGETS))} |")
    print("| --- |" + " --- |" * len(BUDGETS))
    for name, errors in rows():
        print(f"| {name} | {' | '.join(f'{e:.2g}' for e in errors)} |", flush=True)


if __name__ == "__main__":
    main()
