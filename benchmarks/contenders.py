"""The ways of training a student whose weights are products of cores, built over the same model and data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from transformers import BertConfig, BertForSequenceClassification

import opdf
from benchmarks.measure import DEVICE
from opdf.mpo import MPOShape, contract, decompose

Step = Callable[[int], None]
"""One optimizer step over a number of micro-batches."""

MODELS = {
    "MiniLM": BertConfig(
        hidden_size=384, num_hidden_layers=3, num_attention_heads=12, intermediate_size=1536, num_labels=2
    ),
    "BERT-base": BertConfig(num_hidden_layers=6, num_labels=2),
    "BERT of width 32": BertConfig(
        hidden_size=32, num_hidden_layers=6, num_attention_heads=4, intermediate_size=128, num_labels=2, vocab_size=1000
    ),
}
TEACHER_LAYERS = {"MiniLM": 6, "BERT-base": 12, "BERT of width 32": 12}


@dataclass(frozen=True)
class Batch:
    """One micro-batch of token ids and the teacher, whose forward pass every contender pays for.

    With `autocast` both models' passes are in bfloat16.
    """

    ids: Tensor
    teacher: nn.Module
    autocast: bool = False

    def loss(self, forward: Callable[..., Tensor]) -> Tensor:
        with torch.autocast(self.ids.device.type, torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                target = self.teacher(input_ids=self.ids).logits.log_softmax(-1)
            logits = forward(self.ids)
            return nn.functional.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="batchmean")


def student(name: str) -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(MODELS[name]).to(DEVICE)


def batch(name: str, examples: int = 16, tokens: int = 32, *, autocast: bool = False) -> Batch:
    torch.manual_seed(1)
    config = copy.deepcopy(MODELS[name])
    config.num_hidden_layers = TEACHER_LAYERS[name]
    teacher = BertForSequenceClassification(config).to(DEVICE).eval().requires_grad_(False)
    return Batch(torch.randint(0, config.vocab_size, (examples, tokens)).to(DEVICE), teacher, autocast)


def plain(model: nn.Module, data: Batch, ones: int) -> Step:
    """Distillation of the dense student."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    return _stepper(lambda ids: model(input_ids=ids).logits, optimizer, data)


def ours(model: nn.Module, data: Batch, ones: int, precision: str = "float32") -> Step:
    """Dense model, cores in the optimizer."""
    overparam = opdf.overparameterize(model, opdf.OverParamConfig(ones=ones, precision=precision))
    optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-5, fused=True)
    return _stepper(lambda ids: model(input_ids=ids).logits, optimizer, data)


def rebuild(model: nn.Module, data: Batch, ones: int) -> Step:
    """Cores as parameters; every forward pass multiplies them out core by core with tensordot, as the authors do."""
    cores: dict[str, list[Tensor]] = {}
    for target in opdf.overparameterize(model, opdf.OverParamConfig(ones=ones)).matrices:
        weight = model.get_parameter(target.name)
        cores[target.name] = [c.requires_grad_() for c in decompose(weight, target.shape)]
    rest = [p for n, p in model.named_parameters() if n not in cores]
    optimizer = torch.optim.AdamW([*rest, *(c for chain in cores.values() for c in chain)], lr=1e-5, fused=True)

    def forward(ids: Tensor) -> Tensor:
        weights = {name: _tensordot(chain) for name, chain in cores.items()}
        return functional_call(model, weights, (), {"input_ids": ids}).logits

    return _stepper(forward, optimizer, data)


def parametrized(model: nn.Module, data: Batch, ones: int) -> Step:
    """`torch.nn.utils.parametrize` with the product's own contraction."""
    for target in opdf.overparameterize(model, opdf.OverParamConfig(ones=ones)).matrices:
        parametrize.register_parametrization(model.get_submodule(target.module), "weight", _Chain(target.shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    return _stepper(lambda ids: model(input_ids=ids).logits, optimizer, data)


def tensorly_torch(model: nn.Module, data: Batch, ones: int) -> Step:
    """tensorly-torch's FactorizedLinear with a BlockTT weight, reconstructed in each forward pass."""
    import tltorch

    for target in opdf.overparameterize(model, opdf.OverParamConfig(ones=ones)).matrices:
        shape = target.shape
        linear = model.get_submodule(target.module)
        # Its random start, replaced below, overflows where the product of all bond dimensions does.
        with mock.patch.object(tltorch.FactorizedLinear, "reset_parameters"):
            factorized = tltorch.FactorizedLinear(
                shape.col_factors, shape.row_factors, bias=True, factorization="blocktt",
                rank=list(shape.bond_dims or ()), implementation="reconstructed",
            )  # fmt: skip
        with torch.no_grad():
            for ours_, theirs in zip(decompose(linear.weight, shape), factorized.weight.factors, strict=True):
                theirs.copy_(ours_)
            factorized.bias.copy_(linear.bias)
        parent, _, child = target.module.rpartition(".")
        setattr(model.get_submodule(parent), child, factorized.to(linear.weight.device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    return _stepper(lambda ids: model(input_ids=ids).logits, optimizer, data)


CONTENDERS = {
    "plain": plain,
    "rebuild": rebuild,
    "parametrize": parametrized,
    "tensorly-torch": tensorly_torch,
    "opdf": ours,
}


class _Chain(nn.Module):
    def __init__(self, shape: MPOShape) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, *cores: Tensor) -> Tensor:
        return contract(cores)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        return tuple(decompose(weight, self.shape))


def _tensordot(cores: list[Tensor]) -> Tensor:
    product = cores[0]
    for core in cores[1:]:
        product = torch.tensordot(product, core, dims=1)
    product = product.squeeze(0).squeeze(-1)
    n = len(cores)
    rows, cols = range(0, 2 * n, 2), range(1, 2 * n, 2)
    size = 1
    for core in cores:
        size *= core.shape[1]
    return product.permute(*rows, *cols).reshape(size, -1)


def _stepper(forward: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, data: Batch) -> Step:
    def step(accumulation: int) -> None:
        for _ in range(accumulation):
            (data.loss(forward) / accumulation).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
