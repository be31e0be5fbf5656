"""Several processes that share the work, each with a whole model, as `accelerate launch` or torchrun starts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import distributed

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import nn


def rank_and_size(model: nn.Module) -> tuple[int, int]:
    """This process's number and the number of processes that share the work.

    (0, 1) if the processes hold parts of one model (FSDP, tensor parallel), because all must then see the same batches.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or _is_spread(model):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def add_over_processes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The sums of every process's tensors; all processes return them."""
    device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
    added = {}
    for name in sorted(tensors):  # every process has to send its tensors in the same order
        total = tensors[name].to(device, copy=True)
        distributed.all_reduce(total)
        added[name] = total.cpu()
    return added


def _is_spread(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules()) or any(
        isinstance(parameter, DTensor) for parameter in model.parameters()
    )
