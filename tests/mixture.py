"""What the tests share: an analytic Gaussian mixture as a denoiser, its exact ODE solution, ways to run samplers."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor

from samplers import SAMPLERS, SamplerSpec

SIGMA_MAX, SIGMA_MIN = 14.6146, 0.0292
FLOW_MAX, FLOW_MIN = 0.97, 0.03

SD = 0.35
MU = torch.tensor(
    [[2 * math.sin(1.7 * (k + 1) * (j + 1) + 0.3) for j in range(16)] for k in range(4)], dtype=torch.float64
)


def _each(specs: list[SamplerSpec]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("spec", specs, ids=[spec.id for spec in specs])


ONE_PREDICTION = [spec for spec in SAMPLERS.values() if not spec.takes_apart]
"""Those that are content with the denoised sample; for the others see test_cfg_pp.py."""

each_sampler = _each(ONE_PREDICTION)
each_planned = _each([spec for spec in ONE_PREDICTION if not spec.adaptive])
each_ode = _each([spec for spec in ONE_PREDICTION if not spec.adaptive and spec.id != "ddpm"])
"""Those with a plan that follows the probability-flow ODE, under the options `without_noise`."""


def each_ode_but(*ids: str) -> pytest.MarkDecorator:
    return _each([spec for spec in ONE_PREDICTION if not spec.adaptive and spec.id not in ("ddpm", *ids)])


each_stochastic = _each([spec for spec in SAMPLERS.values() if spec.stochastic])


def _field(value) -> Tensor:
    field = [[math.sqrt(2) * value(b, j) for j in range(16)] for b in range(3)]
    return torch.tensor(field, dtype=torch.float64).reshape(3, 1, 4, 4)


X1 = _field(lambda b, j: math.cos(0.9 * (b + 1) * (j + 2) + b))
"""The start, in units of the first sigma."""

NOISE = _field(lambda b, j: math.sin(0.37 * (b + 1) * (j + 1) + 2 * b))
"""Every draw of noise in the stochastic reference cases."""


def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_0 + sigma noise = x] for x_0 of a mixture of four Gaussians; x [B, 1, 4, 4], sigma [B]."""
    flat, s2 = x.double().reshape(len(x), 16), sigma.double()[:, None] ** 2
    w = torch.softmax(-((flat[:, None] - MU) ** 2).sum(-1) / (2 * (SD**2 + s2)), dim=1)
    return ((w @ MU * s2 + flat * SD**2) / (s2 + SD**2)).reshape(x.shape).to(x.dtype)


def flow_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """The same mixture under x_t = (1 - sigma) x_0 + sigma noise. At sigma = 1 nothing of x_0 is left but its mean."""
    if bool((sigma == 1).all()):
        return MU.mean(0).reshape(1, 1, 4, 4).expand(x.shape).to(x.dtype)
    alpha = (1 - sigma.double())[:, None, None, None]
    return denoiser(x.double() / alpha, sigma.double() / (1 - sigma.double())).to(x.dtype)


def pointwise(x: Tensor, sigma: Tensor) -> Tensor:
    """A smooth nonlinear denoiser for a tensor of any shape and dtype, at home in any units (EDM space)."""
    s = sigma.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return x * 0.3 / (1 + s) + torch.tanh(x / (1 + s))


def levels(n: int, high: float = SIGMA_MAX, low: float = SIGMA_MIN, flow: bool = False) -> Tensor:
    """n + 1 levels, uniform in lambda."""
    to_lambda = (lambda s: math.log((1 - s) / s)) if flow else (lambda s: -math.log(s))
    lam = torch.linspace(to_lambda(high), to_lambda(low), n + 1, dtype=torch.float64)
    return torch.sigmoid(-lam) if flow else torch.exp(-lam)


def _rk4(x: Tensor, lam: float, h: float) -> Tensor:
    """One Runge-Kutta step of the probability-flow ODE in EDM space, dx / dlambda = D - x."""

    def slope(x: Tensor, lam: float) -> Tensor:
        return denoiser(x, torch.full((len(x),), math.exp(-lam), dtype=torch.float64)) - x

    k1 = slope(x, lam)
    k2 = slope(x + h / 2 * k1, lam + h / 2)
    k3 = slope(x + h / 2 * k2, lam + h / 2)
    k4 = slope(x + h * k3, lam + h)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


GRID = 2048


@functools.lru_cache
def _grid(flow: bool) -> tuple[Tensor, ...]:
    """The solution in EDM space on GRID + 1 levels uniform in lambda, accurate to about 1e-11."""
    high, low = (FLOW_MAX / (1 - FLOW_MAX), FLOW_MIN / (1 - FLOW_MIN)) if flow else (SIGMA_MAX, SIGMA_MIN)
    h = math.log(high / low) / GRID
    xs = [X1 * high]
    for i in range(GRID):
        xs.append(_rk4(xs[-1], -math.log(high) + i * h, h))
    return tuple(xs)


def solution(sigma: float, flow: bool = False) -> Tensor:
    """The exact sample at a level: the nearest one of the grid, and a Runge-Kutta step from there."""
    high, low = (FLOW_MAX / (1 - FLOW_MAX), FLOW_MIN / (1 - FLOW_MIN)) if flow else (SIGMA_MAX, SIGMA_MIN)
    edm = sigma / (1 - sigma) if flow else sigma
    h = math.log(high / low) / GRID
    i = min(max(round(math.log(high / edm) / h), 0), GRID)
    lam = -math.log(high) + i * h
    x = _rk4(_grid(flow)[i], lam, -math.log(edm) - lam)
    return x * (1 - sigma) if flow else x


def given(spec: SamplerSpec, **options: object) -> dict[str, object]:
    """Those of the options that the sampler has."""
    return {option.name: options[option.name] for option in spec.options if option.name in options}


def without_noise(spec: SamplerSpec) -> dict[str, object]:
    """The options under which the sampler is deterministic, on the levels that it is given."""
    amount = spec.noise_option
    return dict(spec.at_given_levels) | ({amount.name: type(amount.default)(0)} if amount else {})


def with_noise(spec: SamplerSpec) -> dict[str, object]:
    """Options under which the sampler adds noise, if it can."""
    return given(spec, eta=1.0, gamma=0.5, s_churn=2.0, restarts=2)


def exact_options(spec: SamplerSpec) -> dict[str, object]:
    """Options under which the sampler has its stated order: no noise, no lower order at the end, no corrector."""
    exact = [o.name for o in spec.options if "exact" in o.choices]
    options = given(spec, lower_order_final=False, corrector=False, corrector_order=0) | dict.fromkeys(exact, "exact")
    return options | without_noise(spec)


def relative_error(x: Tensor, y: Tensor) -> float:
    return ((x - y).abs().max() / y.abs().max()).item()
