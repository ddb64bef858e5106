"""The ways of training a student whose weights are products of cores, built over the same model and data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

import opdf
from benchmarks.measure import DEVICE
from opdf.mpo import MPOShape, contract, decompose

Step = Callable[[int], None]
"""One optimizer step over a number of micro-batches."""


@dataclass(frozen=True)
class Architecture:
    """A student, its teacher of more blocks, and the micro-batch they see.

    `tokens` of a text or `tokens` squared pixels of an image; a decoder's outputs are of all its tokens.
    """

    make: type[PreTrainedModel]
    config: PreTrainedConfig
    teacher_layers: int
    examples: int = 16
    tokens: int = 32


def bert(**sizes: int) -> BertConfig:
    return BertConfig(num_labels=2, **sizes)


TINY = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 128}

MODELS = {
    "MiniLM": Architecture(
        BertForSequenceClassification,
        bert(hidden_size=384, num_hidden_layers=3, num_attention_heads=12, intermediate_size=1536), 6,
    ),
    "BERT-base": Architecture(BertForSequenceClassification, bert(num_hidden_layers=6), 12),
    "ViT-B": Architecture(ViTForImageClassification, ViTConfig(num_hidden_layers=6, num_labels=10), 12, 32, 224),
    "decoder of 1B": Architecture(
        LlamaForCausalLM,
        LlamaConfig(
            hidden_size=2048, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
            intermediate_size=8192, vocab_size=32_000, tie_word_embeddings=True,
        ), 16, 4, 1024,
    ),
    "BERT of width 32": Architecture(
        BertForSequenceClassification, bert(num_hidden_layers=6, vocab_size=1000, **TINY), 12
    ),
    "ViT of width 32": Architecture(
        ViTForImageClassification,
        ViTConfig(num_hidden_layers=2, num_labels=10, image_size=16, patch_size=8, **TINY), 4, 2, 16,
    ),
    "decoder of width 32": Architecture(
        LlamaForCausalLM, LlamaConfig(num_hidden_layers=2, num_key_value_heads=2, vocab_size=200, **TINY), 4, 2, 8
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Batch:
    """One micro-batch and the teacher, whose forward pass every contender pays for.

    With `autocast` both models' passes are in bfloat16.
    """

    inputs: dict[str, Tensor]
    teacher: nn.Module
    autocast: bool = False

    def loss(self, forward: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        device = next(iter(self.inputs.values())).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                target = self.teacher(**self.inputs).logits.log_softmax(-1)
            logits = forward(self.inputs)
            items = math.prod(logits.shape[:-1])
            return nn.functional.kl_div(logits.log_softmax(-1), target, log_target=True, reduction="sum") / items


def student(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name].make(MODELS[name].config).to(DEVICE)


def batch(name: str, examples: int | None = None, tokens: int | None = None, *, autocast: bool = False) -> Batch:
    torch.manual_seed(1)
    model = MODELS[name]
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = model.teacher_layers
    teacher = model.make(config).to(DEVICE).eval().requires_grad_(False)
    count, size = examples or model.examples, tokens or model.tokens
    if isinstance(config, ViTConfig):
        return Batch({"pixel_values": torch.randn(count, 3, size, size).to(DEVICE)}, teacher, autocast)
    return Batch({"input_ids": torch.randint(0, config.vocab_size, (count, size)).to(DEVICE)}, teacher, autocast)


def plain(model: nn.Module, data: Batch, ones: int) -> Step:
    """Distillation of the dense student."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    return _stepper(lambda inputs: model(**inputs).logits, optimizer, data)


def ours(model: nn.Module, data: Batch, ones: int, precision: str = "float32") -> Step:
    """Dense model, cores in the optimizer."""
    overparam = opdf.overparameterize(model, opdf.OverParamConfig(ones=ones, precision=precision))
    optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-5, fused=True)
    return _stepper(lambda inputs: model(**inputs).logits, optimizer, data)


def rebuild(model: nn.Module, data: Batch, ones: int) -> Step:
    """Cores as parameters; every forward pass multiplies them out core by core with tensordot, as the authors do."""
    cores: dict[str, list[Tensor]] = {}
    for matrix in opdf.overparameterize(model, opdf.OverParamConfig(ones=ones)).matrices:
        weight = model.get_parameter(matrix.name)
        cores[matrix.name] = [c.requires_grad_() for c in decompose(weight, matrix.shape)]
    rest = [p for n, p in model.named_parameters() if n not in cores]
    optimizer = torch.optim.AdamW([*rest, *(c for chain in cores.values() for c in chain)], lr=1e-5, fused=True)

    def forward(inputs: dict[str, Tensor]) -> Tensor:
        weights = {name: _tensordot(chain) for name, chain in cores.items()}
        return functional_call(model, weights, (), inputs).logits

    return _stepper(forward, optimizer, data)


def parametrized(model: nn.Module, data: Batch, ones: int) -> Step:
    """`torch.nn.utils.parametrize` with the product's own contraction."""
    for matrix in opdf.overparameterize(model, opdf.OverParamConfig(ones=ones)).matrices:
        parametrize.register_parametrization(model.get_submodule(matrix.module), "weight", _Chain(matrix.shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    return _stepper(lambda inputs: model(**inputs).logits, optimizer, data)


def tensorly_torch(model: nn.Module, data: Batch, ones: int) -> Step:
    """tensorly-torch's FactorizedLinear with a BlockTT weight, reconstructed in each forward pass."""
    import tltorch

    for matrix in opdf.overparameterize(model, opdf.OverParamConfig(ones=ones)).matrices:
        shape = matrix.shape
        linear = model.get_submodule(matrix.module)
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
        parent, _, child = matrix.module.rpartition(".")
        setattr(model.get_submodule(parent), child, factorized.to(linear.weight.device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    return _stepper(lambda inputs: model(**inputs).logits, optimizer, data)


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
    with torch.autocast(product.device.type, enabled=False):  # under which tensordot fails
        for core in cores[1:]:
            product = torch.tensordot(product, core, dims=1)
    product = product.squeeze(0).squeeze(-1)
    n = len(cores)
    rows, cols = range(0, 2 * n, 2), range(1, 2 * n, 2)
    size = 1
    for core in cores:
        size *= core.shape[1]
    return product.permute(*rows, *cols).reshape(size, -1)


def _stepper(forward: Callable[[dict[str, Tensor]], Tensor], optimizer: torch.optim.Optimizer, data: Batch) -> Step:
    def step(accumulation: int) -> None:
        for _ in range(accumulation):
            (data.loss(forward) / accumulation).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
