"""Several processes, each with a whole model, that share the work: what `accelerate launch` or torchrun starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import torch
from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_Item = TypeVar("_Item")


def rank_and_size(model: nn.Module) -> tuple[int, int]:
    """This process's number and how many share the work: (0, 1) where one model is spread over all of them."""
    if not (distributed.is_available() and distributed.is_initialized()) or _is_spread(model):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def own_share(items: list[_Item], model: nn.Module) -> list[_Item]:
    """Every n-th item, for this process; neighbours cost alike, so the shares do too."""
    rank, size = rank_and_size(model)
    return items[rank::size]


def add_over_processes(tensors: Mapping[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """The sums of every process's tensors, in all of them."""
    if rank_and_size(model)[1] == 1:
        return dict(tensors)
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    added = {}
    for name in sorted(tensors):
        total = tensors[name].to(device, copy=True)
        distributed.all_reduce(total)
        added[name] = total.cpu()
    return added


def _is_spread(model: nn.Module) -> bool:
    """Whether the processes hold parts of one model (FSDP, tensor parallel) and so must all see the same batches."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    )
