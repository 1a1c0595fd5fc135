"""The shape of a sampling trajectory: how many dimensions it needs."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import counted


def principal(trajectory: Tensor, components: int = 3) -> tuple[Tensor, Tensor]:
    """The principal components of one trajectory, whose samples [N, ...] are taken as N points.

    Zhou et al. 2024, arXiv 2312.00094, section 3.1: the trajectories of diffusion models lie nearly in a plane.

    Returns:
        The share of the variance along each component, largest first, [components]; and the coordinates of the points,
        [N, components], in units of one element of the sample (root mean square). Each axis is turned so that the first
        point is on its positive side.

    Raises:
        ValueError: if there are fewer points than components, or all points are one.
    """
    points = trajectory.flatten(1).double()
    if len(points) < components:
        raise ValueError(f"a trajectory of {counted(len(points), 'point')} has no {components} components")
    points = points - points.mean(dim=0)
    # There are far fewer points than dimensions: the matrix of their inner products is small, with the same variances.
    variances, directions = torch.linalg.eigh(points @ points.T / points.shape[1])
    variances, directions = variances.flip(0).clamp(min=0), directions.flip(1)
    if not variances[0] > 0:
        raise ValueError("the points of this trajectory are all the same")
    coordinates = directions[:, :components] * variances[:components].sqrt()
    turned = torch.where(coordinates[0] < 0, -coordinates, coordinates)
    return variances[:components] / variances.sum(), turned
