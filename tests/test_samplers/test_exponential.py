"""Exponential Runge-Kutta methods: the stiff order conditions of their tableaus, and which samplers are one.

M. Hochbruck, A. Ostermann: Explicit Exponential Runge-Kutta Methods for Semilinear Parabolic Problems. 2005, table 2.
"""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from mixture import NOISE, X1, denoiser, flow_denoiser
from test_order import measured_order

from samplers import SAMPLERS
from samplers.phi import phi
from samplers.solvers.exponential import (
    TABLEAU_5,
    TABLEAU_6,
    tableau_2,
    tableau_2_weak,
    tableau_3,
    tableau_3_weak,
)

TABLEAUS = {
    "2": (tableau_2(0.5), 2),
    "2, c2 = 0.3": (tableau_2(0.3), 2),
    "3": (tableau_3(0.5, 1.0), 3),
    "3, c3 = 2/3": (tableau_3(0.4, 2 / 3), 3),
    "3, any c": (tableau_3(0.3, 0.8), 3),
    "3 of DPM-Solver++": (tableau_3_weak(1 / 3, 2 / 3), 3),
    "5": (TABLEAU_5, 4),
    "6": (TABLEAU_6, 4),
}
each_tableau = pytest.mark.parametrize(("tableau", "order"), TABLEAUS.values(), ids=TABLEAUS)


def whole(tableau, z: float):
    """c, a and b with the first column, which the sums of the rows tell."""
    c = [0.0, *tableau.nodes]
    rows = [[], [], *([0.0, *row] for row in tableau.weights(lambda k, c=1.0: phi(k, c * z)))]
    *a, b = rows
    for i, row in enumerate(a[1:], start=1):
        row.extend([0.0] * (i - len(row)))
        row[0] = c[i] * phi(1, c[i] * z) - sum(row[1:])
    b[0] = phi(1, z) - sum(b[1:])
    return c, a, b


@each_tableau
@pytest.mark.parametrize("z", [-1e-6, -0.4, -3.0, -40.0])
def test_stiff_order_conditions(tableau, order, z):
    """Those of order 2 and 3 for every z, that of the sum of order 3 and those of order 4 at z = 0 (the weakened form,
    with which a method of constant steps keeps its order)."""
    c, a, b = whole(tableau, z)
    _, a0, b0 = whole(tableau, 0.0)
    n = len(c)

    def psi(j, i, a, z):
        """How far the sample at node i is from that of a polynomial of degree j - 1."""
        total = sum(a[i][k] * c[k] ** (j - 1) for k in range(i))
        return phi(j, c[i] * z) * c[i] ** j - total / math.factorial(j - 1)

    assert sum(b[i] * c[i] for i in range(n)) == pytest.approx(phi(2, z), abs=1e-12)
    if order >= 3:
        assert sum(b0[i] * c[i] ** 2 for i in range(n)) == pytest.approx(1 / 3, abs=1e-12)
        # J is any matrix: the sum must vanish before it is multiplied.
        assert sum(b[i] * psi(2, i, a, z) for i in range(1, n)) == pytest.approx(0, abs=1e-12)
    if order >= 4:
        assert sum(b[i] * c[i] ** 2 for i in range(n)) == pytest.approx(2 * phi(3, z), abs=1e-12)
        assert sum(b0[i] * c[i] ** 3 for i in range(n)) == pytest.approx(1 / 4, abs=1e-12)
        assert sum(b0[i] * psi(3, i, a0, 0.0) for i in range(1, n)) == pytest.approx(0, abs=1e-12)
        assert sum(b0[i] * c[i] * psi(2, i, a0, 0.0) for i in range(1, n)) == pytest.approx(0, abs=1e-12)
        inner = (b0[i] * a0[i][k] * psi(2, k, a0, 0.0) for i in range(1, n) for k in range(1, i))
        assert sum(inner) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("c2", "c3"), [(0.5, 1.0), (0.4, 2 / 3), (0.3, 0.8), (0.9, 0.4)])
def test_res_3s_has_order_3_for_all_nodes(c2, c3):
    assert measured_order(SAMPLERS["res_3s"], c2=c2, c3=c3) == pytest.approx(3, abs=0.25)


@pytest.mark.parametrize(("c2", "c3"), [(2 / 3, 1.0), (0.5, 0.5)])
def test_nodes_without_a_method_are_named(c2, c3):
    with pytest.raises(ValueError, match=r"c2 = 0\.\d+ and c3 = [\d.]+ make no method of order 3"):
        SAMPLERS["res_3s"].plan([3.0, 1.0], c2=c2, c3=c3)
    with pytest.raises(ValueError, match=r"r1 = 0\.7 must be smaller than r2 = 0\.5"):
        SAMPLERS["seeds_3"].plan([3.0, 1.0], r1=0.7, r2=0.5)


def test_the_order_of_res_multistep_is_an_option():
    for order in (1, 3):
        measured = measured_order(SAMPLERS["res_multistep"], order=order)
        assert measured == pytest.approx(order, abs=0.25)


EDM, FLOW = [9.0, 5.0, 2.0, 0.7, 0.2, 0.05, 0.0], [1.0, 0.8, 0.6, 0.35, 0.1, 0.0]


@pytest.mark.parametrize(("sigmas", "flow"), [(EDM, False), (FLOW, True)], ids=["edm", "flow"])
@pytest.mark.parametrize(
    ("mine", "options", "other", "its_options"),
    [
        ("res_2s", {"c2": 0.4}, "dpmpp_2s", {"r": 0.4, "solver_type": "heun"}),
        ("res_3s", {"c2": 0.4, "c3": 2 / 3}, "dpmpp_3s", {"r1": 0.4, "r2": 2 / 3}),
        ("res_multistep", {}, "dpmpp_2m", {"solver_type": "heun", "lower_order_final": False}),
        ("res_multistep", {"order": 3}, "dpmpp_3m", {"solver_type": "exact", "lower_order_final": False}),
        ("res_multistep", {"lower_order_final": True}, "dpmpp_2m", {"solver_type": "heun"}),
        ("seeds_2", {"eta": 0.0, "r": 0.4}, "dpmpp_2s", {"r": 0.4}),
        ("seeds_2", {"eta": 0.0, "r": 0.4, "solver_type": "heun"}, "dpmpp_2s", {"r": 0.4, "solver_type": "heun"}),
        ("seeds_3", {"eta": 0.0, "r1": 0.3, "r2": 0.7}, "dpmpp_3s", {"r1": 0.3, "r2": 0.7}),
        ("exp_heun_2_x0", {}, "dpmpp_2s", {"r": 1.0, "solver_type": "heun"}),
        ("exp_heun_2_x0_sde", {"eta": 0.6}, "seeds_2", {"eta": 0.6, "r": 1.0, "solver_type": "heun"}),
    ],
)  # fmt: skip
def test_samplers_that_are_one(mine, options, other, its_options, sigmas, flow):
    def noise_sampler(sigma, sigma_next):
        return NOISE * math.cos(9 * float(sigma) + 4 * float(sigma_next))

    model = flow_denoiser if flow else denoiser
    x, y = (
        SAMPLERS[id].function(
            model, X1 * sigmas[0], sigmas, disable=True, flow=flow, noise_sampler=noise_sampler, **given
        )
        for id, given in ((mine, options), (other, its_options))
    )
    torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("weak", [False, True])
@pytest.mark.parametrize(("eta", "r"), [(1.0, 0.5), (0.4, 0.3), (1.0, 1.0)])
def test_seeds_2_by_hand(weak, eta, r):
    """One step in EDM space, after the paper, with the noise as two independent draws."""
    s, t = 3.0, 0.8
    h = math.log(s / t)
    u, growth = s * math.exp(-r * h), (1 + eta) * h
    z_1, z_2 = NOISE, X1.flip(-1)
    x = X1 * s
    d_s = denoiser(x, torch.full((3,), s, dtype=torch.float64))
    n_u = math.sqrt(-math.expm1(-2 * r * eta * h)) * z_1
    x_u = u / s * math.exp(-eta * r * h) * x - math.expm1(-r * growth) * d_s + u * n_u
    d_u = denoiser(x_u, torch.full((3,), u, dtype=torch.float64))
    n_t = math.exp(-(1 - r) * eta * h) * n_u + math.sqrt(-math.expm1(-2 * (1 - r) * eta * h)) * z_2
    weight = -math.expm1(-growth) / (2 * r) if weak else growth * float(mpmath.quad(
        lambda theta: mpmath.exp(-(1 - theta) * growth) * theta, [0, 1])) / r  # fmt: skip
    expected = t / s * math.exp(-eta * h) * x - math.expm1(-growth) * d_s + weight * (d_u - d_s) + t * n_t
    noises = iter((z_1, z_2))
    found = SAMPLERS["seeds_2"].function(
        denoiser, x, [s, t], disable=True, noise_sampler=lambda a, b: next(noises), eta=eta, r=r,
        solver_type="midpoint" if weak else "heun",
    )  # fmt: skip
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_the_weak_tableau_is_of_order_2_in_the_weakened_sense():
    """Its sum of order 2 holds at z = 0 only."""
    _, _, b = whole(tableau_2_weak(0.3), 0.0)
    assert b[1] * 0.3 == pytest.approx(0.5, abs=1e-12)
