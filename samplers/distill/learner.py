"""The weights that a distillation trains: their optimiser, their moving average, and what is needed to go on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..distributed import add_over_processes, rank_and_count

_STATES = "step", "exp_avg", "exp_avg_sq"  # of Adam


class Learner:
    """AdamW on some weights, with a rate that falls along half a cosine, and their moving average.

    Where torch.distributed runs, each process takes its share of a batch and calls `update` with the mean over its
    share; the gradients are averaged, so that all processes keep the same weights.

    Args:
        parameters: the weights by name; they are trained in place. All others of the network stay.
        updates: how many there will be, for the rate.
        learning_rate: at first; `last_rate` in the end.
        average: decay of the moving average. Early on it is shorter, so that it forgets the start.
        clip: largest norm of the gradient.

    Raises:
        ValueError: naming the argument at fault.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        updates: int,
        learning_rate: float = 2e-4,
        last_rate: float = 2e-5,
        average: float = 0.999,
        clip: float = 1.0,
        weight_decay: float = 0.0,
    ):
        if not parameters:
            raise ValueError("parameters is empty: there is nothing to train")
        frozen = [name for name, weight in parameters.items() if not weight.is_floating_point()]
        if frozen:
            raise ValueError(
                f"parameters: {frozen[0]} is {parameters[frozen[0]].dtype}, through which no gradient goes: load the "
                "model without quantisation, or train a LoRA over it"
            )
        if updates < 1:
            raise ValueError(f"updates = {updates} must be at least 1")
        if not 0 < last_rate <= learning_rate < math.inf:
            raise ValueError(
                f"learning_rate = {learning_rate:g} and last_rate = {last_rate:g} must be above 0, the last not higher"
            )
        if not 0 <= average < 1:
            raise ValueError(f"average = {average:g} must be at least 0 and below 1")
        self.parameters = {name: weight.requires_grad_(True) for name, weight in parameters.items()}
        self.average = {name: weight.detach().clone() for name, weight in parameters.items()}
        self.optimizer = torch.optim.AdamW(self.parameters.values(), learning_rate, weight_decay=weight_decay)
        self.updates, self.done = updates, 0
        self._rates, self._decay, self._clip = (learning_rate, last_rate), average, clip

    def update(self, loss: Tensor) -> None:
        """One step down the gradient of `loss`, a mean over images.

        Raises:
            ValueError: if the gradient is not finite. The weights are then as they were.
        """
        self.add(loss)
        self.step()

    def add(self, loss: Tensor) -> None:
        """Add the gradient of a part of the loss to that of the next `step`; all of it or, on an error, nothing.

        Raises:
            ValueError: if it does not depend on the weights.
        """
        weights = list(self.parameters.values())
        if not loss.requires_grad:
            raise ValueError("the loss does not depend on the weights: the network lets no gradient through")
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        for weight, gradient in zip(weights, found, strict=True):
            if gradient is not None:
                weight.grad = gradient if weight.grad is None else weight.grad + gradient

    def step(self) -> None:
        """One step down the gradient of what was added.

        Raises:
            ValueError: if it is not finite. The weights are then as they were.
        """
        gradients = [weight.grad for weight in self.parameters.values() if weight.grad is not None]
        add_over_processes(gradients)
        torch._foreach_div_(gradients, rank_and_count()[1])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), self._clip)
        if not math.isfinite(float(norm)):
            self.optimizer.zero_grad()
            raise ValueError("the gradient is not finite: use a lower learning rate, or float32 weights")
        first, last = self._rates
        share = min(self.done / self.updates, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = last + (first - last) * (0.5 + 0.5 * math.cos(math.pi * share))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.done += 1
        decay = min(self._decay, self.done / (self.done + 9))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the weights are those of the moving average."""
        kept = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        try:
            self._put(self.average)
            yield
        finally:
            self._put(kept)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.parameters.items():
                weight.copy_(weights[name])

    def state(self) -> dict[str, Tensor]:
        """All that is needed to go on, for a safetensors file."""
        tensors = {"updates": torch.tensor(self.done)}
        for name, weight in self.parameters.items():
            tensors |= {f"weight.{name}": weight.detach().clone(), f"average.{name}": self.average[name].clone()}
            adam = self.optimizer.state[weight]
            tensors |= {f"adam.{name}.{key}": adam[key].clone() for key in _STATES if key in adam}
        return tensors

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state()` of a learner of the same weights.

        Raises:
            ValueError: if it is that of other weights.
        """
        for name, weight in self.parameters.items():
            saved = state.get(f"weight.{name}")
            if saved is None or saved.shape != weight.shape:
                raise ValueError(f"state: it is that of other weights, {name} is missing or has another shape")
        self._put({name: state[f"weight.{name}"] for name in self.parameters})
        for name, weight in self.parameters.items():
            self.average[name].copy_(state[f"average.{name}"])
            if f"adam.{name}.step" in state:
                moments = {key: state[f"adam.{name}.{key}"].clone() for key in _STATES}
                self.optimizer.state[weight] = moments
        self.done = int(state["updates"])
