"""Properties that every solver's plan has, whatever the levels."""

import contextlib
import math
from unittest.mock import patch

import mpmath
import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st
from mixture import (
    X1,
    denoiser,
    each_ode,
    each_ode_but,
    each_planned,
    exact_options,
    flow_denoiser,
    given,
    levels,
    pointwise,
    relative_error,
    without_noise,
)

from samplers import SAMPLERS, SCHEDULES, Combination, integrate, read_levels
from samplers.phi import expm1, phi
from samplers.plan import economical
from samplers.sampler import NOISE_DEVICE, _cached_plan
from samplers.solvers import dpm_solver, runge_kutta

few = settings(max_examples=15, deadline=None)  # others in each run of the tests
either = st.booleans()


@st.composite
def runs(draw, flow=either, ends=(0.0, None)) -> tuple[list[float], bool]:
    """(sigmas, flow): random strictly descending levels; some end in 0, some flow levels start at exactly 1."""
    is_flow = draw(flow)
    steps = draw(st.lists(st.floats(0.05, 2.0), min_size=1, max_size=7))
    lam = [draw(st.floats(-4.0, 1.0))]
    for h in steps:
        lam.append(lam[-1] + h)
    sigmas = [1 / (1 + math.exp(v)) if is_flow else math.exp(-v) for v in lam]
    if draw(st.sampled_from(ends)) == 0:
        sigmas[-1] = 0.0
    if is_flow and draw(st.booleans()):
        sigmas[0] = 1.0
    return sigmas, is_flow


def alpha(sigma: float, flow: bool) -> float:
    return 1 - sigma if flow else 1.0


def deterministic(spec, sigmas, flow):
    return spec.plan(sigmas, flow=flow, **without_noise(spec))


@each_ode
@few
@over(run=runs())
def test_a_constant_prediction_is_followed_exactly(spec, run):
    """With D constant the ODE is a straight line, x = (sigma / sigma_0)(x_0 - alpha_0 D) + alpha D.

    Every stage of every step must stay on it, the samples within a step too.
    """
    sigmas, flow = run
    x0, d = X1[:1] * 3, X1[1:2]

    def line(sigma: float):
        return sigma / sigmas[0] * (x0 - alpha(sigmas[0], flow) * d) + alpha(sigma, flow) * d

    def model(x, sigma):
        torch.testing.assert_close(x, line(sigma.item()), rtol=0, atol=1e-11)
        return d

    x = integrate(model, x0, deterministic(spec, sigmas, flow), disable=True)
    torch.testing.assert_close(x, line(sigmas[-1]), rtol=0, atol=1e-11)


@contextlib.contextmanager
def any_length():
    """Steps of any length have the order that was asked for."""
    _cached_plan.cache_clear()
    with (
        patch.object(dpm_solver, "LARGEST_CORRECTION", math.inf),
        patch.object(runge_kutta, "LARGEST_CORRECTION", math.inf),
        patch.object(dpm_solver, "NOISIEST", math.inf),
    ):
        yield
    _cached_plan.cache_clear()


@each_ode_but("deis")  # whose time, that of the VP process, has a unit: sigma = 1
@few
@over(run=runs(flow=st.just(False)), c=st.floats(0.01, 100.0))
def test_result_scales_with_the_data(spec, run, c):
    """In EDM space no unit is special: data c times as large, noised c times as much, give c times the result.

    But for the steps that are too long for their order, which is told by data of unit variance (see test_levels.py).
    """
    sigmas, _ = run
    with any_length():
        plan, scaled_plan = (deterministic(spec, [k * s for s in sigmas], False) for k in (1, c))
    x = integrate(pointwise, X1 * sigmas[0], plan, disable=True)

    def scaled(x, sigma):
        return c * pointwise(x / c, sigma / c)

    y = integrate(scaled, X1 * sigmas[0] * c, scaled_plan, disable=True)
    torch.testing.assert_close(y / c, x, rtol=1e-9, atol=1e-9)


@each_ode
@few
@over(run=runs(ends=(0.0,)))
def test_at_sigma_zero_the_sample_is_the_last_prediction(spec, run):
    sigmas, flow = run
    made = []

    def model(x, sigma):
        made.append(pointwise(x, sigma))
        return made[-1].clone()

    x = integrate(model, X1 * sigmas[0], deterministic(spec, sigmas, flow), disable=True)
    assert torch.equal(x, made[-1])


@each_ode
@few
@over(run=runs())
def test_nfe_is_the_number_of_calls_and_runs_repeat_to_the_bit(spec, run):
    sigmas, flow = run
    calls = []

    def model(x, sigma):
        calls.append(sigma)
        return pointwise(x, sigma)

    def sample():
        return spec.function(model, X1 * sigmas[0], sigmas, disable=True, flow=flow, **without_noise(spec))

    first = sample()
    assert len(calls) == spec.nfe(sigmas, flow=flow, **without_noise(spec))
    assert torch.equal(first, sample())


@each_ode
@few
@over(run=runs())
def test_stages_come_in_order_at_levels_of_their_step(spec, run):
    sigmas, flow = run
    plan = deterministic(spec, sigmas, flow)
    steps = [stage.step for stage in plan]
    assert steps == sorted(steps) and set(steps) == set(range(len(sigmas) - 1))
    for stage in plan:
        if stage.sigma is None:
            continue
        high, low = sigmas[stage.step], sigmas[stage.step + 1]
        if spec.id in ("dpm_fast", "restart"):  # the one has levels of its own, the other goes up again
            high, low = sigmas[0], sigmas[-1]
        elif spec.id == "heunpp2":  # which looks one level further
            low = sigmas[min(stage.step + 2, len(sigmas) - 1)]
        assert low * (1 - 1e-12) <= stage.sigma <= high * (1 + 1e-12)
    for i, s in enumerate(sigmas[:-1] if spec.id != "dpm_fast" else sigmas[:1]):
        assert plan[steps.index(i)].sigma == s


@each_ode
def test_history_starts_empty(spec):
    """No stage uses a prediction from before the run."""
    for sigmas in ([1.0, 0.5], [3.0, 2.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]):
        for i, stage in enumerate(spec.plan(sigmas)):
            assert max(stage.update.terms) <= i


@each_ode
def test_one_step(spec):
    """One step to 0 is the model's prediction; one short step is the ODE's, to second order in its length."""
    s = torch.ones(3, dtype=torch.float64)
    to_zero = integrate(denoiser, X1, deterministic(spec, [1.0, 0.0], False), disable=True)
    assert torch.equal(to_zero, denoiser(X1, s))
    h = 1e-4
    short = integrate(denoiser, X1, deterministic(spec, [1.0, math.exp(-h)], False), disable=True)
    torch.testing.assert_close(short - X1, h * (denoiser(X1, s) - X1), rtol=0, atol=10 * h**2)


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@each_ode
@pytest.mark.slow
def test_ascending_levels_lead_back_to_the_start(spec, flow):
    model = flow_denoiser if flow else denoiser
    start = X1 * 0.8

    def drift(n: int) -> float:
        sigmas = levels(n, 0.8, 0.2, flow).tolist()
        down = integrate(model, start, deterministic(spec, sigmas, flow), disable=True)
        assert relative_error(down, start) > 0.2  # it did go somewhere
        return relative_error(integrate(model, down, deterministic(spec, sigmas[::-1], flow), disable=True), start)

    n = 400 if spec.id == "heunpp2" else 100  # its weights go by the level: the way up begins with others
    coarse, fine = drift(n), drift(2 * n)
    assert fine < (0.03 if spec.order == 1 else 1e-3)
    assert fine < 0.6 * coarse


@each_ode
def test_inversion_reaches_pure_noise_in_flow_space(spec):
    """At sigma = 1 alpha is 0: the sample is the noise in it, (x - alpha D) / sigma, and not 0 times infinity."""
    sigmas, d = [0.2, 0.5, 1.0], X1[1:2]
    x = integrate(lambda x, sigma: d, X1[:1], deterministic(spec, sigmas, True), disable=True)
    torch.testing.assert_close(x, (X1[:1] - 0.8 * d) / 0.2)


GRADIENT_RUNS = {
    "edm": ([3.0, 1.9, 1.1, 0.6, 0.4], False),
    "edm to 0": ([3.0, 1.9, 1.1, 0.6, 0.0], False),
    "flow": ([0.9, 0.75, 0.5, 0.3, 0.1], True),
    "flow from 1": ([1.0, 0.75, 0.5, 0.3, 0.1], True),
    "flow from 1 to 0": ([1.0, 0.75, 0.5, 0.0], True),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@pytest.mark.parametrize("run", GRADIENT_RUNS.values(), ids=GRADIENT_RUNS)
@each_ode
@pytest.mark.slow
def test_derivative_with_respect_to_the_inner_levels(spec, run):
    """Against finite differences. The ends stay: a level cannot be moved past 0 or 1."""
    sigmas, flow = run
    model, x = (flow_denoiser if flow else denoiser), X1[:1] * sigmas[0]

    def sample(inner):
        ends = torch.tensor([sigmas[0], sigmas[-1]], dtype=torch.float64)
        return integrate(model, x, deterministic(spec, torch.cat([ends[:1], inner, ends[1:]]), flow), disable=True)

    inner = torch.tensor(sigmas[1:-1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sample, (inner,), rtol=1e-5, atol=1e-6, fast_mode=True)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@pytest.mark.parametrize("run", GRADIENT_RUNS.values(), ids=GRADIENT_RUNS)
@each_ode
def test_derivative_with_respect_to_all_levels_is_finite(spec, run):
    """The sample is a smooth function of every level, of those at 0 and 1 too, where lambda is infinite."""
    sigmas, flow = run
    leaf = torch.tensor(sigmas, dtype=torch.float64, requires_grad=True)
    plan = deterministic(spec, leaf, flow)
    x = integrate(flow_denoiser if flow else denoiser, X1[:1] * sigmas[0], plan, disable=True)
    (gradient,) = torch.autograd.grad(x.sum(), leaf)
    assert gradient.isfinite().all()


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad:UserWarning")
@pytest.mark.parametrize("run", GRADIENT_RUNS.values(), ids=GRADIENT_RUNS)
@each_ode
def test_a_plan_with_gradients_has_the_same_numbers(spec, run):
    sigmas, flow = run
    plain = deterministic(spec, sigmas, flow)
    with_gradients = deterministic(spec, torch.tensor(sigmas, dtype=torch.float64, requires_grad=True), flow)
    assert len(plain) == len(with_gradients)
    for a, b in zip(plain, with_gradients, strict=True):
        assert b.sigma == a.sigma is None or float(b.sigma) == pytest.approx(a.sigma, rel=1e-14)
        numbers = dict.fromkeys(b.update.terms, 0.0) | dict(a.update.terms)  # a plain 0 is left out
        assert {k: float(c) for k, c in b.update.terms.items()} == pytest.approx(numbers, rel=1e-12, abs=1e-13)
        assert (a.step, a.completes) == (b.step, b.completes)


UNEVEN = [14.6, 8.0, 5.5, 1.9, 1.1, 0.3, 0.03]
"""Neither uniform in lambda nor near it: there `midpoint` of AMED would be `given`, and the plans the same."""


@each_planned
def test_options_with_more_than_one_choice_make_a_difference(spec):
    """An option that a solver forgets to read would otherwise go unseen. Rounding, of 1e-13, is no difference."""
    base = given(spec, eta=0.5, gamma=0.5, s_churn=10.0, detail=0.1)

    def numbers(**options):
        plan = spec.plan(UNEVEN, **base | options)
        return [{"sigma": s.sigma, "noise": s.noise and s.noise.scale, **s.update.terms} for s in plan]

    def differ(ours, others):
        return len(ours) != len(others) or any(
            abs((a.get(key) or 0.0) - (b.get(key) or 0.0)) > 1e-4
            for a, b in zip(ours, others, strict=True)
            for key in a | b
        )

    for option in spec.options:
        if option is NOISE_DEVICE:
            continue  # it changes the noise, not the plan
        if option.choices:
            others = [c for c in option.choices if c != option.default]
        elif isinstance(option.default, bool):
            others = [not option.default]
        elif isinstance(option.default, int):
            others = [option.default - 1]
        else:
            others = [0.9 * option.default, option.minimum, option.maximum]
        assert any(differ(numbers(**{option.name: value}), numbers()) for value in others), option.name


@over(x=st.floats(0.1, 100.0), y=st.floats(-4.0, 4.0))
@few
def test_lambda_inverts_to_the_level_in_both_spaces(x, y):
    for flow, sigma in ((False, x), (True, x / (1 + x))):
        run = read_levels([sigma, sigma / 2], flow)
        assert run[0].lam == pytest.approx(math.log(alpha(sigma, flow) / sigma), abs=1e-12)
        assert run.at_lambda(run[0].lam).sigma == pytest.approx(sigma, rel=1e-13)
        level = run.at_lambda(y)
        assert math.log(level.alpha / level.sigma) == pytest.approx(y, abs=1e-12)


# phi functions


def exact_phi(k: int, z: float) -> mpmath.mpf:
    """phi_k(z) = 1F1(1; k + 1; z) / k!, to 50 digits."""
    with mpmath.workdps(50):
        return mpmath.hyp1f1(1, k + 1, mpmath.mpf(z)) / mpmath.factorial(k)


MAGNITUDES = [*torch.logspace(-8, math.log10(50), 60, dtype=torch.float64).tolist(), 0.999, 1.0, 1.001, 50.0]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_is_exact_to_rounding(k):
    for z in (sign * m for m in MAGNITUDES for sign in (1, -1)):
        exact = exact_phi(k, z)
        assert abs(phi(k, z) - exact) < 1e-13 * abs(exact), z
    assert phi(k, 0.0) == 1 / math.factorial(k)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_of_a_torch_scalar_is_the_same_and_has_the_right_derivative(k):
    """phi_k' = phi_k - k phi_(k+1), from the integral that defines phi_k."""
    for z in (sign * m for m in MAGNITUDES for sign in (1, -1)):
        t = torch.tensor(z, dtype=torch.float64, requires_grad=True)
        value = phi(k, t)
        assert value.item() == pytest.approx(phi(k, z), rel=1e-14)
        (slope,) = torch.autograd.grad(value, t)
        exact = exact_phi(k, z) - k * exact_phi(k + 1, z)
        assert abs(slope.item() - exact) < 1e-12 * abs(exact), z


def test_expm1_does_not_cancel():
    assert expm1(1e-12) == pytest.approx(1e-12 + 5e-25, rel=1e-15)
    assert expm1(torch.tensor(1e-12, dtype=torch.float64)).item() == pytest.approx(1e-12 + 5e-25, rel=1e-15)


# Combinations


def evaluate(c: Combination, values: dict[int, float]) -> float:
    return sum(weight * values[key] for key, weight in c.terms.items())


keys = st.sampled_from([-2, -1, 0, 1, 2, 3])
combinations = st.dictionaries(keys, st.floats(-5, 5), min_size=1).map(Combination)
values = st.fixed_dictionaries(dict.fromkeys([-2, -1, 0, 1, 2, 3], st.floats(-10, 10)))


@few
@over(a=combinations, b=combinations, v=values, scale=st.floats(-3, 3))
def test_combinations_add_and_scale_like_their_values(a, b, v, scale):
    assert evaluate(a + b, v) == pytest.approx(evaluate(a, v) + evaluate(b, v), abs=1e-11)
    assert evaluate(a - b, v) == pytest.approx(evaluate(a, v) - evaluate(b, v), abs=1e-11)
    assert evaluate(scale * a, v) == evaluate(a * scale, v) == pytest.approx(scale * evaluate(a, v), abs=1e-11)
    assert evaluate(a / 4, v) == pytest.approx(evaluate(a, v) / 4, abs=1e-11)


@settings(max_examples=200, deadline=None)
@over(terms=st.dictionaries(keys, st.floats(-5, 5), min_size=1), v=values)
def test_interpolation_is_the_plain_sum(terms, v):
    key = next(iter(terms))
    terms[key] += 1 - sum(terms.values())  # make the coefficients add up to 1
    combination = Combination(terms)
    first, chain = combination.interpolation
    total = v[first]
    for key, weight in chain:
        total += weight * (v[key] - total)
    assert total == pytest.approx(evaluate(combination, v), abs=1e-11)


def test_no_interpolation_where_the_coefficients_do_not_add_up_to_1():
    assert Combination({-1: 0.5, 0: 0.4}).interpolation is None
    assert Combination({-1: torch.tensor(0.5), 0: torch.tensor(0.5)}).interpolation is None


def test_a_combination_prints_as_a_formula():
    assert repr(Combination({-1: 0.5, -2: 0.25, 1: 2.0})) == "0.5 x + 0.25 start + 2 P[1]"


# The registry


@pytest.mark.parametrize("registry", [SAMPLERS, SCHEDULES], ids=["samplers", "schedules"])
def test_registry_is_a_mapping(registry):
    ids = list(registry)
    assert len(registry) == len(ids) == len(set(ids)) > 0
    assert [registry[i].id for i in ids] == ids == [spec.id for spec in registry.values()]
    assert all(i in registry for i in ids) and "no such id" not in registry
    assert registry.get("no such id") is None
    assert len({spec.label for spec in registry.values()}) == len(ids)


@pytest.mark.parametrize("spec", [*SAMPLERS.values(), *SCHEDULES.values()], ids=[*SAMPLERS, *SCHEDULES])
def test_defaults_are_within_their_own_bounds(spec):
    defaults = {option.name: option.default for option in spec.options}
    assert spec.check_options({}) == defaults == spec.check_options(defaults)
    assert len(defaults) == len(spec.options)
    assert all(option.help for option in spec.options) and spec.help and spec.paper


@each_planned
def test_options_reach_the_solver(spec):
    """Under its exact options a plan is what the bare solver makes of the same levels."""
    sigmas = levels(5).tolist()
    options = spec.check_options(exact_options(spec))
    own = {option.name: options[option.name] for option in spec.solver_options}
    bare = economical(spec.solver(read_levels(sigmas), **own))
    assert [s.update.terms for s in spec.plan(sigmas, **exact_options(spec))] == [s.update.terms for s in bare]
