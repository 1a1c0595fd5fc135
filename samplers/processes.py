"""How data turn into noise: variance preserving (VP) processes and rectified flow, and the times of their levels.

A VP process has alpha_t^2 + sigma_t^2 = 1 and alpha_t^2 = e^-B(t), with B(t) the integral of beta from 0 to t. The
samplers see x = x_t / alpha_t and sigma = sigma_t / alpha_t, so that in their terms

    sigma(t)^2 + 1 = e^B(t),

and one process differs from another in B alone. Here are B(t) of linear beta, for solvers and schedules that run in its
time; the table of Stable Diffusion; and the processes of networks, for denoisers.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .integrate import per_image
from .phi import Scalar, expm1, log1p, sqrt, value

# Times of levels

T_MIN = 1e-3
"""Where a continuous VP process ends: the time of sigma_min. Song et al. 2021, arXiv 2011.13456."""


class LinearBeta(NamedTuple):
    """beta(t) = beta_min + beta_d t, on numbers and tensors alike. Song et al. 2021, arXiv 2011.13456."""

    beta_d: float
    beta_min: float

    @classmethod
    def through(cls, sigma_min: float, sigma_max: float) -> LinearBeta:
        """The one with sigma(T_MIN) = sigma_min and sigma(1) = sigma_max."""
        low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
        beta_d = 2 * (low / T_MIN - high) / (T_MIN - 1)
        return cls(beta_d, high - beta_d / 2)

    def integral(self, t: Scalar) -> Scalar:
        """B(t) = beta_d t^2 / 2 + beta_min t."""
        return self.beta_d / 2 * t**2 + self.beta_min * t

    def inverse(self, b: Scalar) -> Scalar:
        """The time t with B(t) = b, without cancellation at b = 0."""
        return 2 * b / (self.beta_min + sqrt(self.beta_min**2 + 2 * self.beta_d * b))

    def sigma(self, t: Scalar) -> Scalar:
        """sqrt(e^B(t) - 1)."""
        return sqrt(expm1(self.integral(t)))

    def time(self, sigma: Scalar) -> Scalar:
        """The time of a level: the inverse of `sigma`."""
        return self.inverse(log1p(sigma * sigma))


@functools.cache
def _stable_diffusion_sigmas() -> list[float]:
    """Sigmas of Stable Diffusion at the times 0, 1 ... 1000: linear in sqrt(beta), with no noise at time 0.

    Rombach et al. 2022, arXiv 2112.10752; beta from 0.00085 to 0.012. Time steps 0 ... 999 are the times 1 ... 1000.
    """
    low, high = math.sqrt(0.00085), math.sqrt(0.012)
    kept = itertools.accumulate((1 - (low + (high - low) * k / 999) ** 2 for k in range(1000)), lambda a, b: a * b)
    return [0.0, *(math.sqrt((1 - alpha_bar) / alpha_bar) for alpha_bar in kept)]


def stable_diffusion_time(sigma: Scalar) -> Scalar:
    """The time of a sigma, 0 to 1000, linear between those of the table and beyond its end."""
    sigmas = _stable_diffusion_sigmas()
    k = min(max(bisect.bisect_right(sigmas, value(sigma)) - 1, 0), len(sigmas) - 2)
    return k + (sigma - sigmas[k]) / (sigmas[k + 1] - sigmas[k])


def stable_diffusion_sigma(time: Scalar) -> Scalar:
    """The sigma of a time, 0 to 1000; undoes `stable_diffusion_time`."""
    sigmas = _stable_diffusion_sigmas()
    k = min(max(int(value(time)), 0), len(sigmas) - 1)
    start = min(k, len(sigmas) - 2)
    return sigmas[k] + (time - k) * (sigmas[start + 1] - sigmas[start])


# The processes of networks


class Process(ABC):
    """How data turn into noise, as a network learned it: what it sees at each level of the samplers.

    Levels, times and scales are computed in float64, on the device of what is given, without reading it back. Rounding
    and added noise lead a little beyond the ends. There the time is that of the end, x_t what the level says.
    """

    predictions: ClassVar[tuple[str, ...]]
    """Those of `TO_DATA` that a network of this process can make."""

    sigma_min: float
    """The lowest level above 0, for schedules."""

    sigma_max: float
    """The highest level, for schedules."""

    @abstractmethod
    def sigma(self, t: Tensor | float) -> Tensor:
        """The sampler's level at a time of the network, any shape."""

    @abstractmethod
    def time(self, sigma: Tensor | float) -> Tensor:
        """The network's time at a level of the sampler, any shape: the inverse of `sigma`."""

    @abstractmethod
    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha_t, sigma_t, and x_t in units of the sampler's x."""

    def seen(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x_t and t, as the network sees the sampler's x [B, C, ...] at sigma [B].

        x_t has the dtype of x, t at least float32: in bfloat16 999 would be 1000.

        Raises:
            ValueError: if sigma has another shape.
        """
        check_sigma(sigma, x)
        t = self.time(sigma)
        x_t = x * wide_per_image(self.scales(sigma)[2], x)
        return x_t.to(x.dtype), t.to(_wide(x)) if t.is_floating_point() else t


class VP(Process):
    """A variance preserving process: alpha_t^2 + sigma_t^2 = 1.

    alpha_t^2 = e^-B(t) with B(t) the integral of beta from 0 to t. The samplers see x = x_t / alpha_t and
    sigma = sigma_t / alpha_t = sqrt(e^B(t) - 1), so one process differs from another in B alone.
    """

    predictions = ("noise", "data", "v", "score")

    def __init__(self, t_min: float, t_max: float):
        self.t_min, self.t_max = t_min, t_max
        self.sigma_min, self.sigma_max = self.sigma(t_min).item(), self.sigma(t_max).item()

    @abstractmethod
    def _integral(self, t: Tensor) -> Tensor:
        """B(t) = -2 log alpha_t."""

    @abstractmethod
    def _inverse(self, b: Tensor) -> Tensor:
        """The time t with B(t) = b."""

    def sigma(self, t: Tensor | float) -> Tensor:
        return self._integral(exact(t).clamp(self.t_min, self.t_max)).expm1().sqrt()

    def time(self, sigma: Tensor | float) -> Tensor:
        return self._inverse(exact(sigma).square().log1p()).clamp(self.t_min, self.t_max)

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma = exact(sigma)
        alpha = (1 + sigma**2).rsqrt()
        return alpha, alpha * sigma, alpha


class LinearVP(VP):
    """Continuous time with beta(t) = beta_0 + (beta_1 - beta_0) t: B(t) = beta_0 t + (beta_1 - beta_0) t^2 / 2.

    Song et al. 2021, arXiv 2011.13456; `LinearBeta`. The network is given t, between t_min and t_max. If it wants t
    times 999, say so: `lambda x, t, **args: network(x, 999 * t, **args)`.

    Raises:
        ValueError: naming the number at fault.
    """

    def __init__(self, beta_0: float = 0.1, beta_1: float = 20.0, *, t_min: float = 1e-3, t_max: float = 1.0):
        if not 0 <= beta_0 <= beta_1 < math.inf or not beta_1:
            raise ValueError(f"beta_0 = {beta_0} and beta_1 = {beta_1} must be finite with 0 <= beta_0 <= beta_1 > 0")
        _check_times(t_min, t_max)
        self.beta = LinearBeta(beta_1 - beta_0, beta_0)
        super().__init__(t_min, t_max)

    def _integral(self, t: Tensor) -> Tensor:
        return torch.as_tensor(self.beta.integral(t))

    def _inverse(self, b: Tensor) -> Tensor:
        return torch.as_tensor(self.beta.inverse(b))


class CosineVP(VP):
    """Continuous time with alpha_t = cos(theta_t) / cos(theta_0), theta_t = pi/2 (t + s) / (1 + s).

    Nichol and Dhariwal 2021, arXiv 2102.09672. At t = 1 nothing of the image is left and sigma is infinite; t_max is
    where DPM-Solver stops.

    Raises:
        ValueError: naming the number at fault.
    """

    def __init__(self, s: float = 0.008, *, t_min: float = 1e-3, t_max: float = 0.9946):
        if not 0 <= s < math.inf:
            raise ValueError(f"s = {s} must be finite and not negative")
        _check_times(t_min, t_max)
        if t_max == 1:
            raise ValueError("t_max = 1 is pure noise, where sigma is infinite: stay below it")
        self.rate = math.pi / 2 / (1 + s)
        self.start = self.rate * s
        super().__init__(t_min, t_max)

    # Both without cancellation at t = 0: cos(theta) - cos(theta_0) as a product, theta from its tangent.

    def _integral(self, t: Tensor) -> Tensor:
        turned = self.rate * t
        lost = 2 * (self.start + turned / 2).sin() * (turned / 2).sin() / math.cos(self.start)  # 1 - alpha
        return -2 * torch.log1p(-lost)

    def _inverse(self, b: Tensor) -> Tensor:
        theta = torch.atan((b.expm1() + math.sin(self.start) ** 2).sqrt() / math.cos(self.start))
        return (theta - self.start) / self.rate


class DiscreteVP(VP):
    """N steps, as DDPM and Stable Diffusion have: alpha_t^2 = alphas_cumprod[t], the product of 1 - betas[0 ... t].

    Between two steps B, and so log alpha, is linear, as in DPM-Solver. The network is given t from 0 to N - 1, in
    between as well. Ho, Jain, Abbeel 2020, arXiv 2006.11239.

    Args:
        betas: N numbers between 0 and 1, in order of t; or else
        alphas_cumprod: N numbers between 0 and 1, descending.
        rounded: give the network the nearest step, in int64: for one that was trained on whole steps only, or looks
            them up in a table.

    Raises:
        ValueError: naming the number at fault.
    """

    def __init__(
        self,
        *,
        betas: Tensor | Sequence[float] | None = None,
        alphas_cumprod: Tensor | Sequence[float] | None = None,
        rounded: bool = False,
    ):
        if betas is not None and alphas_cumprod is None:
            steps = -torch.log1p(-_shares("betas", betas)).cumsum(0)
        elif alphas_cumprod is not None and betas is None:
            steps = -_shares("alphas_cumprod", alphas_cumprod).log()
        else:
            raise ValueError("give either betas or alphas_cumprod")
        for t, (b, c) in enumerate(itertools.pairwise(steps.tolist())):
            if not b < c:
                raise ValueError(f"alphas_cumprod must descend, and does not from step {t} to {t + 1}")
        self.rounded = rounded
        self._steps = {torch.device("cpu"): steps}  # and a copy on each device that asks
        super().__init__(0.0, len(steps) - 1.0)

    def _on(self, device: torch.device) -> Tensor:
        if device not in self._steps:
            self._steps[device] = self._steps[torch.device("cpu")].to(device, _exact_dtype(device))
        return self._steps[device]

    def _integral(self, t: Tensor) -> Tensor:
        steps = self._on(t.device)
        i = t.long().clamp(max=len(steps) - 2)
        return torch.lerp(steps[i], steps[i + 1], t - i)

    def _inverse(self, b: Tensor) -> Tensor:
        steps = self._on(b.device)
        i = torch.searchsorted(steps, b.detach()).clamp(1, len(steps) - 1) - 1
        return i + (b - steps[i]) / (steps[i + 1] - steps[i])

    def time(self, sigma: Tensor | float) -> Tensor:
        t = super().time(sigma)
        return t.round().long() if self.rounded else t


class RectifiedFlow(Process):
    """x_t = (1 - t) x_0 + t noise, with t = sigma: sample with `flow=True`.

    Liu, Gong, Liu 2022, arXiv 2209.03003. The network predicts the velocity noise - x_0 (SD3, Flux), or x_0 itself.
    Many want 1000 t: `lambda x, t, **args: network(x, 1000 * t, **args)`.
    """

    predictions = ("velocity", "data")
    sigma_max = 1.0

    def __init__(self, sigma_min: float = 1e-3):
        if not 0 < sigma_min < 1:
            raise ValueError(f"sigma_min = {sigma_min} must lie between 0 and 1")
        self.sigma_min = sigma_min

    def sigma(self, t: Tensor | float) -> Tensor:
        return exact(t).clamp(0, 1)

    def time(self, sigma: Tensor | float) -> Tensor:
        return exact(sigma).clamp(0, 1)

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma = exact(sigma)
        return 1 - sigma, sigma, torch.ones_like(sigma)


# Precision, shapes and checks


def _exact_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which MPS does not have


def exact(value: Tensor | float) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.tensor(value, dtype=torch.float64)
    return value.to(_exact_dtype(value.device))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def wide_per_image(values: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], to be multiplied with x of shape [B, C, ...]."""
    return per_image(values.to(_wide(x)), x)


def check_sigma(sigma: Any, x: Tensor) -> None:
    if not isinstance(sigma, Tensor) or sigma.shape != x.shape[:1]:
        got = f"shape {list(sigma.shape)}" if isinstance(sigma, Tensor) else repr(sigma)
        raise ValueError(f"sigma must be a tensor with a level for each image, of shape [{len(x)}]; got {got}")


def _check_times(t_min: float, t_max: float) -> None:
    if not 0 < t_min < t_max <= 1:
        raise ValueError(f"t_min = {t_min} and t_max = {t_max} must be times with 0 < t_min < t_max <= 1")


def _shares(name: str, given: Tensor | Sequence[float]) -> Tensor:
    """Numbers between 0 and 1, in float64 on the CPU."""
    values = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach()
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"{name} must hold a number for each of two or more steps, got shape {list(values.shape)}")
    for step, share in enumerate(values.tolist()):
        if not 0 < share < 1:
            hint = ": leave out a last step that is pure noise" if step == len(values) - 1 and share in (0, 1) else ""
            raise ValueError(f"{name}[{step}] = {share} must lie between 0 and 1{hint}")
    return values
