"""Tensors that FSDP2 has sharded: their parts, made whole, and written back."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor that FSDP2 has sharded. Every rank must gather the same tensors in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def assign(p: Tensor, value: Tensor) -> None:
    """Write a weight in place, under FSDP2 this rank's part. Nothing is sent, because all ranks hold the value."""
    if isinstance(p, DTensor):
        value = distribute_tensor(value.to(p.dtype), p.device_mesh, p.placements, src_data_rank=None)
    p.copy_(value)


def gathered(value: Any, *, keep: bool) -> Any:
    """A state with its sharded tensors gathered in the CPU's memory. All processes call it together.

    A device holds one whole tensor at a time. A process that does not `keep` the state gets empty tensors.
    """
    if isinstance(value, dict):
        return {key: gathered(item, keep=keep) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(gathered(item, keep=keep) for item in value)
    if not isinstance(value, DTensor):
        return value
    full = whole(value)
    return full.cpu() if keep else full.new_empty(0)


def scattered(state_dict: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Inverse of `gathered`: shards every tensor of an optimizer's state that has its parameter's shape."""
    params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    state = dict(state_dict["state"])
    for key, p in enumerate(params):
        if isinstance(p, DTensor) and key in state:
            state[key] = {
                name: distribute_tensor(value, p.device_mesh, p.placements, src_data_rank=None)
                if isinstance(value, Tensor) and value.shape == p.shape
                else value
                for name, value in state[key].items()
            }
    return state_dict | {"state": state}
