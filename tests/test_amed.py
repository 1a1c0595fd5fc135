"""AMED-Solver and AMED-Plugin with given numbers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from mixture import X1, denoiser, flow_denoiser, levels, relative_error, solution
from test_reference import CASES, result

from samplers import adams, classic, dpm_solver, integrate, read_levels
from samplers.amed import Middle, amed, amed_2s, plugin

SOLVERS = {
    "amed": amed,
    "dpm_2": amed_2s,
    "euler": lambda levels, middles: plugin(classic.euler, levels, middles),
    "ipndm": lambda levels, middles: plugin(adams.ipndm, levels, middles),
    "dpm_pp_2": lambda levels, middles: plugin(dpm_solver.dpmpp_2m, levels, middles),
    "dpm_pp_2_eps": lambda levels, middles: plugin(dpm_solver.dpm_2m, levels, middles),
}
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("amed/")])
def test_the_reference_result(name):
    case = CASES[name]
    middles = [Middle(*(case["options"][key] for key in ("r", "scale_dir", "scale_time")))] * (len(case["sigmas"]) - 1)
    plan = list(SOLVERS[name.split("/")[1]](read_levels(case["sigmas"]), middles))
    x = integrate(denoiser, X1 * case["sigmas"][0], plan, disable=True)
    assert relative_error(x, result(case)) < 1e-9


def test_without_scales_the_plugin_is_its_base_on_the_inserted_levels():
    outer, r = [9.0, 2.0, 0.4, 0.1], 0.37
    inner = [outer[0]]
    for s, t in itertools.pairwise(outer):
        inner += [t**r * s ** (1 - r), t]
    for base in (classic.euler, adams.ipndm, dpm_solver.dpmpp_2m, dpm_solver.dpmpp_3m, dpm_solver.dpm_3m):
        ours = integrate(denoiser, X1, list(plugin(base, read_levels(outer), [Middle(r)] * 3)), disable=True)
        plain = integrate(denoiser, X1, list(base(read_levels(inner))), disable=True)
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@each_solver
@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
def test_with_r_one_half_and_no_scales_it_converges_to_the_solution(solver, flow):
    """Order 2 at least for all but Euler: r = 1/2 is the midpoint rule in lambda."""
    high, low = (0.8, 0.1) if flow else (3.0, 0.1)

    def error(n: int) -> float:
        run = read_levels(levels(n, high, low, flow), flow)
        plan = list(solver(run, [Middle()] * n))
        return relative_error(
            integrate(flow_denoiser if flow else denoiser, solution(high, flow), plan, disable=True),
            solution(low, flow),
        )

    order = math.log2(error(64) / error(128))
    assert order > (0.9 if solver is SOLVERS["euler"] else 1.7)


@each_solver
@pytest.mark.parametrize(
    ("sigmas", "flow", "nfe"),
    [([9.0, 2.0, 0.0], False, 3), ([9.0, 0.0], False, 1), ([1.0, 0.5, 0.2], True, 3), ([1.0, 0.4, 0.0], True, 2)],
)
def test_steps_that_are_infinite_in_lambda_have_no_middle(solver, sigmas, flow, nfe):
    plan = list(solver(read_levels(sigmas, flow), [Middle(0.4, 0.98, 1.1)] * (len(sigmas) - 1)))
    assert sum(stage.sigma is not None for stage in plan) == nfe
    made = []

    def model(x, sigma):
        made.append((flow_denoiser if flow else denoiser)(x, sigma))
        return made[-1]

    x = integrate(model, X1 * sigmas[0], plan, disable=True)
    assert x.isfinite().all()
    if sigmas[-1] == 0:
        assert torch.equal(x, made[-1])


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
def test_the_model_is_told_the_scaled_level_and_no_more_than_pure_noise(flow):
    outer = [0.95, 0.6, 0.3] if flow else [9.0, 2.0, 0.4]
    run = read_levels(outer, flow)
    for solver in SOLVERS.values():
        told = [stage.sigma for stage in solver(run, [Middle(0.3, 1.0, 1.2)] * 2)]
        middle = [run.between(run[i], run[i + 1], 0.3).sigma for i in (0, 1)]
        expected = [outer[0], 1.2 * middle[0], outer[1], 1.2 * middle[1]]
        assert told == pytest.approx([min(sigma, 1.0) if flow else sigma for sigma in expected], rel=1e-12)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@each_solver
def test_derivative_with_respect_to_the_learned_numbers(solver):
    run = read_levels([3.0, 1.0, 0.4])

    def sample(numbers):
        middles = [Middle(*row.unbind()) for row in numbers]
        return integrate(denoiser, X1[:1], list(solver(run, middles)), disable=True)

    numbers = torch.tensor([[0.4, 0.99, 1.02], [0.6, 1.01, 0.97]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sample, (numbers,), rtol=1e-5, atol=1e-6)
