"""Which levels a run has, and how long a step may be: pure noise but for rounding, repeats, no step at all."""

from __future__ import annotations

import functools
import itertools
import logging
import math

import pytest
import torch
from mixture import (
    X1,
    denoiser,
    each_sampler,
    flow_denoiser,
    given,
    levels,
    pointwise,
    relative_error,
    with_noise,
    without_noise,
)

from samplers import SAMPLERS, SCHEDULES, SamplerSpec, read_levels
from samplers.calibrated.plan import CalibratedPlan
from samplers.calibrated.predictor import Predictor
from samplers.calibrated.recipe import Recipe
from samplers.inversion import invert
from samplers.levels import pure_noise, read_run
from samplers.plan import model_sigmas
from samplers.sampler import _cached_plan
from samplers.solvers import unipc
from samplers.solvers.dpm_solver import LARGEST_CORRECTION, NOISIEST, noise_corrects

EPS = 2.0**-23  # of float32


def sampled(spec: SamplerSpec, x, sigmas, model=None, flow=False, **options):
    """The sample, the levels that the model was told, and the calls of the callback."""
    asked, calls = [], []

    def ask(x, sigma):
        asked.append(sigma[0].item())
        return (model or (flow_denoiser if flow else denoiser))(x, sigma)

    x = spec.function(ask, x, sigmas, {}, calls.append, True, flow=flow, seed=0, **options)
    return x, asked, calls


# Pure noise


def shifted(shift: torch.Tensor) -> torch.Tensor:
    """sigma_max of a model with this time shift, as the host computes it in float32: s t / (1 + (s - 1) t) at t = 1."""
    t = torch.ones(1)
    return torch.cat([s * t / (1 + (s - 1) * t) for s in shift.tolist()])


def test_every_shift_starts_at_pure_noise():
    """Two decimals, as a node counts them. Some round to above 1, some to below."""
    sigma_max = shifted(torch.arange(1, 10001, dtype=torch.float64) / 100)
    assert (sigma_max < 1).sum() > 20 and (sigma_max > 1).sum() > 20
    assert {pure_noise(sigma) for sigma in set(sigma_max.tolist())} == {1.0}


@pytest.mark.parametrize("sigma", [1 - 1e-5, 0.9999, 1 + 1e-5])
def test_what_is_not_rounding_is_not_pure_noise(sigma):
    assert pure_noise(sigma) == sigma
    if sigma > 1:
        with pytest.raises(ValueError, match=r"sigmas\[0\] = 1\.00001: .*between 0 and 1"):
            read_levels([sigma, 0.5, 0.0], flow=True)


FIRST = [1 - EPS / 2, 1 - EPS, 1 - 3 * EPS, 1 + EPS, 1 + 2 * EPS]
each_first = pytest.mark.parametrize("first", FIRST, ids=lambda sigma: f"{(sigma - 1) / EPS:+g}eps")


def mean_at_1(x, sigma):
    """The mixture's denoiser, which at pure noise, however that is rounded, can tell no more than the mean."""
    return flow_denoiser(x, torch.where((sigma - 1).abs() < 1e-6, 1.0, sigma))


@each_first
@each_sampler
def test_rounding_of_pure_noise_changes_no_sample_and_is_told_as_given(spec, first):
    """Before, an order above 1 in the noise prediction was wrong by up to 900 times the image."""
    rest = [0.9, 0.7, 0.4, 0.0]
    options = {"noise_sampler": lambda sigma, sigma_next: torch.cos(X1)} if spec.stochastic else {}
    x, asked, _ = sampled(spec, X1, [1.0, *rest], mean_at_1, flow=True, **options)
    tensor = torch.tensor([first, *rest], dtype=torch.float64)
    y, asked_too, calls = sampled(spec, X1, tensor, mean_at_1, flow=True, **options)
    assert (asked[0], asked_too[0]) == (1.0, first) and asked[1:] == asked_too[1:]
    assert calls[0]["sigma"] == first
    torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    if not spec.adaptive:
        assert model_sigmas(spec.plan([first, *rest], flow=True, **without_noise(spec)))[0] == first
    single = torch.tensor([first, *rest])  # as the host has them
    _, asked, _ = sampled(spec, X1.float(), single, mean_at_1, flow=True, **options)
    assert asked[0] == single[0]


@each_first
def test_schedules_begin_where_the_model_does(first):
    for spec in SCHEDULES.values():
        if not spec.any_steps:
            continue
        sigmas = spec.function(8, 0.003, first, flow=True)
        assert sigmas[0] == first or not spec.starts_at_sigma_max
        torch.testing.assert_close(sigmas[1:], spec.function(8, 0.003, 1.0, flow=True)[1:], rtol=0, atol=0)


@each_first
def test_inversion_tells_pure_noise_as_it_is_given(first):
    asked = []

    def model(x, sigma):
        asked.append(sigma[0].item())
        return mean_at_1(x, sigma)

    for id in ("ddim", "dpmpp_2m", "heun"):
        asked.clear()
        found = invert(SAMPLERS[id], model, X1, [first, 0.8, 0.4, 0.1], flow=True, measure=True)
        assert first in asked and 1.0 not in asked
        exact = invert(SAMPLERS[id], flow_denoiser, X1, [1.0, 0.8, 0.4, 0.1], flow=True)
        torch.testing.assert_close(found.sample, exact.sample, rtol=0, atol=1e-9)


def test_gradients_stop_at_pure_noise_that_was_rounded():
    sigmas = torch.tensor([1 - EPS, 0.6, 0.2], dtype=torch.float64, requires_grad=True)
    plan = SAMPLERS["dpmpp_2m"].plan(sigmas, flow=True)
    sum(c for stage in plan for c in stage.update.terms.values()).backward()
    assert sigmas.grad[0] == 0 and sigmas.grad[1] != 0


# How long a step may be


def test_the_correction_is_what_gaussian_data_have():
    """x_t of order 2 less x_t of order 1, over alpha_t (1 - e^-h) times the standard deviation: from far out it is what
    `noise_corrects` has, and from nearer less."""
    run, r = read_levels([1e3, 1e2, 10.0, 3.0, 1.0, 0.1]), 0.5

    def unit(x, sigma):  # the denoiser of N(0, 1)
        return x / (1 + sigma.reshape(-1, 1, 1, 1) ** 2)

    for s, t in itertools.combinations(run, 2):
        x = (1 + s.sigma**2) ** 0.5 * torch.ones(1, 1, 1, 1, dtype=torch.float64)
        ends = [s.sigma, t.sigma]
        two = SAMPLERS["dpm_2s"].solver(read_levels(ends), r=r)
        stages = list(two)
        u = run.between(s, t, r)
        expected = s.sigma / (1 + u.sigma**2) / (2 * r)
        assert noise_corrects(s, u, t) == (expected <= LARGEST_CORRECTION)
        assert len(stages) == (2 if expected <= LARGEST_CORRECTION else 1)
        if len(stages) == 2:
            first = SAMPLERS["ddim"].function(unit, x, ends, disable=True)
            second = SAMPLERS["dpm_2s"].function(unit, x, ends, disable=True, r=r)
            moved = (second - first).abs().item() / (1 - t.sigma / s.sigma)
            assert moved <= expected * (1 + 1e-9)
            if u.sigma < s.sigma / 20:
                assert moved == pytest.approx(expected, rel=0.1)


def test_above_the_noisiest_level_order_is_1():
    for flow in (False, True):
        for ratio, order in ((0.99 * NOISIEST, 2), (1.01 * NOISIEST, 1)):
            first = ratio / (1 + ratio) if flow else ratio
            sigmas = [first, first * 0.99]
            assert SAMPLERS["dpm_2s"].nfe(sigmas, flow=flow) == order


@pytest.mark.parametrize("n", [4, 5, 6, 8, 12, 20])
@pytest.mark.parametrize("schedule", ["karras", "exponential", "time_uniform", "beta", "time_quadratic"])
def test_no_step_of_stable_diffusion_is_too_long_from_4_steps_on(schedule, n):
    sigmas = SCHEDULES[schedule].function(n, 0.0292, 14.6146)
    steps = n - 1  # without that to 0
    for id, evaluations in {"dpm_2s": 2, "dpm_3s": 3, "heun": 2, "rk4": 4}.items():
        assert SAMPLERS[id].nfe(sigmas) == evaluations * steps + 1
    for id in ("amed", "amed_dpm_2s"):
        pairs = [stage for stage in SAMPLERS[id].plan(sigmas) if not stage.completes]
        assert len(pairs) == steps // 2
        run = read_levels(sigmas)
        for i in range(0, steps - 1, 2):
            s, t = run[i], run[i + 2]
            assert noise_corrects(s, run.between(s, t, 0.5), t)


@functools.cache
def exact(sigmas, flow):
    """The end of the ODE from X1 times the first level, in very many steps."""
    x = X1 * sigmas[0]
    if flow:
        fine = torch.linspace(sigmas[0], 0.02, 300, dtype=torch.float64).tolist()
        return SAMPLERS["rk4"].function(flow_denoiser, x, [*fine, 0.0], disable=True, flow=True)
    fine = levels(400, sigmas[0], 0.01).tolist()
    return SAMPLERS["dpmpp_3s"].function(denoiser, x, [*fine, 0.0], disable=True)


def choices(spec: SamplerSpec):
    """The options that take part in how long a step may be."""
    base = without_noise(spec) | given(spec, middle="midpoint")
    yield base
    for more in (
        {"r": 1.0},
        {"r": 0.05},
        {"corrected_start": True},
        {"prediction": "noise"},
        {"prediction": "noise", "order": 2, "solver_type": "bh1"},
        {"lower_order_final": True},
        {"start": "heun"},
    ):
        if given(spec, **more) == more:
            yield base | more


def far():
    """Runs that begin where no model does, or with so few steps that one leads from the noise to the image."""
    for first in (1 - EPS, 1 - 1e-5, 0.9999, 0.9995, 0.999):
        for n in (3, 4, 10, 20):
            yield (first, *(first * (1 - k / n) for k in range(1, n)), 0.0), True
    for high in (14.6, 80.0, 700.0, 4518.0, 1e4):
        for schedule, n in itertools.product(("karras", "exponential", "time_uniform"), (3, 4, 10)):
            yield tuple(SCHEDULES[schedule].function(n, 0.03, high).tolist()), False


MULTIPLE = 12.0
"""Of the error of ddim on the same levels, or where that is small of a tenth of the data's deviation, 1.4."""

SINGLESTEP = (
    "dpm_2s",
    "dpm_3s",
    "heun",
    "rk4",
    "edm",
    "plms",
    "amed",
    "amed_dpm_2s",
    "dpm_fast",
    "unipc",
    "dpm_2m",
    "dpm_3m",
    "heunpp2",
    "dpm_2_ancestral",
    "res_3s",
    "res_5s",
    "res_6s",
    "er_sde",
    "gradient_estimation",
)
"""Those with a noise prediction or derivatives in sigma, and evaluations within a step or at its end; and those that
might do the same with the data prediction, by their order or by what they take twice."""


@pytest.mark.parametrize("id", SINGLESTEP)
@pytest.mark.slow
def test_no_step_is_too_long_for_its_order(id):
    """Where a step of order 1 would do, none of higher order throws the image away."""
    spec, worst = SAMPLERS[id], 0.0
    for sigmas, flow in far():
        x = X1 * sigmas[0]
        right = exact(sigmas, flow)

        def error(spec, options, x=x, sigmas=sigmas, right=right, flow=flow):
            model = flow_denoiser if flow else denoiser
            found = spec.function(model, x, sigmas, disable=True, flow=flow, **options)
            return (found - right).square().mean().sqrt().item()

        plain = error(SAMPLERS["ddim"], {})
        for options in choices(spec):
            worst = max(worst, error(spec, options) / max(plain, 0.14))
    assert worst <= MULTIPLE


def test_a_pair_of_amed_that_is_too_long_is_two_steps_of_euler():
    """At 3 steps one pair spans the range of the model."""
    sigmas = [14.6, 0.66, 0.03, 0.0]
    expected = SAMPLERS["euler"].function(denoiser, X1 * 14.6, sigmas, disable=True)
    for id in ("amed", "amed_dpm_2s"):
        assert SAMPLERS[id].nfe(sigmas) == 3
        x = SAMPLERS[id].function(denoiser, X1 * 14.6, sigmas, disable=True, middle="given")
        torch.testing.assert_close(x, expected, rtol=1e-11, atol=1e-11)


@pytest.fixture
def any_magnification(monkeypatch):
    """UniPC without its limit."""

    def lift() -> None:
        monkeypatch.setattr(unipc, "LARGEST_MAGNIFICATION", math.inf)
        _cached_plan.cache_clear()

    yield lift
    _cached_plan.cache_clear()


def test_a_step_of_unipc_after_a_far_shorter_one_has_a_lower_order(any_magnification):
    """Its largest sample in standard deviations: one step is 3,000 times as long as that before it."""
    sigmas = [14.61, 13.71, 5.517, 0.3925, 0.3924, 0.1677, 0.0]

    def largest() -> float:
        sizes = []

        def look(step):
            sizes.append(float(step["x"].square().mean().sqrt() / torch.hypot(step["sigma"], torch.ones(()))))

        SAMPLERS["unipc"].function(denoiser, X1 * sigmas[0], sigmas, {}, look, True)
        return max(sizes)

    assert largest() < 3  # the mixture has 1.5
    any_magnification()
    assert largest() > 100


@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize("schedule", [spec.id for spec in SCHEDULES.values() if spec.any_steps])
def test_unipc_has_its_order_on_every_schedule(schedule, prediction, any_magnification):
    runs = [SCHEDULES[schedule].function(n, 0.0292, 14.6146) for n in (3, 4, 5, 6, 8, 10, 15, 20, 30)]

    def updates() -> list:
        plans = [SAMPLERS["unipc"].plan(sigmas, prediction=prediction) for sigmas in runs]
        return [stage.update.terms for plan in plans for stage in plan]

    limited = updates()
    any_magnification()
    assert updates() == limited


@pytest.mark.parametrize("id", ["heun", "edm", "rk4", "plms", "dpmpp_2s_ancestral"])
def test_a_part_that_ends_above_0_is_the_whole_run_up_to_there(id):
    """So a step to its last level evaluates the model there."""
    sigmas = [9.0, 4.0, 1.5, 0.3, 0.0]
    part, whole = SAMPLERS[id].plan(sigmas[:3]), SAMPLERS[id].plan(sigmas)
    assert model_sigmas(part)[-1] == pytest.approx(1.5, rel=1e-12)
    for stage, same in zip(part, whole, strict=False):
        assert (stage.step, stage.sigma, stage.noise) == (same.step, same.sigma, same.noise)
        assert stage.update.terms == pytest.approx(same.update.terms, rel=1e-12)


# No step


RECIPE = Recipe("dpmpp_2m", (9.0, 4.0, 1.0, 0.3, 0.0))


@pytest.mark.parametrize("sigmas", [[], [0.0], [3.0], [3.0, 3.0], [0.0, 0.0, 0.0]], ids=str)
@pytest.mark.parametrize("kind", [tuple, torch.tensor])
@each_sampler
def test_sigmas_without_a_step_leave_the_sample(spec, kind, sigmas):
    x, asked, calls = sampled(spec, X1, kind(sigmas))
    assert x is X1 and not asked and not calls
    if not spec.adaptive:
        assert spec.plan(kind(sigmas)) == () and spec.nfe(kind(sigmas)) == 0


@pytest.mark.parametrize("sigmas", [[], [0.0], [9.0], [4.0]], ids=str)
def test_a_part_of_a_plan_without_a_step_leaves_the_sample(sigmas):
    def model(x, sigma):
        raise AssertionError("called")

    for base in ("dpmpp_2m", "amed"):
        recipe = Recipe(base, RECIPE.sigmas)
        part = recipe.piece(sigmas)
        assert part.plan() == () and part.nfe == 0 and part.tunings == ()
        assert recipe.function(model, X1, sigmas, disable=True) is X1
    plan = CalibratedPlan(Recipe("amed", RECIPE.sigmas), Predictor())
    assert plan.function(model, X1, sigmas, disable=True, bottleneck=lambda: None) is X1


def test_a_file_of_a_plan_has_a_step():
    with pytest.raises(ValueError, match="sigmas must hold at least two levels"):
        Recipe.from_dict({"base": "dpmpp_2m", "sigmas": [3.0]})


# Repeats


@pytest.mark.parametrize(
    ("sigmas", "steps"),
    [
        ([9.0, 9.0, 3.0, 1.0, 0.0], [1, 2, 3]),
        ([9.0, 3.0, 3.0, 3.0, 1.0, 0.0], [0, 3, 4]),
        ([9.0, 3.0, 1.0, 0.0, 0.0], [0, 1, 2]),
    ],
    ids=str,
)
@each_sampler
def test_a_level_that_repeats_is_no_step(spec, sigmas, steps, caplog):
    """The run on the levels that differ, its steps numbered as the caller counts them, and a word in the log."""
    distinct, options = [9.0, 3.0, 1.0, 0.0], with_noise(spec)
    if spec.stochastic:
        options["noise_sampler"] = lambda sigma, sigma_next: torch.cos(X1)
    right, asked, numbers = sampled(spec, X1, distinct, **options)
    assert not caplog.records
    with caplog.at_level(logging.INFO):
        x, asked_too, calls = sampled(spec, X1, sigmas, **options)
    assert torch.equal(x, right) and asked == asked_too
    assert [call["i"] for call in calls] == [steps[call["i"]] for call in numbers]
    assert [record.message for record in caplog.records] == [
        f"{spec.id}: some of the sigmas repeat the one before; such steps change nothing and are left out"
    ]


def test_a_level_that_repeats_but_for_rounding_of_pure_noise():
    run = read_run([1 + EPS, 1.0, 1 - EPS, 0.5, 0.0], flow=True)
    assert run.levels.sigmas == (1.0, 0.5, 0.0) and run.numbers == (2, 3, 4) and run.given[0] == 1 - EPS
    assert read_run([1 + EPS, 1.0, 0.5]).levels.sigmas == (1 + EPS, 1.0, 0.5)


def test_repeats_in_an_inversion(caplog):
    repeated, ddim = [9.0, 4.0, 4.0, 1.0, 0.3, 0.0], SAMPLERS["ddim"]
    up = invert(ddim, denoiser, X1, repeated)
    torch.testing.assert_close(up.sample, invert(ddim, denoiser, X1, RECIPE.sigmas).sample, rtol=0, atol=0)
    assert len(caplog.records) == 1


def test_a_plan_has_no_repeats():
    repeated = (9.0, 4.0, 4.0, 1.0, 0.3, 0.0)
    with pytest.raises(ValueError, match=r"sigmas\[1\] and sigmas\[2\] are equal \(4\)"):
        Recipe("dpmpp_2m", repeated)
    with pytest.raises(ValueError, match="connect the sigmas that come with the plan"):
        RECIPE.function(denoiser, X1, repeated, disable=True)


# Noise samplers of others


def test_a_noise_sampler_is_given_tensors_and_ours_numbers():
    """Wrappers call methods of tensors on the levels, as k-diffusion's samplers give them."""
    for dtype in (torch.float16, torch.float32, torch.float64):
        seen = []

        def noise(sigma, sigma_next, seen=seen, dtype=dtype):
            assert all(level.ndim == 0 and level.device == X1.device for level in (sigma, sigma_next))
            assert all(level.dtype == torch.promote_types(dtype, torch.float32) for level in (sigma, sigma_next))
            seen.append((sigma.item(), sigma_next.item()))
            return torch.randn(X1.shape) * float((sigma.mean() >= sigma_next.mean()).cpu())

        x = SAMPLERS["ddpm"].function(pointwise, X1.to(dtype), [8.0, 4.0, 1.0, 0.0], disable=True, noise_sampler=noise)
        assert x.dtype == dtype and seen == [(8.0, 4.0), (4.0, 1.0)]
    a, b = (SAMPLERS["ddpm"].function(pointwise, X1, [8.0, 4.0, 0.0], disable=True, seed=3) for _ in range(2))
    assert torch.equal(a, b) and relative_error(a, X1) > 0 and math.isfinite(float(a.sum()))
