"""Schedules: exact ends, strict descent, and the formulas in independent words."""

import math
import sys

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st
from small_models import small_model

from samplers import SCHEDULES

MIN, MAX = 0.0292, 14.6146
FLOW_MIN, FLOW_MAX = 0.001, 1.0

OF_ANY_LENGTH = {id: spec for id, spec in SCHEDULES.items() if spec.any_steps}

each_schedule = pytest.mark.parametrize("spec", OF_ANY_LENGTH.values(), ids=OF_ANY_LENGTH)
each_space = pytest.mark.parametrize(
    ("low", "high", "flow"), [(MIN, MAX, False), (FLOW_MIN, FLOW_MAX, True)], ids=["edm", "flow"]
)


def check(spec, sigmas, n, low, high):
    assert sigmas.shape == (n + 1,) and sigmas.dtype == torch.float64
    assert sigmas[-1] == 0
    assert sigmas[0] == high if spec.starts_at_sigma_max else sigmas[0] <= high
    assert n == 1 or sigmas[-2] == low or not spec.ends_at_sigma_min
    assert (sigmas.float().diff() < 0).all()


@pytest.mark.parametrize(
    ("low", "high", "flow"),
    [
        (MIN, MAX, False),
        (0.002, 80.0, False),
        (0.002, 700.0, False),
        (1e-3, 4500.0, False),
        (FLOW_MIN, FLOW_MAX, True),
        (0.008, 1.0, True),
        (1e-4, 0.999, True),
    ],
)
@each_schedule
def test_levels_descend_from_sigma_max_over_sigma_min_to_zero(spec, low, high, flow):
    for n in (*range(1, 201), 1000):
        check(spec, spec.function(n, low, high, flow=flow), n, low, high)


# Values of the schedules' own options that leave room for 100 steps.
ORDINARY = {
    "karras": {"rho": st.floats(1.0, 20.0)},
    "polyexponential": {"rho": st.floats(0.3, 2.0)},
    "vp": {"beta_d": st.floats(0.1, 100.0), "beta_min": st.floats(0.0, 20.0)},
    "edm": {"rho": st.floats(0.2, 20.0)},
    "laplace": {"median": st.floats(0.01, 100.0), "scale": st.floats(0.05, 10.0)},
    "beta": {"alpha": st.floats(0.4, 3.0), "beta": st.floats(0.5, 3.0)},
    "linear_quadratic": {"threshold_noise": st.floats(0.001, 0.45)},
    "ays": {"table": st.sampled_from(["sd15", "sdxl", "svd", "sd15_32", "sdxl_32"])},
    "gits": {"coeff": st.floats(0.8, 1.5)},
    "optimal_steps": {"table": st.sampled_from(["flux", "wan", "chroma"])},
    "flux": {"width": st.integers(16, 2048), "height": st.integers(16, 2048), "max_shift": st.floats(0.5, 2.0)},
    "flux2": {"width": st.integers(16, 2048), "height": st.integers(16, 2048)},
}
COMMON = {"discard_penultimate": st.booleans()}


def drawn(data, spec, **more):
    return data.draw(st.fixed_dictionaries(COMMON | ORDINARY.get(spec.id, {}) | more))


def check_drawn(spec, n, low, high, options, **space):
    sigmas = spec.function(n, low, high, **options, **space)
    if options["discard_penultimate"]:
        longer = spec.function(n + 1, low, high, **options | {"discard_penultimate": False}, **space)
        assert torch.equal(sigmas, torch.cat([longer[:-2], longer[-1:]]))
        sigmas = longer
    check(spec, sigmas, len(sigmas) - 1, low, high)


@each_schedule
@settings(max_examples=60, deadline=None)
@over(data=st.data(), n=st.integers(1, 100), low=st.floats(1e-3, 1.0), ratio=st.floats(1.2, 1e5))
def test_levels_descend_between_any_ends(spec, data, n, low, ratio):
    """Between the ends of a partial denoise too, where sigma_max is small or near sigma_min."""
    check_drawn(spec, n, low, low * ratio, drawn(data, spec))


@each_schedule
@settings(max_examples=60, deadline=None)
@over(
    data=st.data(),
    n=st.integers(1, 100),
    high=st.sampled_from([1.0, 0.95, 0.7, 0.3]),
    ratio=st.floats(1.2, 1e3),
    model_shift=st.floats(0.5, 5.0),
)
def test_flow_levels_descend_between_any_ends(spec, data, n, high, ratio, model_shift):
    options = drawn(data, spec, shift=st.just(0.0) | st.floats(0.2, 5.0))
    check_drawn(spec, n, high / ratio, high, options, flow=True, model_shift=model_shift)


@each_schedule
def test_arguments_may_be_tensors(spec):
    ends = torch.tensor([MIN, MAX], dtype=torch.float64)
    assert torch.equal(spec.function(7, *ends), spec.function(7, MIN, MAX))


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
@each_space
def test_karras_is_uniform_in_the_root(low, high, flow, rho):
    n = 12
    sigmas = SCHEDULES["karras"].function(n, low, high, flow=flow, rho=rho).tolist()
    for i in range(n):
        root = (1 - i / (n - 1)) * high ** (1 / rho) + i / (n - 1) * low ** (1 / rho)
        assert sigmas[i] == pytest.approx(root**rho, rel=1e-12)


def test_karras_known_values():
    """The first of 10 levels of the EDM paper's defaults, computed by hand."""
    sigmas = SCHEDULES["karras"].function(10, 0.002, 80.0)
    expected = (80 ** (1 / 7) + 1 / 9 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigmas[1].item() == pytest.approx(expected, rel=1e-13)
    assert expected == pytest.approx(42.415, abs=1e-3)


def test_exponential_is_uniform_in_log_sigma():
    logs = SCHEDULES["exponential"].function(12, MIN, MAX)[:-1].log()
    torch.testing.assert_close(logs.diff(), torch.full_like(logs[1:], math.log(MIN / MAX) / 11), rtol=1e-11, atol=0)


def test_flow_exponential_is_uniform_in_log_snr_after_the_first():
    """The first level, 1, has no finite log-SNR; the ramp starts at the mirror image of sigma_min instead."""
    s = SCHEDULES["exponential"].function(12, FLOW_MIN, FLOW_MAX, flow=True)[1:-1]
    lam = ((1 - s) / s).log()
    end = math.log((1 - FLOW_MIN) / FLOW_MIN)
    torch.testing.assert_close(lam.diff(), torch.full_like(lam[1:], 2 * end / 11), rtol=1e-10, atol=0)
    assert lam[-1].item() == pytest.approx(end, rel=1e-12)


@pytest.mark.parametrize(("low", "high", "flow"), [(MIN, MAX, False), (FLOW_MIN, 0.9, True)], ids=["edm", "flow"])
@pytest.mark.parametrize("rho", [0.5, 1.0, 1.5])
def test_polyexponential_is_uniform_in_a_root_of_log_snr(low, high, flow, rho):
    n = 12
    sigmas = SCHEDULES["polyexponential"].function(n, low, high, flow=flow, rho=rho)[:-1]
    lam = sigmas.logit() if flow else sigmas.log()
    part = (lam - lam[-1]) / (lam[0] - lam[-1])
    expected = torch.linspace(1, 0, n, dtype=torch.float64) ** rho
    torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("id", "other"), [("polyexponential", "exponential"), ("edm", "karras")])
@each_space
def test_schedules_that_agree_at_their_defaults(low, high, flow, id, other):
    ours, same = (SCHEDULES[name].function(12, low, high, flow=flow) for name in (id, other))
    torch.testing.assert_close(ours, same, rtol=1e-13, atol=0)


@each_space
def test_lu_lambda_is_uniform_in_lambda_as_in_diffusers(low, high, flow):
    """`_convert_to_lu`, with rho = 1: lambdas = start + ramp (end - start)."""
    sigmas = SCHEDULES["lu_lambda"].function(12, low, high, flow=flow)
    assert torch.equal(sigmas, SCHEDULES["exponential"].function(12, low, high, flow=flow))
    if not flow:
        lambdas = np.log(high) + np.linspace(0, 1, 12) * (np.log(low) - np.log(high))
        np.testing.assert_allclose(sigmas[:-1], np.exp(lambdas), rtol=1e-13)


def test_edm_below_rho_1_is_dense_at_high_noise():
    squares = SCHEDULES["edm"].function(12, MIN, MAX, rho=0.5)[:-1] ** 2
    torch.testing.assert_close(squares.diff(), torch.full_like(squares[1:], (MIN**2 - MAX**2) / 11))


def vp_levels(time):
    """sigma^2 = 1 / alpha_bar - 1 with alpha_bar = exp(-beta_d t^2 / 2 - beta_min t), in the betas of Song et al."""
    return (1 / torch.exp(-19.9 * time**2 / 2 - 0.1 * time) - 1) ** 0.5


@pytest.mark.parametrize(("first", "last"), [(1.0, 1e-3), (0.6, 0.05)])
def test_vp_is_uniform_in_its_time(first, last):
    expected = vp_levels(torch.linspace(first, last, 12, dtype=torch.float64))
    sigmas = SCHEDULES["vp"].function(12, expected[-1], expected[0])
    torch.testing.assert_close(sigmas[:-1], expected, rtol=1e-9, atol=0)


def test_flow_vp_has_the_log_snr_of_vp():
    edm = vp_levels(torch.linspace(0.6, 1e-3, 12, dtype=torch.float64))
    ends = edm / (1 + edm)
    sigmas = SCHEDULES["vp"].function(12, ends[-1], ends[0], flow=True)
    torch.testing.assert_close(sigmas[:-1], ends, rtol=1e-9, atol=0)


def vp_time(sigmas: torch.Tensor) -> torch.Tensor:
    """The time of the VP process at each level: the root of beta_d t^2 / 2 + beta_min t = log(1 + sigma^2).

    beta_d and beta_min solve the two linear equations that sigma(1) = sigma_max and sigma(0.001) = sigma_min make.
    """
    t = torch.tensor([1.0, 1e-3], dtype=torch.float64)
    ends = torch.tensor([MAX, MIN], dtype=torch.float64).square().log1p()
    beta_d, beta_min = torch.linalg.solve(torch.stack([t**2 / 2, t], dim=1), ends)
    return (-beta_min + (beta_min**2 + 2 * beta_d * sigmas.square().log1p()).sqrt()) / beta_d


@pytest.mark.parametrize(("name", "root"), [("time_uniform", 1), ("time_quadratic", 2)])
def test_vp_schedules_are_uniform_in_a_root_of_time(name, root):
    n = 12
    time = vp_time(SCHEDULES[name].function(n, MIN, MAX)[:-1]) ** (1 / root)
    torch.testing.assert_close(
        time, torch.linspace(1, 1e-3 ** (1 / root), n, dtype=torch.float64), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(("name", "root"), [("time_uniform", 1), ("time_quadratic", 2)])
def test_flow_time_is_sigma(name, root):
    n = 12
    time = SCHEDULES[name].function(n, FLOW_MIN, FLOW_MAX, flow=True)[:-1] ** (1 / root)
    expected = torch.linspace(1, FLOW_MIN ** (1 / root), n, dtype=torch.float64)
    torch.testing.assert_close(time, expected, rtol=1e-12, atol=0)


def beta_times(n, alpha, beta):
    """The times of Lee et al. before ComfyUI rounds them, here with both ends, as `_convert_to_beta` of diffusers."""
    return scipy.stats.beta.ppf(1 - np.linspace(0, 1, n), alpha, beta)


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.6), (0.5, 0.9), (2.0, 1.0)])
def test_beta_times_are_quantiles(alpha, beta):
    n, options = 12, {"alpha": alpha, "beta": beta}
    quantiles = torch.from_numpy(beta_times(n, alpha, beta))
    flow = SCHEDULES["beta"].function(n, FLOW_MIN, FLOW_MAX, flow=True, **options)
    torch.testing.assert_close(flow[:-1], FLOW_MIN + (FLOW_MAX - FLOW_MIN) * quantiles, rtol=1e-11, atol=0)
    time = vp_time(SCHEDULES["beta"].function(n, MIN, MAX, **options)[:-1])
    torch.testing.assert_close(time, 1e-3 + (1 - 1e-3) * quantiles, rtol=1e-9, atol=1e-9)


def test_beta_says_that_it_needs_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)  # as if not installed
    with pytest.raises(ImportError, match="beta schedule needs scipy"):
        SCHEDULES["beta"].function(10, MIN, MAX)


def test_cosine_is_uniform_in_the_angle():
    """alpha_bar = cos(theta)^2, with theta from pi / 2 for pure noise."""
    sigmas = SCHEDULES["cosine"].function(12, MIN, MAX)[:-1]
    theta = torch.arccos((1 / (1 + sigmas**2)).sqrt())
    expected = torch.linspace(math.atan(MAX), math.atan(MIN), 12, dtype=torch.float64)
    torch.testing.assert_close(theta, expected, rtol=1e-10, atol=0)
    s = SCHEDULES["cosine"].function(12, FLOW_MIN, FLOW_MAX, flow=True)[:-1]
    expected = torch.linspace(math.pi / 2, math.atan(FLOW_MIN / (1 - FLOW_MIN)), 12, dtype=torch.float64)
    torch.testing.assert_close(torch.arctan2(s, 1 - s), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("median", "scale"), [(1.0, 0.5), (0.3, 0.2), (0.01, 0.5), (100.0, 0.4)])
@pytest.mark.parametrize(("low", "high", "flow"), [(MIN, MAX, False), (FLOW_MIN, 0.9, True)], ids=["edm", "flow"])
def test_laplace_levels_are_quantiles(low, high, flow, median, scale):
    """With the median inside the range and outside it."""
    sigmas = SCHEDULES["laplace"].function(12, low, high, flow=flow, median=median, scale=scale)[:-1].numpy()
    law = scipy.stats.laplace(math.log(median), scale)
    probability = law.cdf(np.log(sigmas / (1 - sigmas) if flow else sigmas))
    np.testing.assert_allclose(probability, np.linspace(probability[0], probability[-1], 12), rtol=1e-8, atol=1e-12)


def test_a_narrow_laplace_keeps_its_tails():
    """Where the probabilities outside of the range are far below what a float64 can hold beside 1."""
    n, scale = 50, 0.01
    inside = SCHEDULES["laplace"].function(n, MIN, MAX, scale=scale)[1:-2]
    expected = np.exp(scipy.stats.laplace.ppf(1 - np.arange(1, n - 1) / (n - 1), 0, scale))
    np.testing.assert_allclose(inside, expected, rtol=1e-12)
    beyond = SCHEDULES["laplace"].function(n, 50.0, 100.0, scale=scale)[1:-2]  # all in one tail: exponential
    np.testing.assert_allclose(beyond, 50 * (np.arange(1, n - 1) / (n - 1)) ** -scale, rtol=1e-12)


@pytest.mark.parametrize("n", [2, 7, 20, 100])
@pytest.mark.parametrize(("threshold_noise", "linear_steps"), [(0.025, 0), (0.1, 0), (0.01, 1)])
def test_linear_quadratic_is_smooth(n, threshold_noise, linear_steps):
    """Straight to 1 - threshold_noise in the linear steps, then a parabola of the same slope to 0."""
    options = {"threshold_noise": threshold_noise, "linear_steps": linear_steps}
    sigmas = SCHEDULES["linear_quadratic"].function(n, FLOW_MIN, FLOW_MAX, flow=True, **options)
    linear = linear_steps or n // 2
    assert sigmas[linear].item() == pytest.approx(1 - threshold_noise, rel=1e-12)
    straight, bent = sigmas[: linear + 1].diff(), sigmas[linear:].diff()
    torch.testing.assert_close(straight, torch.full_like(straight, -threshold_noise / linear))
    curvature = bent.diff()
    torch.testing.assert_close(curvature, torch.full_like(curvature, 2 * (bent[0] + threshold_noise / linear)))
    edm = SCHEDULES["linear_quadratic"].function(n, MIN, MAX, **options)
    torch.testing.assert_close(edm, MAX * sigmas, rtol=1e-13, atol=0)


# The published tables


def stable_diffusion_levels():
    """Of the 1000 time steps of SD1.5 and SDXL: betas linear in their roots, from 0.00085 to 0.012."""
    alpha_bar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    return np.sqrt((1 - alpha_bar) / alpha_bar)


@pytest.mark.parametrize(
    ("table", "steps"),
    [
        ("sd15", [999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0]),
        ("sdxl", [999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0]),
    ],
)
def test_ays_in_10_steps_runs_through_the_published_time_steps(table, steps):
    expected = stable_diffusion_levels()[steps]
    sigmas = SCHEDULES["ays"].function(10, expected[-1], expected[0], table=table)
    np.testing.assert_allclose(sigmas[:-1], expected[:-1], rtol=1e-8)


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 13, 30])
@pytest.mark.parametrize(("table", "host"), [("sd15", "SD1"), ("sdxl", "SDXL"), ("svd", "SVD")])
def test_ays_of_the_host(comfyui, table, host, steps):
    from comfy_extras.nodes_align_your_steps import NOISE_LEVELS, AlignYourStepsScheduler

    expected = AlignYourStepsScheduler.execute(host, steps, 1.0).result[0]
    sigmas = SCHEDULES["ays"].function(steps, NOISE_LEVELS[host][-1], NOISE_LEVELS[host][0], table=table)
    torch.testing.assert_close(sigmas.float(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("coeff", np.arange(80, 155, 5) / 100)
def test_gits_of_the_host(comfyui, coeff):
    from comfy_extras.nodes_gits import NOISE_LEVELS, GITSScheduler

    table = NOISE_LEVELS[coeff]
    low, high = table[0][-1], table[0][0]
    for steps in range(2, 21):
        sigmas = SCHEDULES["gits"].function(steps, low, high, coeff=coeff)
        np.testing.assert_allclose(sigmas[:-1], table[steps - 2][:-1], rtol=1e-12)
    for steps in (21, 33, 64):
        sigmas = SCHEDULES["gits"].function(steps, low, high, coeff=coeff)
        torch.testing.assert_close(
            sigmas.float(), GITSScheduler.execute(coeff, steps, 1.0).result[0], rtol=1e-6, atol=0
        )
    assert SCHEDULES["gits"].function(1, low, high, coeff=coeff).tolist() == [high, 0]


def test_gits_takes_the_nearest_coefficient():
    gits = SCHEDULES["gits"].function
    assert torch.equal(gits(8, MIN, MAX, coeff=1.22), gits(8, MIN, MAX))
    assert not torch.equal(gits(8, MIN, MAX, coeff=1.23), gits(8, MIN, MAX))


@pytest.mark.parametrize("id", ["ays", "gits"])
def test_tables_stretch_in_log_snr(id):
    """An affine map of log(sigma / alpha), so the quotients of its differences are those of the table."""

    def quotients(sigmas, flow=False):
        logs = (sigmas.logit() if flow else sigmas.log()).diff()
        return logs / logs[0]

    table = quotients(SCHEDULES[id].function(8, MIN, MAX)[:-1])
    torch.testing.assert_close(quotients(SCHEDULES[id].function(8, 0.002, 80.0)[:-1]), table)
    torch.testing.assert_close(quotients(SCHEDULES[id].function(8, 0.01, 0.9, flow=True)[:-1], flow=True), table)


# The host's own


@pytest.mark.parametrize("n", [2, 10, 50])
def test_schedules_that_the_host_has_too(comfyui, n):
    """In its float32."""
    from comfy import samplers as host
    from comfy.k_diffusion import sampling

    def same(id, expected, low=MIN, high=MAX, **options):
        torch.testing.assert_close(
            SCHEDULES[id].function(n, low, high, **options).float(), expected, rtol=2e-5, atol=1e-6
        )

    same("karras", sampling.get_sigmas_karras(n, MIN, MAX))
    same("exponential", sampling.get_sigmas_exponential(n, MIN, MAX))
    same("polyexponential", sampling.get_sigmas_polyexponential(n, MIN, MAX, rho=1.5), rho=1.5)
    same("cosine", host.kl_optimal_scheduler(n, MIN, MAX))
    low, high = vp_levels(torch.tensor([1e-3, 1.0], dtype=torch.float64)).tolist()
    same("vp", sampling.get_sigmas_vp(n), low, high)


@pytest.mark.parametrize("model_type", ["EPS", "FLOW"])
def test_linear_quadratic_of_the_host(comfyui, model_type):
    from comfy.samplers import linear_quadratic_schedule

    model = small_model(model_type)
    sampling = model.get_model_object("model_sampling")
    run = comfyui.nodes["FewStepScheduler"].execute
    for n in (1, 2, 5, 20):
        for options in ({}, {"threshold_noise": 0.05, "linear_steps": 1}):
            ours = run(model, "linear_quadratic", n, 1.0, **options).result[0]
            expected = linear_quadratic_schedule(sampling, n, **options)
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-7)


# Time shift


def shifted(sigma, shift):
    return shift * sigma / (1 + (shift - 1) * sigma)


@each_schedule
@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_shift_keeps_the_ends_and_shifts_between_them(spec, shift):
    low = shifted(FLOW_MIN, shift)
    sigmas = spec.function(12, low, FLOW_MAX, flow=True, shift=shift)
    check(spec, sigmas, 12, low, FLOW_MAX)
    plain = spec.function(12, FLOW_MIN, FLOW_MAX, flow=True, shift=1.0)
    torch.testing.assert_close(sigmas, shifted(plain, shift), rtol=1e-12, atol=0)


IN_TIME = {
    "time_uniform", "time_quadratic", "beta", "normal", "simple", "sgm_uniform", "ddim_uniform", "beta57",
    "time_quadratic_discard", "beta_discard", "beta57_discard",
}  # fmt: skip


@each_schedule
def test_only_schedules_in_time_take_the_shift_of_the_model(spec):
    def run(**options):
        return spec.function(12, FLOW_MIN, FLOW_MAX, flow=True, **options)

    assert spec.in_time == (spec.id in IN_TIME)
    assert torch.equal(run(model_shift=3.0), run(shift=3.0 if spec.in_time else 1.0))
    assert torch.equal(run(model_shift=3.0, shift=2.0), run(shift=2.0))


@each_schedule
def test_without_flow_there_is_no_shift(spec):
    plain = spec.function(12, MIN, MAX)
    assert torch.equal(spec.function(12, MIN, MAX, model_shift=3.0), plain)
    assert torch.equal(spec.function(12, MIN, MAX, shift=1.0), plain)
    with pytest.raises(ValueError, match=f"{spec.id}: option shift = 3 is for rectified-flow models"):
        spec.function(12, MIN, MAX, shift=3.0)


def flow_models(comfyui):
    """Flow models of every way in which the host shifts time, with the first of their own time steps."""
    nodes = comfyui.nodes
    for shift in (1.0, 1.32, 3.0, 8.0):
        yield nodes["ModelSamplingSD3"]().patch(small_model("FLOW"), shift=shift)[0], 1 / 1000, 1000
    yield nodes["ModelSamplingAuraFlow"]().patch_aura(small_model("FLOW"), shift=1.73)[0], 1 / 1000, 1
    for width in (512, 1024):
        flux = nodes["ModelSamplingFlux"]().patch(small_model("FLOW"), 1.15, 0.5, width, 1024)[0]
        yield flux, 1 / 10000, 1


def test_time_uniform_runs_in_the_time_of_the_hosts_flow_models(comfyui):
    for model, first, multiplier in flow_models(comfyui):
        sampling = model.get_model_object("model_sampling")
        times = torch.linspace(1, first, 9, dtype=torch.float64)
        sigmas = comfyui.nodes["FewStepScheduler"].execute(model, "time_uniform", 9, 1.0).result[0]
        torch.testing.assert_close(sigmas[:-1].double(), sampling.sigma(times * multiplier), rtol=1e-5, atol=0)
        percent = [sampling.percent_to_sigma(1 - t) for t in times.tolist()]
        torch.testing.assert_close(sigmas[:-1].double(), torch.tensor(percent).double(), rtol=1e-5, atol=0)


def test_a_flow_model_whose_time_has_no_shift_is_taken_as_unshifted(comfyui):
    from comfy.model_sampling import CONST, ModelSamplingDiscreteFlow

    class Odd(ModelSamplingDiscreteFlow, CONST):
        def percent_to_sigma(self, percent):
            return 0.0

    model = small_model("FLOW")
    model.add_object_patch("model_sampling", Odd())
    sigmas = comfyui.nodes["FewStepScheduler"].execute(model, "time_uniform", 9, 1.0).result[0]
    torch.testing.assert_close(sigmas[:-1], torch.linspace(1, 1 / 1000, 9))


# The node


@each_schedule
def test_widgets_as_they_start_are_the_defaults(comfyui, spec):
    node = comfyui.nodes["FewStepScheduler"]
    widgets = {i.id: i.default for i in node.define_schema().inputs[4:]}
    assert set(widgets) == {option.name for s in SCHEDULES.values() for option in s.options}
    for model in (small_model("EPS"), small_model("FLOW")):
        as_sent = node.execute(model, spec.id, 8, 1.0, **widgets).result[0]
        assert torch.equal(as_sent, node.execute(model, spec.id, 8, 1.0).result[0])
        part = node.execute(model, spec.id, 8, 1.0, **widgets | {"start_step": 2, "end_step": 5}).result[0]
        assert torch.equal(part, as_sent[2:6])


# Parts of a schedule


@each_space
@each_schedule
def test_denoise_keeps_the_last_steps_of_a_longer_schedule(spec, low, high, flow):
    run = spec.function
    assert torch.equal(run(8, low, high, flow=flow, denoise=0.5), run(16, low, high, flow=flow)[-9:])
    assert torch.equal(run(7, low, high, flow=flow, denoise=0.4), run(17, low, high, flow=flow)[-8:])
    assert torch.equal(run(8, low, high, flow=flow, denoise=0.99), run(8, low, high, flow=flow))
    early = run(8, low, high, flow=flow, denoise=0.5, discard_penultimate=True)
    assert torch.equal(early, run(16, low, high, flow=flow, discard_penultimate=True)[-9:])


@each_schedule
def test_start_and_end_cut_what_denoise_leaves(spec):
    whole = spec.function(10, MIN, MAX)
    assert torch.equal(spec.function(10, MIN, MAX, start_step=3), whole[3:])
    assert torch.equal(spec.function(10, MIN, MAX, end_step=3), whole[:4])
    assert torch.equal(spec.function(10, MIN, MAX, start_step=3, end_step=4), whole[3:5])
    assert torch.equal(spec.function(10, MIN, MAX, end_step=10), whole)
    half = spec.function(10, MIN, MAX, denoise=0.5)
    assert torch.equal(spec.function(10, MIN, MAX, denoise=0.5, start_step=2, end_step=9), half[2:10])


def test_an_end_that_is_not_chosen_cuts_nothing():
    assert len(SCHEDULES["time_uniform"].function(20000, MIN, MAX)) == 20001


# Bad inputs. Those that all options share are in test_bad_input.py.


@pytest.mark.parametrize("options", [{"start_step": 10}, {"start_step": 3, "end_step": 3}, {"start_step": 30}], ids=str)
@each_schedule
def test_cuts_that_leave_nothing(spec, options):
    with pytest.raises(ValueError, match=rf"{spec.id}: options start_step = .* end_step = .* no step of 10"):
        spec.function(10, MIN, MAX, **options)


@pytest.mark.parametrize("denoise", [0.0, -0.5, 1.01, math.nan, math.inf])
@each_schedule
def test_denoise_out_of_range(spec, denoise):
    with pytest.raises(ValueError, match=rf"{spec.id}: denoise = {denoise:g} must be above 0 and at most 1"):
        spec.function(10, MIN, MAX, denoise=denoise)


@pytest.mark.parametrize("model_shift", [0.0, -3.0, math.nan, math.inf])
def test_model_shift_out_of_range(model_shift):
    with pytest.raises(ValueError, match=f"model_shift = {model_shift:g} must be positive"):
        SCHEDULES["time_uniform"].function(10, FLOW_MIN, FLOW_MAX, flow=True, model_shift=model_shift)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"linear_steps": 10}, "linear_steps = 10 must be smaller than the number of steps, 10"),
        ({"threshold_noise": 0.7}, "threshold_noise = 0.7 must be smaller than 0.667 with 5 linear steps of 10"),
        ({"threshold_noise": 0.2, "linear_steps": 1}, "threshold_noise = 0.2 must be smaller than 0.182"),
    ],
)
def test_linear_quadratic_that_does_not_descend(options, message):
    with pytest.raises(ValueError, match=message):
        SCHEDULES["linear_quadratic"].function(10, FLOW_MIN, FLOW_MAX, flow=True, **options)


@pytest.mark.parametrize(
    ("id", "n", "options"), [("polyexponential", 1000, {"rho": 5.0}), ("beta", 100, {"alpha": 0.1})], ids=str
)
def test_levels_that_float32_cannot_tell_apart(id, n, options):
    """The host's sigmas are float32; two equal levels would make a step of no length."""
    with pytest.raises(ValueError, match=rf"{id}: with {n} steps, levels \d+ and \d+ are both .*: use fewer steps"):
        SCHEDULES[id].function(n, MIN, MAX, **options)
