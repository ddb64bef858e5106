"""Two and three real processes under DDP and FSDP2 (gloo on loopback) against one process on the same data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from opdf.overparam import OverParamConfig, overparameterize

STEPS, ROWS = 4, 12


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 6))


def train(wrapper: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Whole weights after some steps; rank r sees every world-th row from r on."""
    model = net()
    module: nn.Module = model
    if wrapper == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    overparam = overparameterize(model, OverParamConfig(ones=2, targets=["0", "2"]))
    optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-2)
    if wrapper == "ddp":
        module = DistributedDataParallel(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        data = torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(step))
        module(data[rank::world]).square().mean().backward()
        optimizer.step()
    state = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in model.named_parameters()}
    return {n: p.detach().clone() for n, p in state.items()}


def worker(rank: int, world: int, wrapper: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save(train(wrapper, rank, world), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may still be ending, and now and then abort the interpreter's own teardown


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_several_processes_equal_one(tmp_path: Path, wrapper: str, world: int) -> None:
    mp.spawn(worker, (world, wrapper, str(tmp_path)), nprocs=world)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for name, expected in train("none", 0, 1).items():
        torch.testing.assert_close(ranks[0][name], expected, rtol=1e-4, atol=1e-6)
        assert all(torch.equal(ranks[0][name], other[name]) for other in ranks[1:])
