"""Schedules by the names of other programs: their levels, those of the host, and where the two differ."""

import math

import numpy as np
import pytest
import torch
from small_models import small_model

from samplers import SCHEDULES

MIN, MAX = 0.0292, 14.6146
FLOW_MIN, FLOW_MAX = 0.001, 1.0

DIVISORS = [n for n in range(1, 1001) if 1000 % n == 0]

each_space = pytest.mark.parametrize(
    ("low", "high", "flow"), [(MIN, MAX, False), (FLOW_MIN, FLOW_MAX, True)], ids=["edm", "flow"]
)


def levels(id, n, low, high, **options):
    return SCHEDULES[id].function(n, low, high, **options)


def shifted(t, shift):
    return shift * t / (1 + (shift - 1) * t)


def models(comfyui):
    """Models of the host with a table of levels, and their time shift."""
    yield small_model("EPS"), 1.0
    for shift in (1.0, 3.0):
        yield comfyui.nodes["ModelSamplingSD3"]().patch(small_model("FLOW"), shift=shift)[0], shift


def ours(comfyui, model, id, n):
    return comfyui.nodes["FewStepScheduler"].execute(model, id, n, 1.0).result[0]


def theirs(model, id, n):
    import comfy.samplers

    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), id, n)


def of_time(model, t):
    """The host's level of a time, from 1 to 1000: an entry of its table, or log-linear between two."""
    sampling = model.get_model_object("model_sampling")
    return np.exp(np.interp(t, np.arange(1, 1001), sampling.sigmas.double().log().numpy()))


# The time steps of a table


def test_simple_and_ddim_uniform_are_the_hosts_where_the_steps_divide_its_table(comfyui):
    """To the float32 of its table: 1000 entries."""
    for model, _ in models(comfyui):
        for id, most in (("simple", 1000), ("ddim_uniform", 500)):
            for n in DIVISORS:
                if n <= most:
                    sigmas = ours(comfyui, model, id, n)
                    torch.testing.assert_close(sigmas, theirs(model, id, n), rtol=1e-5, atol=0)


def test_elsewhere_simple_lies_below_the_entry_to_which_the_host_rounds(comfyui):
    for model, _ in models(comfyui):
        table = model.get_model_object("model_sampling").sigmas.double()
        for n in (3, 7, 12, 30, 150):
            sigmas, host = (s[:-1].double() for s in (ours(comfyui, model, "simple", n), theirs(model, "simple", n)))
            entries = torch.searchsorted(table, host)
            assert (sigmas <= host * (1 + 1e-5)).all() and (sigmas > table[(entries - 1).clamp(min=0)]).all()


def test_levels_do_not_repeat_where_the_host_has_none_left(comfyui):
    model = small_model("EPS")
    assert (theirs(model, "simple", 1500).diff() == 0).any()
    assert len(theirs(model, "ddim_uniform", 7)) == 9  # a step more than was asked for
    for n in (7, 501, 999, 1500):
        for id in ("simple", "ddim_uniform", "normal", "sgm_uniform"):
            sigmas = ours(comfyui, model, id, n)
            assert len(sigmas) == n + 1 and (sigmas.diff() < 0).all()


@pytest.mark.parametrize("n", [2, 3, 7, 10, 24, 100])
def test_normal_and_sgm_uniform_are_the_hosts(comfyui, n):
    """For a shifted flow model the host takes its lowest level for a time, and shifts it once more."""
    for model, shift in models(comfyui):
        for id in ("normal", "sgm_uniform"):
            sigmas, host = ours(comfyui, model, id, n), theirs(model, id, n)
            if shift == 1:
                torch.testing.assert_close(sigmas, host, rtol=2e-5, atol=0)
                continue
            points = n if id == "normal" else n + 1
            for found, last in ((sigmas, 0.001), (host, shifted(0.001, shift))):
                expected = shifted(torch.linspace(1, last, points, dtype=torch.float64)[:n], shift)
                torch.testing.assert_close(found[:-1].double(), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize("id", ["normal", "simple", "sgm_uniform", "ddim_uniform"])
def test_the_times_are_those_of_the_formula(comfyui, id):
    """Linear in the time of the host's table, at any number of steps."""
    for model, shift in models(comfyui):
        if shift != 1:
            continue
        for n in (2, 3, 7, 11, 90):
            i = np.arange(n)
            t = {
                "normal": 1000 - i / (n - 1) * 999,
                "simple": 1000 * (1 - i / n),
                "sgm_uniform": 1000 - i / n * 999,
                "ddim_uniform": 2 + (n - 1 - i) * 1000 / n,
            }[id]
            expected = t / 1000 if model.model.model_type.name == "FLOW" else of_time(model, t)
            np.testing.assert_allclose(ours(comfyui, model, id, n)[:-1], expected, rtol=2e-5)


def test_other_ranges_stretch_the_table_in_log_sigma():
    for id in ("normal", "simple", "sgm_uniform", "ddim_uniform"):
        here, there = (levels(id, 9, low, 500 * low)[:-1].log() for low in (0.03, 0.002))
        torch.testing.assert_close(here - here[0], there - there[0], rtol=1e-10, atol=1e-12)


# Other settings and names


@each_space
def test_beta57_is_beta(low, high, flow):
    same = levels("beta", 9, low, high, flow=flow, alpha=0.5, beta=0.7)
    assert torch.equal(levels("beta57", 9, low, high, flow=flow), same)


@pytest.mark.parametrize(
    ("id", "options", "parameters"),
    [
        ("beta57", {"discard_penultimate": True}, {"alpha": 0.5, "beta": 0.7}),
        ("beta_discard", {}, {}),
        ("beta", {"discard_penultimate": True}, {}),
    ],
)
def test_beta_without_its_last_level_is_the_hosts_before_it_rounds(comfyui, id, options, parameters):
    """It rounds times to 1/1000. RES4LYF's beta57 is this function with alpha = 0.5 and beta = 0.7."""
    from comfy.samplers import beta_scheduler

    sampling = small_model("FLOW").get_model_object("model_sampling")
    for n in (2, 5, 10, 20):
        host = beta_scheduler(sampling, n, **parameters).double()
        sigmas = levels(id, n, FLOW_MIN, FLOW_MAX, flow=True, **options)
        assert (sigmas - host).abs().max() <= 0.5e-3 + 1e-6


@each_space
@pytest.mark.parametrize("id", ["karras", "time_quadratic", "beta", "beta57"])
def test_discard_in_the_name_is_discard_penultimate(id, low, high, flow):
    for n in (1, 2, 4, 8, 50):
        for options in ({}, {"denoise": 0.5}, {"shift": 2.0} if flow else {}, {"end_step": 1}):
            long = levels(id, n, low, high, flow=flow, discard_penultimate=True, **options)
            assert torch.equal(levels(f"{id}_discard", n, low, high, flow=flow, **options), long)


def test_kl_optimal_is_cosine_and_for_flow_not_the_hosts(comfyui):
    from comfy.samplers import kl_optimal_scheduler

    for n in (2, 8, 40):
        edm, flow = levels("kl_optimal", n, MIN, MAX), levels("kl_optimal", n, FLOW_MIN, FLOW_MAX, flow=True)
        assert torch.equal(edm, levels("cosine", n, MIN, MAX))
        assert torch.equal(flow, levels("cosine", n, FLOW_MIN, FLOW_MAX, flow=True))
        torch.testing.assert_close(edm.float(), kl_optimal_scheduler(n, MIN, MAX), rtol=2e-5, atol=1e-6)
    host = kl_optimal_scheduler(8, FLOW_MIN, FLOW_MAX)
    angles = torch.atan(host[:-1])  # of sigma itself, not of sigma / alpha
    torch.testing.assert_close(angles.diff(), angles.diff()[:1].expand(7), rtol=1e-4, atol=0)
    assert (levels("kl_optimal", 8, FLOW_MIN, FLOW_MAX, flow=True).float()[1:-1] - host[1:-1]).abs().max() > 0.05


# Those of flow models


def arctangents(steps):
    """RES4LYF's bong_tangent: 1 to 0.5 before the pivot at 0.6 of the points, 0.5 to 0 after it."""

    def part(points, pivot, start, end):
        curve = [math.atan(0.2 * 40 / (steps + 2) * (pivot - x)) for x in range(points)]
        return [end + (start - end) * (y - curve[-1]) / (curve[0] - curve[-1]) for y in curve]

    pivot = int((steps + 2) * 0.6)
    return part(pivot, pivot, 1.0, 0.5)[:-1] + part(steps + 2 - pivot, 0, 0.5, 0.0)


def test_bong_tangent_has_the_levels_of_res4lyf():
    for n in range(2, 301):
        np.testing.assert_allclose(levels("bong_tangent", n, FLOW_MIN, 1.0, flow=True), arctangents(n), atol=1e-14)
    assert levels("bong_tangent", 1, FLOW_MIN, 1.0, flow=True).tolist() == [1, 0]


@pytest.mark.parametrize("id", ["bong_tangent", "flux", "flux2", "optimal_steps"])
def test_in_edm_space_a_flow_schedule_has_the_same_signal_to_noise_ratios(id):
    """Those of a flow model that begins at sigma_max / (1 + sigma_max)."""
    edm = levels(id, 9, MIN, MAX)
    flow = levels(id, 9, FLOW_MIN, MAX / (1 + MAX), flow=True)
    torch.testing.assert_close(edm / (1 + edm), flow, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("table", "host"), [("flux", "FLUX"), ("wan", "Wan"), ("chroma", "Chroma")])
def test_optimal_steps_of_the_host(comfyui, table, host):
    from comfy_extras.nodes_optimalsteps import OptimalStepsScheduler

    for n in (3, 10, 20, 40, 77):
        expected = OptimalStepsScheduler.execute(host, n, 1.0).result[0]
        sigmas = levels("optimal_steps", n, FLOW_MIN, 1.0, flow=True, table=table)
        torch.testing.assert_close(sigmas.float(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("width", "height"), [(256, 256), (512, 768), (1024, 1024), (1536, 1024)])
def test_flux_is_the_hosts_model_of_that_size(comfyui, width, height):
    """ModelSamplingFlux with its defaults, over which `simple` takes every k-th of 10,000 levels."""
    model = comfyui.nodes["ModelSamplingFlux"]().patch(small_model("FLOW"), 1.15, 0.5, width, height)[0]
    for n in (1, 4, 20, 50):
        sigmas = levels("flux", n, 1e-4, 1.0, flow=True, width=width, height=height)
        torch.testing.assert_close(sigmas.float(), theirs(model, "simple", n), rtol=1e-5, atol=0)


def test_flux_shifts_by_e_to_the_mu():
    for (width, height), mu in (((256, 256), 0.5), ((1024, 1024), 1.15), ((512, 512), 0.5 + 768 / 3840 * 0.65)):
        sigmas = levels("flux", 8, 1e-4, 1.0, flow=True, width=width, height=height)
        time = torch.linspace(1, 0, 9, dtype=torch.float64)
        torch.testing.assert_close(sigmas, shifted(time, math.exp(mu)), rtol=1e-13, atol=0)


@pytest.mark.parametrize(("width", "height"), [(512, 512), (1024, 1024), (1040, 1040), (2048, 1024)])
def test_flux2_of_the_host(comfyui, width, height):
    from comfy_extras.nodes_flux import Flux2Scheduler

    for n in (1, 4, 8, 10, 28, 50, 200):
        expected = Flux2Scheduler.execute(n, width, height).result[0]
        sigmas = levels("flux2", n, 1e-4, 1.0, flow=True, width=width, height=height)
        torch.testing.assert_close(sigmas.float(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("table", ["sd15_32", "sdxl_32"])
def test_ays_in_32_steps_keeps_its_last_level(table):
    """As published: 32 levels and 0."""
    ends = {"sd15_32": (11.23951352, 0.03166121), "sdxl_32": (11.1491618, 0.02877334)}[table]
    sigmas = levels("ays", 32, 0.015, 14.615, table=table)
    np.testing.assert_allclose(sigmas[[0, 1, 30, 31, 32]], [14.615, *ends, 0.015, 0], rtol=1e-12)
    logs, fine = sigmas[:-1].log(), levels("ays", 63, 0.015, 14.615, table=table)[:-1].log()
    torch.testing.assert_close(fine[::2], logs)
    torch.testing.assert_close(fine[1::2], (logs[1:] + logs[:-1]) / 2)
