"""What calibration minimises: the error of final samples against a teacher's, and a penalty of the parameters.

With r the difference of a sample to the teacher's for the same starting noise, w its weight and u the parameters in
units of their scale, it is

    sum over samples of w |r|^2 + PENALTY |u|^2.

Samples are weighted by the inverse of their squared error (iteratively reweighted least squares), so that the geometric
mean of the errors falls and not only the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..integrate import Model, integrate
from ..phi import Scalar
from .parameters import Parameter, placed
from .recipe import Recipe

PENALTY = 1e-3  # of the squares; the data's squares are 1 at the start
ENOUGH = 0.01  # relative gain of a round that is worth another one


class Trial(NamedTuple):
    """What a minimisation tells after each run: that it was made, or that its recipe is where it goes on from."""

    stage: str
    accepted: Recipe | None = None
    error: float = float("nan")
    """Of what was accepted, on the samples that it is fitted to."""


@dataclass(frozen=True)
class Goal:
    """Samples that are to be matched: `run` gives the final samples of a recipe, [N, ...], `target` the teacher's."""

    run: Callable[[Recipe], Tensor]
    target: Tensor

    def residuals(self, recipe: Recipe) -> Tensor:
        """[N, M] in float32 on the CPU; infinite where the run came to something that is not finite."""
        residuals = (self.run(recipe).to("cpu", torch.float32) - self.target.to("cpu", torch.float32)).flatten(1)
        return torch.where(residuals.isfinite(), residuals, torch.inf)


class Differentiable(Protocol):
    """What a calibration by backpropagation needs of its samples."""

    def slope(
        self, recipe: Recipe, parameters: Sequence[Parameter], by: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As in `DifferentiableGoal`."""


@dataclass(frozen=True)
class DifferentiableGoal:
    """Samples that are to be matched, by a model that autograd can go through.

    Each evaluation is a checkpoint: its intermediate results are computed once more on the way back, so that memory is
    that of one evaluation, however many there are.

    The gradient is that of the model as a smooth function of sigma. What it cannot see is rounding: a discrete model
    that rounds its levels to time steps seems not to depend on `scale_time` at all, and on `level` only through the
    coefficients of the solver. For such a model take differences instead.
    """

    model: Model
    """A k-diffusion denoiser."""

    x: Tensor
    """Starting noise at the recipe's first level, [N, C, ...]."""

    target: Tensor
    """The teacher's samples, as `measured` gives them."""

    extra_args: Mapping[str, Any] | None = None
    """Passed on to the model."""

    set_guidance: Callable[[Scalar], None] | None = None
    """As in `Recipe.function`; its factor may be a scalar of torch that carries a gradient."""

    measured: Callable[[Tensor], Tensor] = lambda x: x
    """What of the last samples is compared with the target."""

    def slope(
        self, recipe: Recipe, parameters: Sequence[Parameter], by: Tensor, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The mean squared error of each sample, [N], and the gradient in `by` of their weighted mean, both in float64
        on the CPU. Without weights they are `weights_for` these. Raises what `squares` does."""
        leaf = by.clone().requires_grad_()
        squares = self.squares(recipe, parameters, leaf.unbind()).double().cpu()
        weights = weights_for(squares.detach()) if weights is None else weights
        (slope,) = torch.autograd.grad((weights * squares).mean(), leaf)
        return squares.detach(), slope

    def squares(self, recipe: Recipe, parameters: Sequence[Parameter], by: Sequence[Scalar]) -> Tensor:
        """The mean squared error of each sample, [N], with gradients in `by`.

        Raises:
            NonFiniteError: if the run came to NaN or infinity.
            ValueError: if there is guidance and nothing to set it with, or no gradient goes through the model.
        """
        levels, tunings = placed(recipe, parameters, by)
        model = self._checkpointed([tuning.guidance for tuning in tunings][recipe.afs :])
        with torch.enable_grad():
            plan = recipe.plan_on(levels, tunings)
            samples = self.measured(integrate(model, self.x, plan, extra_args=self.extra_args, disable=True))
            wide = torch.promote_types(samples.dtype, torch.float32)
            residuals = (samples.to(wide) - self.target.to(samples.device, wide)).flatten(1)
            return residuals.square().mean(dim=1)

    def _checkpointed(self, factors: Sequence[Scalar]) -> Model:
        """The model as a chain of checkpoints, each of which sets its own guidance, also when it is run again."""
        if self.set_guidance is None and any(isinstance(factor, Tensor) or factor != 1 for factor in factors):
            raise ValueError("guidance: there is no set_guidance to change that of single evaluations with")
        remaining = iter(factors)

        def evaluate(x: Tensor, sigma: Tensor, **extra_args: Any) -> Tensor:
            factor = next(remaining)

            def once(x: Tensor, sigma: Tensor) -> Tensor:
                if self.set_guidance is not None:
                    self.set_guidance(factor)
                return self.model(x, sigma, **extra_args)

            denoised = checkpoint(once, x, sigma, use_reentrant=False, preserve_rng_state=False)
            if x.requires_grad and not denoised.requires_grad:
                raise ValueError("no gradient goes through this model: calibrate it by differences")
            return denoised

        return evaluate


def weights_for(squares: Tensor) -> Tensor:
    """The weights of samples that make the mean of squared errors one of their logarithms."""
    return 1 / squares.clamp(min=1e-18)


def penalty(u: Tensor) -> Tensor:
    """That of parameters in units of their scale, [K] -> []."""
    return PENALTY * u.square().sum()


def rmse(residuals: Tensor) -> Tensor:
    """The root mean squares of residuals [N, M], [N]."""
    return residuals.square().mean(dim=1).sqrt()


def geometric_mean(errors: Tensor) -> float:
    return float(errors.double().clamp(min=1e-12).log().mean().exp())
