"""AMED-Solver and AMED-Plugin with given numbers."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from mixture import X1, denoiser, flow_denoiser, levels, relative_error, solution
from test_reference import CASES, result

from samplers import SAMPLERS, SCHEDULES, X, integrate, read_levels
from samplers.calibrated.pairs import IntermediatePoint, end_of_step, predicted
from samplers.calibrated.predictor import Predictor, pool
from samplers.calibrated.tuning import Tuning, tuned
from samplers.plan import analytical_first_step
from samplers.solvers import adams, dpm_solver, runge_kutta
from samplers.solvers.amed import amed, amed_dpm_2m, amed_dpm_2s, with_midpoints

SOLVERS = {
    "amed": partial(amed, middle="given"),
    "dpm_2": partial(amed_dpm_2s, middle="given"),
    "euler": runge_kutta.euler,
    "ipndm": adams.ipndm,
    "dpm_pp_2": dpm_solver.dpmpp_2m,
    "dpm_pp_2_eps": dpm_solver.dpm_2m,
}
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)


def run(solver, outer, middles, model=denoiser, x=X1, flow=False):
    """Sample with a solver on levels between which others are inserted, the same for all images."""
    levels, numbers = list(outer[:1]), iter(middles)
    for s, t in itertools.pairwise(outer):
        levels += [(s + t) / 2, t]  # the inserted one is replaced
    ask = predicted(solver, read_levels(levels, flow), lambda state, s, t: [next(numbers)] * len(x), x)
    return integrate(model, x, ask, disable=True)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("amed/")])
def test_the_reference_result(name):
    case = CASES[name]
    middles = [IntermediatePoint(*(case["options"][key] for key in ("r", "scale_dir", "scale_time")))] * (
        len(case["sigmas"]) - 1
    )
    x = run(SOLVERS[name.split("/")[1]], case["sigmas"], middles, x=X1 * case["sigmas"][0])
    assert relative_error(x, result(case)) < 1e-9


def test_without_scales_the_plugin_is_its_base_on_the_inserted_levels():
    outer, r = [9.0, 2.0, 0.4, 0.1], 0.37
    inner = [outer[0]]
    for s, t in itertools.pairwise(outer):
        inner += [t**r * s ** (1 - r), t]
    for base in (runge_kutta.euler, adams.ipndm, dpm_solver.dpmpp_2m, dpm_solver.dpmpp_3m, dpm_solver.dpm_3m):
        ours = run(base, outer, [IntermediatePoint(r)] * 3)
        plain = integrate(denoiser, X1, list(base(read_levels(inner))), disable=True)
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


@each_solver
@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.slow
def test_with_r_one_half_and_no_scales_it_converges_to_the_solution(solver, flow):
    """Order 2 at least for all but Euler: r = 1/2 is the midpoint rule in lambda."""
    high, low = (0.8, 0.1) if flow else (3.0, 0.1)

    def error(n: int) -> float:
        outer = levels(n, high, low, flow)
        model = flow_denoiser if flow else denoiser
        return relative_error(
            run(solver, outer, [IntermediatePoint()] * n, model, solution(high, flow), flow), solution(low, flow)
        )

    order = math.log2(error(32) / error(64))
    assert order > (0.9 if solver is SOLVERS["euler"] else 1.7)


@each_solver
@pytest.mark.parametrize(
    ("sigmas", "flow"),
    [
        ([9.0, 2.0, 0.0], False),
        ([9.0, 2.0, 1.0, 0.0], False),
        ([9.0, 0.0], False),
        ([1.0, 0.5, 0.2], True),
        ([1.0, 0.4, 0.0], True),
        ([1.0, 0.0], True),
    ],
)
def test_every_level_above_0_is_one_evaluation_and_the_limits_are_finite(solver, sigmas, flow):
    made = []

    def model(x, sigma):
        made.append((flow_denoiser if flow else denoiser)(x, sigma))
        return made[-1]

    run_levels = read_levels(sigmas, flow)
    x = integrate(model, X1 * sigmas[0], list(solver(run_levels)), disable=True)
    assert x.isfinite().all()
    assert len(made) == sum(sigma > 0 for sigma in sigmas[:-1])
    if sigmas[-1] == 0:
        torch.testing.assert_close(x, made[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
def test_the_model_is_told_the_scaled_level_and_no_more_than_pure_noise(flow):
    outer = read_levels([0.95, 0.6, 0.3] if flow else [9.0, 2.0, 0.4], flow)
    a, b = (outer.between(s, t, 0.3).sigma for s, t in itertools.pairwise(outer))
    expected = [outer[0].sigma, 1.2 * a, outer[1].sigma, 1.2 * b]
    told = []

    def model(x, sigma):
        told.append(float(sigma[0]))
        return 0.5 * x

    for solver in SOLVERS.values():
        told.clear()
        run(solver, outer.sigmas, [IntermediatePoint(0.3, 1.0, 1.2)] * 2, model, flow=flow)
        assert told == pytest.approx([min(sigma, 1.0) if flow else sigma for sigma in expected], rel=1e-12)


def test_midpoints_are_geometric_means_and_ends_stay():
    assert with_midpoints(read_levels([9.0, 5.0, 4.0, 3.0, 1.0])).sigmas == pytest.approx([9.0, 6.0, 4.0, 2.0, 1.0])
    assert with_midpoints(read_levels([9.0, 5.0, 0.0])).sigmas == (9.0, 5.0, 0.0)
    assert with_midpoints(read_levels([9.0, 5.0, 4.0, 3.0])).sigmas == pytest.approx([9.0, 6.0, 4.0, 3.0])
    assert with_midpoints(read_levels([1.0, 0.5, 0.2], True)).sigmas == (1.0, 0.5, 0.2)
    flow = with_midpoints(read_levels([0.8, 0.5, 0.2], True))
    assert flow[1].lam == pytest.approx((flow[0].lam + flow[2].lam) / 2)
    moved = [stage.sigma for stage in amed_dpm_2m(read_levels([9.0, 5.0, 4.0]))]
    assert moved == pytest.approx([9.0, 6.0])


def test_end_of_a_step_to_0_mirrors_its_first_half():
    assert end_of_step(read_levels([8.0, 4.0, 0.0]), 0).sigma == pytest.approx(2.0)
    assert end_of_step(read_levels([8.0, 4.0, 1.0]), 0).sigma == 1.0


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@each_solver
def test_derivative_with_respect_to_the_learned_numbers(solver):
    def sample(numbers):
        return run(solver, [3.0, 1.0, 0.4], [IntermediatePoint(*row.unbind()) for row in numbers], x=X1[:1])

    numbers = torch.tensor([[0.4, 0.99, 1.02], [0.6, 1.01, 0.97]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sample, (numbers,), rtol=1e-5, atol=1e-6, fast_mode=True)


# The analytical first step


@pytest.mark.parametrize("name", ["amed", "amed_dpm_2s", "amed_dpm_2m"])
def test_afs_takes_the_noise_for_the_first_direction(name):
    """One evaluation less, and the first prediction of the noise is x / sqrt(1 + sigma^2)."""
    sigmas = [9.0, 4.0, 2.0, 0.5, 0.2]
    asked = []

    def model(x, sigma):
        asked.append(float(sigma[0]))
        return denoiser(x, sigma)

    ours = integrate(model, X1 * 9, list(SAMPLERS[name].solver(read_levels(sigmas), afs=True)), disable=True)
    assert len(asked) == 3 and 9.0 not in asked

    first = True

    def told(x, sigma):
        nonlocal first
        if first:
            first = False
            return x - sigma[0] * x / (1 + sigma[0] ** 2) ** 0.5
        return denoiser(x, sigma)

    plain = integrate(told, X1 * 9, list(SAMPLERS[name].solver(read_levels(sigmas))), disable=True)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_afs_at_pure_noise_of_a_flow_predicts_0():
    run_levels = read_levels([1.0, 0.6, 0.3], True)
    plan = list(analytical_first_step(dpm_solver.dpmpp_2m(run_levels), run_levels))
    seen = []

    def model(x, sigma):
        seen.append(x)
        return flow_denoiser(x, sigma)

    integrate(model, X1, plan, disable=True)
    torch.testing.assert_close(seen[0], 0.6 * X1)


# Other tunings


def test_slope_and_curvature_change_the_newest_prediction():
    run_levels = read_levels([9.0, 4.0, 2.0, 0.5])
    plain = list(dpm_solver.dpmpp_2m(run_levels, lower_order_final=False))
    changed = list(tuned(plain, run_levels, [Tuning(), Tuning(slope=0.3), Tuning(slope=-0.2, curvature=0.1)]))
    for k, (before, after) in enumerate(zip(plain, changed, strict=True)):
        total = 1 - run_levels[k + 1].sigma / run_levels[k].sigma  # the weight of the predictions
        expected = [{}, {0: 0.3, 1: -0.3}, {0: -0.2 + 0.1, 1: 0.2 - 0.2, 2: 0.1}][k]
        for key in before.update.terms.keys() | after.update.terms.keys():
            difference = after.update.terms.get(key, 0.0) - before.update.terms.get(key, 0.0)
            assert difference == pytest.approx(total * expected.get(key, 0.0), abs=1e-12)


@pytest.mark.parametrize(
    "base", [dpm_solver.dpmpp_2m, dpm_solver.dpm_2m, adams.ipndm_v], ids=["data", "noise", "adams"]
)
def test_slope_blends_down_to_first_order(base):
    """The last step to 0 has one prediction only: with a slope it goes on along the line."""
    run_levels = read_levels([9.0, 3.0, 0.0])
    plan = list(tuned(base(run_levels), run_levels, [Tuning(), Tuning(slope=0.5)]))
    made = []

    def model(x, sigma):
        made.append((x, denoiser(x, sigma)))
        return made[-1][1]

    x = integrate(model, X1 * 9, plan, disable=True)
    (x_0, d_0), (x_1, d_1) = made
    if base is dpm_solver.dpmpp_2m:
        expected = d_1 + 0.5 * (d_1 - d_0)
    else:
        e_0, e_1 = (x_0 - d_0) / 9, (x_1 - d_1) / 3
        expected = x_1 - 3 * (e_1 + 0.5 * (e_1 - e_0))
    torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-11)


def test_slope_without_an_earlier_prediction_is_an_error():
    run_levels = read_levels([9.0, 3.0, 0.0])
    with pytest.raises(ValueError, match="level 0 has no slope"):
        list(tuned(dpm_solver.dpmpp_2m(run_levels), run_levels, [Tuning(slope=0.1), Tuning()]))
    with pytest.raises(ValueError, match="level 1 has no curvature"):
        list(tuned(dpm_solver.dpmpp_2m(run_levels), run_levels, [Tuning(), Tuning(curvature=0.1)]))


# Numbers that are predicted, image by image


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize(
    ("sigmas", "flow"),
    [
        ([9.0, 4.0, 2.0, 1.0, 0.4, 0.0], False),
        ([9.0, 4.0, 2.0, 1.0, 0.0], False),
        ([1.0, 0.8, 0.7, 0.5, 0.4, 0.2, 0.1], True),
    ],
)
@each_solver
def test_a_batch_with_numbers_of_its_own_is_its_images_one_by_one(solver, sigmas, flow, dtype):
    numbers = [
        IntermediatePoint(0.3, 0.99, 1.03),
        IntermediatePoint(0.5, 1.01, 0.98),
        IntermediatePoint(0.62, 1.0, 1.0),
    ]
    model, given = (flow_denoiser if flow else denoiser), read_levels(sigmas, flow)
    asked = []

    def predict(state, s, t):
        asked.append((s.sigma, t.sigma, state.value(X).shape))
        return numbers

    x = (X1 * sigmas[0]).to(dtype)
    whole = integrate(model, x, predicted(solver, given, predict, x), disable=True)
    assert whole.dtype == dtype
    for k, mine in enumerate(numbers):
        inner, tunings = list(given.sigmas), [Tuning()] * (len(given) - 1)
        for i in range(0, len(given) - 2, 2):
            if given[i].alpha:
                inner[i + 1] = given.between(given[i], end_of_step(given, i), mine.r).sigma
                tunings[i + 1] = mine.over(Tuning())
        alone_levels = read_levels(inner, flow)
        plan = list(tuned(solver(alone_levels), alone_levels, tunings))
        alone = integrate(model, x[k : k + 1], plan, disable=True)
        torch.testing.assert_close(whole[k : k + 1], alone, rtol=1e-11 if dtype == torch.float64 else 1e-4, atol=1e-5)
    starts = [i for i in range(0, len(given) - 2, 2) if given[i].alpha]
    assert asked == [(given[i].sigma, end_of_step(given, i).sigma, x.shape) for i in starts]


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
    predictor, given = Predictor(0.02, 0.1).double(), read_levels([9.0, 4.0, 2.0, 0.8, 0.4, 0.0])
    solver, zeros = SOLVERS["amed"], torch.zeros(3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        inner, tunings = predictor.fixed(given)
        step_by_step = integrate(
            denoiser,
            X1,
            predicted(solver, given, lambda _, s, t: predictor.intermediate_points(zeros, s.sigma, t.sigma), X1),
            disable=True,
        )
    assert tunings[0] == tunings[2] == tunings[4] == Tuning() and inner[1].sigma != 4.0
    plan = integrate(denoiser, X1, list(tuned(solver(inner), inner, tunings)), disable=True)
    torch.testing.assert_close(plan, step_by_step, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("n", [4, 10, 30])
def test_training_starts_at_given_numbers_with_weights_that_can_be_trained(n):
    torch.manual_seed(0)
    predictor, given = Predictor(0.02, 0.1).double(), read_levels(SCHEDULES["karras"].function(n, 0.03, 14.6))
    numbers = [Tuning(), Tuning(scale_dir=1.005, scale_time=0.97)] * (n // 2)
    predictor.start_at(given, numbers)

    def lams():
        return torch.tensor([float(level.lam) for level in predictor.fixed(given)[0][:-1]])

    with torch.no_grad():
        start, tunings = lams(), predictor.fixed(given)[1]
        far = (start - torch.tensor([float(level.lam) for level in given[:-1]])).abs().max()
        assert far < (0.02 if n > 10 else 1e-5)
        assert torch.tensor(tunings).sub(torch.tensor(numbers)).abs().max() < 1e-5
        predictor.level.weight.add_(5e-3)  # as Adam does first
        assert (lams() - start).abs().max() < 0.05


def test_gradients_reach_the_predictor():
    predictor, given = Predictor(0.02, 0.1), read_levels([3.0, 1.5, 1.0, 0.6, 0.4])
    bottleneck = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = integrate(
        denoiser,
        X1,
        predicted(
            SOLVERS["amed"], given, lambda _, s, t: predictor.intermediate_points(bottleneck, s.sigma, t.sigma), X1
        ),
        disable=True,
    )
    x.square().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in predictor.parameters()
    )
