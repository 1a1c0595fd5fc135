"""Order of convergence, measured against the exact solution of the probability-flow ODE of a Gaussian mixture."""

import math

import pytest
import torch
from mixture import (
    FLOW_MAX,
    FLOW_MIN,
    SIGMA_MAX,
    SIGMA_MIN,
    X1,
    denoiser,
    each_ode_but,
    exact_options,
    flow_denoiser,
    levels,
    relative_error,
    solution,
)

from samplers import SAMPLERS, integrate
from samplers.integrate import combine

STEPS = (128, 256, 512)


def depth(plan) -> int:
    """How many predictions of earlier steps a plan needs; 0 for a singlestep solver."""
    earlier, within = 0, 0
    for stage, before in zip(plan, (None, *plan), strict=False):
        within = 0 if before is None or before.completes else within + 1
        earlier = max(earlier, max(stage.update.terms) - within)
    return earlier


def error(spec, n: int, flow: bool = False, exact_start: bool = True, high: float | None = None, **options) -> float:
    """Relative error of the last sample after n steps.

    A multistep solver begins with steps of lower order, whose error hides its own: with `exact_start` it begins
    instead on the exact solution, with exact predictions as its history.
    """
    model = flow_denoiser if flow else denoiser
    low = FLOW_MIN if flow else SIGMA_MIN
    high = high or (FLOW_MAX if flow else SIGMA_MAX)
    plan = spec.plan(levels(n, high, low, flow), flow=flow, **options)

    def prediction(stage):
        x = solution(stage.sigma, flow)
        denoised = model(x, torch.full((3,), stage.sigma, dtype=torch.float64))
        return combine(stage.prediction, (denoised, x, x))

    k = depth(plan) if exact_start else 0
    history = [prediction(stage) for stage in reversed(plan[:k])]
    x = integrate(model, solution(plan[k].sigma, flow), plan[k:], history=history, disable=True)
    return relative_error(x, solution(low, flow))


def measured_order(spec, steps=STEPS, **kwargs) -> float:
    """Least-squares slope of log error over log steps; the steps double, so that their logarithms are uniform."""
    log_n = torch.tensor([math.log(n) for n in steps])
    log_e = torch.tensor([math.log(error(spec, n, **kwargs)) for n in steps])
    centred = log_n - log_n.mean()
    return -((centred * log_e).sum() / centred.square().sum()).item()


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@each_ode_but("dpm_fast")  # see below
def test_order_is_as_stated(spec, flow):
    # A multistep method of high order reaches its limit late; a singlestep one soon meets rounding.
    steps = (512, 1024, 2048) if spec.order > 3 and spec.nfe([3.0, 2.0, 1.0]) == 2 else STEPS
    order = measured_order(spec, steps, flow=flow, **exact_options(spec))
    assert order == pytest.approx(spec.order, abs=0.25)


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
def test_dpm_fast_has_order_2_where_its_last_steps_count(flow):
    """One step of order 1 at the end leaves an error of second order. (At the last levels of an image, where the
    prediction is nearly constant, that is hardly seen: 2.5 to 3.)"""
    spec, model = SAMPLERS["dpm_fast"], flow_denoiser if flow else denoiser

    def order(low: float) -> float:
        high, end = (s / (1 + s) if flow else s for s in (3.0, low))  # of the same SNR

        def error(n: int) -> float:
            x = integrate(model, solution(high, flow), spec.plan(levels(n, high, end, flow), flow=flow), disable=True)
            return relative_error(x, solution(end, flow))

        return math.log2(error(192) / error(384))

    assert order(0.5) == pytest.approx(spec.order, abs=0.25)
    assert 2.4 < order(0.031) < 3.25


# A run in two parts, by two nodes that sample: the second one knows the sample alone

REMEMBER = ("dpmpp_2m", "dpm_2m", "dpmpp_3m", "unipc", "deis", "ipndm_v", "res_multistep")
HIGH, LOW = 8.0, 0.5


def order_of(difference) -> float:
    return math.log2(difference(256) / difference(512))


def of_experts(gap: float):
    """Two networks, one above the middle of the run in log-SNR and one below, whose predictions differ by this."""
    boundary = math.sqrt(HIGH * LOW) * (1 + 1e-6)

    def model(x, sigma):
        return denoiser(x, sigma) + gap * (sigma < boundary).double().reshape(-1, 1, 1, 1)

    return model


def whole_and_halves(id: str, n: int, flow: bool = False, gap: float = 0.0):
    model = flow_denoiser if flow else of_experts(gap)
    options = exact_options(SAMPLERS[id])
    high, low = (HIGH / (1 + HIGH), LOW / (1 + LOW)) if flow else (HIGH, LOW)
    sigmas = levels(n, high, low, flow).tolist()

    def run(x, part):
        return SAMPLERS[id].function(model, x, part, disable=True, flow=flow, **options)

    x = solution(high, flow)
    return run(x, sigmas), run(run(x, sigmas[: n // 2 + 1]), sigmas[n // 2 :])


@pytest.mark.parametrize("flow", [False, True], ids=["edm", "flow"])
@pytest.mark.parametrize("id", REMEMBER)
def test_two_parts_of_a_multistep_run_differ_by_one_step_of_order_1(id, flow):
    """Its error, of second order in its length, is all that the parts differ by from the whole."""

    def difference(n):
        return relative_error(*whole_and_halves(id, n, flow))

    assert order_of(difference) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("id", ["dpmpp_2s", "euler", "ddim", "heun", "res_3s"])
def test_two_parts_of_a_run_that_remembers_nothing_are_the_whole(id):
    torch.testing.assert_close(*whole_and_halves(id, 12), rtol=1e-12, atol=1e-12)


def test_history_of_another_network_costs_an_order():
    """Why nothing is handed on between the two experts of Wan 2.2: what their predictions differ by would be taken for
    a change along the run."""
    gap, id = 0.3, "dpmpp_2m"
    rk4 = SAMPLERS["rk4"].function
    sigmas, x = levels(2000, HIGH, LOW).tolist(), solution(HIGH)
    x = rk4(denoiser, x, sigmas[:1001], disable=True)  # a step has one network, also where it ends at the boundary
    x = rk4(lambda x, sigma: denoiser(x, sigma) + gap, x, sigmas[1000:], disable=True)
    handed_on, anew = (order_of(lambda n, k=k: relative_error(whole_and_halves(id, n, gap=gap)[k], x)) for k in (0, 1))
    assert handed_on == pytest.approx(1, abs=0.1) and anew == pytest.approx(2, abs=0.1)


def from_pure_noise(spec, n: int, low: float = 0.05) -> torch.Tensor:
    """n equal steps of a rectified flow from sigma = 1, where every run of a flow model begins."""
    sigmas = torch.linspace(1, low, n + 1, dtype=torch.float64)
    return spec.function(flow_denoiser, X1, sigmas, disable=True, flow=True, **exact_options(spec))


@pytest.fixture(scope="module")
def exact_from_noise():
    return from_pure_noise(SAMPLERS["rk4"], 384)  # to 6e-10


@each_ode_but()
def test_order_from_pure_noise(spec, exact_from_noise):
    """The step out of sigma = 1 is infinite in lambda and has order 1: a run keeps order 2, once for all of its steps.

    Runge-Kutta methods in sigma meet nothing there.
    """
    coarse, fine = (relative_error(from_pure_noise(spec, n), exact_from_noise) for n in (64, 128))
    order = math.log2(coarse / fine)
    assert order > min(spec.order, 4 if spec.id == "rk4" else 2) - 0.25


@pytest.mark.parametrize("r", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
def test_2s_has_order_2_in_both_forms_for_every_r(r, solver_type):
    assert measured_order(SAMPLERS["dpmpp_2s"], r=r, solver_type=solver_type) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@pytest.mark.parametrize(("r1", "r2", "order"), [(1 / 3, 2 / 3, 3), (0.2, 2 / 3, 3), (0.3, 0.9, 2), (0.5, 1.0, 2)])
def test_3s_has_order_3_for_r2_two_thirds_only(solver_type, r1, r2, order):
    """The sample at v carries an error of third order in the step, that at u one of second order.

    For order 3 the prediction at u must drop out of the last line: the parabola's weight for it is
    proportional to 1/3 - r2/2, and the line's has none.
    """
    measured = measured_order(SAMPLERS["dpmpp_3s"], r1=r1, r2=r2, solver_type=solver_type)
    assert measured == pytest.approx(order, abs=0.25)


def test_2m_has_order_2_in_both_forms():
    for solver_type in ("midpoint", "heun"):
        order = measured_order(SAMPLERS["dpmpp_2m"], solver_type=solver_type, lower_order_final=False)
        assert order == pytest.approx(2, abs=0.25)


def test_3m_as_published_has_order_2_and_exact_has_order_3():
    """The formula of every public implementation takes half of the curvature: order 2 in the limit."""
    spec, steps = SAMPLERS["dpmpp_3m"], (256, 512, 1024, 2048)
    published = measured_order(spec, steps, lower_order_final=False)
    exact = measured_order(spec, steps, lower_order_final=False, solver_type="exact")
    assert published == pytest.approx(2, abs=0.25)
    assert exact == pytest.approx(3, abs=0.25)


@pytest.mark.parametrize(("corrected_start", "order"), [(False, 2), (True, 3)])
def test_corrected_start_gives_3m_its_third_order_from_a_plain_start(corrected_start, order):
    """Seen from a level where the prediction changes fast: where it is nearly constant, the first step costs little."""
    options = {"solver_type": "exact", "lower_order_final": False, "corrected_start": corrected_start}
    measured = measured_order(SAMPLERS["dpmpp_3m"], exact_start=False, high=2.0, **options)
    assert measured == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("name", ["dpmpp_2s", "dpmpp_2m"])
def test_lower_order_final_keeps_order_2(name):
    """One step of order 1 has a local error of second order in the step: not worse than all other steps together."""
    assert measured_order(SAMPLERS[name], lower_order_final=True) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("solver_type", ["bh1", "bh2"])
@pytest.mark.parametrize("prediction", ["data", "noise"])
@pytest.mark.parametrize(("p", "corrector", "order"), [(1, False, 1), (1, True, 2), (2, False, 2), (2, True, 3)])
def test_the_corrector_of_unipc_adds_an_order(solver_type, prediction, p, corrector, order):
    """UniPC-p has order p, and p + 1 with its corrector, from a plain start (the paper's corollary 3.2)."""
    options = {"order": p, "corrector": corrector, "solver_type": solver_type, "prediction": prediction}
    spec = SAMPLERS["unipc"]
    measured = measured_order(spec, exact_start=False, high=2.0, lower_order_final=False, **options)
    assert measured == pytest.approx(order, abs=0.25)
