"""Whether a step is too long for a sampler, by what it makes of Gaussian data."""

from __future__ import annotations

import itertools
import logging
import math

import pytest
import torch
from mixture import X1, denoiser, each_planned, flow_denoiser, levels
from test_levels import EPS, exact

from samplers import SAMPLERS, SCHEDULES
from samplers.denoisers import Guided
from samplers.gaussian import first_order_error, gaussian_error

RUNS = [
    ("ddim", {}), ("dpmpp_2s", {}), ("dpm_3s", {}), ("dpmpp_3m", {}), ("unipc", {}), ("ipndm_v", {}), ("rk4", {}),
    ("amed", {"afs": True}), ("dpm_fast", {}), ("res_6s", {}), ("heunpp2", {}), ("euler_cfg_pp", {}),
]  # fmt: skip


DETERMINISTIC = [s for s in SAMPLERS.values() if not (s.stochastic or s.adaptive or s.takes_apart)]


def gaussian(flow, mean=1.0):
    """D(x; sigma) for data N(mean, 1)."""

    def denoised(x, sigma):
        sigma = sigma.reshape(-1, *(1 for _ in x.shape[1:]))
        alpha = 1 - sigma if flow else 1.0
        return (alpha * x + sigma**2 * mean) / (alpha**2 + sigma**2)

    return denoised


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize(("id", "options"), RUNS)
@pytest.mark.parametrize("end", [0.0, 0.05])
def test_the_error_is_that_of_a_run_on_gaussian_data(id, options, flow, end):
    """Of samples at the mean of the data (z = 0) and one standard deviation away, which fix both parts."""
    spec = SAMPLERS[id]
    sigmas = [*levels(5, 0.98 if flow else 14.6, 0.1, flow).tolist()[:-1], end]
    plain = gaussian(flow)

    def model(x, sigma):
        return Guided(plain(x, sigma), plain(x, sigma)) if spec.takes_apart else plain(x, sigma)

    run = spec.prepare(sigmas, flow=flow, **options)
    first, last = ((1 - s if flow else 1.0, s) for s in (sigmas[0], end))
    z = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1)
    x = first[0] + math.hypot(*first) * z
    off = spec.function(model, x, sigmas, disable=True, flow=flow, **options) - (last[0] + math.hypot(*last) * z)
    rest, both = (off.flatten() / math.hypot(*last)).tolist()
    assert gaussian_error(run.plan, run.run.levels) == pytest.approx(math.hypot(rest, both - rest), abs=1e-12)
    if id == "ddim":
        assert first_order_error(run.run.levels) == pytest.approx(gaussian_error(run.plan, run.run.levels), abs=1e-13)


@pytest.mark.parametrize("flow", [False, True])
@pytest.mark.parametrize("id", ["dpmpp_2m", "dpm_3s", "heun"])
def test_it_falls_with_the_steps(id, flow):
    """Down to sigma > 0 with the order of the sampler, which is 2 at least; also on the way up."""
    for up in (False, True):
        errors = []
        for n in (64, 128):
            sigmas = levels(n, 0.98 if flow else 14.6, 0.1, flow).tolist()
            run = SAMPLERS[id].prepare(sigmas[::-1] if up else sigmas, flow=flow)
            errors.append(gaussian_error(run.plan, run.run.levels))
        assert math.log2(errors[0] / errors[1]) > 1.7


def far():
    """Runs from where no model begins, and few steps from where models do."""
    for first, n in itertools.product(
        (1 - EPS, 1 - 1e-5, 0.9999, 0.9995, 0.999, 0.998, 0.995, 0.98), (3, 4, 5, 6, 8, 10)
    ):
        yield (first, *(first * (1 - k / n) for k in range(1, n)), 0.0), True
    for high, n in itertools.product((5.0, 14.6, 80.0, 300.0, 1e4), (3, 4, 5, 6, 8, 10)):
        for schedule in ("karras", "exponential", "time_uniform"):
            yield tuple(SCHEDULES[schedule].function(n, 0.03, high).tolist()), False


@pytest.mark.slow
@pytest.mark.parametrize("spec", DETERMINISTIC, ids=lambda spec: spec.id)
def test_an_image_that_is_thrown_away_is_warned_of(spec):
    """One with 8 times the error of ddim or, where that is small, 8 tenths of the data's deviation, 1.4."""
    afs = [{}, {"afs": True}] if "afs" in {option.name for option in spec.options} else [{}]
    for (sigmas, flow), more in itertools.product(far(), afs):
        model, x, right = flow_denoiser if flow else denoiser, X1 * sigmas[0], exact(sigmas, flow)
        run = spec.prepare(sigmas, flow=flow, **more)
        if run.missed_by is not None:
            continue
        ours, plain = (
            (s.function(model, x, sigmas, disable=True, flow=flow, **o) - right).square().mean().sqrt().item()
            for s, o in ((spec, more), (SAMPLERS["ddim"], {}))
        )
        assert ours < 8 * max(plain, 0.14), (sigmas[0], len(sigmas) - 1, ours, plain)


@each_planned
def test_usual_runs_are_not_warned_of(spec):
    """Ten steps and more; and one to four of euler and ddim, as on distilled models, which no ODE is behind."""
    few = (1, 2, 4) if spec.id in ("ddim", "euler") else ()
    for n, schedule in itertools.product((*few, 10, 20, 30), ("karras", "exponential", "time_uniform", "beta")):
        assert spec.prepare(SCHEDULES[schedule].function(n, 0.0292, 14.6146)).missed_by is None
        flow = SCHEDULES["linear_quadratic" if schedule == "karras" else "time_uniform"].function(n, 0.001, 1.0)
        assert spec.prepare(flow, flow=True).missed_by is None


@pytest.mark.parametrize(
    ("id", "flow", "sigmas"),
    [
        ("sa_solver", False, [5.9e-161, 14.6, 1e5]),  # a sample beyond float64
        ("heun", False, [1e38, 1.0, 5e-324, 0.0]),  # a coefficient
        ("ddim", False, [5e-324, 1e-300, 1e-10, 1.0, 1e20, 3.4e38]),
        ("euler", True, [5e-324, 0.99999994]),
    ],
)
def test_what_float64_cannot_hold_is_not_judged(id, flow, sigmas):
    assert SAMPLERS[id].prepare(sigmas, flow=flow).missed_by is None


def test_the_log_says_that_a_step_is_too_long(caplog):
    sigmas = SCHEDULES["karras"].function(3, 0.0292, 14.6146)
    with caplog.at_level(logging.WARNING):
        SAMPLERS["heun"].function(denoiser, X1 * sigmas[0], sigmas.double(), disable=True)
        assert "heun: a step is too long for this sampler" in caplog.text
        caplog.clear()
        SAMPLERS["heun"].function(denoiser, X1 * sigmas[0], sigmas.double(), disable=True, detail=0.1)
        SAMPLERS["dpmpp_2m"].function(denoiser, X1 * sigmas[0], sigmas.double(), disable=True)
        SAMPLERS["ddpm"].function(denoiser, X1 * sigmas[0], sigmas.double(), disable=True, s_noise=0.0)
    assert not caplog.text
