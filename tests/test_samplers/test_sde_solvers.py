"""ER-SDE, SA-Solver and Restart: their formulas, by hand or by quadrature, and their options."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from mixture import NOISE, ONE_PREDICTION, X1, denoiser, flow_denoiser, given, levels
from test_order import measured_order

from samplers import SAMPLERS, read_levels
from samplers.plan import model_sigmas
from samplers.solvers.er_sde import NoiseScale
from samplers.solvers.restart import BASES

EDM, FLOW = [9.0, 5.0, 2.0, 0.7, 0.2, 0.05], [0.97, 0.8, 0.6, 0.35, 0.1]


# ER-SDE


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.parametrize(("kind", "eta"), [("er", 1.0), ("er", 0.4), ("er", 0.0), ("sde", 1.0), ("sde", 0.5)])
def test_the_integrals_of_er_sde(kind, eta, flow):
    """Against mpmath, over a short step and one that spans the range of a model."""

    def phi(v):
        return v * (mpmath.exp(v ** mpmath.mpf(0.3)) + 10 if kind == "er" else v) ** eta

    for s, t in ((0.8, 0.75), (0.9, 0.002)) if flow else ((3.0, 2.5), (80.0, 0.01)):
        a, b = read_levels([s, t], flow)
        v_s, v_t = (mpmath.exp(-level.lam) for level in (a, b))
        found = NoiseScale(kind, eta).moments(a, b, 2)
        for k, moment in enumerate(found, start=1):

            def integrand(u, k=k, v_s=v_s):  # in u = log v
                v = mpmath.exp(u)
                return mpmath.diff(phi, v) / phi(v) ** 2 * (v - v_s) ** k / math.factorial(k) * v

            pieces = mpmath.linspace(mpmath.log(v_t), mpmath.log(v_s), 6)
            exact = b.alpha * phi(v_t) * mpmath.quad(integrand, pieces)
            assert moment == pytest.approx(float(exact), rel=1e-9)


def test_er_sde_as_published_has_order_2_and_exact_has_order_3():
    spec = SAMPLERS["er_sde"]
    for solver_type, order in (("published", 2), ("exact", 3)):
        steps = (256, 512, 1024) if order == 2 else (64, 128, 256)
        assert measured_order(spec, steps, eta=0.0, solver_type=solver_type) == pytest.approx(order, abs=0.25)


def test_er_sde_adds_less_noise_than_the_sde():
    """The paper's scale grows like 11 v near the image, where the SDE's is v^2."""

    def added(**options):
        return [stage.noise.scale for stage in SAMPLERS["er_sde"].plan(EDM, **options)]

    er, sde = added(), added(noise_scaler="sde")
    assert all(a < b for a, b in zip(er, sde, strict=True))
    assert er[-1] < 0.3 * sde[-1]


# SA-Solver


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.parametrize("pece", [False, True])
@pytest.mark.parametrize(("predictor", "corrector", "order"), [(1, 0, 1), (2, 0, 2), (1, 2, 2), (2, 3, 3), (2, 2, 2)])
@pytest.mark.slow
def test_the_corrector_of_sa_solver_adds_an_order(predictor, corrector, order, pece, flow):
    """min(p + 1, c), or p without a corrector, from a plain start; as seen where the prediction changes fast."""
    options = {"predictor_order": predictor, "corrector_order": corrector, "pece": pece, "lower_order_final": False}
    high = 2 / 3 if flow else 2.0
    measured = measured_order(SAMPLERS["sa_solver"], flow=flow, exact_start=False, high=high, eta=0.0, **options)
    assert measured == pytest.approx(order, abs=0.25)


def test_sa_solver_adds_noise_within_its_interval():
    spec, sigmas = SAMPLERS["sa_solver"], levels(30, 0.97, 0.03, flow=True).tolist()
    for start, end in ((0.2, 0.8), (0.0, 1.0), (0.5, 0.6), (0.7, 0.3)):
        plan = spec.plan(sigmas, flow=True, sde_start=start, sde_end=end)
        noisy = [stage.noise.sigma_next for stage in plan if stage.noise]
        assert noisy == [sigma for sigma in sigmas[1:] if 1 - end <= sigma <= 1 - start]


@pytest.mark.parametrize("shift", [0.3, 3.0, 8.0])
def test_sa_solver_adds_noise_within_the_models_time(shift):
    spec, times = SAMPLERS["sa_solver"], levels(30, 0.97, 0.03, flow=True).tolist()
    sigmas = {shift * time / (1 + (shift - 1) * time): time for time in times}
    plan = spec.plan([*sigmas], flow=True, model_shift=shift, sde_start=0.35, sde_end=0.75)
    noisy = [sigmas[stage.noise.sigma_next] for stage in plan if stage.noise]
    assert noisy == [time for time in times[1:] if 0.25 <= time <= 0.65]


@pytest.mark.parametrize("shift", [0.0, -3.0, math.nan, math.inf])
def test_model_shift_out_of_range(shift):
    with pytest.raises(ValueError, match=f"model_shift = {shift:g} must be positive"):
        SAMPLERS["sa_solver"].plan([0.9, 0.5, 0.0], flow=True, model_shift=shift)


def test_the_evaluations_of_sa_solver():
    spec, to_zero = SAMPLERS["sa_solver"], [*EDM, 0.0]
    assert spec.nfe(to_zero) == 6 and model_sigmas(spec.plan(to_zero)) == EDM
    assert spec.nfe(to_zero, pece=True) == 6 + 5
    assert spec.nfe(to_zero, pece=True, corrector_order=0) == 6


# Restart


def test_restart_by_hand():
    """Two restarts with Euler's method in EDM space: 2.0 to 0.2 and back."""
    options = {"restarts": 2, "restart_max": 1.8, "restart_min": 0.25, "base": "euler"}
    z = iter((NOISE, X1.flip(-1)))
    found = SAMPLERS["restart"].function(
        denoiser, X1 * 9, [*EDM, 0.0], disable=True, noise_sampler=lambda a, b: next(z), **options
    )
    x = X1 * 9

    def down(x, sigmas):
        return SAMPLERS["euler"].function(denoiser, x, sigmas, disable=True)

    x = down(x, EDM[:5])
    for noise in (NOISE, X1.flip(-1)):
        x = down(x + math.sqrt(2.0**2 - 0.2**2) * noise, EDM[2:5])
    torch.testing.assert_close(found, down(x, [*EDM[4:], 0.0]), rtol=1e-11, atol=1e-11)


def test_restart_has_every_solver_that_follows_its_levels():
    """All with a plan that adds no noise, but for dpm_fast (levels of its own), AMED (pairs) and plms (its start)."""
    deterministic = {spec.id for spec in ONE_PREDICTION if not (spec.stochastic or spec.adds_noise or spec.adaptive)}
    assert {id for id in deterministic - {"dpm_fast", "plms"} if not id.startswith("amed")} == set(BASES)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
def test_restart_takes_any_solver(base, flow):
    """Without restarts it is the solver; with them it evaluates the levels of the interval again."""
    sigmas, model = (FLOW, flow_denoiser) if flow else (EDM, denoiser)
    calls = []

    def sample(id, **options):
        x = X1 * sigmas[0]
        return SAMPLERS[id].function(model, x, sigmas, None, calls.append, True, seed=0, flow=flow, **options)

    own = given(SAMPLERS[base], lower_order_final=False)
    plain = sample(base, **own)
    torch.testing.assert_close(sample("restart", base=base, restarts=0), plain, rtol=1e-12, atol=1e-12)
    never, once, thrice = (SAMPLERS["restart"].nfe(sigmas, restarts=k, base=base, flow=flow) for k in (0, 1, 3))
    assert never < once and thrice - never == 3 * (once - never)
    calls.clear()
    sample("restart", base=base)
    assert [call["i"] for call in calls] == list(range(len(sigmas) - 1))


def test_restarts_draw_independent_noise():
    """Each from a part of its own of the interval."""
    plan = SAMPLERS["restart"].plan(EDM, restarts=3, restart_max=2.0, restart_min=0.2)
    intervals = [stage.noise[1:] for stage in plan if stage.noise]
    assert intervals[0][0] == pytest.approx(2.0) and intervals[-1][1] == pytest.approx(0.2)
    assert all(a[1] == pytest.approx(b[0]) for a, b in itertools.pairwise(intervals))


@pytest.mark.parametrize("sigmas", [[9.0, 0.0], [9.0, 3.0], [0.09, 0.05, 0.01]], ids=str)
def test_without_levels_in_the_interval_there_is_no_restart(sigmas):
    assert not [stage for stage in SAMPLERS["restart"].plan(sigmas) if stage.noise]
