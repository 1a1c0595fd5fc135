"""Fresh noise for the stochastic samplers: one Brownian path per image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .levels import Levels
from .phi import value

_GRID = 2.0**-20  # to which the place of a level within its cell is rounded
_TOLERANCE = 1e-24  # of the trees: so small that they round no multiple of the grid, and end on it exactly
_HORIZON = 10  # cells that a step sums at most, out of lambda = -inf too: the rest is e^-20 of it
_CACHE = 16  # samples that a tree keeps: most of those on the way from its root to a place


class BrownianNoise:
    """`noise(sigma, sigma_next)`: what the Brownian path of each image gains between two levels, at unit variance.

    The clock of the path is the SNR, e^(2 lambda). The noise of the SDE (eta = 1), seen in units of the data,
    accumulates on just that clock: a step gets what its two halves get together, so runs with n and 2n steps follow
    the same path. For another eta this holds in the limit of small steps.

    The path of image k depends on the seed, on k and on the shape of one image: not on the batch, the schedule, the
    dtype or the device of `x`. It is drawn on the CPU in float32, or on `device`, whose generator gives other numbers.

    The axis of lambda is cut into cells of length 1, each with a `torchsde.BrownianInterval` of its own in halfway
    mode (a Brownian tree), because increments on disjoint intervals are independent. One tree over all levels would
    have to resolve steps that are a 10^-7th of it.

    Args:
        x: a batch like the samples, [B, C, ...].
        seed: any integer; the same seed gives the same noise.
        flow: levels of a rectified-flow model.
        device: where to draw; the result is always on the device of x, in its dtype.

    Raises:
        ImportError: if torchsde is not installed.
    """

    def __init__(self, x: Tensor, seed: int, *, flow: bool = False, device: torch.device | str = "cpu"):
        try:
            from torchsde import BrownianInterval  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError(
                "the noise of stochastic samplers needs torchsde (pip install torchsde), which ComfyUI installs; "
                "or pass a noise_sampler of your own"
            ) from error
        self._interval: Callable[..., Any] = BrownianInterval
        self._count, self._shape = len(x), tuple(x.shape[1:])
        self._dtype, self._target = x.dtype, x.device
        self._seed = seed % 2**64
        self._space = Levels((), flow)
        self._device = torch.device(device)
        self._trees: dict[int, list[Any]] = {}

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        low, high = sorted(value(self._space.at_sigma(s).lam) for s in (sigma, sigma_next))
        if high == math.inf:
            raise ValueError(f"no noise for the step from sigma = {sigma:g} to {sigma_next:g}: it ends without any")
        low = max(low, high - _HORIZON)
        total, variance = None, 0.0
        for cell in range(math.floor(low), math.floor(high) + 1):
            start, end = _place(max(low - cell, 0.0)), _place(min(high - cell, 1.0))
            if end <= start:
                continue
            weight = math.exp(cell - high)  # square root of the SNR that the cell spans, up to a common factor
            gain = torch.stack([tree(start, end) for tree in self._cell(cell)])
            total = gain * weight if total is None else total.add_(gain, alpha=weight)
            variance += weight**2 * (end - start)
        if total is None:
            raise ValueError(
                f"no noise between sigma = {sigma:.9g} and {sigma_next:.9g}: the levels are too close, use fewer steps"
            )
        drawn = total.div_(math.sqrt(variance)).to(self._dtype)
        if self._target.type == "cuda" and not drawn.is_cuda:
            drawn = drawn.pin_memory()  # so that the copy need not wait for the network
        return drawn.to(self._target, non_blocking=True)

    def _cell(self, cell: int) -> list[Any]:
        """The trees of a cell, one per image. Only those of the last two cells are kept."""
        if cell not in self._trees:
            for old in list(self._trees)[:-1]:
                self._forget(old)
            self._trees[cell] = [self._tree(cell, k) for k in range(self._count)]
        return self._trees[cell]

    def _forget(self, cell: int) -> None:
        """Let go of a cell. Its nodes refer to each other: what they cache would wait for the garbage collector."""
        for tree in self._trees.pop(cell):
            getattr(tree, "_increment_and_space_time_levy_area_cache", {}).clear()

    def close(self) -> None:
        """Let go of all samples that are kept for the next draw; a later draw makes them again."""
        for cell in list(self._trees):
            self._forget(cell)

    def _tree(self, cell: int, k: int) -> Any:
        return self._interval(
            0.0,
            1.0,
            size=self._shape,
            dtype=torch.float32,
            device=self._device,
            entropy=(self._seed, k, cell % 2**32),
            tol=_TOLERANCE,
            pool_size=24,
            cache_size=_CACHE,
            halfway_tree=True,
        )


def _place(offset: float) -> float:
    """Where lambda = cell + offset lies on the clock of its cell, 0 ... 1, to the nearest multiple of the grid."""
    return round(math.expm1(2 * offset) / math.expm1(2) / _GRID) * _GRID


def random_seed() -> int:
    """A seed from torch's own generator: `torch.manual_seed` makes it repeat."""
    return int(torch.randint(2**62, ()).item())
