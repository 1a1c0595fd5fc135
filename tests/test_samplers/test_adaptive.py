"""DPM-Solver with adaptive steps, and what `integrate` offers to solvers that decide as they go."""

from __future__ import annotations

import math

import pytest
import torch
from mixture import FLOW_MAX, FLOW_MIN, SIGMA_MAX, SIGMA_MIN, X1, denoiser, flow_denoiser, relative_error, solution

from samplers import DENOISED, SAMPLERS, Noise, P, Stage, X, integrate

SPEC = SAMPLERS["dpm_adaptive"]
ENDS = {False: [SIGMA_MAX, SIGMA_MIN], True: [FLOW_MAX, FLOW_MIN]}
both_spaces = pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])


def sample(sigmas, flow=False, model=None, x=None, **options):
    """The sample, and what the sampler reports."""
    info = {}
    model = model or (flow_denoiser if flow else denoiser)
    x = solution(sigmas[0], flow) if x is None else x
    return SPEC.function(model, x, sigmas, disable=True, flow=flow, info=info, **options), info


@both_spaces
@pytest.mark.parametrize("order", [2, 3])
def test_error_follows_the_tolerance(order, flow):
    errors, nfes = [], []
    for rtol in (0.05, 0.005, 0.0005):
        x, info = sample(ENDS[flow], flow, order=order, rtol=rtol, atol=rtol / 10)
        errors.append(relative_error(x, solution(ENDS[flow][-1], flow)))
        nfes.append(info["nfe"])
    assert errors[0] > 3 * errors[1] > 9 * errors[2]
    assert errors[0] < 0.05 and errors[2] < 2e-4
    assert nfes[0] < nfes[1] < nfes[2]


@pytest.mark.parametrize("order", [2, 3])
def test_report_counts_evaluations_and_tries(order):
    calls = []

    def model(x, sigma):
        calls.append(sigma[0].item())
        return denoiser(x, sigma)

    _, info = sample([SIGMA_MAX, SIGMA_MIN], model=model, order=order)
    assert set(info) == {"nfe", "n_accept", "n_reject"}
    assert info["nfe"] == len(calls) == order * (info["n_accept"] + info["n_reject"])
    assert info["n_reject"] > 0


@pytest.mark.parametrize(
    ("sigmas", "flow"),
    [
        ([9.0, 3.0, 1.0, 0.1, 0.0], False),
        ([1.0, 0.8, 0.5, 0.1, 0.0], True),
        ([1.0, 0.8, 0.1], True),
        ([2.0, 0.0], False),
    ],
)
def test_ends_that_are_infinite_in_lambda(sigmas, flow):
    """A step to 0 is the model's last prediction; one out of pure noise keeps what lambda cannot."""
    made = []

    def model(x, sigma):
        made.append((flow_denoiser if flow else denoiser)(x, sigma))
        return made[-1]

    x, info = sample(sigmas, flow, model, x=X1 * sigmas[0])
    assert info["nfe"] == len(made) and x.isfinite().all()
    if sigmas[-1] == 0:
        assert torch.equal(x, made[-1])


@both_spaces
def test_inversion_leads_back(flow):
    sigmas = [0.8, 0.2]
    down, _ = sample(sigmas, flow, x=X1, rtol=1e-3, atol=1e-4)
    back, _ = sample(sigmas[::-1], flow, x=down, rtol=1e-3, atol=1e-4)
    assert relative_error(down, X1) > 0.2
    assert relative_error(back, X1) < 5e-3


def test_callback_at_each_try_with_progress_over_the_given_steps():
    """So that a run can be watched and cancelled however many tries there are; the numbers are the host's steps."""
    infos, info = [], {}
    sigmas = [SIGMA_MAX * (SIGMA_MIN / SIGMA_MAX) ** (i / 10) for i in range(11)] + [0.0]
    SPEC.function(denoiser, X1 * SIGMA_MAX, sigmas, callback=infos.append, disable=True, info=info, rtol=0.01)
    assert len(infos) == info["n_accept"] + info["n_reject"] + 1  # and the step to 0
    steps = [info["i"] for info in infos]
    assert steps == sorted(steps) and steps[0] == 0 and steps[-1] == 10 and len(set(steps)) > 5
    for info in infos:
        assert info["x"].shape == info["denoised"].shape == X1.shape
        assert info["sigma"] == info["sigma_hat"]
    sigmas = [info["sigma"].item() for info in infos]
    assert sigmas == sorted(sigmas, reverse=True)


@both_spaces
@pytest.mark.parametrize("order", [2, 3])
def test_a_constant_prediction_is_followed_exactly(order, flow):
    """With D constant the ODE is a straight line, and every sample of every try stays on it."""
    sigmas, d = ([1.0, 0.7, 0.2, 0.0] if flow else [9.0, 3.0, 0.2, 0.0]), X1[1:2]

    def line(sigma: float):
        at_start, here = ((1 - s if flow else 1.0) for s in (sigmas[0], sigma))
        return sigma / sigmas[0] * (X1[:1] - at_start * d) + here * d

    def model(x, sigma):
        torch.testing.assert_close(x, line(sigma.item()), rtol=0, atol=1e-11)
        return d

    x, info = sample(sigmas, flow, model, x=X1[:1], order=order)
    assert torch.equal(x, d) and info["nfe"] > 3


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_start_that_is_not_finite_is_not_the_models_fault(value):
    x = X1.clone()
    x[0, 0, 1, 1] = value
    with pytest.raises(ValueError, match="x holds NaN or infinity"):
        SPEC.function(denoiser, x, [2.0, 1.0], disable=True)


def test_noise_of_such_a_solver_needs_a_sampler():
    def solver():
        yield Stage(0, 1.0, DENOISED, noise=Noise(0.5, 1.0, 0.5))
        return {}

    with pytest.raises(ValueError, match="a noise_sampler is needed"):
        integrate(denoiser, X1, solver(), disable=True)
    x = integrate(denoiser, X1, solver(), disable=True, noise_sampler=lambda a, b: X1)
    torch.testing.assert_close(x, denoiser(X1, torch.ones(3, dtype=torch.float64)) + 0.5 * X1)


def test_there_is_no_plan():
    for ask in (SPEC.plan, SPEC.nfe):
        with pytest.raises(ValueError, match="dpm_adaptive decides its steps as it goes"):
            ask([2.0, 1.0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 5])
def test_a_prediction_that_is_not_finite_stops_at_once(at, value):
    calls = []

    def model(x, sigma):
        calls.append(sigma[0].item())
        return denoiser(x, sigma) if len(calls) <= at else torch.full_like(x, value)

    with pytest.raises(ValueError, match=r"NaN or infinity at step 1 of 1 \(sigma = "):
        sample([SIGMA_MAX, SIGMA_MIN], model=model)
    assert len(calls) <= at + 3


def test_tolerances_that_cannot_be_met():
    """A model without any smoothness: the steps shrink until it is plain that there is no end to them."""
    generator, calls = torch.Generator().manual_seed(0), []

    def model(x, sigma):
        calls.append(sigma)
        return torch.randn(x.shape, dtype=x.dtype, generator=generator)

    with pytest.raises(ValueError, match=r"cannot meet rtol = 1e-05 and atol = 1e-06 in 1000 steps: .* sigma = "):
        sample([SIGMA_MAX, SIGMA_MIN], model=model, rtol=1e-5, atol=1e-6)
    assert len(calls) <= 150


@pytest.mark.parametrize("order", [2, 3])
def test_the_narrowest_tolerances_can_be_met(order):
    _, info = sample([SIGMA_MAX, SIGMA_MIN], rtol=1e-5, atol=1e-6, order=order)
    assert 80 < info["n_accept"] < 1000


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([14.0, math.nan, 0.0], r"sigmas\[1\] = nan"),
        ([1.0, 3.0, 2.0], r"sigmas\[1\] = 3"),
    ],
)
def test_sigmas_at_fault_are_named(sigmas, message):
    with pytest.raises(ValueError, match=message):
        SPEC.function(denoiser, X1, sigmas, disable=True)


@pytest.mark.parametrize("option", [{"order": 1}, {"rtol": 0.0}, {"h_init": 0.0}, {"atol": -1.0}, {"eta": 1.0}])
def test_options_at_fault_are_named(option):
    with pytest.raises(ValueError, match=f"option .?{next(iter(option))}"):
        SPEC.function(denoiser, X1, [2.0, 1.0], disable=True, **option)


def test_nothing_handed_out_is_written_to():
    seen = []

    def model(x, sigma):
        prediction = denoiser(x, sigma)
        seen.extend((t, t._version, t.clone()) for t in (x, prediction))
        return prediction

    x = X1 * SIGMA_MAX
    seen.append((x, x._version, x.clone()))
    SPEC.function(model, x, [SIGMA_MAX, SIGMA_MIN], disable=True)
    for tensor, version, copy in seen:
        assert tensor._version == version and torch.equal(tensor, copy)


def test_controller_terms():
    """Each term changes the steps; the defaults are a plain integral controller, h <- h (1 + atan(E^(-1/p) - 1))."""
    from samplers.solvers.adaptive import StepSize

    controller = StepSize(0.1, 2, 0.81, 0.0, 1.0, 0.0)
    assert controller.accepts(0.25)
    assert controller.h == pytest.approx(0.1 * (1 + math.atan(2 - 1)), rel=1e-6)
    h = controller.h
    assert not controller.accepts(4.0)
    assert controller.h == pytest.approx(h * (1 + math.atan(0.5 - 1)), rel=1e-6)
    plain = sample([SIGMA_MAX, SIGMA_MIN])[0]
    for option in ({"pcoeff": 0.2}, {"icoeff": 0.8}, {"dcoeff": 0.1}, {"accept_safety": 0.3}, {"h_init": 0.2}):
        assert not torch.equal(sample([SIGMA_MAX, SIGMA_MIN], **option)[0], plain), option


def test_a_solver_is_sent_the_state_after_each_stage():
    """Heun's step, with the choice between its result and Euler's made on the tensors."""
    told = []

    def solver():
        d_1 = X - DENOISED  # the derivative at sigma = 1
        state = yield Stage(0, 1.0, X - 0.5 * d_1, d_1, completes=False)
        told.append((state.value(P[0]), state.value(X)))
        state = yield Stage(0, 0.5, X - 0.0 * DENOISED, (X - DENOISED) / 0.5, completes=False)
        told.append((state.value(P[0]), state.value(P[1])))
        return {"n_accept": 1}

    info = {}
    x = integrate(denoiser, X1, solver(), disable=True, info=info)
    one = torch.ones(3, dtype=torch.float64)
    d_1 = X1 - denoiser(X1, one)
    euler = X1 - 0.5 * d_1
    d_2 = (euler - denoiser(euler, 0.5 * one)) / 0.5
    torch.testing.assert_close(x, euler)
    for (a, b), (c, d) in zip(told, [(d_1, euler), (d_2, d_1)], strict=True):
        torch.testing.assert_close(a, c)
        torch.testing.assert_close(b, d)
    assert info == {"n_accept": 1, "nfe": 2}
