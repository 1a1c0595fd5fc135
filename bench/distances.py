"""How far apart two sets of samples are, as distributions. Each set is a matrix [samples, features]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], float]


def frechet(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance of the two Gaussians that have the means and covariances of the sets.

        |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2))

    Dowson and Landau 1982; the FID of Heusel et al. 2017, arXiv 1706.08500, on these features. Biased upwards, by a
    share of 1/n: compare sets of one size.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.atleast_2d(torch.cov(s.T)) for s in (a, b))
    root = _root(cov_a)
    mixed = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * mixed)


def _root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """Sliced 2-Wasserstein distance of two sets that are projected on directions already, [samples, directions].

    The root of the mean over directions of the squared distance in one dimension, which is that of the quantiles.
    Bonneel et al. 2015. Sets of independent samples of one distribution are about 1 / sqrt(n) apart.
    """
    count = max(len(a), len(b))
    return float((_quantiles(a, count) - _quantiles(b, count)).square().mean().sqrt())


def _quantiles(samples: Tensor, count: int) -> Tensor:
    """The inverse of the distribution function of each column at (k + 1/2) / count."""
    ordered = samples.double().sort(dim=0).values
    places = (torch.arange(count, device=samples.device) + 0.5) / count
    return ordered[(places * len(samples)).long().clamp(max=len(samples) - 1)]


def directions(size: int, count: int, seed: int = 0) -> Tensor:
    """Unit vectors in all directions alike, [size, count]."""
    vectors = torch.randn(size, count, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=0)


def principal_axes(samples: Tensor, count: int) -> Tensor:
    """Unit vectors along which the samples vary most, [features, count]."""
    centred = samples.double() - samples.double().mean(0)
    return torch.linalg.svd(centred, full_matrices=False).Vh[:count].T.float()


def with_error(
    distance: Distance, samples: Tensor, target: Tensor, groups: tuple[Tensor, Tensor]
) -> tuple[float, float]:
    """The distance, and its standard error by the jackknife: one group after the other is left out of both sets.

    `groups` numbers the group of each row from 0 on, for both sets. Rows that belong together, as those of one prompt
    do, must be in one group: otherwise leaving some out of one set alone would show as a distance.
    """
    count = int(groups[0].max()) + 1
    left_out = torch.tensor([distance(samples[groups[0] != k], target[groups[1] != k]) for k in range(count)])
    error = ((count - 1) / count * (left_out - left_out.mean()).square().sum()).sqrt()
    return distance(samples, target), float(error)
