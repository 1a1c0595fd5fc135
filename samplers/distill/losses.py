"""Losses of a difference between two images, value by value."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

HUBER = 0.03
"""Where the pseudo-Huber loss turns from a square into a distance, in units of the data."""


def l2(error: Tensor) -> Tensor:
    """e^2"""
    return error.square()


def l1(error: Tensor) -> Tensor:
    """|e|"""
    return error.abs()


def pseudo_huber(error: Tensor) -> Tensor:
    """sqrt(e^2 + c^2) - c with c = `HUBER`: outliers, which every small student has, do not rule the gradient.

    Charbonnier et al. 1997; for students Song and Dhariwal 2023, arXiv 2310.14189.
    """
    return (error.square() + HUBER**2).sqrt() - HUBER


LOSSES: Mapping[str, Callable[[Tensor], Tensor]] = {"pseudo_huber": pseudo_huber, "l1": l1, "l2": l2}


def loss_named(name: str) -> Callable[[Tensor], Tensor]:
    """A loss by its name.

    Raises:
        ValueError: naming the choices.
    """
    if name not in LOSSES:
        raise ValueError(f"loss = {name!r} must be one of {', '.join(LOSSES)}")
    return LOSSES[name]
