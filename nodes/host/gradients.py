"""Derivatives of a plan's error by backpropagation through the host's model."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...samplers.calibrated import DifferentiableGoal, Parameter
from ...samplers.calibrated.recipe import Recipe
from .guider import guidance_factor
from .protocols import BaseModel
from .runs import announce_each
from .session import Inside, Sample, Session


@dataclass(frozen=True)
class Gradients:
    """The samples that a plan is fitted to by backpropagation: a `Differentiable` of the host's model."""

    session: Session
    samples: Sequence[Sample]
    target: Tensor

    def slope(
        self, recipe: Recipe, parameters: Sequence[Parameter], by: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As that of `DifferentiableGoal`.

        Raises:
            ValueError: if no gradient goes through the model. Any other error of the run is raised as it is.
        """
        count = len(self.samples)
        squares, slope = torch.zeros(count, dtype=torch.float64), torch.zeros_like(by)

        def add(group: list[int]) -> None:
            part = self._slope(recipe, parameters, by, group, None if weights is None else weights[group])
            squares[group] = part[0]
            slope.add_(part[1] * len(group) / count)

        self.session.in_groups(self.samples, add)
        return squares, slope

    def _slope(
        self, recipe: Recipe, parameters: Sequence[Parameter], by: Tensor, group: list[int], weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        def follow(run: Inside) -> tuple[Tensor, Tensor]:
            whole = run.guider.inner_model
            announced, arguments = announce_each(run.model, run.sigmas, run.extra_args)
            with (
                guidance_factor(run.model) as set_guidance,
                torch.inference_mode(False),
                differentiable(whole),
                checked(announced, whole.diffusion_model) as evaluate,
            ):
                # Tensors that were made in inference mode take no part in a gradient: here are copies.
                zero = whole.process_latent_out(torch.zeros_like(run.x)).clone()  # what it does is affine
                scale = whole.process_latent_out(torch.ones_like(run.x)) - zero
                goal = DifferentiableGoal(
                    evaluate,
                    run.x.clone(),
                    self.target[group].clone(),
                    arguments,
                    set_guidance,
                    measured=lambda x: zero + scale * x,
                )
                return goal.slope(recipe, parameters, by.clone(), None if weights is None else weights.clone())

        def said(error: Exception) -> str:
            return f"derivatives: backpropagation does not go through this model ({error}); choose differences"

        with complaining(said):
            return self.session.inside(follow, recipe.sigmas, [self.samples[k] for k in group])


class NoGradientError(ValueError):
    """The network lets no gradient through."""


@contextlib.contextmanager
def complaining(said: Callable[[Exception], str]) -> Iterator[None]:
    """What autograd complains of becomes a ValueError with what is said of it. All other errors stay what they are."""
    try:
        yield
    except (NoGradientError, RuntimeError) as error:
        if not _of_autograd(error):
            raise
        raise ValueError(said(error)) from error


def _of_autograd(error: Exception) -> bool:
    """Whether autograd complains. It raises plain RuntimeErrors, as all of torch does for anything."""
    return isinstance(error, NoGradientError) or _AUTOGRAD.search(str(error)) is not None


_AUTOGRAD = re.compile(
    r"\b(autograd|backward|derivatives?|gradients?|grad|grad_fn|requires?_grad|inference[ _](tensors?|mode))\b",
    re.IGNORECASE,
)


@contextlib.contextmanager
def differentiable(
    network: torch.nn.Module | BaseModel, but: Collection[torch.nn.Module] = frozenset()
) -> Iterator[None]:
    """A network that autograd can go through: in the place of weights that were made in inference mode stand copies.

    Args:
        but: modules whose `weight` need not be copied.
    """
    replaced: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in network.modules():
        groups: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for tensors in groups:
            for name, tensor in tensors.items():
                if name == "weight" and module in but:
                    continue
                if tensor is not None and (tensor.is_inference() or tensor.requires_grad):
                    replaced.append((tensors, name, tensor))
                    copy_ = tensor.detach().clone() if tensor.is_inference() else tensor.detach()
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    tensors[name] = torch.nn.Parameter(copy_, requires_grad=False) if is_parameter else copy_
    try:
        yield
    finally:
        for tensors, name, tensor in replaced:
            tensors[name] = tensor


@contextlib.contextmanager
def checked(model: Callable[..., Tensor], network: torch.nn.Module) -> Iterator[Callable[..., Tensor]]:
    """A denoiser that complains if its network lets no gradient through."""
    differentiated: list[bool] = []
    handle = network.register_forward_hook(lambda _, arguments, output: differentiated.append(output.requires_grad))

    def evaluate(x: Tensor, *arguments: object, **options: object) -> Tensor:
        differentiated.clear()
        denoised = model(x, *arguments, **options)
        if x.requires_grad and not all(differentiated):
            raise NoGradientError("the network lets no gradient through")
        return denoised

    try:
        yield evaluate
    finally:
        handle.remove()
