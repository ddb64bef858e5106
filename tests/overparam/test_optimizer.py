"""What schedulers, GradScaler, accelerate, checkpoints and users may expect of the optimizer."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, ReduceLROnPlateau

from opdf.mpo import contract, decompose
from opdf.overparam import Constraint, OverParamConfig, OverParameterizedOptimizer, cores as module, overparameterize
from opdf.overparam.config import PLACEMENTS

CONFIG = OverParamConfig(ones=2, targets=["0", "2"])


def net(dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.Tanh(), nn.Linear(24, 6)).to(dtype)


def make(
    model: nn.Module, config: OverParamConfig = CONFIG, inner: Any = torch.optim.AdamW, lr: float = 1e-2, **options: Any
) -> OverParameterizedOptimizer:
    return overparameterize(model, config).optimizer(inner, lr=lr, **options)


def backward(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    model(torch.randn(16, 12, generator=generator).to(dtype)).float().square().mean().backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, start: int = 0) -> None:
    for step in range(start, start + steps):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()


def trained(
    steps: int, config: OverParamConfig = CONFIG, **options: Any
) -> tuple[nn.Sequential, OverParameterizedOptimizer]:
    model = net()
    optimizer = make(model, config, **options)
    train(model, optimizer, steps)
    return model, optimizer


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b)


# Identity: a real optimizer over the model's own parameters.


def test_groups_hold_the_dense_parameters_and_nothing_else() -> None:
    model = net()
    optimizer = make(model)
    assert isinstance(optimizer, torch.optim.Optimizer)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert [id(p) for p in held] == [id(p) for p in model.parameters()]
    train(model, optimizer, 1)
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [id(p) for p in held]


def test_no_state_before_the_first_step() -> None:
    model = net()
    optimizer = make(model)
    backward(model)
    assert len(optimizer.state) == 0


def test_parameters_may_be_replaced_before_the_first_step() -> None:
    """As accelerate does under FSDP2: entries of the groups are swapped one for one."""
    model, reference = net(), net()
    optimizer, expected = make(model), make(reference)
    for name, p in list(model.named_parameters()):
        module, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(module), attribute, nn.Parameter(p.detach().clone()))
    optimizer.param_groups[0]["params"] = list(model.parameters())
    train(model, optimizer, 3)
    train(reference, expected, 3)
    assert_equal(weights(model), weights(reference))


def test_grad_scaler_sees_no_amp_scaling_support_and_no_forwarding() -> None:
    optimizer = make(net(), fused=True)
    assert not hasattr(optimizer, "_step_supports_amp_scaling")
    assert "__getattr__" not in vars(OverParameterizedOptimizer)
    assert not hasattr(optimizer, "train")
    assert not hasattr(optimizer, "eval")


def test_closure_is_evaluated_with_gradients() -> None:
    model, reference = net(), net()
    optimizer, expected = make(model), make(reference)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 12)).square().mean()
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    reference(torch.ones(2, 12)).square().mean().backward()
    expected.step()
    assert loss is not None
    assert_equal(weights(model), weights(reference))


def test_step_hooks_run_once() -> None:
    model = net()
    optimizer = make(model)
    calls: list[int] = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train(model, optimizer, 2)
    assert calls == [1, 1]


# Learning rate and groups.


@pytest.mark.parametrize("make_scheduler", [
    lambda o: LambdaLR(o, lambda step: 0.5**step), lambda o: CosineAnnealingLR(o, 4),
    lambda o: OneCycleLR(o, max_lr=0.1, total_steps=6), ReduceLROnPlateau,
])  # fmt: skip
def test_schedulers_drive_the_cores(make_scheduler: Any) -> None:
    model, reference = net(), net()
    optimizer, by_hand = make(model), make(reference)
    scheduler = make_scheduler(optimizer)
    for step in range(4):
        for group, other in zip(optimizer.param_groups, by_hand.param_groups, strict=True):
            other.update({k: group[k] for k in ("lr", "betas") if k in group})
        train(model, optimizer, 1, step)
        train(reference, by_hand, 1, step)
        scheduler.step(*([0.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
    assert_equal(weights(model), weights(reference))


def test_groups_keep_their_own_options() -> None:
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[2].parameters(), "weight_decay": 0.1}]
    optimizer = overparameterize(model, CONFIG).optimizer(torch.optim.AdamW, groups, lr=1e-2)
    before = weights(model)
    train(model, optimizer, 2)
    after = weights(model)
    assert_equal(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])
    assert optimizer.param_groups[1]["weight_decay"] == 0.1


def test_a_group_added_later_is_stepped_densely() -> None:
    model, extra = net(), nn.Parameter(torch.ones(3))
    optimizer = make(model)
    optimizer.add_param_group({"params": [("extra", extra)]})
    extra.grad = torch.ones(3)
    train(model, optimizer, 1)
    extra.grad = torch.ones(3)
    optimizer.step()
    assert not torch.equal(extra, torch.ones(3))


@pytest.mark.parametrize("ones", [0, 1, 3, 8])
def test_matched_rate_moves_weights_as_far_as_dense_adamw(ones: int) -> None:
    torch.manual_seed(0)
    over = nn.Linear(64, 96)
    dense = copy.deepcopy(over)
    optimizer = make(over, OverParamConfig(ones=ones, targets=["weight"]), lr=1e-6)
    reference = torch.optim.AdamW(dense.parameters(), lr=1e-6)
    start = over.weight.detach().clone().double()
    for model, stepper in ((over, optimizer), (dense, reference)):
        model(torch.linspace(-1, 1, 640).reshape(10, 64)).square().sum().backward()
        stepper.step()
    moved = [float((m.weight.detach().double() - start).norm()) for m in (over, dense)]
    assert moved[0] == pytest.approx(moved[1], rel=0.01)


# Numerics.


def test_clipping_acts_on_dense_gradients() -> None:
    model, reference = net(), net()
    optimizer, expected = make(model, inner=torch.optim.SGD), make(reference, inner=torch.optim.SGD)
    backward(model)
    backward(reference)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    for p in reference.parameters():
        p.grad.mul_(1e-3 / (norm + 1e-6))
    optimizer.step()
    expected.step()
    for a, b in zip(weights(model), weights(reference), strict=True):
        torch.testing.assert_close(a, b)


def test_grad_scaler_unscales_clips_and_skips() -> None:
    model, reference = net(), net()
    optimizer, expected = make(model), make(reference)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(3):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(step)
        scaler.scale(model(torch.randn(16, 12, generator=generator)).square().mean()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    train(reference, expected, 3)
    for a, b in zip(weights(model), weights(reference), strict=True):
        torch.testing.assert_close(a, b)
    before, count = weights(model), float(optimizer.state[model[0].weight]["inner0"]["step"])
    scaler.scale(model(torch.full((1, 12), torch.inf)).square().mean()).backward()
    scaler.step(optimizer)
    assert_equal(before, weights(model))
    assert float(optimizer.state[model[0].weight]["inner0"]["step"]) == count


def test_cores_are_float32_masters_of_bf16_weights() -> None:
    model = net(torch.bfloat16)
    optimizer = make(model, lr=1e-5)
    train(model, optimizer, 20)
    state = optimizer.state[model[0].weight]
    assert state["core0"].dtype == state["inner0"]["exp_avg"].dtype == torch.float32
    product = contract([state[f"core{k}"] for k in range(4)])
    assert torch.equal(product.bfloat16(), model[0].weight)


def test_step_ignores_autocast_and_matmul_precision() -> None:
    model, reference = net(), net()
    optimizer, expected = make(model), make(reference)
    backward(model)
    backward(reference)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            optimizer.step()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    expected.step()
    assert_equal(weights(model), weights(reference))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("how", ["rate 0", "zero gradient", "no gradient"])
def test_what_does_not_move_is_not_rewritten(dtype: torch.dtype, how: str) -> None:
    model = net(dtype)
    optimizer = make(model, lr=0.0 if how == "rate 0" else 1e-2, weight_decay=0.0)
    before = weights(model)
    if how != "no gradient":
        backward(model)
        if how == "zero gradient":
            for p in model.parameters():
                p.grad.zero_()
    optimizer.step()
    assert_equal(before, weights(model))


def test_momentum_moves_weights_on_a_zero_gradient() -> None:
    model, optimizer = trained(1)
    before = weights(model)
    for p in model.parameters():
        p.grad.zero_()
    optimizer.step()
    assert not torch.equal(before[0], model[0].weight)


def test_writes_are_in_place() -> None:
    model = net()
    optimizer = make(model)
    pointer, version = model[0].weight.data_ptr(), model[0].weight._version
    train(model, optimizer, 1)
    assert model[0].weight.data_ptr() == pointer
    assert model[0].weight._version == version + 1


# Weights that someone else writes.


@pytest.mark.parametrize("write", ["in place", "load_state_dict"])
def test_external_change_is_decomposed_anew(write: str) -> None:
    model, optimizer = trained(2)
    changed = {k: v + 0.1 for k, v in model.state_dict().items()}
    if write == "in place":
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(changed[name])
    else:
        model.load_state_dict(changed)
    optimizer.param_groups[0]["lr"] = 0.0
    with pytest.warns(UserWarning, match="changed outside the optimizer"):
        train(model, optimizer, 1)
    assert_equal(weights(model), list(changed.values()))
    product = contract([optimizer.state[model[0].weight][f"core{k}"] for k in range(4)])
    torch.testing.assert_close(product, changed["0.weight"])
    assert optimizer.state[model[0].weight]["moves"] == 2  # what is known about the rate stays


def test_swapping_weights_out_and_back_is_no_change() -> None:
    model, reference = net(), net()
    optimizer, expected = make(model), make(reference)
    train(model, optimizer, 2)
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict({k: torch.zeros_like(v) for k, v in kept.items()})
    model.load_state_dict(kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        train(model, optimizer, 2, 2)
    train(reference, expected, 4)
    assert_equal(weights(model), weights(reference))


# State dicts and checkpoints.


def through_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.SGD])
def test_resume_is_bit_exact(dtype: torch.dtype, inner: Any) -> None:
    options = {"momentum": 0.9} if inner is torch.optim.SGD else {}
    model = net(dtype)
    optimizer = make(model, inner=inner, **options)
    train(model, optimizer, 3)
    saved_model, saved = copy.deepcopy(model.state_dict()), through_file(optimizer.state_dict())
    train(model, optimizer, 3, 3)
    resumed = net(dtype)
    resumed.load_state_dict(saved_model)
    again = make(resumed, inner=inner, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again.load_state_dict(state_dict=saved)
        train(resumed, again, 3, 3)
    assert_equal(weights(model), weights(resumed))


@pytest.mark.parametrize(("saved", "loaded"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_a_state_is_loaded_for_weights_of_more_precision(saved: torch.dtype, loaded: torch.dtype) -> None:
    """The first step ended in torch's error about dtypes that differ."""
    model, finer = net(saved), net(loaded)
    optimizer, again = make(model), make(finer)
    train(model, optimizer, 2)
    finer.load_state_dict(model.state_dict())
    with warnings.catch_warnings(action="ignore"):  # weights become the products of the cores, which were not rounded
        again.load_state_dict(through_file(optimizer.state_dict()))
    train(finer, again, 1, 2)
    train(model, optimizer, 1, 2)
    for a, b in zip(weights(model), weights(finer), strict=True):
        torch.testing.assert_close(a, b.to(saved))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_weights_may_be_loaded_after_the_state_and_be_rounded_otherwise(placement: str) -> None:
    config = replace(CONFIG, placement=placement)
    model, other = net(), net(seed=1)
    optimizer = make(model, config)
    train(model, optimizer, 3)
    again = make(other, config)
    with pytest.warns(UserWarning, match="did not hold the product of the loaded cores"):
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict({k: torch.nextafter(v, v + 1) for k, v in model.state_dict().items()})
    with warnings.catch_warnings(action="error"):
        train(other, again, 1, start=3)
    train(model, optimizer, 1, start=3)
    for a, b in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(a, b)


def test_loaded_cores_win_over_other_weights() -> None:
    model, optimizer = trained(2)
    other = net()
    again = make(other)
    with pytest.warns(UserWarning, match="set to it"):
        again.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(other[0].weight, model[0].weight)


def test_state_is_contiguous_tensors_numbers_and_dicts() -> None:
    _, optimizer = trained(2)

    def check(value: Any) -> None:
        assert isinstance(value, Tensor | int | float | dict)
        if isinstance(value, Tensor):
            assert value.is_contiguous()
            assert not value.requires_grad
        for item in value.values() if isinstance(value, dict) else ():
            check(item)

    for state in optimizer.state.values():
        check(dict(state))


def test_empty_state_round_trip_changes_nothing() -> None:
    model, reference = net(), net()
    optimizer, expected = make(model), make(reference)
    optimizer.load_state_dict(optimizer.state_dict())
    assert len(optimizer.state) == 0
    train(model, optimizer, 2)
    train(reference, expected, 2)
    assert_equal(weights(model), weights(reference))


@pytest.mark.parametrize("flat", [False, True])
def test_distributed_checkpoint_state_round_trip(flat: bool) -> None:
    model, optimizer = trained(3)
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    resumed = copy.deepcopy(model)
    again = make(resumed)
    train(model, optimizer, 2, 3)
    set_optimizer_state_dict(resumed, again, optim_state_dict=saved, options=options)
    train(resumed, again, 2, 3)
    assert_equal(weights(model), weights(resumed))


def test_other_factors_are_refused_with_both() -> None:
    _, optimizer = trained(1)
    with pytest.raises(ValueError, match=r"T\(6,1,1,4 / 4,1,1,3\), this run as T\(6,1,4 / 4,1,3\)"):
        make(net(), OverParamConfig(ones=1, targets=["0", "2"])).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("saved", "loaded", "message"),
    [
        (["0"], ["0", "2"], r"has 2\.weight as dense, this run as T\(3,1,1,2 / 6,1,1,4\)"),
        (["0", "2"], ["0"], r"has 2\.weight as T\(3,1,1,2 / 6,1,1,4\), this run as dense"),
    ],
)
def test_other_targets_are_refused(saved: list[str], loaded: list[str], message: str) -> None:
    """Else moments would start over, or cores be forgotten, without a word."""
    _, optimizer = trained(1, replace(CONFIG, targets=saved))
    with pytest.raises(ValueError, match=message):
        make(net(), replace(CONFIG, targets=loaded)).load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize("saved", ["none", "match-dense"])
def test_a_state_with_another_scaling_of_rates_is_refused(saved: str) -> None:
    """Else cores would keep the factor of their rate without a word, or the next step would not find one."""
    _, optimizer = trained(1, replace(CONFIG, lr_scaling=saved))
    (other,) = {"none", "match-dense"} - {saved}
    with pytest.raises(ValueError, match=f"with lr_scaling '{saved}', this run has '{other}'; use the OverParamConfig"):
        make(net(), replace(CONFIG, lr_scaling=other)).load_state_dict(optimizer.state_dict())


def two_alike(order: tuple[str, ...]) -> tuple[nn.Module, OverParameterizedOptimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12, bias=False), nn.Linear(12, 12, bias=False))
    over = overparameterize(model, OverParamConfig(targets="all-linear"))
    return model, over.optimizer(torch.optim.AdamW, [model.get_parameter(name) for name in order], lr=1e-2)


def test_parameters_in_another_order_are_refused() -> None:
    """By place alone, every weight would become the product of the other one's cores."""
    model, optimizer = two_alike(("0.weight", "1.weight"))
    train(model, optimizer, 2)
    _, other = two_alike(("1.weight", "0.weight"))
    with pytest.raises(ValueError, match=r"has 0\.weight where this optimizer has 1\.weight"):
        other.load_state_dict(optimizer.state_dict())


def test_names_may_be_others_than_when_the_state_was_saved() -> None:
    """As those in a wrapper are: then parameters are known by their order."""
    model, optimizer = trained(2)
    wrapped = nn.Sequential(copy.deepcopy(model))
    again = make(wrapped)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 1, 2)
    train(wrapped, again, 1, 2)
    assert_equal(weights(model), weights(wrapped))


def test_a_distributed_checkpoint_finds_parameters_in_another_order_by_name() -> None:
    model, optimizer = two_alike(("0.weight", "1.weight"))
    train(model, optimizer, 2)
    saved = get_optimizer_state_dict(model, optimizer)
    resumed, again = two_alike(("1.weight", "0.weight"))
    resumed.load_state_dict(model.state_dict())
    set_optimizer_state_dict(resumed, again, optim_state_dict=saved)
    train(model, optimizer, 2, 2)
    train(resumed, again, 2, 2)
    for name, weight in resumed.named_parameters():
        torch.testing.assert_close(weight, model.get_parameter(name))


def test_state_of_a_plain_optimizer_is_refused() -> None:
    model = net()
    plain = torch.optim.AdamW(model.parameters())
    train(model, plain, 1)
    with pytest.raises(ValueError, match="without over-parameterization"):
        make(net()).load_state_dict(plain.state_dict())


def test_other_format_is_refused() -> None:
    _, optimizer = trained(1)
    state = optimizer.state_dict()
    state["param_groups"][0]["opdf_format"] = 99
    with pytest.raises(ValueError, match="format 99"):
        make(net()).load_state_dict(state)


# Wrappers.


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_saves_and_loads_exactly(tmp_path: Path, precision: str) -> None:
    """A plain loop of accelerate: what `save_state` wrote is in a new model and optimizer after `load_state`."""
    state = str(tmp_path / "state")

    def loop(steps: int, save_after: int | None = None, load: bool = False) -> tuple[nn.Module, Any]:
        AcceleratorState._reset_state(True)
        accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
        model = net()
        optimizer = make(model)
        schedule = LambdaLR(optimizer, lambda step: 0.9**step)
        model, prepared, schedule = accelerator.prepare(model, optimizer, schedule)
        start = 0
        if load:
            accelerator.load_state(state)
            start = save_after or 0
        for step in range(start, steps):
            for part in range(2):
                with accelerator.accumulate(model):
                    batch = torch.randn(16, 12, generator=torch.Generator().manual_seed(2 * step + part))
                    accelerator.backward(model(batch).float().square().mean())
                    prepared.step()
                    schedule.step()
                    prepared.zero_grad()
            if step + 1 == save_after:
                accelerator.save_state(state)
        return accelerator.unwrap_model(model), optimizer

    def same(left: tuple[nn.Module, Any], right: tuple[nn.Module, Any]) -> None:
        assert_equal(weights(left[0]), weights(right[0]))
        for mine, theirs in zip(left[0].parameters(), right[0].parameters(), strict=True):
            assert left[1].state[mine].keys() == right[1].state[theirs].keys()
            for key, value in left[1].state[mine].items():
                if isinstance(value, Tensor):  # cores, moments and steps; the rest is about this process
                    assert torch.equal(value, right[1].state[theirs][key]), key

    saved = loop(3, save_after=3)
    same(loop(3, save_after=3, load=True), saved)
    assert any("core0" in str(entry) for entry in saved[1].state.values())
    same(loop(6, save_after=3, load=True), loop(6))
    AcceleratorState._reset_state(True)


def test_compiled_model_keeps_one_graph() -> None:
    from torch._dynamo.testing import CompileCounter

    model = net()
    optimizer, counter = make(model), CompileCounter()
    compiled = torch.compile(model, backend=counter)
    for step in range(4):
        optimizer.zero_grad()
        compiled(torch.full((2, 12), float(step))).square().mean().backward()
        optimizer.step()
    assert counter.frame_count == 1


def test_flattened_parameters_are_refused() -> None:
    """What FSDP1 and ZeRO leave in the groups."""
    model = net()
    optimizer = make(model)
    flat = nn.Parameter(model[0].weight.detach().flatten())
    flat.grad = torch.ones_like(flat)
    optimizer.param_groups[0]["params"][0] = flat
    with pytest.raises(RuntimeError, match="use DDP or FSDP2"):
        optimizer.step()


# Bad arguments.


def test_the_default_device_may_be_another_one() -> None:
    """With `torch.set_default_device("cuda")` the CPU's generators cannot draw what has no device. Here it is meta."""
    sizes = (37, 29)  # of no other test: the places of entries that are compared are kept by size
    here, there = nn.Linear(*sizes), nn.Linear(*sizes)
    there.load_state_dict(here.state_dict())
    for model, device in ((here, "cpu"), (there, "meta")):
        inputs = torch.ones(2, 37)
        with torch.device(device):
            optimizer = make(model, OverParamConfig(targets=["weight"]), inner=torch.optim.SGD)
            for _ in range(2):
                model(inputs).square().sum().backward()
                optimizer.step()
    assert_equal(weights(here), weights(there))


def test_a_target_that_is_in_no_group_is_refused() -> None:
    model = net()
    with pytest.raises(ValueError, match=r"in no parameter group, e\.g\. 2\.weight"):
        overparameterize(model, CONFIG).optimizer(torch.optim.AdamW, model[0].parameters(), lr=1e-3)


@pytest.mark.parametrize("first", [False, True])
def test_a_group_may_be_empty(first: bool) -> None:
    """As that without weight decay is in a model without biases."""
    model = nn.Sequential(nn.Linear(12, 6, bias=False))
    groups: list[dict[str, Any]] = [{"params": model.parameters()}, {"params": [], "weight_decay": 0.0}]
    over = overparameterize(model, replace(CONFIG, targets=["0"]))
    optimizer = over.optimizer(torch.optim.AdamW, groups[::-1] if first else groups, lr=1e-2)
    train(model, optimizer, 2)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 1)


def test_unfrozen_parameters_may_be_added_without_names() -> None:
    """As to torch's optimizers, and by Lightning's callbacks for fine-tuning."""

    def made(model: nn.Sequential) -> OverParameterizedOptimizer:
        model[2].bias.requires_grad_(False)
        optimizer = make(model, inner=torch.optim.SGD, momentum=0.9)
        model[2].bias.requires_grad_()
        optimizer.add_param_group({"params": model[2].bias, "lr": 0.1})
        return optimizer

    model, dense, resumed = net(), net(), net()
    optimizer, again = made(model), made(resumed)
    train(model, optimizer, 1)
    train(dense, torch.optim.SGD(dense.parameters(), lr=0.1), 1)
    assert torch.equal(model[2].bias, dense[2].bias)
    resumed.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2)
    train(resumed, again, 2)
    assert_equal(weights(model), weights(resumed))


def test_parameters_with_the_names_of_weights_are_refused() -> None:
    """Else those of another part of the model would be trained through cores without a word."""
    model, other = net(), net()
    optimizer = make(model)
    with pytest.raises(ValueError, match=r"has the name '0\.weight' of an over-parameterized weight"):
        optimizer.add_param_group({"params": other.named_parameters()})
    optimizer.add_param_group({"params": other.parameters()})
    train(other, optimizer, 1)
    assert [name for p in other.parameters() for name in optimizer.state[p] if "core" in name] == []


@pytest.mark.parametrize("order", [[1, 0], [1], [0], []])
def test_groups_may_be_put_together_anew(order: list[int]) -> None:
    """Some of the old ones in `order`, and one of all other parameters, which has to name those with cores."""
    models, optimizers = [net(), net()], []
    for model in models:
        groups: list[dict[str, Any]] = [{"params": model[n].parameters()} for n in (0, 2)]
        optimizers.append(overparameterize(model, CONFIG).optimizer(torch.optim.AdamW, groups, lr=1e-2))
        train(model, optimizers[-1], 2)
    model, optimizer = models[0], optimizers[0]
    optimizer.param_groups[:] = [optimizer.param_groups[k] for k in order]
    held = {p for group in optimizer.param_groups for p in group["params"]}
    rest = [(name, p) for name, p in model.named_parameters() if p not in held]
    if rest:
        with pytest.raises(TypeError, match=r"without names; pass model\.named_parameters\(\)"):
            optimizer.add_param_group({"params": [p for _, p in rest]})
        optimizer.add_param_group({"params": rest})
    for one, stepper in zip(models, optimizers, strict=True):
        train(one, stepper, 2, 2)
    assert_equal(weights(models[0]), weights(models[1]))


def test_a_group_whose_parameters_were_replaced_is_refused() -> None:
    model = net()
    optimizer = make(model)
    optimizer.param_groups[0]["params"] = list(model[0].parameters())
    with pytest.raises(RuntimeError, match=r"2 parameters and 4 names.*requires_grad_\(False\)"):
        train(model, optimizer, 1)


def test_cores_of_another_shape_are_refused() -> None:
    """Before the weight's own are dropped."""
    model, other = net(), net()
    optimizer, untouched = make(model), make(other)
    train(model, optimizer, 2)
    with pytest.raises(ValueError, match=r"the cores given for 0\.weight have the sizes \[\(1, 24, 12, 1\)\], its own"):
        optimizer.set_cores("0.weight", [torch.zeros(1, 24, 12, 1)])
    train(model, optimizer, 1, 2)
    train(other, untouched, 3)
    assert_equal(weights(model), weights(other))


@pytest.mark.parametrize("change", ["nothing", "set_cores", "load", "weight"])
def test_kept_products_change_nothing(change: str) -> None:
    """The products of the last contraction serve the next gradient only while the cores are the same."""
    found = []
    for keep in (True, False):
        model = net()
        config = OverParamConfig(ones=2, targets=["0", "2"], keep_products=keep)
        optimizer = make(model, config)
        train(model, optimizer, 2)
        if change == "set_cores":
            optimizer.set_cores("0.weight", [core * 0.9 for core in optimizer.cores("0.weight") or ()])
        elif change == "load":
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        elif change == "weight":
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model[0].weight.mul_(0.5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train(model, optimizer, 2, start=2)
        found.append(weights(model))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


# Starting: everything that is missing is decomposed together.


def test_student_and_teacher_are_decomposed_in_one_pass() -> None:
    model, teacher, seen = net(), net(), []
    overparam = overparameterize(model, CONFIG)
    overparam.align(teacher, Constraint(layer_map={"0.weight": "0.weight", "2.weight": "2.weight"}))
    optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-2)
    overparam.progress = lambda done, total: seen.append((done, total))
    expected = decompose(model[2].weight, overparam.matrices[1].shape)
    optimizer.make_cores()
    assert seen == [(k, 4) for k in range(5)]
    assert_equal(optimizer.cores("2.weight") or [], expected)
    train(model, optimizer, 2)
    assert len(seen) == 5


# Precision of the contraction.


def wide(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 48))


WIDE = OverParamConfig(ones=2, targets=["0", "2", "4"])


@pytest.mark.parametrize("inner", [torch.optim.AdamW, torch.optim.SGD])
def test_bf16_products_of_float32_masters(inner: Any) -> None:
    model, exact = wide(), wide()
    optimizer = make(model, replace(WIDE, precision="bf16"), inner, lr=1e-3)
    reference = make(exact, WIDE, inner, lr=1e-3)
    before = weights(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 1)
    assert_equal(before, weights(model))
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    for step in range(3):
        train(model, optimizer, 1, step)
        train(exact, reference, 1, step)
    for name in ("0.weight", "2.weight", "4.weight"):
        cores, others = optimizer.cores(name) or [], reference.cores(name) or []
        assert all(core.dtype == torch.float32 for core in cores)
        product, weight = contract([core.double() for core in cores]), model.get_parameter(name).double()
        rounding = float((weight.detach() - product).norm() / product.norm())
        assert 1e-4 < rounding < 2.0**-7  # four cores and three products, each rounded to 2^-8
        assert sum(float((a - b).norm()) for a, b in zip(cores, others, strict=True)) < 0.02


def test_bf16_resumes_bit_for_bit_and_float64_is_left_alone() -> None:
    config = replace(WIDE, precision="bf16")
    model = wide()
    optimizer = make(model, config)
    train(model, optimizer, 2)
    resumed = copy.deepcopy(model)
    again = make(resumed, config)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again.load_state_dict(through_file(optimizer.state_dict()))
        for m, o in ((model, optimizer), (resumed, again)):
            train(m, o, 2, 2)
    assert_equal(weights(model), weights(resumed))
    double, exact = wide().double(), wide().double()
    train(double, make(double, config), 2)
    train(exact, make(exact, WIDE), 2)
    assert_equal(weights(double), weights(exact))


# Stacks of same-shape matrices.


@pytest.mark.parametrize("keep", [None, False])
@pytest.mark.parametrize(
    "constraint",
    [{}, {"gauge": "matched"}, {"gauge": "raw", "normalize": "mse"}, {"layer_map": ["2.weight"]}],
    ids=["none", "matched", "raw-mse", "some"],
)
@pytest.mark.parametrize(("inner", "lr"), [(torch.optim.AdamW, 1e-2), (torch.optim.SGD, 0.1)])
def test_stacks_give_what_single_matrices_give(
    inner: Any, lr: float, constraint: dict[str, Any], keep: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, states, logs = [], [], []
    for together in (False, True):
        monkeypatch.setattr(module, "STACK_ENTRIES", {"cpu": 2**18} if together else {})
        model = wide().double()
        overparam = overparameterize(model, replace(WIDE, keep_products=keep))
        if constraint:
            names = constraint.get("layer_map", ["2.weight", "4.weight"])
            options = constraint | {"layer_map": {name: name for name in names}}
            overparam.align(wide(1).double(), Constraint(weight=0.5, **options))
        optimizer = overparam.optimizer(inner, lr=lr, weight_decay=0.1)
        train(model, optimizer, 3)
        model[4].weight.grad.zero_()
        optimizer.step()
        found.append(weights(model))
        logs.append(optimizer.constraint_logs)
        states.append(optimizer.state_dict()["state"])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert bool(constraint) == bool(logs[0])
    assert logs[1] == pytest.approx(logs[0], rel=1e-9)
    single, stacked = states
    assert {k: list(v) for k, v in single.items()} == {k: list(v) for k, v in stacked.items()}
    for k, state in single.items():
        for key, value in state.items():
            if isinstance(value, Tensor):
                torch.testing.assert_close(stacked[k][key], value, rtol=1e-9, atol=1e-12)
                assert stacked[k][key].is_contiguous()
                assert stacked[k][key].untyped_storage().nbytes() == value.untyped_storage().nbytes()


@pytest.mark.parametrize("fused", [False, True])
def test_stacks_may_change_from_step_to_step(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept products are for the stack that they were computed for; fused steps leave the version of a core as it is."""
    found = []
    for limits in ({}, {"cpu": 2**18}):
        monkeypatch.setattr(module, "STACK_ENTRIES", limits)
        model = wide().double()
        optimizer = overparameterize(model, WIDE).optimizer(torch.optim.AdamW, lr=1e-2, fused=fused)
        for step, moving in enumerate(["24", "2", "24", "4", "2", "2", "24", "", "24", "4", "24"]):
            optimizer.zero_grad()
            backward(model, step)
            for name, p in model.named_parameters():
                if name[0] in "24" and name[0] not in moving:
                    p.grad = None
            optimizer.step()
        found.append(weights(model))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_stack_is_no_larger_than_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(5)))
    matrices = overparameterize(model, OverParamConfig(ones=1, targets="all-linear")).matrices
    weights = {model.get_parameter(matrix.name): matrix for matrix in matrices}
    most = 2 * matrices[0].shape.num_params
    for limit, sizes in ((most, [2, 2, 1]), (1, [1] * 5)):
        monkeypatch.setattr(module, "STACK_ENTRIES", {"cpu": limit})
        assert [len(stack) for stack in module.stacked(weights, dict.fromkeys(weights))] == sizes


# Matrices beside each other on a CPU, one a thread.


@pytest.fixture
def set_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(module, "STACK_ENTRIES", {})
    monkeypatch.setattr(module, "BESIDE_FLOPS", 0)
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.slow
def test_steps_do_not_depend_on_the_number_of_threads(set_threads: Any) -> None:
    seen = []
    for threads in (1, 2, 3):
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(3)))  # large enough for torch to use all threads
        overparam = overparameterize(model, OverParamConfig(ones=2, targets="all-linear"))
        overparam.align(model, Constraint(0.5, {f"{k}.weight": f"{2 - k}.weight" for k in range(3)}))
        optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-3)
        generator = torch.Generator().manual_seed(0)
        set_threads(threads)
        for _ in range(3):
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
        assert torch.get_num_threads() == threads
        seen.append((weights(model), optimizer.constraint_logs))
    for found, logs in seen[1:]:
        assert_equal(seen[0][0], found)
        assert logs == seen[0][1]
