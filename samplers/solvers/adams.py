"""Adams-Bashforth methods in sigma: multistep, one evaluation a step.

dx / dsigma = d = (x - D) / sigma is integrated over the step for the polynomial through the last derivatives. In EDM
space d is the predicted noise and sigma the time of DDIM, so that these are the pseudo numerical methods and the
exponential integrators iPNDM; in rectified flow d is the velocity. A step to sigma = 0 is an Euler step, x = D.

    L. Liu, Y. Ren, Z. Lin, Z. Zhao: Pseudo Numerical Methods for Diffusion Models on Manifolds. 2022, arXiv 2202.09778.
    Q. Zhang, Y. Chen: Fast Sampling of Diffusion Models with Exponential Integrator. 2023, arXiv 2204.13902.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch

from ..levels import Levels
from ..options import Bounds
from ..phi import Scalar, exp, log
from ..plan import Combination, P, Stage, X
from ..processes import LinearBeta
from ..sampler import sampler
from .runge_kutta import derivative, euler_step, heun_step, rk4_step

Order = Annotated[int, Bounds(1, 4), "Number of derivatives used."]

FIXED = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
"""Weights of Adams-Bashforth for equal steps, newest first."""


def lagrange_polynomials(nodes: Sequence[Scalar]) -> list[list[Scalar]]:
    """The coefficients, lowest power first, of the polynomials that are 1 at one of the nodes and 0 at the others."""
    polynomials = []
    for j, u_j in enumerate(nodes):
        polynomial: list[Scalar] = [1.0]
        for u_k in (u for k, u in enumerate(nodes) if k != j):
            shifted = [0.0, *polynomial]
            scaled = [*(c * -u_k for c in polynomial), 0.0]
            polynomial = [(a + b) / (u_j - u_k) for a, b in zip(shifted, scaled, strict=True)]
        polynomials.append(polynomial)
    return polynomials


def variable_weights(nodes: Sequence[Scalar]) -> list[Scalar]:
    """Weights of Adams-Bashforth for unequal steps: the integral over (0, 1) of each Lagrange polynomial.

    `nodes` are the places of the derivatives, newest first, in units of the step from its start: 0, then negative.
    """
    return [
        sum((c / (power + 1) for power, c in enumerate(polynomial)), start=0.0)
        for polynomial in lagrange_polynomials(nodes)
    ]


@sampler(
    "iPNDM",
    paper="Zhang and Chen 2023, arXiv 2204.13902",
    help="Adams-Bashforth with weights for equal steps of sigma, at one evaluation a step. Order 2 on levels that "
    "are not uniform in sigma, but often good with few steps.",
    order=2,
)
def ipndm(levels: Levels, *, order: Order = 4) -> Iterator[Stage]:
    """iPNDM: Adams-Bashforth with the weights for equal steps, whatever the steps are.

        x_t = x_s + (sigma_t - sigma_s) (55 d_0 - 59 d_1 + 37 d_2 - 9 d_3) / 24

    The order rises from 1 as derivatives become known. On levels that are not uniform in sigma, such as Karras',
    the weights are not those of the polynomial, and the order of convergence is 2 at most; see `ipndm_v`.
    Zhang and Chen 2023, arXiv 2204.13902, appendix.
    """
    for i in range(len(levels) - 1):
        yield from _adams_bashforth(levels, i, FIXED[min(order, i + 1)])


@sampler(
    "iPNDM, variable steps",
    paper="Zhang and Chen 2023, arXiv 2204.13902",
    help="Adams-Bashforth with weights for the actual lengths of the steps, one evaluation a step. In our benchmark "
    "the best at 5 to 8 steps, on karras with discard_penultimate.",
    order=4,
    curated=True,
)
def ipndm_v(levels: Levels, *, order: Order = 4) -> Iterator[Stage]:
    """iPNDM with the weights of the steps as they are: Adams-Bashforth for variable steps.

        x_t = x_s + sum_j d_j * integral from sigma_s to sigma_t of the Lagrange polynomial l_j

    The implementations of diff-sampler and ComfyUI have errors of algebra at orders 3 and 4.
    Zhang and Chen 2023, arXiv 2204.13902.
    """
    for i in range(len(levels) - 1):
        s, h = levels[i].sigma, levels[i + 1].sigma - levels[i].sigma
        nodes = [(levels[i - j].sigma - s) / h for j in range(min(order, i + 1))]
        yield from _adams_bashforth(levels, i, variable_weights(nodes))


@sampler(
    "LMS (linear multistep)",
    paper="Zhang and Chen 2023, arXiv 2204.13902",
    help="The linear multistep sampler of k-diffusion and ComfyUI, one evaluation a step: the same numbers as ipndm_v.",
    order=4,
    curated=True,
)
def lms(levels: Levels, *, order: Order = 4) -> Iterator[Stage]:
    """LMS: Adams-Bashforth for variable steps, which is `ipndm_v`.

    k-diffusion and ComfyUI integrate the Lagrange polynomials by quadrature, we as polynomials. The step to sigma = 0
    is an Euler step, as in ComfyUI; k-diffusion takes the polynomial there too.
    K. Crowson, k-diffusion; Zhang and Chen 2023, arXiv 2204.13902.
    """
    return ipndm_v(levels, order=order)


@sampler(
    "Gradient estimation",
    paper="Permenter and Yuan 2024, arXiv 2306.04848",
    help="Euler's method that goes further along the last change of direction, at one evaluation a step. First order; "
    "a smaller ge_gamma is steadier.",
    order=1,
    curated=True,
)
def gradient_estimation(
    levels: Levels,
    *,
    ge_gamma: Annotated[
        float,
        Bounds(0.0, 5.0),
        "Weight of the newest derivative; the one before has the weight 1 - ge_gamma. 1: euler; 1.5: the Adams method "
        "of order 2 for equal steps; 2: as in the paper.",
    ] = 2.0,
) -> Iterator[Stage]:
    """Gradient estimation: Euler's method on a combination of the last two derivatives.

        x_t = x_s + (sigma_t - sigma_s) (gamma d_0 + (1 - gamma) d_1)

    The paper takes the denoiser for the gradient of half the squared distance to the data, and reduces the error of
    that gradient with the last one. In rectified flow d is the velocity. The first step is Euler's, as is that to 0.
    Permenter and Yuan 2024, arXiv 2306.04848, Algorithm 2.
    """
    for i in range(len(levels) - 1):
        yield from _adams_bashforth(levels, i, (ge_gamma, 1 - ge_gamma) if i else (1.0,))


@sampler(
    "PLMS (PNDM)",
    paper="Liu et al. 2022, arXiv 2202.09778",
    help="ipndm with an accurate start, which costs evaluations. Order 2 on levels that are not uniform in sigma.",
    order=2,
)
def plms(
    levels: Levels,
    *,
    order: Order = 4,
    start: Annotated[
        Literal["runge_kutta", "heun"],
        "How the run starts. runge_kutta: four evaluations in each of the first order - 1 steps, as in the paper; "
        "heun: one more evaluation in the first step, as in Stable Diffusion.",
    ] = "runge_kutta",
) -> Iterator[Stage]:
    """PNDM: the linear multistep method of `ipndm`, with an accurate start instead of a rising order.

    `runge_kutta`: the first order - 1 steps are those of `rk4`, four evaluations each (the paper's F-PNDM; its midpoint
    is that of the time step, ours that of sigma, where the method has its order). `heun`: the first step is one of
    `heun`, two evaluations, then the order rises (the paper's S-PNDM at order 2; the PLMS of Stable Diffusion at 4).
    Liu et al. 2022, arXiv 2202.09778, Algorithm 2 and section 3.3.
    """
    derivatives: list[int] = []  # which of the predictions so far were made at the start of a step
    made = 0
    for i in range(len(levels) - 1):
        derivatives.append(made)
        if start == "runge_kutta" and i < order - 1:
            stages = rk4_step(levels, i)
        elif start == "heun" and i == 0 and order > 1:
            stages = heun_step(i, levels[i], levels[i + 1])
        else:
            past = [Combination({made - k: 1.0}) for k in reversed(derivatives[-order:])]
            stages = _adams_bashforth(levels, i, FIXED[len(past)], past)
        for stage in stages:
            made += 1
            yield stage


@sampler(
    "DEIS (tAB)",
    paper="Zhang and Chen 2023, arXiv 2204.13902",
    help="Adams-Bashforth in diffusion time, at one evaluation a step. Good at 8 to 15 steps.",
    order=3,
    curated=True,
)
def deis(
    levels: Levels,
    *,
    order: Annotated[int, Bounds(1, 3), "Number of derivatives used."] = 3,
) -> Iterator[Stage]:
    """tAB-DEIS: Adams-Bashforth with polynomials in the time of the VP process instead of sigma.

        x_t = x_s + sum_j d_j * integral from sigma_s to sigma_t of l_j(time(sigma)) dsigma

    time(sigma) is that of linear beta with sigma(0.001) = 0.002 and sigma(1) = 80, as in diff-sampler. For rectified
    flow the time is sigma itself, and the weights are those of `ipndm_v`. The order rises from 1.
    Zhang and Chen 2023, arXiv 2204.13902, eq. 15.
    """
    for i in range(len(levels) - 1):
        s, t = levels[i], levels[i + 1]
        nodes = [levels[i - j].sigma for j in range(min(order, i + 1))]
        if t.sigma == 0 or len(nodes) == 1:
            yield from euler_step(i, s, t)
        elif levels.flow:
            h = t.sigma - s.sigma
            yield from _adams_bashforth(levels, i, variable_weights([(node - s.sigma) / h for node in nodes]))
        else:
            weights = time_weights([_TIME.time(node) for node in nodes], s.sigma, t.sigma)
            x_t = sum((w * d for w, d in zip(weights, P, strict=False)), start=X)
            yield Stage(i, s.sigma, x_t, derivative(s))


_TIME = LinearBeta.through(0.002, 80.0)  # as in diff-sampler
_GAUSS = 40  # nodes of the quadrature: its error is below 1e-13 for steps over the whole range of a model


@functools.cache
def gauss_legendre() -> list[tuple[float, float]]:
    """Nodes and weights on (0, 1), from the eigenvalues of the Jacobi matrix. Golub and Welsch 1969."""
    k = torch.arange(1, _GAUSS, dtype=torch.float64)
    side = torch.diag(k / (4 * k**2 - 1).sqrt(), 1)
    nodes, vectors = torch.linalg.eigh(side + side.T)
    return list(zip(((nodes + 1) / 2).tolist(), (vectors[0] ** 2).tolist(), strict=True))


def time_weights(nodes: Sequence[Scalar], start: Scalar, end: Scalar) -> list[Scalar]:
    """The integral from sigma = start to end of each Lagrange polynomial in time, dsigma.

    By Gauss-Legendre quadrature in log sigma, where the integrand is smooth.
    """
    weights: list[Scalar] = [0.0] * len(nodes)
    width = log(end) - log(start)
    for place, weight in gauss_legendre():
        sigma = start * exp(place * width)
        tau = _TIME.time(sigma)
        for j, node in enumerate(nodes):
            lagrange: Scalar = weight * width * sigma
            for other in (n for k, n in enumerate(nodes) if k != j):
                lagrange = lagrange * (tau - other) / (node - other)
            weights[j] = weights[j] + lagrange
    return weights


def _adams_bashforth(
    levels: Levels, i: int, weights: Sequence[Scalar], derivatives: Sequence[Combination] = P
) -> Iterator[Stage]:
    """Step i with these weights for the derivatives, newest first."""
    s, t = levels[i], levels[i + 1]
    if t.sigma == 0:
        yield from euler_step(i, s, t)
        return
    slope = sum((w * d for w, d in zip(weights[1:], derivatives[1:], strict=False)), start=weights[0] * derivatives[0])
    yield Stage(i, s.sigma, X + (t.sigma - s.sigma) * slope, derivative(s))
