"""Denoisers from the networks people train, with or without guidance: the way into the samplers from outside ComfyUI.

A network sees a noisy image x_t = alpha_t x_0 + sigma_t noise and its time t, and predicts one of several things. The
samplers see x and sigma, and want the denoised image. A `Process` leads from one to the other, a `Denoiser` is the
network as the samplers want it, and `classifier_free` and `classifier_guided` guide any denoiser:

    process = DiscreteVP(betas=betas)
    model = Denoiser(network, process, "v")
    model = classifier_free(model, {"context": prompt}, {"context": empty}, scale=5)
    sigmas = SCHEDULES["karras"].function(10, process.sigma_min, process.sigma_max)
    image = SAMPLERS["dpmpp_2m"].function(model, noise * sigmas[0], sigmas)

The same ground as `model_wrapper` and `NoiseScheduleVP` of DPM-Solver (Lu et al. 2022, arXiv 2206.00927).
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .checks import shortened
from .integrate import Model, check_like, per_image

TO_DATA: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "noise": lambda x, noise, alpha, sigma: (x - sigma * noise) / alpha,
    "data": lambda x, data, alpha, sigma: data,
    "v": lambda x, v, alpha, sigma: alpha * x - sigma * v,
    "score": lambda x, score, alpha, sigma: (x + sigma**2 * score) / alpha,
    "velocity": lambda x, velocity, alpha, sigma: x - sigma * velocity,
}
"""x_0 from x_t and what a network predicts of it, at alpha_t and sigma_t.

`v` is alpha_t noise - sigma_t x_0 (Salimans and Ho 2022, arXiv 2202.00512), `score` the gradient of log p_t(x_t), and
`velocity` that of rectified flow, noise - x_0.
"""


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
        _check_sigma(sigma, x)
        t = self.time(sigma)
        x_t = x * _per_image(self.scales(sigma)[2], x)
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
        return self._integral(_exact(t).clamp(self.t_min, self.t_max)).expm1().sqrt()

    def time(self, sigma: Tensor | float) -> Tensor:
        return self._inverse(_exact(sigma).square().log1p()).clamp(self.t_min, self.t_max)

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma = _exact(sigma)
        alpha = (1 + sigma**2).rsqrt()
        return alpha, alpha * sigma, alpha


class LinearVP(VP):
    """Continuous time with beta(t) = beta_0 + (beta_1 - beta_0) t: B(t) = beta_0 t + (beta_1 - beta_0) t^2 / 2.

    Song et al. 2021, arXiv 2011.13456. The network is given t, between t_min and t_max. If it wants t times 999, say
    so: `lambda x, t, **args: network(x, 999 * t, **args)`.

    Raises:
        ValueError: naming the number at fault.
    """

    def __init__(self, beta_0: float = 0.1, beta_1: float = 20.0, *, t_min: float = 1e-3, t_max: float = 1.0):
        if not 0 <= beta_0 <= beta_1 < math.inf or not beta_1:
            raise ValueError(f"beta_0 = {beta_0} and beta_1 = {beta_1} must be finite with 0 <= beta_0 <= beta_1 > 0")
        _check_times(t_min, t_max)
        self.beta_0, self.beta_1 = beta_0, beta_1
        super().__init__(t_min, t_max)

    def _integral(self, t: Tensor) -> Tensor:
        return self.beta_0 * t + (self.beta_1 - self.beta_0) / 2 * t**2

    def _inverse(self, b: Tensor) -> Tensor:
        return 2 * b / (self.beta_0 + (self.beta_0**2 + 2 * (self.beta_1 - self.beta_0) * b).sqrt())


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
        return _exact(t).clamp(0, 1)

    def time(self, sigma: Tensor | float) -> Tensor:
        return _exact(sigma).clamp(0, 1)

    def scales(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma = _exact(sigma)
        return 1 - sigma, sigma, torch.ones_like(sigma)


@dataclass(frozen=True)
class Denoiser:
    """A network as a k-diffusion denoiser, `model(x, sigma, **extra_args) -> denoised`.

    Args:
        network: `network(x_t, t, **extra_args) -> prediction`, x_t and the prediction [B, C, ...], t [B]. If it
            predicts its variance as well, take the half that is meant: `network(x, t).chunk(2, dim=1)[0]`.
        process: what x_t and t are.
        prediction: "noise", "data", "v" or "score" for a `VP` process; "velocity" or "data" for `RectifiedFlow`.

    Raises:
        ValueError: if it cannot predict that; when called, if sigma or the prediction has another shape than it should.
    """

    network: Callable[..., Tensor]
    process: Process
    prediction: str = "noise"

    def __post_init__(self) -> None:
        if self.prediction not in self.process.predictions:
            raise ValueError(
                f"prediction = {self.prediction!r}: a network of {type(self.process).__name__} predicts one of "
                f"{', '.join(self.process.predictions)}"
            )

    def __call__(self, x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        x_t, t = self.process.seen(x, sigma)
        prediction = self.network(x_t, t, **extra_args)
        check_like(prediction, x.shape, f"network must return its prediction of {self.prediction}")
        alpha_t, sigma_t, _ = self.process.scales(sigma)
        return TO_DATA[self.prediction](x_t, prediction, _per_image(alpha_t, x), _per_image(sigma_t, x)).to(x.dtype)


def classifier_free(
    model: Model,
    condition: Mapping[str, Tensor],
    unconditional: Mapping[str, Tensor],
    scale: float | Callable[[float], float],
) -> Model:
    """Classifier-free guidance: denoised = D(unconditional) + scale (D(condition) - D(unconditional)).

    Ho and Salimans 2022, arXiv 2207.12598. Both are evaluated in one call on a batch of 2 B images, unconditional ones
    first. Where the scale is 1 or 0, only the one that counts is evaluated.

    Args:
        model: any denoiser. Arguments in `extra_args` that have an entry for each image are repeated for it.
        condition: what it is given by name, `model(x, sigma, **condition)`; a first dimension of 1 serves all images.
        unconditional: the same for no condition, or for a negative one.
        scale: 1 is no guidance. Or a function of the level, such as `Guidance.over` gives; that reads the level from
            the device once an evaluation, the same for all images of a batch.

    Raises:
        ValueError: naming what does not fit, here or when called.
    """
    if not callable(scale):
        _finite_scale(scale)
    if condition.keys() != unconditional.keys():
        raise ValueError(
            f"condition and unconditional must name the same arguments, not {sorted(condition)} and "
            f"{sorted(unconditional)}"
        )

    def guided(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        w = _finite_scale(scale(float(sigma[0]))) if callable(scale) else scale
        if w in (0, 1):
            return model(x, sigma, **extra_args, **_for_each_image(condition if w else unconditional, x))
        pair = [_for_each_image(unconditional, x), _for_each_image(condition, x)]
        both = {name: _joined(name, *(entries[name] for entries in pair)) for name in condition}
        repeated = {name: torch.cat([v, v]) if _is_batch(v, x) else v for name, v in extra_args.items()}
        without, given = model(torch.cat([x, x]), torch.cat([sigma, sigma]), **repeated, **both).chunk(2)
        return without.lerp(given, w)

    return guided


def classifier_guided(model: Model, log_prob: Callable[[Tensor, Tensor], Tensor], process: VP, scale: float) -> Model:
    """Classifier guidance: denoised = D + scale sigma^2 times the gradient of log p(c | x) with respect to x.

    Dhariwal and Nichol 2021, arXiv 2105.05233. With scale 1 and the exact p it is the denoiser of class c.

    Args:
        model: any denoiser in EDM space.
        log_prob: `log_prob(x_t, t) -> log p(c | x_t)`, [B]: a classifier of noisy images at the class of each,
            as `lambda x, t: classifier(x, t).log_softmax(1)[:, c]`. It is differentiated in inference mode, too.
        process: what x_t and t are to it.
        scale: 0 is no guidance.

    Raises:
        ValueError: if the scale is not finite or the process is no `VP`, or, when called, if log_prob does not return
            [B] or does not depend on x_t.
    """
    scale = _finite_scale(scale)
    if not isinstance(process, VP):  # its factor sigma^2 / alpha has no value at pure noise
        raise ValueError(f"classifier guidance needs a VP process, not {type(process).__name__}")

    def guided(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
        _check_sigma(sigma, x)
        denoised = model(x, sigma, **extra_args)
        with torch.inference_mode(False), torch.enable_grad():
            x_in = x.detach().clone().requires_grad_()
            value = log_prob(*process.seen(x_in, sigma.detach().clone()))
            if not isinstance(value, Tensor) or value.shape != x.shape[:1] or not value.requires_grad:
                raise ValueError(
                    f"log_prob must return a number for each image, of shape [{len(x)}], that depends on x_t through "
                    f"operations of torch; it returned {value!r}"
                )
            (gradient,) = torch.autograd.grad(value.sum(), x_in)
        return (denoised + _per_image(scale * _exact(sigma) ** 2, x) * gradient).to(x.dtype)

    return guided


# Precision and shapes


def _exact_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # which MPS does not have


def _exact(value: Tensor | float) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.tensor(value, dtype=torch.float64)
    return value.to(_exact_dtype(value.device))


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _per_image(values: Tensor, x: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], to be multiplied with x of shape [B, C, ...]."""
    return per_image(values.to(_wide(x)), x)


def _is_batch(value: Any, x: Tensor) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(x)


def _for_each_image(condition: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """A condition with as many entries as there are images.

    Raises:
        ValueError: naming an argument that is no tensor of one entry or of as many as images.
    """
    entries = {}
    for name, value in condition.items():
        if not isinstance(value, Tensor) or not value.ndim or len(value) not in (1, len(x)):
            got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"condition {name!r} must be a tensor of 1 or {len(x)} entries, one for each image: {got}")
        entries[name] = value if len(value) == len(x) else value.expand(len(x), *value.shape[1:])
    return entries


def _joined(name: str, unconditional: Tensor, condition: Tensor) -> Tensor:
    if unconditional.shape != condition.shape:
        raise ValueError(
            f"condition {name!r} has shape {list(condition.shape)} and without condition {list(unconditional.shape)}: "
            "one batch needs the same; pad the shorter one"
        )
    return torch.cat([unconditional, condition])


# Checks


def _check_sigma(sigma: Any, x: Tensor) -> None:
    if not isinstance(sigma, Tensor) or sigma.shape != x.shape[:1]:
        got = f"shape {list(sigma.shape)}" if isinstance(sigma, Tensor) else repr(sigma)
        raise ValueError(f"sigma must be a tensor with a level for each image, of shape [{len(x)}]; got {got}")


def _finite_scale(scale: float) -> float:
    try:
        finite = math.isfinite(scale)
    except OverflowError:  # a whole number of more digits than a float holds
        finite = False
    if not finite:
        raise ValueError(f"scale = {shortened(scale)} must be a finite number")
    return scale


def _check_times(t_min: float, t_max: float) -> None:
    if not 0 < t_min < t_max <= 1:
        raise ValueError(f"t_min = {t_min} and t_max = {t_max} must be times with 0 < t_min < t_max <= 1")


def _shares(name: str, given: Tensor | Sequence[float]) -> Tensor:
    """Numbers between 0 and 1, in float64 on the CPU."""
    values = torch.as_tensor(given, dtype=torch.float64, device="cpu").detach()
    if values.ndim != 1 or len(values) < 2:
        raise ValueError(f"{name} must hold a number for each of two or more steps, got shape {list(values.shape)}")
    for step, value in enumerate(values.tolist()):
        if not 0 < value < 1:
            hint = ": leave out a last step that is pure noise" if step == len(values) - 1 and value in (0, 1) else ""
            raise ValueError(f"{name}[{step}] = {value} must lie between 0 and 1{hint}")
    return values
