"""The optimizer on a device of its own: what it trains there, what it waits for, what memory it takes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import contenders, gpu
from opdf import Constraint, OverParamConfig, overparameterize
from opdf.mpo import MPOShape, decompose_many, decompose_with_errors, pullback
from opdf.overparam import OverParameterizedOptimizer, cores

pytestmark = pytest.mark.device

GAUGES = ["matched", "raw"]
FUSED = (torch.optim.AdamW, {"lr": 1e-2, "fused": True})
INNER = [
    FUSED, (torch.optim.AdamW, {"lr": 1e-2, "foreach": True, "amsgrad": True}),
    (torch.optim.SGD, {"lr": 1e-1, "momentum": 0.9, "fused": True}), (torch.optim.RMSprop, {"lr": 1e-3}),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _stacks_as_on_cuda(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cores.STACK_ENTRIES, device.type, cores.STACK_ENTRIES["cuda"])


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(12, 12) for _ in range(4)), nn.Conv2d(3, 8, 2)).to(dtype)


def loss(model: nn.Module, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    p = next(model.parameters())
    images = torch.randn(2, 3, 12, 12, generator=generator).to(p)
    return model(images).square().mean()


def train(model: nn.Module, over: OverParameterizedOptimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        loss(model, step).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        over.step()
        over.zero_grad()


def make(model: nn.Module, inner: Any = FUSED, gauge: str = "", teacher: nn.Module | None = None, **config: Any) -> Any:
    over = overparameterize(model, OverParamConfig(ones=2, targets=["*"], **config))
    if teacher is not None:
        names = {name: name for name, p in model.named_parameters() if p.dim() > 1}
        over.align(teacher, Constraint(gauge=gauge, layer_map=names))
    return over.optimizer(inner[0], **inner[1])


def assert_same(model: nn.Module, other: nn.Module, tolerance: float = 1e-10) -> None:
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.cpu(), q.cpu(), rtol=tolerance, atol=tolerance, msg=name)


def test_decomposition_and_gradient_are_those_of_the_cpu(device: torch.device) -> None:
    shape = MPOShape((4, 1, 3), (3, 1, 5))
    matrices = torch.randn(3, 12, 15, dtype=torch.float64)
    gradients = torch.randn_like(matrices)
    here, there = (decompose_many([m.to(d) for m in matrices], [shape] * 3) for d in ("cpu", device))
    for ours, theirs, gradient in zip(here, there, gradients, strict=True):
        assert {core.device for core in theirs} == {device}
        moved = pullback(theirs, gradient.to(device))
        for left, right in zip([*ours, *pullback(ours, gradient)], [*theirs, *moved], strict=True):
            torch.testing.assert_close(left, right.cpu(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner[0].__name__)
@pytest.mark.parametrize("options", [{}, {"lr_scaling": "none"}, {"keep_products": True}], ids=str)
def test_training_is_that_of_the_cpu(device: torch.device, inner: Any, options: dict[str, Any]) -> None:
    here, there = net(), net().to(device)
    for model in (here, there):
        train(model, make(model, inner, **options), 4)
    assert_same(here, there)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_products_of_less_precision(device: torch.device, precision: str) -> None:
    here, there = net(dtype=torch.float32), net(dtype=torch.float32).to(device)
    for model in (here, there):
        train(model, make(model, (torch.optim.SGD, {"lr": 1e-2}), precision=precision), 4)
    assert_same(here, there, 4 * cores.ROUNDING[precision])


@pytest.mark.parametrize("gauge", GAUGES)
@pytest.mark.parametrize("teacher_there", [True, False])
def test_the_constraint_whatever_device_the_teacher_is_on(
    device: torch.device, gauge: str, teacher_there: bool
) -> None:
    here, there, teacher = net(), net().to(device), net(seed=1)
    first = make(here, gauge=gauge, teacher=teacher)
    second = make(there, gauge=gauge, teacher=copy.deepcopy(teacher).to(device) if teacher_there else teacher)
    train(here, first, 4)
    train(there, second, 4)
    assert_same(here, there)
    assert second.constraint_logs == pytest.approx(first.constraint_logs)


@pytest.mark.usefixtures("single_only")
@pytest.mark.parametrize("gauge", ["", *GAUGES])
def test_a_device_without_float64(device: torch.device, gauge: str) -> None:
    here, there = net(dtype=torch.float32), net(dtype=torch.float32).to(device)
    for model in (here, there):
        teacher = net(seed=1, dtype=torch.float32).to(model[0].weight.device) if gauge else None
        torch.manual_seed(0)
        train(model, make(model, (torch.optim.SGD, {"lr": 1e-2}), gauge, teacher), 4)
    assert_same(here, there, 1e-5)


@pytest.mark.usefixtures("single_only")
def test_truncation_is_reported_where_there_is_no_float64(device: torch.device) -> None:
    matrix, shape = torch.randn(2, 12, 15), MPOShape((4, 3), (3, 5), (1, 6, 1))
    here, there = decompose_with_errors(matrix, shape), decompose_with_errors(matrix.to(device), shape)
    assert {core.device for core in there.cores} == {device}
    torch.testing.assert_close(there.bound, here.bound)
    torch.testing.assert_close(there.error(matrix.to(device)), here.error(matrix), rtol=1e-5, atol=0)


@pytest.mark.parametrize("inner", INNER, ids=lambda inner: inner[0].__name__)
@pytest.mark.parametrize("away", [True, False])
def test_a_saved_state_goes_on_where_it_is_loaded(device: torch.device, inner: Any, away: bool) -> None:
    whole, first = net(), net()
    begin, end = (torch.device("cpu"), device) if away else (device, torch.device("cpu"))
    train(whole, make(whole, inner), 4)
    saved = make(first.to(begin), inner)
    train(first, saved, 2)
    second = net().to(end)
    second.load_state_dict(first.state_dict())
    again = make(second, inner)
    again.load_state_dict(saved.state_dict())
    train(second, again, 2, start=2)
    assert_same(whole, second)


@pytest.mark.parametrize("gauge", ["", *GAUGES])
def test_no_step_waits_but_those_that_measure_the_rate(device: torch.device, count_waits: Any, gauge: str) -> None:
    model = net().to(device)
    over = make(model, gauge=gauge, teacher=net(seed=1).to(device) if gauge else None)
    train(model, over, 2)  # the factor of the rate is measured in moves 1, 2, 8, 32, ...
    for step in range(2, 6):
        loss(model, step).backward()
        with count_waits() as waits:
            over.step()
        assert waits == [0]
        over.zero_grad()


def test_a_later_step_without_a_gradient_changes_nothing(device: torch.device) -> None:
    model = net(dtype=torch.float32).to(device)
    over = make(model, (torch.optim.SGD, {"lr": 1e-1}))
    train(model, over, 2)
    before = [p.detach().cpu() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    over.step()
    assert all(torch.equal(old, p.cpu()) for old, p in zip(before, model.parameters(), strict=True))


def test_memory_is_that_of_cores_and_moments(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmark of a GPU's memory, with a batch so small that the optimizer's step is the peak."""
    rows: list[dict[str, Any]] = []
    monkeypatch.setattr(contenders, "DEVICE", device)
    monkeypatch.setattr(gpu, "write", lambda name, title, found, note: rows.append(found[-1]))
    for name in ("memory_allocated", "reset_peak_memory_stats", "max_memory_allocated"):
        if device.type == "standin":
            monkeypatch.setattr(torch.cuda, name, getattr(torch.ops.standin, name))
    gpu.memory("BERT-base", contenders.batch("BERT-base", 2, 16, autocast=True))
    shares = {row["products in"]: row["(opdf - plain) / cores and moments"] for row in rows}
    assert shares.keys() == {"float32", "tf32", "bf16"}
    assert max(shares.values()) <= gpu.MEMORY_TARGET, shares
    if device.type == "standin":
        assert {name: round(share, 2) for name, share in shares.items()} == {
            "float32": 1.05,
            "tf32": 1.05,
            "bf16": 1.05,
        }


def test_the_state_is_saved_while_the_model_is_elsewhere(
    device: torch.device, train_on: Callable[[torch.device], None]
) -> None:
    """`model.cpu()` before weights are saved, and back."""
    moved, kept = net().to(device), net().to(device)
    optimizers = [make(model) for model in (moved, kept)]
    for model, optimizer in zip((moved, kept), optimizers, strict=True):
        train(model, optimizer, 2)
    moved.cpu()
    assert all("core0" in optimizers[0].state_dict()["state"][k] for k in (0, 2, 4, 6, 8))
    moved.to(device)
    for model, optimizer in zip((moved, kept), optimizers, strict=True):
        train(model, optimizer, 2, 2)
    assert_same(moved, kept)
