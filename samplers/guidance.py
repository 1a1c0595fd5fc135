"""Classifier-free guidance as a function of the noise level, and what can be done to a guided prediction.

    D = D_u + w (D_c - D_u)

with the predictions of the clean sample D_c for the prompt and D_u without it. J. Ho, T. Salimans: Classifier-Free
Diffusion Guidance. 2022, arXiv 2207.12598. A `Guidance` says how the scale w changes along a run. Where it is 1, D is
D_c, and an evaluation takes one pass of the network instead of two.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import read_number, shortened
from .integrate import per_image
from .levels import SAME_LEVEL, pure_noise

NONE = 1.0
"""The scale at which there is no guidance."""

INTERVAL = (5.42, 0.28)
"""Levels between which Kynkäänniemi et al. 2024 guide SDXL, in EDM space."""

RAMPS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda u, power: u,
    "cosine": lambda u, power: (1 - math.cos(math.pi * u)) / 2,
    "power": lambda u, power: u**power,
}
"""How far a ramp has come, from 0 to 1, at a share u of its length."""

SHAPES = ("constant", "interval", *RAMPS, "list")

_BOUNDS = {
    "cfg": (-100.0, 100.0),
    "cfg_end": (-100.0, 100.0),
    "sigma_start": (0.0, math.inf),
    "sigma_end": (0.0, math.inf),
    "power": (0.01, 100.0),
    "rescale": (0.0, 1.0),
    "agreement": (-1.0, 1.0),
    "threshold": (0.0, 1.0),
    "threshold_floor": (0.01, math.inf),
}


@dataclass(frozen=True)
class Guidance:
    """The scale of guidance along a run, and what is done to the guided predictions.

    Raises:
        ValueError: naming the field at fault.
    """

    shape: str = "constant"
    """`constant`. `interval`: `cfg` between two levels and none elsewhere (T. Kynkäänniemi et al. 2024, arXiv
    2404.07724). `linear`, `cosine`, `power`: a ramp from `cfg` to `cfg_end` (X. Wang et al. 2024, arXiv 2404.13040).
    `list`: `values`."""

    cfg: float = 7.5
    """The scale w; with `cfg_pp` the lambda of that paper, 0 to 1."""

    cfg_end: float = NONE
    """Where a ramp ends."""

    sigma_start: float = 0.0
    """Level above which an interval or ramp has not begun. 0: that of `INTERVAL`, of the same SNR in rectified flow; a
    ramp begins with pure noise."""

    sigma_end: float = 0.0
    """Level at and below which it is over. 0: as above; a ramp ends on the clean image."""

    power: float = 2.0
    """Exponent of the ramp `power`: above 1 it stays near `cfg` for longer."""

    values: tuple[float, ...] = ()
    """Scales of the steps of a run, for the shape `list`. If there are fewer than steps, the last one stays. A run that
    is split in two counts its steps anew: give each part its own list."""

    cfg_pp: bool = False
    """CFG++ (H. Chung et al. 2024, arXiv 2406.08070): guide the prediction and add the noise of the unconditional one
    again, x_t = alpha_t D + sigma_t eps_u. A first-order step with this scale does just that:

        w = lambda / (1 - e^-h)        h: length of the step in log(alpha / sigma)
    """

    rescale: float = 0.0
    """See `rescaled`."""

    agreement: float = 1.0
    """Guidance ends, at a level and all below it, once both predictions agree this much (`agreement_of`) in every image
    of a batch: adaptive guidance, A. Castillo et al. 2023, arXiv 2312.12487. 1: never."""

    threshold: float = 1.0
    """See `thresholded`. 1: not at all."""

    threshold_floor: float = 1.0
    """The range of pixels: values within it stay."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape = {shortened(self.shape)} must be one of {', '.join(SHAPES)}")
        for name, bounds in _BOUNDS.items():
            read_number(name, getattr(self, name), *bounds)
        if self.shape == "list" and not self.values:
            raise ValueError("values must hold at least one number for the shape list: one for each step, as 7.5, 5, 1")
        for k, value in enumerate(self.values):
            read_number(f"values[{k}]", value, -1e6, 1e6)
        if 0 < self.sigma_start <= self.sigma_end:
            raise ValueError(f"sigma_start = {self.sigma_start:g} must be above sigma_end = {self.sigma_end:g}")

    @property
    def strongest(self) -> float:
        """The scale with the most effect: that of a list, or `cfg`."""
        return max(self.values, key=abs) if self.shape == "list" else self.cfg

    @property
    def varies(self) -> bool:
        """Whether the scale is not the same at all levels."""
        return self.shape != "constant" or self.cfg_pp

    def over(
        self, sigmas: Sequence[float], *, flow: bool = False, elapsed: Callable[[float], float] | None = None
    ) -> Callable[[float], float]:
        """The scale w at a level sigma of a run.

        Args:
            sigmas: the levels of the run, in the order they are gone through.
            flow: levels of a rectified-flow model.
            elapsed: how much of sampling is over at a level, from 0 at pure noise to 1 at the clean image, in which
                ramps run. Without it the share of the run's own way in sigma / (1 + sigma) (in rectified flow sigma).

        Raises:
            ValueError: if an interval ends before it begins.
        """
        steps = list(itertools.pairwise(sigmas))
        if not steps:  # and no evaluation either
            return lambda sigma: self.strongest
        done = elapsed or _elapsed_of_run(sigmas, flow)
        start, end = _interval(flow) if self.shape == "interval" else (math.inf, 0.0)
        start, end = self.sigma_start or start, self.sigma_end or end
        if start <= end:
            raise ValueError(f"sigma_start = {start:g} must be above sigma_end = {end:g}")

        def scale(sigma: float) -> float:
            step = _step_at(sigma, sigmas)
            if self.shape == "interval" and not end < sigma <= start * (1 + SAME_LEVEL):
                return NONE
            w = self.cfg
            if self.shape == "list":
                w = self.values[min(step, len(self.values) - 1)]
            elif self.shape in RAMPS:
                first, last = 0.0 if start == math.inf else done(start), done(end) if end else 1.0
                u = (done(sigma) - first) / (last - first) if last > first else float(sigma <= end)  # else: a jump
                u = min(1.0, max(0.0, u))
                w += (self.cfg_end - self.cfg) * RAMPS[self.shape](u, self.power)
            return w / _first_order_share(*steps[step], flow) if self.cfg_pp else w

        return scale

    def scales(
        self, sigmas: Sequence[float], *, flow: bool = False, elapsed: Callable[[float], float] | None = None
    ) -> list[float]:
        """The scale at the start of each step, as `over`."""
        return [*map(self.over(sigmas, flow=flow, elapsed=elapsed), sigmas[:-1])]


def passes(scales: Sequence[float]) -> int:
    """Passes of the network for evaluations with these scales: one without guidance, up to rounding, else two."""
    return sum(1 if math.isclose(w, NONE) else 2 for w in scales)


def rescaled(denoised: Tensor, conditional: Tensor, x: Tensor, sigma: Tensor, amount: float, *, flow: bool) -> Tensor:
    """The guided prediction with its contrast brought back to that of the conditional one.

        v' = ((1 - amount) + amount std(v_c) / std(v)) v

    with the standard deviation of each image and v the velocity, k x - D times a factor that cancels: k = 1 / (1 +
    sigma^2) in EDM space, 1 in rectified flow. S. Lin et al. 2023, arXiv 2305.08891, section 3.4.

    Args:
        denoised: the guided prediction of the clean sample, [B, ...], as the other tensors.
        conditional: that for the prompt.
        x: the sample that was evaluated.
        sigma: its level, [B].
        amount: 0 leaves it, 1 is all; the paper takes 0.7.
    """
    k = 1.0 if flow else 1 / (1 + per_image(sigma, x) ** 2)
    v, v_c = k * x - denoised, k * x - conditional
    ratio = v_c.flatten(1).std(dim=1) / v.flatten(1).std(dim=1)
    return k * x - (1 - amount + amount * per_image(ratio, x)) * v


def thresholded(denoised: Tensor, percentile: float, floor: float = 1.0) -> Tensor:
    """The prediction of pixels in [-floor, floor] without the over-saturation of strong guidance.

        D' = clip(D, -s, s) floor / s,     s = max(floor, percentile of |D| in an image)

    C. Saharia et al. 2022 (Imagen), arXiv 2205.11487, section 2.3. The channels of a latent are not pixels: their range
    means nothing, and clipping them takes detail away.
    """
    size = denoised.flatten(1).abs().float()
    rank = max(1, math.ceil(percentile * size.shape[1]))  # torch.quantile ends at 16 million values
    s = per_image(size.kthvalue(rank, dim=1).values.clamp(min=floor), denoised).to(denoised)
    return denoised.clamp(-s, s) * (floor / s)


def agreement_of(conditional: Tensor, unconditional: Tensor) -> Tensor:
    """Cosine of the angle between the two predictions of the clean sample, [B].

    It rises along a run to 1. That of the predicted noises, which the paper takes, does not tell: at the highest level
    both are the noise that the run began with (0.999 at the first step of the demo model, 0.955 at the last).
    """
    return torch.cosine_similarity(conditional.flatten(1).float(), unconditional.flatten(1).float(), dim=1)


def _step_at(sigma: float, sigmas: Sequence[float]) -> int:
    """The step of a run that evaluates at a level: the last one that begins at or before it."""
    way = 1 if sigmas[-1] < sigmas[0] else -1
    begun = sum(way * (start - sigma) >= -SAME_LEVEL * sigma for start in sigmas[:-1])
    return max(begun, 1) - 1


def _first_order_share(s: float, t: float, flow: bool) -> float:
    """1 - e^-h for the step from s to t: the share of the prediction in a first-order step."""
    alpha_s, alpha_t = (1 - pure_noise(s), 1 - pure_noise(t)) if flow else (1.0, 1.0)
    left = t * alpha_s / (s * alpha_t) if s and alpha_t else math.inf  # e^-h; inf on the way up to pure noise
    return 1 - left if left != 1 else 1.0  # a step of no length changes nothing


def _elapsed_of_run(sigmas: Sequence[float], flow: bool) -> Callable[[float], float]:
    def clock(sigma: float) -> float:
        return sigma if flow else sigma / (1 + sigma)

    noisy, clean = clock(max(sigmas)), clock(min(sigmas))
    return lambda sigma: (noisy - clock(sigma)) / (noisy - clean) if noisy > clean else 0.0


def _interval(flow: bool) -> tuple[float, float]:
    """`INTERVAL` as levels of a model: of the same SNR in rectified flow."""
    high, low = INTERVAL
    return (high / (1 + high), low / (1 + low)) if flow else (high, low)
