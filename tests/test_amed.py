"""AMED-Solver and AMED-Plugin with given numbers."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from mixture import X1, denoiser, flow_denoiser, levels, relative_error, solution
from test_reference import CASES, result

from samplers import X, adams, classic, dpm_solver, integrate, read_levels
from samplers.amed import Middle, amed, amed_2s, plugin, predicted
from samplers.predictor import Predictor, pool

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


# Numbers that are predicted, image by image


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize(("sigmas", "flow"), [([9.0, 2.0, 0.4, 0.0], False), ([1.0, 0.7, 0.4, 0.1], True)])
@each_solver
def test_a_batch_with_numbers_of_its_own_is_its_images_one_by_one(solver, sigmas, flow, dtype):
    numbers = [Middle(0.3, 0.99, 1.03), Middle(0.5, 1.01, 0.98), Middle(0.62, 1.0, 1.0)]
    model, run = (flow_denoiser if flow else denoiser), read_levels(sigmas, flow)
    asked = []

    def predict(state, s, t):
        asked.append((s.sigma, t.sigma, state.value(X).shape))
        return numbers

    x = (X1 * sigmas[0]).to(dtype)
    whole = integrate(model, x, predicted(solver, run, predict, 3), disable=True)
    assert whole.dtype == dtype
    for k, mine in enumerate(numbers):
        alone = integrate(model, x[k : k + 1], list(solver(run, [mine] * 3)), disable=True)
        torch.testing.assert_close(whole[k : k + 1], alone, rtol=1e-11 if dtype == torch.float64 else 1e-4, atol=1e-5)
    finite = [(s, t) for s, t in itertools.pairwise(sigmas) if t > 0 and not (flow and s == 1)]
    assert asked == [(s, t, x.shape) for s, t in finite]


def test_predictor_has_the_size_and_the_bounds_of_the_paper():
    predictor = Predictor(scale_dir=0.02, scale_time=0.1)
    assert sum(p.numel() for p in predictor.parameters()) == 8971
    with torch.no_grad():
        for p in predictor.parameters():
            p.normal_(std=3.0, generator=torch.Generator().manual_seed(0))
        numbers = predictor(torch.randn(50, 8, 8), 9.0, 2.0)
    assert numbers.shape == (50, 3)
    assert ((numbers[:, 0] > 0) & (numbers[:, 0] < 1)).all() and numbers[:, 0].std() > 0.1
    assert ((numbers[:, 1] - 1).abs() <= 0.02 + 1e-6).all() and ((numbers[:, 2] - 1).abs() <= 0.1 + 1e-6).all()
    fresh, zeros = Predictor(), torch.zeros(1, 8, 8)
    assert not torch.equal(fresh(zeros, 9.0, 2.0), fresh(zeros, 9.0, 1.0))


def test_predictor_without_scales_leaves_direction_and_time():
    numbers = Predictor(scale_dir=0.0, scale_time=0.0)(torch.randn(3, 8, 8), 9.0, 2.0)
    assert torch.equal(numbers[:, 1:], torch.ones(3, 2))
    with pytest.raises(ValueError, match="scale_dir = 1 "):
        Predictor(scale_dir=1.0)


@pytest.mark.parametrize("size", [(8, 8), (16, 12), (4, 4), (5, 7)])
def test_bottlenecks_of_any_size_are_pooled(size):
    bottleneck = torch.randn(2, 6, *size, dtype=torch.float16)
    assert pool(bottleneck).shape == (2, 8, 8)
    assert pool(torch.ones(2, 6, *size)).eq(1).all()
    if size == (8, 8):
        torch.testing.assert_close(pool(bottleneck), bottleneck.float().mean(1))


def test_a_predictor_without_bottleneck_is_a_fixed_plan():
    predictor, run = Predictor(0.02, 0.1), read_levels([9.0, 2.0, 0.4, 0.0])
    with torch.no_grad():
        middles = predictor.fixed(run)
        zeros = torch.zeros(3, 8, 8)
        step_by_step = integrate(
            denoiser,
            X1,
            predicted(amed, run, lambda _, s, t: predictor.middles(zeros, s.sigma, t.sigma), 3),
            disable=True,
        )
    assert middles[-1] == Middle()
    plan = integrate(denoiser, X1, list(amed(run, middles)), disable=True)
    torch.testing.assert_close(plan, step_by_step, rtol=1e-6, atol=1e-6)


def test_gradients_reach_the_predictor():
    predictor, run = Predictor(0.02, 0.1), read_levels([3.0, 1.0, 0.4])
    bottleneck = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = integrate(
        denoiser,
        X1,
        predicted(amed, run, lambda _, s, t: predictor.middles(bottleneck, s.sigma, t.sigma), 3),
        disable=True,
    )
    x.square().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in predictor.parameters()
    )
