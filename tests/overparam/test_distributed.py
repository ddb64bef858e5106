"""Two and three real processes under DDP and FSDP2 (gloo on loopback) against one process on the same data."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from opdf.mpo import plan_shape
from opdf.overparam import Constraint, OverParamConfig, overparameterize, owner
from opdf.overparam import cores as cores_module
from opdf.overparam.owner import balance
from opdf.overparam.sharding import scattered

STEPS, ROWS = 4, 12
SAME = {"0.weight": "0.weight", "2.weight": "2.weight"}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 6))


def train(
    wrapper: str, placement: str, rank: int, world: int, saved: str | None = None, steps: int = STEPS
) -> tuple[dict[str, torch.Tensor], Any]:
    """Whole weights after some steps, and the optimizer; rank r sees every world-th row from r on."""
    model = net()
    module: nn.Module = model
    if wrapper == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    overparam = overparameterize(model, OverParamConfig(ones=2, targets=["0", "2"], placement=placement))
    torch.manual_seed(1)
    overparam.align(nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 6)), Constraint(0.3, SAME))
    optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-2)
    start = 0
    if saved is not None:
        content = torch.load(saved, weights_only=True)
        start = content["step"]
        set_model_state_dict(model, content["model"], options=StateDictOptions(full_state_dict=True))
        with torch.no_grad():
            model[2].weight.mul_(0.5)  # cores are the truth: whoever has them sets it again, on all processes
        with warnings.catch_warnings(action="ignore"):
            optimizer.load_state_dict(scattered(content["optimizer"], optimizer))
        if placement == "owner":
            held = {m.name for p, m in optimizer.weights().items() if optimizer.state.get(p)}
            assert held == {name for name, where in optimizer.owners.items() if where == rank}  # type: ignore[attr-defined]
    if wrapper == "ddp":
        module = DistributedDataParallel(model)
    for step in range(start, steps):
        optimizer.zero_grad()
        data = torch.randn(ROWS, 12, generator=torch.Generator().manual_seed(step))
        module(data[rank::world]).square().mean().backward()
        optimizer.step()
    state = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in model.named_parameters()}
    return {n: p.detach().clone() for n, p in state.items()}, optimizer


@contextmanager
def process(rank: int, world: int, folder: str) -> Iterator[None]:
    torch.set_num_threads(2)  # as many as matrices, so that they are stepped beside each other, except under FSDP2
    cores_module.BESIDE_FLOPS = 0
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    yield
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may still be ending, and now and then abort the interpreter's own teardown


def worker(rank: int, world: int, wrapper: str, placement: str, folder: str, task: str) -> None:
    with process(rank, world, folder):
        work(rank, world, wrapper, placement, folder, task)


def work(rank: int, world: int, wrapper: str, placement: str, folder: str, task: str) -> None:
    saved = f"{folder}/saved.pt" if task == "resume" else None
    found, optimizer = train(wrapper, placement, rank, world, saved, STEPS // 2 if task == "save" else STEPS)
    facts = {"weights": found, "logs": optimizer.constraint_logs, "cores": sum(
        value.numel() for state in optimizer.state.values() for key, value in state.items() if key.startswith("core")
    )}  # fmt: skip
    torch.save(facts, f"{folder}/{rank}.pt")
    if task == "save":
        if placement == "owner":
            with pytest.raises(RuntimeError, match="consolidate_state_dict"):
                optimizer.state_dict()
            optimizer.consolidate_state_dict()
        if rank == 0:
            content = {"step": STEPS // 2, "model": found, "optimizer": optimizer.state_dict()}
            torch.save(content, f"{folder}/saved.pt")


def watch_memory(rank: int, world: int, folder: str) -> None:
    """Two steps of twelve equal matrices under FSDP2: core entries held, and gathered matrices alive at once."""
    with process(rank, world, folder):
        cores_module.STACK_ENTRIES = {}
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(12)))
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
        config = OverParamConfig(ones=1, targets="all-linear", placement="owner")
        optimizer = overparameterize(model, config).optimizer(torch.optim.AdamW, lr=1e-2)
        gathered: list[Any] = []
        alive: list[int] = []

        def whole(tensor: torch.Tensor) -> torch.Tensor:
            assert isinstance(tensor, DTensor)
            result = tensor.full_tensor()
            gathered.append(weakref.ref(result))
            alive.append(sum(reference() is not None for reference in gathered))
            return result

        owner.whole = whole  # type: ignore[attr-defined]
        peaks = []
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
            peaks.append(max(alive))
            alive.clear()
        names = {name for name, where in optimizer.owners.items() if where == rank}  # type: ignore[attr-defined]
        cores = sum(core.numel() for name in names for core in optimizer.cores(name) or ())
        tensors = [v for state in optimizer.state.values() for key, v in state.items() if key.startswith("core")]
        assert cores == sum(core.numel() for core in tensors)
        torch.save({"peaks": peaks, "cores": cores}, f"{folder}/{rank}.pt")


def launch(folder: Path, world: int, wrapper: str, placement: str, task: str = "train") -> list[dict[str, Any]]:
    (folder / "rendezvous").unlink(missing_ok=True)
    mp.spawn(worker, (world, wrapper, placement, str(folder), task), nprocs=world)
    return facts_of(folder, world)


def facts_of(folder: Path, world: int) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def check(ranks: list[dict[str, Any]]) -> None:
    """Every process has the weights of an undistributed run, and logs the whole constraint."""
    weights, optimizer = train("none", "replicate", 0, 1)
    for name, expected in weights.items():
        torch.testing.assert_close(ranks[0]["weights"][name], expected, rtol=1e-4, atol=1e-6)
        assert all(torch.equal(ranks[0]["weights"][name], other["weights"][name]) for other in ranks[1:])
    for rank in ranks:
        assert rank["logs"] == pytest.approx(optimizer.constraint_logs, rel=1e-3)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
@pytest.mark.parametrize("placement", ["replicate", "owner"])
def test_several_processes_equal_one(tmp_path: Path, wrapper: str, world: int, placement: str) -> None:
    ranks = launch(tmp_path, world, wrapper, placement)
    check(ranks)
    shapes = [t.shape.num_params for t in overparameterize(net(), OverParamConfig(ones=2, targets=["0", "2"])).matrices]
    held = sorted(rank["cores"] for rank in ranks)
    assert held == (sorted([*shapes, *[0] * (world - 2)]) if placement == "owner" else [sum(shapes)] * world)


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_a_checkpoint_does_not_depend_on_the_number_of_processes(tmp_path: Path, wrapper: str) -> None:
    launch(tmp_path, 2, "ddp", "owner", "save")
    check(launch(tmp_path, 3, wrapper, "owner", "resume"))
    weights, _ = train("none", "replicate", 0, 1, saved=str(tmp_path / "saved.pt"))
    expected, _ = train("none", "replicate", 0, 1)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("world", [2, 3])
def test_owners_hold_their_share_of_cores_and_gather_one_matrix_at_a_time(tmp_path: Path, world: int) -> None:
    mp.spawn(watch_memory, (world, str(tmp_path)), nprocs=world)

    ranks = facts_of(tmp_path, world)
    one = plan_shape(8, 8, ones=1).num_params
    for rank in ranks:
        assert rank["cores"] == 12 * one / world
        first, later = rank["peaks"]
        assert first <= 4  # its own weight and gradient, and for a moment those of another
        assert later <= 2  # weights are known


def test_costs_are_balanced() -> None:
    owners = balance([5, 1, 3, 3, 4], 2)

    loads = [sum(c for c, o in zip([5, 1, 3, 3, 4], owners, strict=True) if o == rank) for rank in (0, 1)]
    assert max(loads) == 8
    assert balance([1.0], 3) == [0]
