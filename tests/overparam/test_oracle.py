"""The dense-model engine against the one that rebuilds every weight from its cores in each forward pass."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from oracle import RebuildInForward
from scipy.linalg import orthogonal_procrustes
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers.pytorch_utils import Conv1D

from opdf.mpo import MPOShape, decompose
from opdf.overparam import Constraint, OverParamConfig, OverParameterization, overparameterize

STEPS = 50


class Net(nn.Module):
    """A Linear, a 3x3 and a 1x1 convolution, and GPT-2's transposed Conv1D."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3)
        self.point = nn.Conv2d(8, 6, 1)
        self.linear = nn.Linear(24, 16)
        self.transposed = Conv1D(12, 16)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(torch.tanh(self.conv(x))).flatten(1)
        return self.head(torch.tanh(self.transposed(torch.tanh(self.linear(x)))))


TARGETS = ["conv", "point", "linear", "transposed"]


def net(dtype: torch.dtype, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net().to(dtype)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return model


def batches(dtype: torch.dtype, count: int) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 2, 4, 4, dtype=dtype), torch.randint(0, 3, (8,))) for _ in range(count)]


def train_both(
    inner: type[torch.optim.Optimizer],
    lr: float,
    *,
    accumulation: int = 1,
    dtype: torch.dtype = torch.float64,
    lr_scaling: str = "none",
    ones: int = 3,
    constraint: dict[str, Any] | None = None,
    **options: Any,
) -> float:
    """The largest relative difference of a dense weight after all steps."""
    model, teacher = net(dtype), net(dtype, seed=2)
    oracle_model = copy.deepcopy(model)
    overparam = overparameterize(model, OverParamConfig(ones=ones, targets=TARGETS, lr_scaling=lr_scaling))
    if constraint is not None:
        names = {t.name: t.name for t in overparam.matrices}
        overparam.align(teacher, Constraint(layer_map=names, **constraint))
    optimizer = overparam.optimizer(inner, lr=lr, **options)
    oracle = RebuildInForward(oracle_model, overparam)
    targets = _targets(overparam, oracle, teacher, constraint) if constraint else None
    oracle_optimizer = oracle.optimizer(inner, lr, **options)
    for step in range(STEPS):
        for x, y in batches(dtype, accumulation * STEPS)[step * accumulation : (step + 1) * accumulation]:
            (cross_entropy(model(x), y) / accumulation).backward()
            (cross_entropy(oracle(x), y) / accumulation).backward()
        if targets:
            _constraint_loss(oracle, targets, constraint).backward()
        optimizer.step()
        for matrix, group in zip(overparam.matrices, oracle_optimizer.param_groups[1:], strict=True):
            group["lr"] = lr * optimizer.state[model.get_parameter(matrix.name)].get("lr_scale", 1.0)
        oracle_optimizer.step()
        optimizer.zero_grad()
        oracle_optimizer.zero_grad()
    differences = [
        float(((model.get_parameter(n) - w).norm() / w.norm()).detach()) for n, w in oracle.weights().items()
    ]
    differences += [float(((model.get_parameter(n) - p).norm() / p.norm()).detach()) for n, p in oracle.rest.items()]
    return max(differences)


Targets = dict[str, dict[int, Tensor]]


def _targets(
    overparam: OverParameterization, oracle: RebuildInForward, teacher: nn.Module, constraint: dict[str, Any]
) -> Targets:
    """Teacher cores, each end rotated by scipy's Procrustes where gauges are matched. Cores between are identities."""
    found: Targets = {}
    for target in overparam.matrices:
        weight = teacher.get_parameter(target.name).detach()
        matrix = weight.T if target.transposed else weight.reshape(target.shape.rows, -1)
        cores = decompose(matrix, target.shape)
        if constraint.get("gauge", "matched") == "matched":
            student, middle = [c.detach() for c in oracle.cores[target.name]], (len(cores) - 1) // 2
            if middle > 0:  # the first core is an auxiliary one
                ours, theirs = (c[0].reshape(-1, c[0].shape[-1]).numpy() for c in (student, cores))
                cores[0] = cores[0] @ torch.from_numpy(orthogonal_procrustes(theirs, ours)[0])
            ours, theirs = (c[-1].reshape(c[-1].shape[0], -1).T.numpy() for c in (student, cores))
            rotation = torch.from_numpy(orthogonal_procrustes(theirs, ours)[0])
            cores[-1] = torch.tensordot(rotation.T, cores[-1], dims=1)
        found[target.name] = {k: cores[k] for k in range(len(cores)) if k != (len(cores) - 1) // 2}
    return found


def _constraint_loss(oracle: RebuildInForward, targets: Targets, constraint: dict[str, Any]) -> Tensor:
    loss = torch.zeros((), dtype=torch.float64)
    for name, of_sites in targets.items():
        for k, target in of_sites.items():
            difference = (oracle.cores[name][k] - target).square()
            if constraint.get("normalize", "relative") == "mse":
                loss = loss + difference.mean() / len(of_sites) / len(targets)
            else:
                loss = loss + difference.sum() / target.square().sum()
    return constraint["weight"] * loss


SGD = (torch.optim.SGD, 0.05, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01})
ADAMW = (torch.optim.AdamW, 1e-3, {"weight_decay": 0.1})


@pytest.mark.parametrize("accumulation", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("inner", "lr", "options"), [ADAMW, pytest.param(*SGD, marks=pytest.mark.slow)])
def test_fifty_steps_agree(inner: Any, lr: float, options: dict[str, Any], accumulation: int) -> None:
    assert train_both(inner, lr, accumulation=accumulation, **options) < 1e-9


@pytest.mark.parametrize(
    ("inner", "lr", "options"), [ADAMW, pytest.param(torch.optim.SGD, 0.01, {}, marks=pytest.mark.slow)]
)
def test_fifty_steps_agree_in_float32(inner: Any, lr: float, options: dict[str, Any]) -> None:
    assert train_both(inner, lr, dtype=torch.float32, **options) < 1e-4


@pytest.mark.parametrize("ones", [1, *(pytest.param(ones, marks=pytest.mark.slow) for ones in (0, 8))])
def test_other_chain_lengths_agree(ones: int) -> None:
    assert train_both(torch.optim.AdamW, 1e-3, ones=ones) < 1e-9


def test_matched_learning_rate_agrees_given_the_scales() -> None:
    assert train_both(torch.optim.AdamW, 1e-3, lr_scaling="match-dense") < 1e-9


@pytest.mark.parametrize(
    "name",
    ["Adam", *(pytest.param(n, marks=pytest.mark.slow) for n in ("RMSprop", "NAdam", "RAdam", "Adagrad", "Adamax"))],
)
def test_other_optimizers_agree(name: str) -> None:
    assert train_both(getattr(torch.optim, name), 1e-3) < 1e-9


@pytest.mark.parametrize("accumulation", [1, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("inner", "lr"), [(torch.optim.AdamW, 1e-3), pytest.param(torch.optim.SGD, 0.01, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("constraint", [
    {"weight": 0.5}, pytest.param({"weight": 0.5, "gauge": "raw"}, marks=pytest.mark.slow),
    pytest.param({"weight": 100.0, "normalize": "mse"}, marks=pytest.mark.slow),
])  # fmt: skip
def test_fifty_steps_agree_with_the_constraint(inner: Any, lr: float, constraint: Any, accumulation: int) -> None:
    assert train_both(inner, lr, accumulation=accumulation, constraint=constraint) < 1e-8


def test_a_shape_of_several_free_bonds_agrees() -> None:
    model = nn.Linear(24, 36).double()
    oracle_model = copy.deepcopy(model)
    shape = ((2, 3, 6), (4, 3, 2))
    overparam = overparameterize(
        model, OverParamConfig(targets=["weight"], shapes={"weight": shape}, lr_scaling="none")
    )
    assert overparam.matrices[0].shape == MPOShape(*shape)
    optimizer, oracle = overparam.optimizer(torch.optim.AdamW, lr=1e-2), RebuildInForward(oracle_model, overparam)
    oracle_optimizer = oracle.optimizer(torch.optim.AdamW, 1e-2)
    for _ in range(STEPS):
        x = torch.randn(5, 24, dtype=torch.float64)
        model(x).square().sum().backward()
        oracle(x).square().sum().backward()
        for o in (optimizer, oracle_optimizer):
            o.step()
            o.zero_grad()
    torch.testing.assert_close(model.weight, oracle.weights()["weight"], rtol=1e-9, atol=1e-12)
