"""The noise that stochastic samplers add: one Brownian path per image."""

from __future__ import annotations

import functools
import math
import operator
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .checks import counted
from .levels import Levels
from .phi import Scalar, value
from .plan import DENOISED, Plan

_LEAF = 0.25  # an interval of lambda that is longer is halved before a level is placed in it,
_STEPS = 4  # and so is one that is longer than so many steps
_WHITE_LEAF = 2.0**-6  # for white noise, where the places between the levels cost nothing
_REACH = 4.0  # where the axis of lambda is cut first, on either side of 0
_CLOSEST = 1e-8  # the shortest step in lambda: float32 still holds its noise to a thousandth


class BrownianNoise:
    """`noise(sigma, sigma_next)`: what the Brownian path of each image gains between two levels, at unit variance.

    The clock of the path W is the SNR, e^(2 lambda). The noise of the SDE (eta = 1), seen in units of the data,
    accumulates on just that clock: a step gets what its two halves get together. For another eta this holds in the
    limit of small steps. What is kept is X = e^-lambda W, the stationary Ornstein-Uhlenbeck process of unit variance,
    with the correlation e^-h of two places h apart:

        noise(s, t) = (X_t - e^-h X_s) / sqrt(1 - e^-2h),    h = lambda_t - lambda_s.

    X is drawn place by place, each given the nearest places that are known, a before it and b after it, or at infinity
    if there is none. With f(d) = 1 - e^-2d and z of unit variance,

        X = (e^-a f(b) X_before + e^-b f(a) X_after) / f(a + b) + sqrt(f(a) f(b) / f(a + b)) z.

    The order of the places makes the skeleton that all runs share: 0, then 4, 8, 16 ... or -4, -8, -16 ..., as far out
    as needed, then the middle of the interval that a level lies in, again and again, until the interval is no longer
    than 1/4 and than four steps, or `coarseness` times that. In it the level itself is placed. So what a step gets is
    exact in distribution and takes two to three draws, runs of different lengths agree at the skeleton, and that is the
    finer the more the steps.

    The path of an image depends on its seed and on the shape of one image: not on the batch, or on the dtype or the
    device of `x`. It is drawn on the CPU in float32, or on `device`, whose generator gives other numbers.

    Args:
        x: a batch like the samples, [B, C, ...].
        seed: an integer, from which and the number of an image in the batch its seed is made; or a seed per image.
        flow: levels of a rectified-flow model.
        device: where to draw; the result is always on the device of x, in its dtype.
        white: noise of each level by itself, independent of that of all others: for samplers that keep nothing of a
            sample but the prediction, so that there is no path to follow. It takes one draw.
        ends: sigmas of the first and the last level of a run. They are placed before the levels between them, so that
            the parts of a run, each with the level where they meet among its ends, follow one path.
        coarseness: how many times as long the intervals of the skeleton may be.

    Raises:
        ValueError: if a seed is no whole number, or there are not as many as images.
    """

    draws: int
    """How many times as many normals as x has numbers were drawn."""

    def __init__(
        self,
        x: Tensor,
        seed: int | Sequence[int],
        *,
        flow: bool = False,
        device: torch.device | str = "cpu",
        white: bool = False,
        ends: Sequence[Scalar] = (),
        coarseness: float = 1.0,
    ):
        self._seeds = _seeds_of_images(seed, len(x))
        self._shape, self._dtype, self._target = x.shape, x.dtype, x.device
        self._flow, self._white, self._coarseness = flow, white, coarseness
        self._device = torch.device(device)
        self._places: dict[int, _Place] = {}
        self._ways: dict[float, list[_Place]] = {}  # of the last levels asked for
        self._known: dict[_Place, Tensor] = {}  # X at the places on them
        self._spare: list[Tensor] = []  # memory of what is not needed any more, to draw in
        self._generator: torch.Generator | None = None
        self.draws = 0
        for sigma in ends:
            if math.isfinite(lam := _lambda(value(sigma), flow)):
                self._way(lam, self._longest(math.inf))

    def __call__(self, sigma: Scalar, sigma_next: Scalar) -> Tensor:
        (first, c), *others = self._terms(sigma, sigma_next)
        noise = first * c
        for term, c in others:
            noise.add_(term, alpha=c)
        if self._target.type == "cuda" and not noise.is_cuda:
            noise = noise.to(self._dtype).pin_memory()  # so that the copy need not wait for the network
        return noise.to(self._target, self._dtype, non_blocking=True)

    def add(self, x: Tensor, scale: float, sigma: Scalar, sigma_next: Scalar, *, in_place: bool = False) -> Tensor:
        """x + scale noise(sigma, sigma_next): where x is as the path is, in float32 and at the same place, it is added
        term by term, without being made by itself."""
        if (x.dtype, x.device) != (torch.float32, self._device):
            return x + scale * self(sigma, sigma_next)
        (first, c), *others = self._terms(sigma, sigma_next)
        x = x.add_(first, alpha=scale * c) if in_place else x.add(first, alpha=scale * c)
        for term, c in others:
            x.add_(term, alpha=scale * c)
        return x

    def _terms(self, sigma: Scalar, sigma_next: Scalar) -> list[tuple[Tensor, float]]:
        """Noise as a sum of tensors times numbers: (X_t - e^-h X_s) / sqrt(1 - e^-2h), or one draw."""
        s, t = value(sigma), value(sigma_next)
        low, high = sorted((_lambda(s, self._flow), _lambda(t, self._flow)))
        if high == math.inf:
            raise ValueError(f"no noise for the step from sigma = {s:g} to {t:g}: it ends without any")
        h = high - low if high > low else 0.0
        if h < _CLOSEST:
            raise ValueError(f"no noise between sigma = {s:.9g} and {t:.9g}: the levels are too close, use fewer steps")
        longest = self._longest(h)
        self._ways = {lam: self._ways.get(lam) or self._way(lam, longest) for lam in (low, high) if lam > -math.inf}
        if self._white:
            return [(self._normals(self._ways[high][-1].key), 1.0)]
        needed = dict.fromkeys(place for way in self._ways.values() for place in way)
        # a run rarely comes back to others, and new ones in their memory are in the processor's cache
        self._spare += [self._known.pop(place) for place in self._known.keys() - needed]
        for place in needed:
            if place not in self._known:
                self._known[place] = self._draw(place)
        *start, end = (self._known[way[-1]] for way in self._ways.values())
        scale = 1 / math.sqrt(_added(h))
        return [(end, scale), *((x, -math.exp(-h) * scale) for x in start)]  # no start at lambda = -inf

    def close(self) -> None:
        """Let go of all that is kept for the next draw; a later draw makes it again."""
        self._known.clear()
        self._spare.clear()

    def _longest(self, h: float) -> float:
        """How long an interval may be in which a level of a step of h is placed."""
        return _WHITE_LEAF if self._white else self._coarseness * min(_LEAF, _STEPS * h)

    def _way(self, lam: float, longest: float) -> list[_Place]:
        """The places up to that of `lam` in the order in which they are drawn, each between two of those before it."""
        before, after, key = _START, _END, 1
        way: list[_Place] = []
        while True:
            place = self._places.get(key)
            if place is None:
                middle = after.lam - before.lam > longest
                place = _Place(_middle(before.lam, after.lam) if middle else lam, key, before, after)
                self._places[key] = place
            way.append(place)
            if lam == place.lam:
                return way
            if lam < place.lam:
                after, key = place, 2 * key
            else:
                before, key = place, 2 * key + 1

    def _draw(self, place: _Place) -> Tensor:
        """X at a place, given its neighbours."""
        assert place.before is not None and place.after is not None
        a, b = place.lam - place.before.lam, place.after.lam - place.lam
        added_a, added_b, whole = _added(a), _added(b), _added(a + b)
        x = self._normals(place.key, math.sqrt(added_a * added_b / whole))
        if a < math.inf:
            x.add_(self._known[place.before], alpha=math.exp(-a) * added_b / whole)
        if b < math.inf:
            x.add_(self._known[place.after], alpha=math.exp(-b) * added_a / whole)
        return x

    def _normals(self, key: int, deviation: float = 1.0) -> Tensor:
        """Normals that belong to a place, [B, C, ...]."""
        x = self._spare.pop() if self._spare else torch.empty(self._shape, dtype=torch.float32, device=self._device)
        if self._generator is None:
            self._generator = torch.Generator(self._device)
        for image, seed in zip(x.unbind(), self._seeds, strict=True):
            image.normal_(std=deviation, generator=self._generator.manual_seed(_seed_of_normals(seed, key)))
        self.draws += 1
        return x


def noise_for(
    plan: Plan, x: Tensor, seed: int | Sequence[int], *, flow: bool = False, device: torch.device | str = "cpu"
) -> BrownianNoise:
    """The noise that a plan is run with. The plan must add some. Where a step adds it three times, at two places
    within and at its end, the skeleton is four times as coarse: its places would be too many beside the levels."""
    adding = [stage for stage in plan if stage.noise]
    white = all(stage.update.terms.keys() <= DENOISED.terms.keys() for stage in adding)
    first, *_, last = (stage.noise for stage in (*adding[:1], *adding))
    assert first is not None and last is not None
    within = Counter(stage.step for stage in adding if not stage.completes)
    ends, coarseness = (first.sigma, last.sigma_next), 4.0 if max(within.values(), default=0) > 1 else 1.0
    return BrownianNoise(x, seed, flow=flow, device=device, white=white, ends=ends, coarseness=coarseness)


@dataclass(eq=False, slots=True)
class _Place:
    """A place of the path and its neighbours, the nearest places that are drawn before it."""

    lam: float
    key: int
    """Its number in the order: 1 for the first, then 2 before and 3 after it, 4 to 7 between these, and so on."""
    before: _Place | None = None
    after: _Place | None = None


_START, _END = _Place(-math.inf, 0), _Place(math.inf, 0)


@functools.lru_cache(maxsize=1024)
def _lambda(sigma: float, flow: bool) -> float:
    return value(Levels((), flow).at_sigma(sigma).lam)


def _middle(low: float, high: float) -> float:
    """Where an interval of lambda is cut in two."""
    if low == -math.inf:
        return 0.0 if high == math.inf else min(2 * high, -_REACH)
    return max(2 * low, _REACH) if high == math.inf else (low + high) / 2


def _added(h: float) -> float:
    """1 - e^-2h, the share of X that does not come from a place h away."""
    return -math.expm1(-2 * h)


# Seeds


def random_seed() -> int:
    """A seed from torch's own generator: `torch.manual_seed` makes it repeat."""
    return int(torch.randint(2**62, ()).item())


def whole_number(seed: Any) -> int:
    """The seed as an integer.

    Raises:
        ValueError: if it is none.
    """
    try:
        return operator.index(seed)
    except TypeError:
        raise ValueError(f"seed = {seed!r} must be a whole number") from None


def mix(seed: int, number: int) -> int:
    """A seed of 64 bits from a seed and a number, without a pattern in either: SplitMix64, twice.

    Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators. OOPSLA 2014.
    """
    mixed = 0
    for part in (seed, number):
        mixed = (mixed + part + 0x9E3779B97F4A7C15) % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
    return mixed


def _seeds_of_images(seed: int | Sequence[int], count: int) -> list[int]:
    """A seed of 64 bits for each image."""
    if not isinstance(seed, Sequence) or isinstance(seed, str):
        return [mix(whole_number(seed), k) for k in range(count)]
    if len(seed) != count:
        raise ValueError(
            f"seed holds {counted(len(seed), 'number')} for {counted(count, 'image')}: give one for each, or one for "
            "all"
        )
    return [whole_number(s) % 2**64 for s in seed]


def _seed_of_normals(seed: int, key: int) -> int:
    """The seed of the normals of a place, a number of 32 bits: torch's generator on the CPU looks at no more.

    For each image it is a permutation of the keys, so that no normals serve two places of a path. Its rounds are the
    finisher of MurmurHash3 (Appleby 2011).
    """
    mixed = key % 2**32
    for part in (seed % 2**32, seed >> 32):
        mixed ^= part
        mixed = (mixed ^ mixed >> 16) * 0x85EBCA6B % 2**32
        mixed = (mixed ^ mixed >> 13) * 0xC2B2AE35 % 2**32
        mixed ^= mixed >> 16
    return mixed
