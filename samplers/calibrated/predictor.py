"""The network of AMED: from the model's bottleneck and two levels to the numbers of the step between them.

Z. Zhou, D. Chen, C. Wang, C. Chen: Fast ODE-based Sampling for Diffusion Models in Around 5 Steps. CVPR 2024,
arXiv 2312.00094.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, silu

from ..levels import Levels
from ..phi import value
from ..solvers.amed import IntermediatePoint, end_of_step
from ..solvers.dpm_solver import finite_step
from .tuning import PLAIN, Tuning

_SIDE = 8  # to which a bottleneck is pooled
_CHANNELS = 8  # of the embedding of a level
_HIDDEN, _FEATURES = 128, 4
_EDGE = 1e-3  # distance that r keeps from 0 and 1, where two levels would be one
_FINEST = 1e-3  # relative to the largest: singular values of the embeddings that `start_at` makes use of


class Predictor(nn.Module):
    """About 9,000 parameters: bottleneck 64 -> 128 -> 4, sinusoidal embeddings of both sigmas, three linear heads.

        r in (0, 1),    scale_dir in (1 - a, 1 + a),    scale_time in (1 - b, 1 + b)

    Zhou et al. 2024, arXiv 2312.00094, section 3.3 and appendix.

    Args:
        scale_dir: a; 0 leaves the direction as it is.
        scale_time: b; 0 leaves the time as it is.
    """

    def __init__(self, scale_dir: float = 0.01, scale_time: float = 0.0):
        super().__init__()
        if not (0 <= scale_dir < 1 and 0 <= scale_time < 1):
            raise ValueError(
                f"scale_dir = {scale_dir:g} and scale_time = {scale_time:g} must be at least 0 and below 1"
            )
        self.bounds = scale_dir, scale_time
        self.bottleneck = nn.Sequential(nn.Linear(_SIDE**2, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, _FEATURES))
        self.level = nn.Linear(_CHANNELS, _CHANNELS)
        self.heads = nn.ModuleList(nn.Linear(2 * _CHANNELS + _FEATURES, 1) for _ in range(3))

    def forward(self, bottleneck: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """Numbers [B, 3] (r, scale_dir, scale_time) from `pool`ed bottlenecks [B, 8, 8]."""
        features = self._features(bottleneck, sigma, sigma_next)
        r, *scales = (torch.sigmoid(head(features)) for head in self.heads)
        scales = [1 + bound * (2 * share - 1) for bound, share in zip(self.bounds, scales, strict=True)]
        return torch.cat([r.clamp(_EDGE, 1 - _EDGE), *scales], dim=1)

    def _features(self, bottleneck: Tensor, sigma: float, sigma_next: float) -> Tensor:
        """[B, 4 + 16], those of the bottleneck first."""
        embedded = silu(self.level(torch.stack([embed(s).to(bottleneck) for s in (sigma, sigma_next)]))).flatten()
        return torch.cat([self.bottleneck(bottleneck.flatten(1)), embedded.expand(len(bottleneck), -1)], dim=1)

    @classmethod
    def giving(
        cls, levels: Levels, tunings: Sequence[Tuning], scale_dir: float = 0.01, scale_time: float = 0.0
    ) -> Predictor:
        """One that starts at these numbers (`start_at`), with bounds that are wider than asked for where they must be.

        Raises:
            ValueError: if a scale is 2 or above, or not above 0.
        """
        inserted = tunings[1 : 2 * ((len(levels) - 1) // 2) : 2]
        far = (max((abs(value(tuning[k]) - 1) for tuning in inserted), default=0.0) for k in range(2))
        bounds = (max(asked, min(0.99, 1.5 * most)) for asked, most in zip((scale_dir, scale_time), far, strict=True))
        predictor = cls(*bounds)
        predictor.start_at(levels, tunings)
        return predictor

    @torch.no_grad()
    def start_at(self, levels: Levels, tunings: Sequence[Tuning]) -> None:
        """Set the heads so that `fixed` gives these inserted levels, and their scales.

        The heads are linear in the embeddings of the levels: theirs are the weights of least norm that do it, and those
        of the bottleneck are 0. Training then begins at these numbers instead of r = 1/2. Of many steps the embeddings
        are so much alike that only huge weights would do it, which one update would throw far off: from about 12
        evaluations on the numbers are met nearly.

        Raises:
            ValueError: if a number lies outside of what this predictor can give.
        """
        zeros = pooled_for(self, None, 1)
        features, wanted = [], []
        for i in range(0, len(levels) - 2, 2):
            s, m, end = levels[i], levels[i + 1], end_of_step(levels, i)
            if not finite_step(s, end):
                continue
            tuning = tunings[i + 1]
            r = value((m.lam - s.lam) / (end.lam - s.lam))
            shares = [(v - 1) / (2 * b) + 0.5 if b else 0.5 for v, b in zip(tuning[:2], self.bounds, strict=True)]
            if not all(0 < share < 1 for share in (r, *shares)):
                raise ValueError(
                    f"the numbers of level {i + 1} (r = {r:.3g}, scale_dir = {tuning.scale_dir:.3g}, scale_time = "
                    f"{tuning.scale_time:.3g}) lie outside the bounds {self.bounds} of the predictor's scales"
                )
            wanted.append([math.log(share / (1 - share)) for share in (r, *shares)])
            features.append(self._features(zeros, value(s.sigma), value(end.sigma))[0])
        if not wanted:
            return
        seen = torch.stack(features).double().cpu()
        logits = torch.tensor(wanted, dtype=torch.float64)
        embedded = torch.cat([seen[:, _FEATURES:], torch.ones(len(seen), 1, dtype=torch.float64)], dim=1)
        heads = (head for head in self.heads if isinstance(head, nn.Linear))
        for head, target in zip(heads, logits.T, strict=True):
            head.weight[0, :_FEATURES] = 0
            missing = target - seen @ head.weight[0].double().cpu() - head.bias.double().cpu()
            fit = torch.linalg.lstsq(embedded, missing[:, None], rcond=_FINEST, driver="gelsd")
            *weights, bias = fit.solution[:, 0]
            head.weight[0, _FEATURES:].add_(torch.stack(weights).to(head.weight))
            head.bias.add_(bias.to(head.bias))

    def middles(self, bottleneck: Tensor, sigma: float, sigma_next: float) -> list[IntermediatePoint]:
        """The numbers as scalars, one `IntermediatePoint` per image. With gradients if they are enabled, else plain."""
        rows = self(bottleneck, sigma, sigma_next).double()
        if rows.requires_grad:
            return [IntermediatePoint(*row.unbind()) for row in rows.cpu()]
        return [IntermediatePoint(*row) for row in rows.tolist()]

    def fixed(self, levels: Levels, tunings: Sequence[Tuning] = ()) -> tuple[Levels, list[Tuning]]:
        """Levels and numbers of a whole run without a bottleneck (zeros): a fixed plan, which costs nothing to follow.

        `levels` are those of `amed`, of which every second is replaced, and its scales among `tunings`.
        """
        zeros = pooled_for(self, None, 1)
        sigmas, tunings = list(levels.sigmas), list(tunings) or [PLAIN] * (len(levels) - 1)
        for i in range(0, len(levels) - 2, 2):
            s, end = levels[i], end_of_step(levels, i)
            if finite_step(s, end):
                (middle,) = self.middles(zeros, value(s.sigma), value(end.sigma))
                sigmas[i + 1] = levels.between(s, end, middle.r).sigma
                tunings[i + 1] = middle.over(tunings[i + 1])
        return Levels(tuple(sigmas), levels.flow), tunings


def embed(sigma: float) -> Tensor:
    """Sinusoidal embedding of a sigma, [8]: sin and cos of sigma 10000^(-k/3), k = 0 ... 3."""
    angles = sigma * 10_000.0 ** -torch.linspace(0, 1, _CHANNELS // 2)
    return torch.cat([angles.sin(), angles.cos()])


def pool(bottleneck: Tensor) -> Tensor:
    """What the predictor sees of a bottleneck [B, C, H, W]: the mean over channels, pooled to [B, 8, 8]."""
    from einops import reduce  # comes with the host; whoever has no predictor needs none

    return adaptive_avg_pool2d(reduce(bottleneck.float(), "b c h w -> b h w", "mean"), _SIDE)


def pooled_for(predictor: nn.Module, bottleneck: Tensor | None, batch: int) -> Tensor:
    """A bottleneck [B, C, H, W] as a predictor takes it, [B, 8, 8]; zeros for a `batch` where there is none."""
    weight = next(predictor.parameters())
    return weight.new_zeros(batch, _SIDE, _SIDE) if bottleneck is None else pool(bottleneck).to(weight)
