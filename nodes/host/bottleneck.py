"""Reads the middle of the host's network while it is sampled, for AMED's predictor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...samplers.calibrated.predictor import pool


class Bottleneck:
    """The output of the middle block for the conditional part of each evaluation; calling it gives the last one's.

        with Bottleneck(diffusion_model) as bottleneck:
            model = bottleneck.watch(model)

    The host splits and orders the batches of an evaluation as it likes and says in `cond_or_uncond` what they hold;
    entries of several prompts or areas are averaged. Networks without a middle block (DiT) give None. The hooks are
    gone when the block is left, on errors too.
    """

    def __init__(self, diffusion_model: Any):
        self._network = diffusion_model
        self._parts: list[Tensor] = []
        self._kinds: list[int] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Bottleneck:
        middle = getattr(self._network, "middle_block", None)
        if middle is not None and len(middle):
            # The host runs the layers of the block one by one: the block itself is never called.
            self._handles = [
                self._network.register_forward_pre_hook(self._before, with_kwargs=True),
                middle[-1].register_forward_hook(self._after),
            ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._parts = [], []

    @property
    def sees(self) -> bool:
        """Whether the network has a middle that is being read."""
        return bool(self._handles)

    def watch(self, model: Any) -> Any:
        """The denoiser, forgetting what was seen before each evaluation."""

        def evaluate(*args: Any, **kwargs: Any) -> Tensor:
            self._parts = []
            return model(*args, **kwargs)

        return evaluate

    def __call__(self) -> Tensor | None:
        """[B, 1, 8, 8], or None if nothing was seen."""
        if not self._parts:
            return None
        return torch.stack(self._parts).mean(dim=0)[:, None]

    def _before(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        self._kinds = kwargs.get("transformer_options", {}).get("cond_or_uncond", [0])

    def _after(self, _: Any, args: Any, output: Tensor) -> None:
        for kind, part in zip(self._kinds, output.chunk(len(self._kinds)), strict=True):
            if kind == 0:
                self._parts.append(pool(part))
