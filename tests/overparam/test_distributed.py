"""Two and three real processes under DDP and FSDP2 (gloo on loopback) against one process on the same data."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from opdf.mpo import plan_shape
from opdf.overparam import Constraint, OverParamConfig, cores as cores_module, overparameterize, owner
from opdf.overparam.owner import balance
from opdf.overparam.sharding import scattered
from opdf.study.workers import forks

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


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Call it with a task, a number of processes and arguments: what `task(rank, world, *args)` returns in each.

    Two and three processes of one group stay for all tests of this file: to start one takes longer than what is tested.
    """
    context, pools = forks(), {}

    def run(task: Any, world: int, *args: Any) -> list[Any]:
        if world not in pools:
            place = tmp_path_factory.mktemp("rendezvous") / str(world)
            given = (context.Value("i", 0), world, str(place))
            pools[world] = ProcessPoolExecutor(world, mp_context=context, initializer=join, initargs=given)
        tasks = [pools[world].submit(in_step, task, world, *args) for _ in range(world)]
        return [found for _, found in sorted((done.result() for done in tasks), key=lambda pair: pair[0])]

    yield run
    for pool in pools.values():
        pool.shutdown(wait=False, cancel_futures=True)


def join(count: Any, world: int, place: str) -> None:
    with count.get_lock():
        rank, count.value = count.value, count.value + 1
    torch.set_num_threads(2)  # as many as matrices, so that they are stepped beside each other, except under FSDP2
    cores_module.BESIDE_FLOPS = 0
    rendezvous = f"file://{place}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world, timeout=timedelta(seconds=120))


def in_step(task: Any, world: int, *args: Any) -> tuple[int, Any]:
    """Every process takes one of the tasks: nobody is done before all have begun."""
    dist.barrier()
    found = task(dist.get_rank(), world, *args)
    dist.barrier()
    return dist.get_rank(), found


def work(rank: int, world: int, wrapper: str, placement: str, folder: Path, task: str = "train") -> dict[str, Any]:
    saved = str(folder / "saved.pt") if task == "resume" else None
    found, optimizer = train(wrapper, placement, rank, world, saved, STEPS // 2 if task == "save" else STEPS)
    if task == "save":
        if placement == "owner":
            with pytest.raises(RuntimeError, match="consolidate_state_dict"):
                optimizer.state_dict()
            optimizer.consolidate_state_dict()
        if rank == 0:
            content = {"step": STEPS // 2, "model": found, "optimizer": optimizer.state_dict()}
            torch.save(content, folder / "saved.pt")
    return {"weights": found, "logs": optimizer.constraint_logs, "cores": held_cores(optimizer)}


def held_cores(optimizer: Any) -> int:
    """Entries of all cores in this process."""
    tensors = [v for state in optimizer.state.values() for key, v in state.items() if key.startswith("core")]
    return sum(tensor.numel() for tensor in tensors)


def watch_memory(rank: int, world: int) -> dict[str, Any]:
    """Two steps of twelve equal matrices under FSDP2: core entries held, and gathered matrices alive at once."""
    gathered: list[Any] = []
    alive: list[int] = []

    def whole(tensor: torch.Tensor) -> torch.Tensor:
        assert isinstance(tensor, DTensor)
        result = tensor.full_tensor()
        gathered.append(weakref.ref(result))
        alive.append(sum(reference() is not None for reference in gathered))
        return result

    peaks = []
    with mock.patch.object(cores_module, "STACK_ENTRIES", {}), mock.patch.object(owner, "whole", whole):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(12)))
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
        config = OverParamConfig(ones=1, targets="all-linear", placement="owner")
        optimizer = overparameterize(model, config).optimizer(torch.optim.AdamW, lr=1e-2)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
            peaks.append(max(alive))
            alive.clear()
        names = {name for name, where in optimizer.owners.items() if where == rank}  # type: ignore[attr-defined]
        cores = sum(core.numel() for name in names for core in optimizer.cores(name) or ())
    assert cores == held_cores(optimizer)
    return {"peaks": peaks, "cores": cores}


def check(ranks: list[dict[str, Any]]) -> None:
    """Every process has the weights of an undistributed run, and logs the whole constraint."""
    weights, optimizer = train("none", "replicate", 0, 1)
    for name, expected in weights.items():
        torch.testing.assert_close(ranks[0]["weights"][name], expected, rtol=1e-4, atol=1e-6)
        assert all(torch.equal(ranks[0]["weights"][name], other["weights"][name]) for other in ranks[1:])
    for rank in ranks:
        assert rank["logs"] == pytest.approx(optimizer.constraint_logs, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
@pytest.mark.parametrize("placement", ["replicate", "owner"])
def test_several_processes_equal_one(together: Any, tmp_path: Path, wrapper: str, world: int, placement: str) -> None:
    ranks = together(work, world, wrapper, placement, tmp_path)
    check(ranks)
    shapes = [t.shape.num_params for t in overparameterize(net(), OverParamConfig(ones=2, targets=["0", "2"])).matrices]
    held = sorted(rank["cores"] for rank in ranks)
    assert held == (sorted([*shapes, *[0] * (world - 2)]) if placement == "owner" else [sum(shapes)] * world)


@pytest.mark.parametrize("savers", [pytest.param(2, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("wrapper", ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)])
def test_a_checkpoint_does_not_depend_on_the_number_of_processes(
    together: Any, tmp_path: Path, wrapper: str, savers: int
) -> None:
    if savers == 1:
        work(0, 1, "none", "replicate", tmp_path, "save")
    else:
        together(work, savers, "ddp", "owner", tmp_path, "save")
    check(together(work, 3, wrapper, "owner", tmp_path, "resume"))
    weights, _ = train("none", "replicate", 0, 1, saved=str(tmp_path / "saved.pt"))
    expected, _ = train("none", "replicate", 0, 1)
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_owners_hold_their_share_of_cores_and_gather_one_matrix_at_a_time(together: Any, world: int) -> None:
    ranks = together(watch_memory, world)
    one = plan_shape(8, 8, ones=1).num_params
    for rank in ranks:
        assert rank["cores"] == 12 * one / world
        first, later = rank["peaks"]
        assert first <= 4  # its own weight and gradient, and for a moment those of another
        assert later <= 2  # weights are known


def write_outside(rank: int, world: int, wrapper: str, placement: str) -> str:
    """Change a weight through .data between two steps, on all processes; what comes of it."""
    model = net()
    if wrapper == "fsdp2":
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    config = OverParamConfig(ones=2, targets=["0", "2"], placement=placement)
    optimizer = overparameterize(model, config).optimizer(torch.optim.SGD, lr=1e-9)
    module = DistributedDataParallel(model) if wrapper == "ddp" else model
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        for step in range(2):
            optimizer.zero_grad()
            module(torch.ones(4, 12)).square().mean().backward()
            optimizer.step()
            if step == 0:
                weight = model[0].weight
                (weight.to_local() if isinstance(weight, DTensor) else weight).data.mul_(0.5)
        try:
            optimizer.constraint_logs  # noqa: B018
        except RuntimeError as error:
            return str(error)
    halved = torch.allclose(model[0].weight.detach(), net()[0].weight * 0.5, atol=1e-6) if wrapper == "ddp" else False
    return f"{halved}, {any('changed outside' in str(one.message) for one in said)}"


@pytest.mark.parametrize("placement", ["replicate", "owner"])
def test_writes_through_data_are_kept_or_said(together: Any, placement: str) -> None:
    kept = together(write_outside, 3, "ddp", placement)
    assert kept.count("True, True") == (3 if placement == "replicate" else 1)  # its owner has noticed
    assert all(answer.startswith("True") for answer in kept)
    lost = together(write_outside, 3, "fsdp2", placement)
    assert any("without a trace" in answer for answer in lost)


def test_costs_are_balanced() -> None:
    owners = balance([5, 1, 3, 3, 4], 2)

    loads = [sum(c for c, o in zip([5, 1, 3, 3, 4], owners, strict=True) if o == rank) for rank in (0, 1)]
    assert max(loads) == 8
    assert balance([1.0], 3) == [0]
