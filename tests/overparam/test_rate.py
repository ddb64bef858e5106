"""With match-dense a step of the cores moves a weight about as far as the dense optimizer would, in whatever state."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opdf.overparam import OverParamConfig, overparameterize

ROWS, COLS = 96, 64


def gradients(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(ROWS, COLS, generator=generator) for _ in range(count)]


def one_row() -> Tensor:
    gradient = torch.zeros(ROWS, COLS)
    gradient[5] = torch.randn(COLS, generator=torch.Generator().manual_seed(2))
    return gradient


def movement(
    inner: Any,
    given: list[Tensor],
    schedule: Callable[[int], float] = lambda step: 1.0,
    size: float = 0.05,
    **config: Any,
) -> list[float]:
    """By step, how far the weight moved over how far the dense optimizer's did: same gradients, a model for each."""
    torch.manual_seed(0)
    model = nn.Linear(COLS, ROWS, bias=False)
    nn.init.normal_(model.weight, std=size)
    dense = copy.deepcopy(model)
    ours = overparameterize(model, OverParamConfig(targets=["weight"], **config)).optimizer(inner, lr=1e-4)
    theirs = inner(dense.parameters(), lr=1e-4)
    found = []
    for step, gradient in enumerate(given):
        before = [net.weight.detach().clone() for net in (model, dense)]
        for net, optimizer in ((model, ours), (dense, theirs)):
            optimizer.param_groups[0]["lr"] = 1e-4 * schedule(step)
            net.weight.grad = gradient.clone()
            optimizer.step()
        moved = [float((n.weight.detach() - b).norm()) for n, b in zip((model, dense), before, strict=True)]
        found.append(moved[0] / moved[1] if moved[1] else float("nan"))
    return found


@pytest.mark.parametrize("ones", [0, 1, 3, 8])
@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_the_first_steps_are_as_long_as_dense_ones(inner: Any, ones: int) -> None:
    found = movement(inner, gradients(12), ones=ones)
    assert found[0] == pytest.approx(1, rel=0.01)
    assert all(0.8 < ratio < 1.25 for ratio in found)


@pytest.mark.parametrize("ones", [0, 3])
@pytest.mark.parametrize("size", [1e-2, 1e-4, 1e-6, 1e-8, 1e-13, 1e-20, 0.0])
def test_weights_far_smaller_than_the_rate_take_steps_like_dense_ones(size: float, ones: int) -> None:
    """To first order alone the first step was up to 1e10 times as long, or not a number."""
    found = movement(torch.optim.AdamW, gradients(8), size=size, ones=ones)
    assert all(0.4 < ratio < 2.01 for ratio in found[:1])
    assert all(0.4 < ratio < 8 for ratio in found)


@pytest.mark.parametrize("value", [1.0, 0.05])
def test_decay_counts_as_a_part_of_the_first_step(value: float) -> None:
    """A gradient of almost nothing beside a large decay: the step is as the cores' optimizer has it.

    The smaller weight's cores have a rate of 1.5: they may go three times as far as the decay of one tensor.
    """
    tiny = [gradient * 1e-9 for gradient in gradients(1)]
    found = []
    for scaling in ("match-dense", "none"):
        model = nn.Linear(COLS, ROWS, bias=False)
        nn.init.constant_(model.weight, value)
        config = OverParamConfig(targets=["weight"], ones=1, lr_scaling=scaling)
        optimizer = overparameterize(model, config).optimizer(torch.optim.SGD, lr=1e-3, weight_decay=1.0)
        model.weight.grad = tiny[0].clone()
        optimizer.step()
        state = optimizer.state[model.weight]
        found.append((value - float(model.weight[0, 0].detach())) / state.get("lr_scale", 1.0))
    assert found[0] == pytest.approx(found[1], rel=0.02)


def test_an_unusual_first_gradient_is_soon_forgotten() -> None:
    found = movement(torch.optim.AdamW, [one_row(), *gradients(60)])
    assert found[0] == pytest.approx(1, rel=0.02)
    assert all(0.6 < ratio < 1.6 for ratio in found[1:])
    assert 0.8 < statistics.median(found[40:]) < 1.25


def test_an_optimizer_that_begins_as_another_is_judged_by_how_it_goes_on() -> None:
    """RAdam's first five steps are plain gradient descent, which cores answer to differently."""
    found = movement(torch.optim.RAdam, gradients(40))
    assert all(0.7 < ratio < 1.4 for ratio in found[6:])


def test_a_warm_up_from_zero_begins_with_the_first_step_that_has_a_rate() -> None:
    found = movement(torch.optim.AdamW, [one_row(), *gradients(30)], lambda step: min(1.0, step / 10))
    assert all(0.7 < ratio < 1.4 for ratio in found[1:])


@pytest.mark.parametrize("ones", [0, 3])
def test_decay_moves_a_weight_by_the_factor_for_every_core(ones: int) -> None:
    """What benchmarks/rate.py reports as decay over dense decay, beside two steps with and without it."""
    rate, weight_decay, found = 1e-4, 0.1, []
    for decay in (0.0, weight_decay):
        torch.manual_seed(0)
        model = nn.Linear(COLS, ROWS, bias=False).double()
        start = model.weight.detach().clone()
        over = overparameterize(model, OverParamConfig(targets=["weight"], ones=ones))
        optimizer = over.optimizer(torch.optim.AdamW, lr=rate, weight_decay=decay)
        model.weight.grad = gradients(1)[0].double()
        optimizer.step()
        found.append(model.weight.detach())
    moved = float((found[1] - found[0]).norm() / (rate * weight_decay * start.norm()))
    assert moved == pytest.approx((ones + 2) * optimizer.state[model.weight]["lr_scale"], rel=0.01)


def test_a_weight_that_has_had_no_gradient_yet_decays() -> None:
    """Its factor is not measured yet, and is one."""
    model = nn.Linear(COLS, ROWS, bias=False).double()
    start = model.weight.detach().clone()
    over = overparameterize(model, OverParamConfig(targets=["weight"], ones=1))
    optimizer = over.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
    model.weight.grad = torch.zeros_like(model.weight)
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), start * (1 - 1e-2 * 0.1) ** 3)


def test_the_factor_is_saved_with_what_it_was_measured_from() -> None:
    """A resumed run measures on where it was, as the run that was not interrupted."""
    given = [one_row(), *gradients(40)]
    torch.manual_seed(0)
    model = nn.Linear(COLS, ROWS, bias=False)

    def make(net: nn.Linear) -> Any:
        return overparameterize(net, OverParamConfig(targets=["weight"])).optimizer(torch.optim.AdamW, lr=1e-4)

    optimizer = make(model)
    for step, gradient in enumerate(given):
        if step == 5:
            again = copy.deepcopy(model)
            resumed = make(again)
            resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for net, stepped in ((model, optimizer), (again, resumed)) if step >= 5 else ((model, optimizer),):
            net.weight.grad = gradient.clone()
            stepped.step()
    assert torch.equal(model.weight, again.weight)
    assert resumed.state[again.weight]["moves"] == 41


@pytest.mark.parametrize("factor", [1e30, float("inf"), float("nan")])
@pytest.mark.parametrize("spoiled", [0, 1])
@pytest.mark.filterwarnings("ignore:.*changed outside the optimizer")
def test_a_gradient_that_is_not_finite_is_not_measured(factor: float, spoiled: int) -> None:
    """Once the weight is loaded again, steps are as long as dense ones."""
    torch.manual_seed(0)
    model = nn.Linear(COLS, ROWS, bias=False)
    optimizer = overparameterize(model, OverParamConfig(targets=["weight"])).optimizer(torch.optim.SGD, lr=1e-4)
    for step, gradient in enumerate(gradients(6)):
        before = model.weight.detach().clone()
        model.weight.grad = gradient * factor if step == spoiled else gradient
        optimizer.step()
        if step == spoiled:
            model.load_state_dict({"weight": before})
        else:
            moved = float((model.weight.detach() - before).norm() / (1e-4 * gradient.norm()))
            assert moved == pytest.approx(1, rel=0.05)
