"""Any optimizer of cores steps them as it would as a model's own parameters, or is refused when it is made."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from oracle import RebuildInForward
from torch import nn
from torch.optim import Optimizer
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from opdf.overparam import OverParamConfig, OverParameterizedOptimizer, overparameterize, rolled_back

STEPS = 12


def moving(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], Any]]:
    """Parameters that have a gradient, with their groups."""
    for group in optimizer.param_groups:
        yield from ((group, p) for p in group["params"] if p.grad is not None)


class Counts(Optimizer):
    """Its step counter lives in its groups."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        for group, p in moving(self):
            p.sub_(p.grad, alpha=group["lr"] / group["step"])


class CountsOnTheDevice(Counts):
    """Its counter is a tensor, changed in place."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.param_groups[-1]["count"] = torch.zeros(())

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["count"] += 1
        for group, p in moving(self):
            p.sub_(p.grad * group["lr"] / group["count"])


class CountsItself(Counts):
    """Its counter lives in itself: two calls of `step` are two steps."""

    count = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.count += 1
        for group, p in moving(self):
            p.sub_(p.grad, alpha=group["lr"] / self.count)


class Estimates(Counts):
    """It estimates one rate from all tensors and keeps it in its groups, as Prodigy does."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        size = self.param_groups[0].get("size", 0.0) + sum(float(p.grad.abs().sum()) for p in params)
        for group in self.param_groups:
            group["size"] = size
        for p in params:
            p.sub_(p.grad, alpha=self.param_groups[0]["lr"] / size)


class EstimatesIfAsked(Estimates):
    """It estimates one rate from all tensors if any of its groups asks for that."""

    def __init__(self, params: Any, lr: float = 1e-2, joint: bool = False) -> None:
        Optimizer.__init__(self, params, {"lr": lr, "joint": joint})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        (Estimates if any(group["joint"] for group in self.param_groups) else Counts).step(self)


class TakesTurns(Counts):
    """It steps every other time: what it keeps in its groups becomes again what the user has there."""

    def __init__(self, params: Any, lr: float = 1e-2, on: bool = False) -> None:
        Optimizer.__init__(self, params, {"lr": lr, "on": on})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["on"] = not group["on"]
        for group, p in moving(self):
            if group["on"]:
                p.sub_(p.grad, alpha=group["lr"])


class KeepsBits(Counts):
    """Its state is in eight bits, as that of quantized optimizers is."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group, p in moving(self):
            state, sign = self.state[p], (p.grad > 0).to(torch.uint8)
            state["changed"] = sign ^ state.get("sign", sign)  # of floats there is none
            state["sign"] = sign
            p.sub_(p.grad.sign() * (1 - 0.5 * state["changed"]), alpha=group["lr"])


class SkipsFrozen(Counts):
    """It passes over tensors that do not require gradients."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group, p in moving(self):
            if p.requires_grad:
                p.sub_(p.grad, alpha=group["lr"])


class BeginsAtOnce(Counts):
    """It makes its state when it is made, as Adagrad of torch 2.11 does."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, lr)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["sum"] = torch.full_like(p, 0.1)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group, p in moving(self):
            self.state[p]["sum"].add_(p.grad.square())
            p.sub_(p.grad / self.state[p]["sum"].sqrt(), alpha=group["lr"])


TOYS = [Counts, CountsOnTheDevice, CountsItself, Estimates, SkipsFrozen, BeginsAtOnce, TakesTurns]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 6))


def plan(model: nn.Module, **config: Any) -> Any:
    """Two matrices are over-parameterized, one is not."""
    return overparameterize(model, OverParamConfig(ones=1, targets=["0", "2"], **({"lr_scaling": "none"} | config)))


def backward(model: Any, step: int, dtype: torch.dtype = torch.float64) -> None:
    data = torch.randn(16, 12, generator=torch.Generator().manual_seed(step)).to(dtype)
    (model(data).float() if dtype == torch.bfloat16 else model(data)).square().mean().backward()


def train(model: nn.Module, optimizer: Optimizer, steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        backward(model, step, next(model.parameters()).dtype)
        optimizer.step()


def difference(inner: Any, options: dict[str, Any]) -> float:
    """After some steps, from cores that are parameters of a model which rebuilds its weights: relative, the largest."""
    model = net().double()
    over = plan(model)
    oracle = RebuildInForward(copy.deepcopy(model), over)
    optimizer = over.optimizer(inner, **options)
    groups = [list(oracle.rest.values()), *oracle.cores.values()]
    theirs = inner([{"params": params} for params in groups], **options)
    for step in range(STEPS):
        for stepped, how in ((model, optimizer), (oracle, theirs)):
            backward(stepped, step)
            how.step()
            how.zero_grad()
    expected = oracle.weights() | oracle.rest
    start = dict(net().double().named_parameters())
    assert any(not torch.equal(start[name], value) for name, value in expected.items())
    return max(float(((model.get_parameter(n) - w).norm() / w.norm()).detach()) for n, w in expected.items())


@pytest.mark.parametrize("inner", TOYS)
def test_counters_and_estimates_go_on_as_they_do_densely(inner: Any) -> None:
    assert difference(inner, {}) < 1e-12


@pytest.mark.parametrize("inner", TOYS)
def test_parameters_without_cores_are_stepped_as_alone(inner: Any) -> None:
    """The biases get constant gradients, so that nothing but the optimizer decides where they go."""
    model, plain = net(), net()
    theirs = inner(plain.parameters())
    optimizer = plan(model).optimizer(inner)
    for _ in range(10):
        for net_, how in ((model, optimizer), (plain, theirs)):
            for name, p in net_.named_parameters():
                p.grad = torch.ones_like(p) if "bias" in name or inner is not Estimates else torch.zeros_like(p)
            how.step()
    for ours, expected in zip(model.parameters(), plain.parameters(), strict=True):
        if ours.dim() == 1:
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("inner", [Counts, CountsOnTheDevice, Estimates, KeepsBits, torch.optim.NAdam])
def test_resuming_goes_on_with_counters_and_estimates(inner: Any, dtype: torch.dtype) -> None:
    model = net().to(dtype)
    optimizer = plan(model).optimizer(inner)
    train(model, optimizer, range(3))
    weights, file = copy.deepcopy(model.state_dict()), io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    train(model, optimizer, range(3, 6))
    resumed = net().to(dtype)
    resumed.load_state_dict(weights)
    again = plan(resumed).optimizer(inner)
    again.load_state_dict(torch.load(file, weights_only=True))
    train(resumed, again, range(3, 6))
    assert_same(model, resumed)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("inner", [Counts, CountsOnTheDevice, Estimates, torch.optim.AdamW])
def test_copies_go_on_with_counters_and_estimates(inner: Any, copied: Any) -> None:
    model = net()
    optimizer = plan(model).optimizer(inner)
    train(model, optimizer, range(3))
    other, again = copied((model, optimizer))
    train(model, optimizer, range(3, 6))
    train(other, again, range(3, 6))
    assert_same(model, other)


@pytest.mark.parametrize("inner", [Counts, CountsOnTheDevice, Estimates, torch.optim.AdamW])
def test_steps_that_are_tried_before_the_first_one_leave_no_trace(inner: Any) -> None:
    """Neither counters nor moments; and training begins from the cores that were loaded, in a gauge of their own."""
    models = [net(), net()]
    for model in models:
        over = plan(model)
        state = over.state_dict()
        state["0.weight.core0"] *= 2
        state["0.weight.core2"] /= 2
        over.load_state_dict(state)
        optimizer = over.optimizer(inner)
        if model is models[0]:
            with rolled_back(optimizer):
                train(model, optimizer, range(7, 9))
        train(model, optimizer, range(3))
    assert_same(*models)


@pytest.mark.filterwarnings("ignore:.*changed outside the optimizer")
def test_steps_that_are_tried_from_other_weights_leave_no_trace() -> None:
    """Where an average is swapped in meanwhile, the moments of the weights that come back were lost."""
    models = [net(), net()]
    for model in models:
        optimizer = plan(model).optimizer(torch.optim.AdamW)
        train(model, optimizer, range(3))
        if model is models[0]:
            kept = copy.deepcopy(model.state_dict())
            average = {name: 0.9 * values for name, values in kept.items()}
            model.load_state_dict(average)
            with rolled_back(optimizer):
                train(model, optimizer, range(7, 9))
            assert all(torch.equal(values, average[name]) for name, values in model.state_dict().items())
            model.load_state_dict(kept)
        train(model, optimizer, range(3, 5))
    assert_same(*models)


def test_a_state_that_was_cleared_begins_anew() -> None:
    """As users of torch's optimizers clear moments."""
    models = [net()]
    optimizers = [plan(models[0]).optimizer(torch.optim.AdamW)]
    train(models[0], optimizers[0], range(3))
    models.append(copy.deepcopy(models[0]))
    optimizers.append(plan(models[1]).optimizer(torch.optim.AdamW))
    optimizers[0].state.clear()
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, range(3, 5))
    assert_same(*models)


def assert_same(left: nn.Module, right: nn.Module) -> None:
    for ours, theirs in zip(left.parameters(), right.parameters(), strict=True):
        assert torch.equal(ours, theirs)


OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, "Rprop": {"lr": 1e-4},
    "AdamW": {"weight_decay": 0.1, "amsgrad": True}, "ASGD": {"t0": 3},
}  # fmt: skip
TORCH = sorted(
    name for name in dir(torch.optim)
    if isinstance(getattr(torch.optim, name), type) and issubclass(getattr(torch.optim, name), Optimizer)
    and name != "Optimizer"
)  # fmt: skip
REFUSED = {
    "LBFGS": "'closure'",
    "Muon": "only supports 2D parameters",
    "SparseAdam": "does not support dense gradients",
}


@pytest.mark.parametrize("name", TORCH)
def test_every_optimizer_of_torch(name: str) -> None:
    inner = getattr(torch.optim, name)
    if name in REFUSED:
        with pytest.raises(TypeError, match=f"{name} cannot step cores: .*{REFUSED[name]}.*such as torch.optim.AdamW"):
            plan(net()).optimizer(inner)
        return
    assert difference(inner, {"lr": 1e-3} | OPTIONS.get(name, {})) < 1e-9


BRING_PARAMETERS = ("galore", "apollo", "lomo", "adalomo")
EIGHT_BITS = 1e-3
"""Of a moment in eight bits the last one is decided by rounding."""


@pytest.mark.parametrize("name", [str(name.value) for name in OptimizerNames])
def test_every_optimizer_that_transformers_names(name: str) -> None:
    """Those whose packages are here. They are given as the Trainer gives them."""
    args = TrainingArguments("unused", optim=name, optim_target_modules="all-linear", use_cpu=True, learning_rate=1e-3)
    model = net()
    try:
        inner, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    except (ImportError, ValueError, RuntimeError) as error:
        pytest.skip(str(error).splitlines()[0])
    if name.startswith(BRING_PARAMETERS):
        with pytest.raises(TypeError, match=r"brings its own parameters|cannot step cores"):
            plan(model).optimizer(inner, **options)
    elif name.startswith("schedule_free"):
        with pytest.raises(TypeError, match=r"train\(\) and eval\(\)"):
            plan(model).optimizer(inner, **options)
    elif name in ("adamw_torch_4bit", "adamw_torch_8bit"):
        with pytest.raises(TypeError, match="cannot step cores"):
            plan(model).optimizer(inner, **options)
    else:
        assert difference(inner, options) < (EIGHT_BITS if "8bit" in name else 1e-6)


OTHERS = [("prodigyopt", "Prodigy", {}), ("dadaptation", "DAdaptAdam", {}), ("dadaptation", "DAdaptSGD", {}),
          ("lion_pytorch", "Lion", {"lr": 1e-4}), ("optimi", "StableAdamW", {"lr": 1e-3})]  # fmt: skip


@pytest.mark.parametrize(("package", "name", "options"), OTHERS, ids=lambda value: str(value))
def test_optimizers_of_others(package: str, name: str, options: dict[str, Any]) -> None:
    assert difference(getattr(pytest.importorskip(package), name), options) < 1e-6


# What is refused, when the optimizer is made.


class KeepsAnObject(Counts):
    def step(self, closure: Any = None) -> None:
        super().step()
        for p in self.param_groups[0]["params"]:
            self.state[p]["projector"] = object()


class CountsBesideItsTensors(Counts):
    """Its counter is in its state, but is no tensor's, as MADGRAD's is."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.state["k"] = self.state["k"] + 1 if "k" in self.state else torch.ones(())
        for group, p in moving(self):
            p.sub_(p.grad * group["lr"] / self.state["k"])


class Averages(Counts):
    """It exchanges weights between training and evaluation, as schedule-free optimizers do."""

    def train(self) -> None: ...

    def eval(self) -> None: ...


class EqualRates(Counts):
    def step(self, closure: Any = None) -> None:
        if len({group["lr"] for group in self.param_groups}) > 1:
            raise RuntimeError("groups have different rates")
        super().step()


class IgnoresTheRate(Counts):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for _, p in moving(self):
            p.sub_(p.grad)


@pytest.mark.parametrize(
    ("inner", "options", "config", "error", "message"),
    [
        ("AdamW", {}, {}, TypeError, "give an optimizer class"),
        (torch.optim.AdamW, {"lr": None}, {}, TypeError, "lr is None and AdamW needs a number"),
        (torch.optim.AdamW, {"momentum": 0.9}, {}, TypeError, "momentum"),
        (torch.optim.AdamW, {"lr": -1.0}, {}, ValueError, "Invalid learning rate"),
        (torch.optim.SGD, {"model": None}, {}, TypeError, "brings its own parameters .*GaLore, APOLLO and LOMO"),
        (KeepsAnObject, {}, {}, TypeError, "its state holds a object, which checkpoints cannot hold"),
        (CountsBesideItsTensors, {}, {}, TypeError, "its state holds 'k' beside those of tensors, which would be lost"),
        (Averages, {}, {}, TypeError, r"has train\(\) and eval\(\), between which it exchanges weights"),
        (Estimates, {}, {"placement": "owner"}, ValueError, "looks at all cores at once"),
        (EqualRates, {}, {"lr_scaling": "match-dense"}, ValueError, "set lr_scaling to 'none'"),
        (IgnoresTheRate, {}, {"lr_scaling": "match-dense"}, ValueError, "does not follow the learning rate"),
        (torch.optim.Adafactor, {}, {"lr_scaling": "match-dense"}, ValueError, "how large the weights are"),
    ],
)
def test_refused(inner: Any, options: Any, config: Any, error: type[Exception], message: str) -> None:
    for attempt in (lambda over: over.optimizer(inner, **options), lambda over: over.check_optimizer(inner, options)):
        with pytest.raises(error, match=message):
            attempt(plan(net(), **config))


def test_an_optimizer_without_a_rate_of_its_own_is_trained_with() -> None:
    from transformers.optimization import Adafactor

    options = {"lr": None, "scale_parameter": True, "relative_step": True}
    assert difference(Adafactor, options) < 1e-6
    with pytest.raises(ValueError, match="set lr_scaling to 'none'"):
        plan(net(), lr_scaling="match-dense").optimizer(Adafactor, **options)


def test_the_trial_leaves_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    model = nn.Linear(4, 4)
    torch.manual_seed(3)
    optimizer = overparameterize(model, OverParamConfig(ones=1, targets=["*"])).optimizer(torch.optim.AdamW)
    assert isinstance(optimizer, OverParameterizedOptimizer)
    assert torch.equal(torch.randn(4), expected)


def test_state_of_a_counter_is_saved_once_a_weight() -> None:
    model = net()
    optimizer = plan(model).optimizer(Counts)
    train(model, optimizer, range(4))
    kept = [optimizer.state[p]["kept"] for p in optimizer.weights()]
    assert kept == [{"step": 4}, {"step": 4}]
    assert optimizer.param_groups[0]["kept"] == {"step": 4}


def test_one_group_that_needs_all_tensors_has_all_stepped_together() -> None:
    models = [net(), net()]
    for model, joint in zip(models, (False, True), strict=True):
        groups = [{"params": model[0].parameters(), "joint": joint}, {"params": model[2].parameters(), "joint": True}]
        train(model, plan(model).optimizer(EstimatesIfAsked, groups), range(3))
    assert_same(*models)


def test_one_group_that_begins_otherwise_has_all_measured_by_how_they_go_on() -> None:
    """With such betas RAdam is plain gradient descent in all of its steps; with its own ones in the first five."""
    factors = []
    for betas in ((0.9, 0.5), (0.9, 0.999)):
        model = net()
        groups = [{"params": model[0].parameters(), "betas": betas}, {"params": model[2].parameters()}]
        optimizer = plan(model, lr_scaling="match-dense").optimizer(torch.optim.RAdam, groups)
        train(model, optimizer, range(1))
        factors.append(optimizer.state[model[2].weight]["lr_scale"])
    assert factors[0] == factors[1] > 0


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.AdamW])
def test_sparse_gradients_are_stepped_or_refused_by_the_name_of_their_module(inner: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 16, sparse=True), nn.Linear(16, 16))
    over = overparameterize(model, OverParamConfig(targets="all-linear", ones=1))
    if inner is torch.optim.AdamW:
        with pytest.raises(TypeError, match=r"0 has sparse gradients \(sparse=True\), which AdamW cannot step"):
            over.optimizer(inner, lr=0.1)
        model[0].requires_grad_(False)
        over.optimizer(inner, lr=0.1)
        return
    dense = copy.deepcopy(model)
    optimizer, other = over.optimizer(inner, lr=0.1), inner(dense[0].parameters(), lr=0.1)
    model(torch.tensor([3, 3, 7])).sum().backward()
    dense(torch.tensor([3, 3, 7])).sum().backward()
    optimizer.step()
    other.step()
    torch.testing.assert_close(model[0].weight, dense[0].weight)
