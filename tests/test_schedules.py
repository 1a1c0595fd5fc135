"""Schedules: exact ends, strict descent, and the formulas in independent words."""

import math

import pytest
import torch
from hypothesis import given as over
from hypothesis import settings
from hypothesis import strategies as st

from samplers import SCHEDULES

MIN, MAX = 0.0292, 14.6146
FLOW_MIN, FLOW_MAX = 0.001, 1.0

each_schedule = pytest.mark.parametrize("spec", SCHEDULES.values(), ids=SCHEDULES)
each_space = pytest.mark.parametrize(
    ("low", "high", "flow"), [(MIN, MAX, False), (FLOW_MIN, FLOW_MAX, True)], ids=["edm", "flow"]
)


def check(sigmas, n, low, high):
    assert sigmas.shape == (n + 1,) and sigmas.dtype == torch.float64
    assert sigmas[0] == high and sigmas[-1] == 0
    assert n == 1 or sigmas[-2] == low
    assert (sigmas[1:] < sigmas[:-1]).all()


@pytest.mark.parametrize("n", [1, 2, 5, 20, 1000])
@each_space
@each_schedule
def test_levels_descend_from_sigma_max_over_sigma_min_to_zero(spec, low, high, flow, n):
    check(spec.function(n, low, high, flow=flow), n, low, high)


@each_schedule
@settings(max_examples=60, deadline=None)
@over(n=st.integers(1, 40), low=st.floats(1e-3, 1.0), ratio=st.floats(1.05, 1e4))
def test_levels_descend_between_any_ends(spec, n, low, ratio):
    """Between the ends of a partial denoise too, where sigma_max is small or near sigma_min."""
    check(spec.function(n, low, low * ratio), n, low, low * ratio)


@each_schedule
@settings(max_examples=60, deadline=None)
@over(n=st.integers(1, 40), high=st.sampled_from([1.0, 0.95, 0.7, 0.3]), ratio=st.floats(1.05, 1e3))
def test_flow_levels_descend_between_any_ends(spec, n, high, ratio):
    check(spec.function(n, high / ratio, high, flow=True), n, high / ratio, high)


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
