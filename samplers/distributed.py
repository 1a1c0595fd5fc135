"""Work that several processes share under torch.distributed. Without it a process is alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def rank_and_count() -> tuple[int, int]:
    """Which process this is, and of how many."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def add_over_processes(tensors: Sequence[Tensor]) -> None:
    """Put the sum over all processes into each of the tensors."""
    if rank_and_count()[1] > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
