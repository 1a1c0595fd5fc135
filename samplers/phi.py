"""The exponential functions of exponential integrators, on floats and on float64 scalars of torch.

Solvers are written once against these. Given floats they return floats (a plan for sampling); given
0-dimensional tensors they return tensors that carry gradients (a plan to be trained or searched).
"""

from __future__ import annotations

import math
from typing import TypeAlias

import torch

Scalar: TypeAlias = "float | torch.Tensor"

_SERIES_BELOW = 1.0  # |z| under which the recursion for phi_k would cancel
_SERIES_TERMS = 18  # 1 / 18! < 2e-16


def value(z: Scalar) -> float:
    """The number in a scalar, without its gradient; of a number per image the mean."""
    return float(z.detach().mean()) if isinstance(z, torch.Tensor) else float(z)


def exp(z: Scalar) -> Scalar:
    return z.exp() if isinstance(z, torch.Tensor) else math.exp(z)


def expm1(z: Scalar) -> Scalar:
    """e^z - 1 without cancellation."""
    return z.expm1() if isinstance(z, torch.Tensor) else math.expm1(z)


def log(z: Scalar) -> Scalar:
    """Natural logarithm; log 0 = -inf."""
    if isinstance(z, torch.Tensor):
        return z.log()
    return math.log(z) if z else -math.inf


def log1p(z: Scalar) -> Scalar:
    """log(1 + z) without cancellation."""
    return z.log1p() if isinstance(z, torch.Tensor) else math.log1p(z)


def sqrt(z: Scalar) -> Scalar:
    return z.sqrt() if isinstance(z, torch.Tensor) else math.sqrt(z)


def phi(k: int, z: Scalar) -> Scalar:
    """phi_k(z) = integral over theta in (0, 1) of e^((1 - theta) z) theta^(k-1) / (k-1)!, for k >= 1.

    phi_0(z) = e^z and phi_(k+1)(z) = (phi_k(z) - 1/k!) / z. The recursion loses all digits as z -> 0, so the
    series sum_n z^n / (n + k)! replaces it for |z| < 1; the relative error stays below 1e-14.
    Hochbruck and Ostermann, Exponential integrators, Acta Numerica 2010.
    """
    if abs(value(z)) < _SERIES_BELOW:
        total: Scalar = 0.0
        for n in reversed(range(_SERIES_TERMS)):
            total = total * z + 1 / math.factorial(n + k)
        return total
    result = expm1(z) / z
    for j in range(1, k):
        result = (result - 1 / math.factorial(j)) / z
    return result
