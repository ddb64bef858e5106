"""Whatever way a weight is changed between two steps, the change is kept."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opdf.overparam import OverParamConfig, OverParameterizedOptimizer, overparameterize, owner
from opdf.overparam.owner import OwnerOptimizer
from opdf.overparam.writes import Writes, entries

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def stepped(dtype: torch.dtype) -> tuple[nn.Linear, OverParameterizedOptimizer]:
    """A layer after a step; the next ones hardly move it."""
    torch.manual_seed(0)
    model = nn.Linear(48, 32).to(dtype)
    config = OverParamConfig(ones=1, targets=["weight"], lr_scaling="none")
    optimizer = overparameterize(model, config).optimizer(torch.optim.SGD, lr=1e-9)
    step(model, optimizer)
    return model, optimizer


def step(model: nn.Linear, optimizer: torch.optim.Optimizer) -> None:
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()


def with_version(write: Callable[[Tensor], Any]) -> Callable[[nn.Linear], None]:
    def act(model: nn.Linear) -> None:
        with torch.no_grad():
            write(model.weight)

    return act


def prune(weight: Tensor) -> None:
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.1] = 0


def numpy(model: nn.Linear) -> None:
    model.weight.detach().numpy()[:] *= 0.5


def another_optimizer(**options: Any) -> Callable[[nn.Linear], None]:
    """A step of another optimizer, whose kernels leave versions as they are if they are fused."""

    def act(model: nn.Linear) -> None:
        model.weight.grad = torch.ones_like(model.weight)
        torch.optim.AdamW([model.weight], lr=0.02, **options).step()

    return act


def load(model: nn.Linear) -> None:
    model.load_state_dict({name: value * 0.7 for name, value in model.state_dict().items()})


WRITES: dict[str, Callable[[nn.Linear], None]] = {
    "in place": with_version(lambda w: w.mul_(0.7)),
    "in place, by little": with_version(lambda w: w.mul_(1.01)),
    "in place, one entry": with_version(lambda w: w[3, 5].zero_()),
    "in place, one entry, by 30 %": with_version(lambda w: w[3, 5].mul_(0.7)),
    "data": lambda m: m.weight.data.mul_(0.7),
    "data, by little": lambda m: m.weight.data.mul_(1.01),
    "data, a mask": lambda m: prune(m.weight.data),
    "data, clipped": lambda m: m.weight.data.clamp_(-0.05, 0.05),
    "data, one row": lambda m: m.weight.data[3].zero_(),
    "data, one column": lambda m: m.weight.data[:, 7].zero_(),
    "data, rows exchanged": lambda m: m.weight.data.copy_(m.weight.data.flip(0)),
    "set_data": lambda m: setattr(m.weight, "data", m.weight.data * 0.7),
    "another layout": lambda m: setattr(m.weight, "data", (m.weight.data * 0.7).T.contiguous().T),
    "load_state_dict": load,
    "numpy": numpy,
    "foreach": another_optimizer(foreach=True),
    "fused": another_optimizer(fused=True),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("write", WRITES)
def test_a_write_is_kept_and_said(write: str, dtype: torch.dtype) -> None:
    if write == "numpy" and dtype == torch.bfloat16:
        pytest.skip("NumPy has no bfloat16")
    model, optimizer = stepped(dtype)
    before = model.weight.detach().clone()
    WRITES[write](model)
    written = model.weight.detach().clone()
    assert not torch.equal(before, written)
    assert optimizer.cores("weight") is None
    with pytest.warns(UserWarning, match="changed outside the optimizer"):
        step(model, optimizer)
    change = float((written - before).double().norm())
    assert float((model.weight.detach() - written).double().norm()) < 0.1 * change
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        step(model, optimizer)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_write_before_a_copy_is_kept(dtype: torch.dtype, copied: Callable[[Any], Any]) -> None:
    """A copy remembers no entries: the weight is compared with its cores."""
    model, optimizer = stepped(dtype)
    model.weight.data.mul_(0.7)
    written = model.weight.detach().clone()
    model, optimizer = copied((model, optimizer))
    with pytest.warns(UserWarning, match="changed outside the optimizer"):
        step(model, optimizer)
    torch.testing.assert_close(model.weight.detach(), written, rtol=0.02, atol=1e-6)


def test_a_step_to_the_side_is_taken_back_by_a_copy() -> None:
    """As SAM takes one. To subtract it leaves rounding, and the remedy has to be another one than to load weights."""
    model, optimizer = stepped(torch.float32)
    kept, aside = model.weight.detach().clone(), torch.full_like(model.weight, 0.1)
    with torch.no_grad():
        model.weight.add_(aside)
        model.weight.copy_(kept)
    with warnings.catch_warnings(action="error"):
        step(model, optimizer)
    with torch.no_grad():
        model.weight.add_(aside).sub_(aside)
    with pytest.warns(UserWarning, match=r"after a step to the side \(SAM\) put back a copy"):
        step(model, optimizer)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("how", ["steps", "the same values", "swapped out and back", "a copy", "another layout"])
def test_what_is_no_change_is_not_taken_for_one(dtype: torch.dtype, how: str) -> None:
    model, optimizer = stepped(dtype)
    for _ in range(3):
        kept = copy.deepcopy(model.state_dict())
        if how == "the same values":
            model.weight.data = model.weight.data.clone()
        elif how == "swapped out and back":
            model.load_state_dict({name: torch.zeros_like(value) for name, value in kept.items()})
            model.load_state_dict(kept)
        elif how == "a copy":
            model, optimizer = copy.deepcopy((model, optimizer))
        elif how == "another layout":
            model.weight.data = model.weight.data.T.contiguous().T
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            step(model, optimizer)
        assert optimizer.cores("weight") is not None


def test_weights_that_have_diverged_are_not_taken_for_written() -> None:
    model, optimizer = stepped(torch.float32)
    model.weight.grad = torch.full_like(model.weight, torch.nan)
    optimizer.step()
    assert model.weight.isnan().any()
    step(model, optimizer)


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (7, 7), (1, 5), (5, 1), (0, 4), (6, 4, 3, 3)], ids=str)
def test_every_row_and_column_is_looked_at(shape: tuple[int, ...]) -> None:
    weight = torch.zeros(shape)
    before = entries(weight)
    assert len(before) == (0 if 0 in shape else max(shape[0], weight.flatten(1).shape[1]))
    rows = weight.flatten(1)
    for line in (*rows, *rows.T):
        line.fill_(1)
        assert not line.numel() or not torch.equal(entries(weight), before)
        line.fill_(0)


def test_a_write_that_was_not_seen_in_time_is_an_error_later() -> None:
    """Where the device is not waited for; tensors on the CPU stand in, given as if they were sharded."""
    writes, weight = Writes(), nn.Parameter(torch.zeros(4, 4))
    writes.mark(weight)
    writes.look_later([weight])
    writes.raise_if_lost()
    weight.data.add_(1)
    writes.look_later([weight])
    with pytest.raises(RuntimeError, match=r"changed between two steps .*no_grad\(\): weight\.mul_\(mask\)"):
        writes.raise_if_lost()
    writes.raise_if_lost()


def bring_together(optimizer: OverParameterizedOptimizer) -> None:
    optimizer.consolidate_state_dict() if isinstance(optimizer, OwnerOptimizer) else optimizer.state_dict()


def state_of_several(optimizer: OverParameterizedOptimizer, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The state dict as on one of several processes, which has brought the cores of all together."""
    with monkeypatch.context() as patch:
        patch.setattr(owner, "_processes", lambda: 2)
        return optimizer.state_dict()


@pytest.mark.parametrize("size", [1e-2, 1e-4])
def test_small_float16_weights_are_the_product_of_their_cores(size: float) -> None:
    """Below 6e-5 float16 rounds to multiples of 6e-8, however small an entry is."""
    torch.manual_seed(0)
    model = nn.Linear(48, 32)
    with torch.no_grad():
        model.weight.mul_(size)
    model = model.half()
    config = OverParamConfig(ones=1, targets=["weight"], lr_scaling="none")
    optimizer = overparameterize(model, config).optimizer(torch.optim.SGD, lr=1e-2 * size, momentum=0.9)
    step(model, optimizer)
    kept = copy.deepcopy(optimizer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        step(model, optimizer)
        step(model, optimizer)
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with torch.no_grad():
        model.weight.mul_(0.9)
    with pytest.warns(UserWarning, match="did not hold the product"):
        optimizer.load_state_dict(kept)


@pytest.mark.parametrize("placement", ["replicate", "owner"])
def test_a_write_just_before_a_checkpoint_is_in_it(placement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pruning mask after the last step: the run that goes on from the checkpoint keeps it, as the live run does.

    With owners, the cores that are saved are those that were brought together.
    """

    def made() -> tuple[nn.Linear, OverParameterizedOptimizer]:
        torch.manual_seed(0)
        model = nn.Linear(8, 12)
        over = overparameterize(nn.Sequential(model), OverParamConfig(ones=1, targets=["0"], placement=placement))
        return model, over.optimizer(torch.optim.AdamW, lr=1e-2)

    def step(model: nn.Linear, optimizer: OverParameterizedOptimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 8)).sum().backward()
        optimizer.step()

    live, optimizer = made()
    step(live, optimizer)
    with torch.no_grad():
        live.weight[:, ::2] = 0
    with pytest.warns(UserWarning, match="changed outside the optimizer"):
        bring_together(optimizer)
    saved = copy.deepcopy((live.state_dict(), state_of_several(optimizer, monkeypatch)))
    resumed, other = made()
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert (resumed.weight[:, ::2] == 0).all()
    step(live, optimizer)
    step(resumed, other)
    assert torch.equal(live.weight, resumed.weight)


@pytest.mark.parametrize("placement", ["replicate", "owner"])
def test_a_checkpoint_while_an_average_is_swapped_in_changes_nothing(placement: str) -> None:
    """Else a run that saves would train on with other cores and without moments."""
    torch.manual_seed(0)
    model = nn.Linear(8, 12)
    other = copy.deepcopy(model)
    config = OverParamConfig(ones=1, targets=["weight"], placement=placement)
    pairs = [(net, overparameterize(net, config).optimizer(torch.optim.AdamW, lr=1e-2)) for net in (model, other)]

    def train() -> None:
        for net, optimizer in pairs:
            for k in range(1, 4):
                optimizer.zero_grad()
                net(torch.full((1, 8), 0.1 * k)).square().sum().backward()
                optimizer.step()

    train()
    own = copy.deepcopy(model.state_dict())
    model.load_state_dict({name: value * 0.9 for name, value in own.items()})
    with pytest.warns(UserWarning, match="its cores and moments are not saved"):
        bring_together(pairs[0][1])
    model.load_state_dict(own)
    saved = pairs[0][1].state_dict()
    assert "core0" in saved["state"][0]
    train()
    assert torch.equal(model.weight, other.weight)


def test_cores_that_are_set_after_they_were_brought_together_are_not_saved_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = OverParamConfig(ones=1, targets=["weight"], placement="owner")
    optimizer = overparameterize(nn.Linear(8, 12), config).optimizer(torch.optim.AdamW, lr=1e-2)
    assert isinstance(optimizer, OwnerOptimizer)
    optimizer.make_cores()
    cores = [core.clone() for core in optimizer.cores("weight") or ()]
    changes: list[Callable[[], None]] = [optimizer.make_cores, lambda: optimizer.set_cores("weight", cores)]
    for change in changes:
        optimizer.consolidate_state_dict()
        assert "core0" in state_of_several(optimizer, monkeypatch)["state"][0]
        change()
        with pytest.raises(RuntimeError, match="call consolidate_state_dict"):
            state_of_several(optimizer, monkeypatch)
