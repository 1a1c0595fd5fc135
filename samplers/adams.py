"""Adams-Bashforth methods in sigma: multistep, one evaluation a step.

dx / dsigma = d = (x - D) / sigma is integrated over the step for the polynomial through the last derivatives. In EDM
space d is the predicted noise and sigma the time of DDIM, so that these are the pseudo numerical methods and the
exponential integrators iPNDM; in rectified flow d is the velocity. A step to sigma = 0 is an Euler step, x = D.

    L. Liu, Y. Ren, Z. Lin, Z. Zhao: Pseudo Numerical Methods for Diffusion Models on Manifolds. 2022, arXiv 2202.09778.
    Q. Zhang, Y. Chen: Fast Sampling of Diffusion Models with Exponential Integrator. 2023, arXiv 2204.13902.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .classic import derivative, euler_step
from .levels import Levels
from .phi import Scalar
from .plan import P, Stage, X

FIXED = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
"""Weights of Adams-Bashforth for equal steps, newest first."""


def variable_weights(nodes: Sequence[Scalar]) -> list[Scalar]:
    """Weights of Adams-Bashforth for unequal steps: the integral over (0, 1) of each Lagrange polynomial.

    `nodes` are the places of the derivatives, newest first, in units of the step from its start: 0, then negative.
    """
    weights: list[Scalar] = []
    for j, u_j in enumerate(nodes):
        polynomial: list[Scalar] = [1.0]  # coefficients, lowest power first
        for u_k in (u for k, u in enumerate(nodes) if k != j):
            shifted = [0.0, *polynomial]
            scaled = [*(c * -u_k for c in polynomial), 0.0]
            polynomial = [(a + b) / (u_j - u_k) for a, b in zip(shifted, scaled, strict=True)]
        weights.append(sum((c / (power + 1) for power, c in enumerate(polynomial)), start=0.0))
    return weights


def ipndm(levels: Levels, *, order: int = 4) -> Iterator[Stage]:
    """iPNDM: Adams-Bashforth with the weights for equal steps, whatever the steps are.

        x_t = x_s + (sigma_t - sigma_s) (55 d_0 - 59 d_1 + 37 d_2 - 9 d_3) / 24

    The order rises from 1 as derivatives become known. On levels that are not uniform in sigma, such as Karras',
    the weights are not those of the polynomial, and the order of convergence is 2 at most; see `ipndm_v`.
    Zhang and Chen 2023, arXiv 2204.13902, appendix.
    """
    for i in range(len(levels) - 1):
        yield from _adams_bashforth(levels, i, FIXED[min(order, i + 1)])


def ipndm_v(levels: Levels, *, order: int = 4) -> Iterator[Stage]:
    """iPNDM with the weights of the steps as they are: Adams-Bashforth for variable steps.

        x_t = x_s + sum_j d_j * integral from sigma_s to sigma_t of the Lagrange polynomial l_j

    The implementations of diff-sampler and ComfyUI have errors of algebra at orders 3 and 4.
    Zhang and Chen 2023, arXiv 2204.13902.
    """
    for i in range(len(levels) - 1):
        s, h = levels[i].sigma, levels[i + 1].sigma - levels[i].sigma
        nodes = [(levels[i - j].sigma - s) / h for j in range(min(order, i + 1))]
        yield from _adams_bashforth(levels, i, variable_weights(nodes))


def _adams_bashforth(levels: Levels, i: int, weights: Sequence[Scalar]) -> Iterator[Stage]:
    s, t = levels[i], levels[i + 1]
    if t.sigma == 0:
        yield from euler_step(levels, i)
        return
    slope = sum((w * d for w, d in zip(weights[1:], P[1:], strict=False)), start=weights[0] * P[0])
    yield Stage(i, s.sigma, X + (t.sigma - s.sigma) * slope, derivative(s))
