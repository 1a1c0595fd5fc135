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

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import shortened
from .integrate import Guided, Model, check_like
from .processes import VP, Process, check_sigma, exact, wide_per_image

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
        return TO_DATA[self.prediction](x_t, prediction, wide_per_image(alpha_t, x), wide_per_image(sigma_t, x)).to(
            x.dtype
        )


def classifier_free(
    model: Model,
    condition: Mapping[str, Tensor],
    unconditional: Mapping[str, Tensor],
    scale: float | Callable[[float], float],
    *,
    apart: bool = False,
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
        apart: answer with `Guided`, which samplers with CFG++ need. The unconditional one is then always evaluated.

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

    def guided(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor | Guided:
        w = _finite_scale(scale(float(sigma[0]))) if callable(scale) else scale
        if w == 0 or (w == 1 and not apart):
            one = model(x, sigma, **extra_args, **_for_each_image(condition if w else unconditional, x))
            return Guided(one, one) if apart else one
        pair = [_for_each_image(unconditional, x), _for_each_image(condition, x)]
        both = {name: _joined(name, *(entries[name] for entries in pair)) for name in condition}
        repeated = {name: torch.cat([v, v]) if _is_batch(v, x) else v for name, v in extra_args.items()}
        without, given = model(torch.cat([x, x]), torch.cat([sigma, sigma]), **repeated, **both).chunk(2)
        denoised = without.lerp(given, w)
        return Guided(denoised, without) if apart else denoised

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
        check_sigma(sigma, x)
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
        return (denoised + wide_per_image(scale * exact(sigma) ** 2, x) * gradient).to(x.dtype)

    return guided


# Conditions


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


def _finite_scale(scale: float) -> float:
    try:
        finite = math.isfinite(scale)
    except OverflowError:  # a whole number of more digits than a float holds
        finite = False
    if not finite:
        raise ValueError(f"scale = {shortened(scale)} must be a finite number")
    return scale
