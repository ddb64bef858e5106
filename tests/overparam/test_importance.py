"""Which matrices are over-parameterized, when a share of them is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from opdf.overparam import OverParamConfig, overparameterize
from opdf.overparam.importance import count_kept, importance


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(5)))


def planned(model: nn.Module, share: float | None, **options: Any) -> list[str]:
    config = OverParamConfig(ones=1, targets="all-linear", most_important=share, **options)
    return [target.name for target in overparameterize(model, config).matrices]


def test_importance_is_the_loss_that_removing_each_entry_costs() -> None:
    """For a loss that is linear in the weight, the first order is exact: set entries to zero one by one."""
    torch.manual_seed(0)
    weight, slope = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    (slope * weight).sum().backward()
    costs = []
    for k in range(weight.numel()):
        without = weight.detach().clone()
        without.view(-1)[k] = 0
        costs.append(abs(float((slope * (weight - without)).detach().sum())))
    assert importance(weight, weight.grad) == pytest.approx(sum(costs), rel=1e-5)
    assert importance(weight, None) == 0


def test_the_largest_are_kept_in_the_models_order() -> None:
    model = net()
    for scale, layer in zip((3.0, 1.0, 5.0, 2.0, 4.0), model, strict=True):
        layer.weight.grad = scale / layer.weight.detach()  # 36 * scale, whatever the weight
    assert planned(model, 0.6) == ["0.weight", "2.weight", "4.weight"]
    assert planned(model, 0.01) == ["2.weight"]
    assert planned(model, 0.4, exclude=["2"]) == ["0.weight", "4.weight"]
    assert planned(model, 1.0) == planned(model, None) == [f"{k}.weight" for k in range(5)]


def test_a_large_matrix_is_not_ranked_below_a_small_one_for_its_size() -> None:
    model = nn.ModuleDict({"large": nn.Linear(8, 8), "small": nn.Linear(2, 2)})
    for name, entry in (("large", 1.0), ("small", 3.0)):
        model[name].weight.grad = entry / model[name].weight.detach()
    assert planned(model, 0.5) == ["large.weight"]


def test_a_matrix_without_gradient_comes_last() -> None:
    model = net()
    model[3].weight.grad = torch.ones(6, 6)
    assert planned(model, 0.2) == ["3.weight"]


def test_the_number_kept() -> None:
    assert [count_kept(18, share) for share in (0.001, 0.25, 0.5, 0.99, 1.0)] == [1, 4, 9, 18, 18]


def test_the_rest_is_trained_densely() -> None:
    model, plain = net(), net()
    model[1].weight.grad = torch.ones(6, 6)
    over = overparameterize(model, OverParamConfig(ones=1, targets="all-linear", most_important=0.2))
    optimizers = over.optimizer(torch.optim.AdamW, lr=0.01), torch.optim.AdamW(plain.parameters(), lr=0.01)
    for network, optimizer in zip((model, plain), optimizers, strict=True):
        optimizer.zero_grad()
        network(torch.ones(1, 6)).square().sum().backward()
        optimizer.step()
    same = [torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True)]
    assert same == [True, False, True, True, True]
    assert over.train_params > over.inference_params


@pytest.mark.parametrize(("value", "message"), [
    (None, r"none of the 5 matrices has a gradient .*call loss\.backward\(\) on a few batches first"),
    (0.0, "none of the 5 matrices has a gradient other than zero"),
    (torch.nan, r"the gradient of 0\.weight is not finite"),
])  # fmt: skip
def test_useless_gradients_are_refused(value: float | None, message: str) -> None:
    model = net()
    for layer in model:
        layer.weight.grad = None if value is None else torch.full((6, 6), value)
    with pytest.raises(ValueError, match=message):
        planned(model, 0.5)


def test_after_the_optimizer_it_is_too_late() -> None:
    over = overparameterize(net(), OverParamConfig(targets="all-linear"))
    over.optimizer(torch.optim.SGD, lr=0.1)
    with pytest.raises(RuntimeError, match="call it before"):
        over.keep_most_important()
