"""Singlestep solvers that are evaluated at the schedule's own levels, as in the official code of DPM-Solver."""

from __future__ import annotations

import math

import pytest
import torch
from mixture import X1, denoiser, flow_denoiser, levels, relative_error, solution

from samplers import SAMPLERS, integrate
from samplers.calibrated.recipe import Recipe

FAMILIES = {"dpmpp_2s": 2, "dpm_2s": 2, "dpmpp_3s": 3, "dpm_3s": 3}
SCHEDULE = {"inner_points": "schedule"}
EDM = [
    4.0,
    3.1,
    2.2,
    1.4,
    0.9,
    0.6,
    0.4,
    0.25,
    0.15,
    0.1,
]  # no pattern, 9 steps, none too long for the noise prediction
FLOW = [sigma / (1 + sigma) for sigma in EDM]


def orders(id, sigmas, **options):
    """Of the steps: how many evaluations each takes."""
    found, open_ = [], 0
    for stage in SAMPLERS[id].plan(sigmas, **SCHEDULE, **options):
        open_ += 1
        if stage.completes:
            found.append(open_)
            open_ = 0
    return found


@pytest.mark.parametrize("id", FAMILIES)
@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.parametrize("end", [[], [0.0]], ids=["above 0", "to 0"])
@pytest.mark.parametrize("lower_order_final", [False, True])
def test_each_level_is_evaluated_once_and_is_a_step(id, flow, end, lower_order_final):
    for n in range(1, 10):
        sigmas = [*(FLOW if flow else EDM)[: n + 1], *end]
        plan = SAMPLERS[id].plan(sigmas, flow=flow, lower_order_final=lower_order_final, **SCHEDULE)
        assert [stage.sigma for stage in plan] == sigmas[:-1]
        assert [stage.step for stage in plan] == list(range(len(sigmas) - 1))
        assert SAMPLERS[id].nfe(sigmas, flow=flow, **SCHEDULE) == len(sigmas) - 1


@pytest.mark.parametrize(
    ("id", "n", "fixed", "lowered"),
    [
        ("dpmpp_2s", 6, [2, 2, 2], [2, 2, 1, 1]),
        ("dpmpp_2s", 7, [2, 2, 2, 1], [2, 2, 2, 1]),
        ("dpmpp_3s", 6, [3, 3], [3, 2, 1]),  # K = n // 3 + 1 steps, the last two of order 2 and 1
        ("dpmpp_3s", 7, [3, 3, 1], [3, 3, 1]),
        ("dpmpp_3s", 8, [3, 3, 2], [3, 3, 2]),
        ("dpmpp_3s", 2, [2], [2]),
        ("dpmpp_3s", 1, [1], [1]),
    ],
)
def test_orders_are_those_of_the_official_code(id, n, fixed, lowered):
    """`singlestep_fixed`, where n is a multiple, and `singlestep`; a last step to 0 is one more, of order 1."""
    for noise in (id, id.replace("dpmpp", "dpm")):
        assert orders(noise, EDM[: n + 1]) == fixed
        assert orders(noise, EDM[: n + 1], lower_order_final=True) == lowered
        assert orders(noise, [*EDM[: n + 1], 0.0]) == [*fixed, 1]


@pytest.mark.parametrize("id", FAMILIES)
@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_a_step_is_the_one_with_r_at_these_levels(id, flow, solver_type):
    """The official code takes r1 and r2 of the inner levels in lambda."""

    def lam(sigma):
        return math.log(((1 - sigma) if flow else 1) / sigma)

    order, spec = FAMILIES[id], SAMPLERS[id]
    sigmas = (FLOW if flow else EDM)[: order + 1]
    shares = [(lam(u) - lam(sigmas[0])) / (lam(sigmas[-1]) - lam(sigmas[0])) for u in sigmas[1:-1]]
    given = dict(zip(("r",) if order == 2 else ("r1", "r2"), shares, strict=True))
    same = spec.plan([sigmas[0], sigmas[-1]], flow=flow, solver_type=solver_type, **given)
    found = spec.plan(sigmas, flow=flow, solver_type=solver_type, **SCHEDULE)
    for a, b in zip(found, same, strict=True):
        assert a.sigma == pytest.approx(b.sigma, rel=1e-12) and a.completes == b.completes
        assert dict(a.update.terms) == pytest.approx(dict(b.update.terms), rel=1e-9)


@pytest.mark.parametrize("id", FAMILIES)
@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
def test_order_of_convergence_on_levels_uniform_in_lambda(id, flow):
    high, low = (0.7, 0.05) if flow else (2.0, 0.05)
    errors, order = [], FAMILIES[id]
    for n in (96, 192, 384):
        sigmas = levels(n, high, low, flow)
        plan = SAMPLERS[id].plan(sigmas, flow=flow, **SCHEDULE)
        x = integrate(flow_denoiser if flow else denoiser, solution(high, flow), plan, disable=True)
        errors.append(relative_error(x, solution(low, flow)))
    assert math.log2(errors[0] / errors[2]) / 2 == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("id", ["dpm_2s", "dpm_3s"])
def test_a_step_that_is_too_long_for_the_noise_prediction_is_as_many_of_order_1(id):
    sigmas = [80.0, *[2.0, 0.5][-FAMILIES[id] + 1 :], 0.02]
    found = SAMPLERS[id].function(denoiser, 80 * X1, sigmas, disable=True, **SCHEDULE)
    ddim = SAMPLERS["ddim"].function(denoiser, 80 * X1, sigmas, disable=True)
    torch.testing.assert_close(found, ddim, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("id", FAMILIES)
def test_from_pure_noise(id):
    """The step out of sigma = 1 is infinite in lambda: order 1, and one evaluation."""
    sigmas = [1.0, 0.8, 0.6, 0.4, 0.2, 0.05, 0.0]
    plan = SAMPLERS[id].plan(sigmas, flow=True, **SCHEDULE)
    assert [stage.sigma for stage in plan] == sigmas[:-1] and plan[0].completes and plan[-1].completes
    assert SAMPLERS[id].function(flow_denoiser, X1, sigmas, disable=True, flow=True, **SCHEDULE).isfinite().all()
    for short in ([1.0, 0.0], [1.0, 0.5], [0.5, 0.0], [1.0, 0.5, 0.0]):
        assert SAMPLERS[id].nfe(short, flow=True, **SCHEDULE) == len(short) - 1


@pytest.mark.parametrize(("id", "starts"), [("dpmpp_2s", (0, 2, 4)), ("dpmpp_3s", (0, 3))])
def test_a_part_of_a_plan_begins_where_a_step_does(id, starts):
    recipe = Recipe(id, tuple(EDM[:7]), options=SCHEDULE)
    for first in range(5):
        if first in starts:
            assert recipe.piece(EDM[first:7]).sigmas == tuple(EDM[first:7])
        else:
            with pytest.raises(ValueError, match=f"begins at its level {first}, in the middle of a step"):
                recipe.piece(EDM[first:7])
