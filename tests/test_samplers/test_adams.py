"""The Adams methods against their formulas, written out."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from mixture import FLOW_MAX, FLOW_MIN, X1, denoiser, flow_denoiser, relative_error

from samplers import SAMPLERS

SIGMAS = [9.0, 6.5, 4.0, 2.2, 1.3, 0.6, 0.2]


def sample(name, sigmas=SIGMAS, flow=False, **options):
    model = flow_denoiser if flow else denoiser
    return SAMPLERS[name].function(model, X1 * sigmas[0], sigmas, disable=True, flow=flow, **options)


def derivative(x, sigma):
    return (x - denoiser(x, torch.full((3,), sigma, dtype=torch.float64))) / sigma


def linear_multistep(x, history, sigmas):
    """PLMS from the given derivatives on, the order rising to 4."""
    weights = {1: [1], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}
    for s, t in itertools.pairwise(sigmas):
        history = [derivative(x, s), *history][:4]
        x = x + (t - s) * sum(w * d for w, d in zip(weights[len(history)], history, strict=True))
    return x


def test_plms_starts_with_runge_kutta_as_pndm_does():
    x, history = X1 * SIGMAS[0], []
    for s, t in itertools.pairwise(SIGMAS[:4]):
        h, m = t - s, (s + t) / 2
        d_1 = derivative(x, s)
        d_2 = derivative(x + h / 2 * d_1, m)
        d_3 = derivative(x + h / 2 * d_2, m)
        d_4 = derivative(x + h * d_3, t)
        history = [d_1, *history]
        x = x + h / 6 * (d_1 + 2 * d_2 + 2 * d_3 + d_4)
    assert relative_error(sample("plms"), linear_multistep(x, history, SIGMAS[3:])) < 1e-12
    assert SAMPLERS["plms"].nfe(SIGMAS) == 3 * 4 + 3


def test_plms_starts_with_heun_as_stable_diffusion_does():
    x, (s, t) = X1 * SIGMAS[0], SIGMAS[:2]
    d_1 = derivative(x, s)
    d_2 = derivative(x + (t - s) * d_1, t)
    x = x + (t - s) / 2 * (d_1 + d_2)
    assert relative_error(sample("plms", start="heun"), linear_multistep(x, [d_1], SIGMAS[1:])) < 1e-12
    assert SAMPLERS["plms"].nfe(SIGMAS, start="heun") == 2 + 5


@pytest.mark.parametrize("start", ["runge_kutta", "heun"])
def test_plms_of_order_1_is_euler(start):
    torch.testing.assert_close(sample("plms", order=1, start=start), sample("euler"), rtol=1e-12, atol=1e-12)


def test_plms_has_order_4_from_a_plain_start_on_equal_steps_of_sigma():
    """The start of ipndm, of order 1, leaves an error of second order; that of plms does not."""

    def run(name: str, n: int) -> torch.Tensor:
        return sample(name, torch.linspace(1.5, 0.5, n + 1, dtype=torch.float64).tolist())

    exact = run("rk4", 2000)

    def error(name: str, n: int) -> float:
        return relative_error(run(name, n), exact)

    assert math.log2(error("plms", 64) / error("plms", 128)) == pytest.approx(4, abs=0.3)
    assert math.log2(error("ipndm", 64) / error("ipndm", 128)) == pytest.approx(2, abs=0.3)


def vp_time(sigma):
    """t with sigma(t)^2 + 1 = exp(beta_d t^2 / 2 + beta_min t), sigma(0.001) = 0.002, sigma(1) = 80."""
    low, high, end = mpmath.log1p(mpmath.mpf("0.002") ** 2), mpmath.log1p(mpmath.mpf(80) ** 2), mpmath.mpf("0.001")
    beta_d = 2 * (low / end - high) / (end - 1)
    beta_min = high - beta_d / 2
    return (mpmath.sqrt(beta_min**2 + 2 * beta_d * mpmath.log1p(sigma**2)) - beta_min) / beta_d


@pytest.mark.parametrize("sigmas", [[14.6, 3.0, 0.03], [80.0, 9.0, 0.7, 0.002], [1.0, 0.9, 0.81, 0.7]])
def test_deis_weights_are_the_integrals_of_the_paper(sigmas):
    """Equation 15: the exact integral of each Lagrange polynomial in time, by adaptive quadrature with 30 digits."""
    plan = SAMPLERS["deis"].plan(sigmas)
    for i, stage in enumerate(plan[1:], start=1):
        with mpmath.workdps(30):
            s, t = mpmath.mpf(sigmas[i]), mpmath.mpf(sigmas[i + 1])
            nodes = [vp_time(mpmath.mpf(sigmas[i - j])) for j in range(min(3, i + 1))]
            exact = []
            for j, node in enumerate(nodes):
                others = [other for k, other in enumerate(nodes) if k != j]

                def integrand(v, node=node, others=others):
                    sigma = mpmath.e**v
                    return sigma * mpmath.fprod((vp_time(sigma) - other) / (node - other) for other in others)

                exact.append(float(mpmath.quad(integrand, mpmath.linspace(mpmath.log(s), mpmath.log(t), 9))))
        # The last stage's own derivative is written in x and D: d_0 = (x - D) / sigma.
        own = stage.update.terms.get(0, -stage.update.terms.get(-3, 0.0) * sigmas[i])
        weights = [own, *(stage.update.terms[j] for j in range(1, len(exact)))]
        assert weights == pytest.approx(exact, rel=1e-11)
        assert sum(weights) == pytest.approx(sigmas[i + 1] - sigmas[i], rel=1e-12)  # a constant derivative is exact


def test_deis_in_flow_space_is_ipndm_v():
    sigmas = torch.linspace(FLOW_MAX, FLOW_MIN, 7, dtype=torch.float64).square().tolist()
    a, b = (sample(name, sigmas, flow=True, order=3) for name in ("deis", "ipndm_v"))
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
