"""Planning, counting, and the cores as a state dict."""

from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import opdf
from opdf.mpo import contract
from opdf.overparam import OverParamConfig, overparameterize

CONFIG = OverParamConfig(ones=2, targets="all-linear", lr_scaling="none")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 6))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(2, 12)).square().sum().backward()
    optimizer.step()


def test_import_needs_torch_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, opdf; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert not {"transformers", "datasets", "accelerate", "scipy", "sklearn"} & set(done.stdout.split())


def test_parameter_counts() -> None:
    model = net()
    overparam = overparameterize(model, CONFIG)
    optimizer = overparam.optimizer(torch.optim.SGD, lr=0.1)
    step(model, optimizer)
    cores = sum(core.numel() for t in overparam.matrices for core in optimizer.cores(t.name) or [])
    biases = 24 + 6
    assert overparam.train_params == cores + biases
    assert overparam.inference_params == sum(p.numel() for p in model.parameters())
    assert f"{overparam.train_params:,} while training" in overparam.summary()


def test_cores_as_a_state_dict_before_and_after_steps() -> None:
    model = net()
    overparam = overparameterize(model, CONFIG)
    for _ in range(2):
        state = overparam.state_dict()
        product = contract([state[f"0.weight.core{k}"] for k in range(4)])
        torch.testing.assert_close(product, model[0].weight.detach())
        step(model, overparam.optimizer(torch.optim.SGD, lr=0.1))


@pytest.mark.parametrize("started", [False, True])
def test_loading_cores_sets_the_weights_and_training_goes_on_from_them(started: bool) -> None:
    model = net()
    overparam = overparameterize(model, CONFIG)
    optimizer = overparam.optimizer(torch.optim.SGD, lr=0.1)
    step(model, optimizer)
    state = overparam.state_dict()
    other = net()
    again = overparameterize(other, CONFIG)
    if started:
        stepper = again.optimizer(torch.optim.SGD, lr=0.1)
        step(other, stepper)
    again.load_state_dict(state)
    with torch.no_grad():
        for k in (0, 2):
            other[k].bias.copy_(model[k].bias)
    assert torch.equal(other[0].weight, model[0].weight)
    if not started:
        stepper = again.optimizer(torch.optim.SGD, lr=0.1)
    assert all(torch.equal(core, state[f"0.weight.core{k}"]) for k, core in enumerate(again.cores(again.matrices[0])))
    given = {name: core.clone() for name, core in state.items()}
    step(model, optimizer)
    step(other, stepper)
    torch.testing.assert_close(other[0].weight, model[0].weight)
    assert all(torch.equal(core, given[name]) for name, core in state.items())  # it is the user's


@pytest.mark.parametrize("started", [False, True])
def test_after_loading_cores_the_first_step_still_moves_as_far_as_a_dense_one(started: bool) -> None:
    config = replace(CONFIG, lr_scaling="match-dense")
    state = overparameterize(net(), config).state_dict()
    state["0.weight.core0"] *= 64  # another gauge: what was measured of the old cores does not hold
    state["0.weight.core3"] /= 64
    model = net()
    overparam = overparameterize(model, config)
    if started:
        optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)
        step(model, optimizer)
    overparam.load_state_dict(state)
    if not started:
        optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-3, weight_decay=0.0)
    before = model[0].weight.detach().clone()
    step(model, optimizer)
    assert float((model[0].weight.detach() - before).square().mean().sqrt()) == pytest.approx(1e-3, rel=0.02)


def test_loaded_cores_do_not_outlive_the_weights_that_they_made() -> None:
    model = net()
    overparam = overparameterize(model, CONFIG)
    overparam.load_state_dict(overparam.state_dict())
    first = overparam.optimizer(torch.optim.SGD, lr=1e-9)
    with torch.no_grad():
        model[0].weight += 1.0
    moved = model[0].weight.detach().clone()
    with pytest.warns(UserWarning, match=r"0\.weight was changed after its cores had been loaded"):
        step(model, first)
    torch.testing.assert_close(model[0].weight.detach(), moved)
    step(model, overparam.optimizer(torch.optim.SGD, lr=1e-9))  # a second phase of training
    torch.testing.assert_close(model[0].weight.detach(), moved)
    overparam.load_state_dict(overparam.state_dict())
    with warnings.catch_warnings(action="error"):
        step(model, overparam.optimizer(torch.optim.SGD, lr=1e-9))


def test_loaded_cores_are_begun_from_once() -> None:
    model = net()
    overparam = overparameterize(model, CONFIG)
    overparam.load_state_dict(overparam.state_dict())
    optimizer = overparam.optimizer(torch.optim.SGD, lr=1e-9)
    step(model, optimizer)
    with torch.no_grad():
        model[0].weight += 1.0
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        step(model, optimizer)
    assert ["changed outside the optimizer" in str(one.message) for one in said] == [True]


def test_cores_are_those_of_a_weight_that_was_changed_before_a_checkpoint() -> None:
    """Saving the optimizer drops cores that no longer hold, and keeps what is known about their rate."""
    model = net()
    overparam = overparameterize(model, replace(CONFIG, lr_scaling="match-dense"))
    optimizer = overparam.optimizer(torch.optim.SGD, lr=0.1)
    step(model, optimizer)
    with torch.no_grad():
        model[0].weight *= 0.5
    with pytest.warns(UserWarning, match="changed outside the optimizer"):
        optimizer.state_dict()
    assert optimizer.cores("0.weight") is None
    torch.testing.assert_close(contract(overparam.cores(overparam.matrices[0])), model[0].weight.detach())


def test_cores_are_those_of_a_weight_that_was_changed_from_outside() -> None:
    model = net()
    overparam = overparameterize(model, CONFIG)
    step(model, overparam.optimizer(torch.optim.SGD, lr=0.1))
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    step(model, overparam.optimizer(torch.optim.SGD, lr=0.1))
    model.load_state_dict(kept)  # as the best checkpoint is, at the end of a training
    state = overparam.state_dict()
    for name in ("0.weight", "2.weight"):
        product = contract([state[f"{name}.core{k}"] for k in range(4)])
        torch.testing.assert_close(product, kept[name].reshape(product.shape))


def test_loaded_cores_are_those_of_a_weight_that_was_changed_since() -> None:
    model = net()
    overparam = overparameterize(model, CONFIG)
    overparam.load_state_dict(overparam.state_dict())
    with torch.no_grad():
        model[0].weight += 1.0
    torch.testing.assert_close(contract(overparam.cores(overparam.matrices[0])), model[0].weight.detach())


def test_a_group_may_hold_one_parameter() -> None:
    model = net()
    groups = [{"params": p, "lr": 0.1 * k} for k, p in enumerate(model.parameters())]
    optimizer = overparameterize(model, CONFIG).optimizer(torch.optim.SGD, groups)
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names == [[name] for name, _ in model.named_parameters()]


def test_parameters_of_others_are_numbered() -> None:
    model = net()
    extra = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = overparameterize(model, CONFIG).optimizer(torch.optim.SGD, [*model.parameters(), *extra], lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == [*dict(model.named_parameters()), "extra.0", "extra.1"]


def test_frozen_parameters_are_left_out_by_default() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    optimizer = overparameterize(model, CONFIG).optimizer(torch.optim.SGD, lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "2.weight", "2.bias"]


@pytest.mark.parametrize("form", ["parameters", "named", "group"])
def test_frozen_parameters_that_are_given_are_trained_once_they_are_not_frozen(form: str) -> None:
    """As by torch's optimizers, which keep what they are given."""
    model, dense = net(), net()
    model[0].bias.requires_grad_(False)
    params: Any = model.named_parameters() if form == "named" else model.parameters()
    over = overparameterize(model, CONFIG)
    optimizer = over.optimizer(torch.optim.SGD, [{"params": params}] if form == "group" else params, lr=0.1)
    model[0].bias.requires_grad_()
    step(model, optimizer)
    step(dense, torch.optim.SGD(dense.parameters(), lr=0.1))
    assert torch.equal(model[0].bias, dense[0].bias)


def test_cores_are_loaded_into_weights_that_were_frozen_since() -> None:
    model = net()
    over = overparameterize(model, CONFIG)
    state = {name: core * 0.9 for name, core in over.state_dict().items()}
    model.requires_grad_(False)
    over.load_state_dict(state)
    product = contract([state[f"0.weight.core{k}"] for k in range(4)])
    torch.testing.assert_close(model[0].weight, product)


def test_loading_wrong_cores_is_refused() -> None:
    state = overparameterize(net(), CONFIG).state_dict()
    with pytest.raises(KeyError, match="misses 2 cores"):
        overparameterize(net(), OverParamConfig(ones=3, targets="all-linear")).load_state_dict(state)
    with pytest.raises(KeyError, match="has unknown 2 cores"):
        overparameterize(net(), OverParamConfig(ones=1, targets="all-linear")).load_state_dict(state)
    for k in range(4):
        left, right = slice(None, -1 if k > 0 else None), slice(None, -1 if k < 3 else None)
        state[f"0.weight.core{k}"] = state[f"0.weight.core{k}"][left, :, :, right]
    with pytest.raises(ValueError, match=r"0\.weight is .* in state_dict"):
        overparameterize(net(), CONFIG).load_state_dict(state)


def test_explicit_shapes_by_pattern() -> None:
    config = OverParamConfig(ones=1, targets="all-linear", shapes={"0": ((4, 6), (3, 4))})
    shapes = [str(t.shape) for t in overparameterize(net(), config).matrices]
    assert shapes == ["T(4,6 / 3,4)", "T(3,1,2 / 6,1,4)"]
    for wrong, size in ((((4, 5), (3, 4)), "20x12"), (((4, 6), (3, 5)), "24x15")):
        with pytest.raises(ValueError, match=rf"shapes\['0'\] gives a {size} matrix; 0\.weight is 24x12"):
            overparameterize(net(), OverParamConfig(targets="all-linear", shapes={"0": wrong}))


def test_not_a_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"model is a dict; give a torch\.nn\.Module"):
        overparameterize({})  # type: ignore[arg-type]


def test_align_after_optimizer_is_refused() -> None:
    overparam = overparameterize(net(), CONFIG)
    overparam.optimizer(torch.optim.SGD, lr=0.1)
    with pytest.raises(RuntimeError, match="call it before"):
        overparam.align(net())


def test_trainer_is_reached_through_the_package() -> None:
    assert opdf.DistillationTrainer.__name__ == "DistillationTrainer"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        opdf.nothing  # noqa: B018
