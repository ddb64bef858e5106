"""What the Python API refuses: the right exception, which names the argument, its value and what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import opdf
from opdf import MPOShape, OverParamConfig, contract, decompose, overparameterize, plan_shape, pullback
from opdf.data import ImageNoise, Task, TextNoise, encode, load_data
from opdf.distill import (
    LGTM,
    AttributionDistillation,
    Constraint,
    DecisionDistillation,
    DistillationArguments,
    DistillationTrainer,
    EmbeddingDistillation,
    HiddenDistillation,
    LogitsDistillation,
    SparseLogitsDistillation,
    Theseus,
    keep_layers,
)
from opdf.distill.methods.dbkd import count_decisions, decision_logits

SHAPE = MPOShape((2, 3), (2, 2))
SIZES = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 8}


def bert(**options: Any) -> BertForSequenceClassification:
    return BertForSequenceClassification(BertConfig(**(SIZES | options)))


def gpt(vocabulary: int) -> GPT2LMHeadModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary, n_embd=8, n_layer=1, n_head=1, n_positions=8))


def linear(weight: torch.Tensor | None = None, rows: int = 4, cols: int = 4) -> nn.ModuleDict:
    layer = nn.Linear(cols, rows)
    if weight is not None:
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return nn.ModuleDict({"layer": layer})


def planned(model: nn.Module, **options: Any) -> Any:
    return overparameterize(model, OverParamConfig(**({"targets": "all-linear"} | options)))


def quantized() -> torch.Tensor:
    return torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8)


def nan(*size: int) -> torch.Tensor:
    values = torch.randn(size)
    values.view(-1)[0] = torch.nan
    return values


def train(student: Any, teacher: Any = None, **options: Any) -> Any:
    return DistillationTrainer(student, DistillationArguments("unused", use_cpu=True), teacher=teacher, **options)


def rows(**columns: Any) -> Callable[[Path], Any]:
    def load(folder: Path) -> Any:
        Dataset.from_dict({k: v for k, v in columns.items() if isinstance(v, list)}).to_json(folder / "rows.jsonl")
        options = {k: v for k, v in columns.items() if not isinstance(v, list)}
        return load_data(str(folder / "rows.jsonl"), **options)

    return load


TEXTS, LABELS = ["some words"] * 40, [0, 1] * 20
CASES: list[tuple[Any, type[Exception], str]] = [
    # tensors
    (lambda: decompose(torch.zeros(6, 4, dtype=torch.int64), SHAPE), TypeError, "int64; give a floating-point"),
    (lambda: decompose(torch.zeros(6, 4, dtype=torch.complex64), SHAPE), TypeError, "complex64; give a floating-p"),
    (lambda: decompose([[1.0]], SHAPE), TypeError, "matrix is list"),
    (lambda: decompose(quantized(), MPOShape((4,), (4,))), TypeError, "qint8"),
    (lambda: decompose(torch.zeros(4, 6), SHAPE), ValueError, "(4, 6); T(2,3 / 2,2) factors [..., 6, 4]"),
    (lambda: decompose(torch.zeros(24), SHAPE), ValueError, "shape (24,)"),
    (lambda: decompose(nan(6, 4), SHAPE), ValueError, "holds NaN or infinite"),
    (lambda: decompose(torch.full((6, 4), torch.inf), SHAPE), ValueError, "holds NaN or infinite"),
    (lambda: decompose(torch.zeros(6, 4, device="meta"), SHAPE), ValueError, "meta device"),
    (lambda: contract([]), ValueError, "cores is empty"),
    (lambda: contract([torch.zeros(2, 2)]), ValueError, "cores[0] has shape (2, 2)"),
    (lambda: contract([torch.zeros(1, 2, 2, 3), torch.zeros(2, 2, 2, 1)]), ValueError, "3 and cores[1] begins with 2"),
    (lambda: pullback(decompose(torch.eye(4), plan_shape(4, 4)), torch.zeros(3, 4)), ValueError, "grad has shape (3"),
    # shapes
    (lambda: MPOShape((2, 3), (2,)), ValueError, "row_factors has 2 entries"),
    (lambda: MPOShape("23", (2, 2)), TypeError, "row_factors is '23'"),
    (lambda: MPOShape((2.0, 3), (2, 2)), TypeError, "row_factors holds 2.0 of type float"),
    (lambda: MPOShape((), ()), ValueError, "row_factors is empty"),
    (lambda: MPOShape((0, 3), (2, 2)), ValueError, "row_factors holds 0"),
    (lambda: MPOShape((2, 3), (2, 2), (1, 9, 1)), ValueError, "bond_dims[1] is 9"),
    (lambda: plan_shape(0, 4), ValueError, "holds 0; every entry must be at least 1"),
    (lambda: plan_shape(4, 4, ones=101), ValueError, "ones is 101; it must be 0 or more, and at most 100"),
    (lambda: plan_shape(4, 4, ones=True), TypeError, "ones is True"),
    (lambda: plan_shape(4, 4, scale="2"), ValueError, "scale is '2'"),
    (lambda: plan_shape(4, 4, scale=[2.0]), ValueError, "scale is [2.0]; it must be a finite number"),
    (lambda: plan_shape(4, 4, scale=True), ValueError, "scale is True"),
    (lambda: OverParamConfig(shapes=[1]), TypeError, "shapes is [1]; give {pattern: (row_factors, col_factors)}"),
    (lambda: OverParamConfig(shapes={"a": "b"}), ValueError, "shapes['a'] is 'b'"),
    (lambda: OverParamConfig(shapes={"a": 3}), ValueError, "shapes['a'] is 3; give (row_factors, col_factors)"),
    (lambda: OverParamConfig(shapes={"a": ((2, 2), 4)}), ValueError, "shapes['a'] is ((2, 2), 4)"),
    (lambda: OverParamConfig(shapes={3: ((2,), (2,))}), TypeError, "shapes holds 3; give name patterns"),
    (lambda: OverParamConfig(exclude="head"), TypeError, "exclude is 'head'; give a list of name patterns"),
    (lambda: OverParamConfig(exclude=None), TypeError, "exclude is None; give a list of name patterns"),
    (lambda: OverParamConfig(exclude=[3]), TypeError, "exclude holds 3"),
    (lambda: OverParamConfig(targets=None), TypeError, "targets is None; give a list of name patterns"),
    (lambda: OverParamConfig(targets=[3]), TypeError, "targets holds 3"),
    (lambda: OverParamConfig(keep_products="no"), TypeError, "keep_products is 'no'; give True, False or None"),
    # weights
    (lambda: overparameterize("bert"), TypeError, "model is a str"),
    (lambda: overparameterize(linear(), {"ones": 1}), TypeError, "config is {'ones': 1}; give OverParamConfig("),
    (lambda: overparameterize(bert()).align("minilm"), TypeError, "teacher is 'minilm'; give a torch.nn.Module"),
    (lambda: planned(linear(), shapes={"layer": ((2, 3), (2, 2))}), ValueError, "gives a 6x4 matrix; layer.weight is"),
    (lambda: planned(linear(), shapes={"lyaer": ((2, 2), (2, 2))}), ValueError, "shapes pattern 'lyaer' matches no"),
    (lambda: planned(linear(rows=0)), ValueError, "layer.weight is empty (shape (0, 4)); leave it out with exclude"),
    (lambda: planned(linear(), targets=["lyer"]), ValueError, "matches no matrix; did you mean 'layer'"),
    (lambda: planned(linear(), targets=[3]), TypeError, "targets holds 3"),
    (lambda: planned(linear(), targets=[]), TypeError, "targets is []"),
    (lambda: planned(linear().requires_grad_(False)), ValueError, "leaves no trainable matrix"),
    (lambda: planned(nn.ModuleDict({"n": nn.LayerNorm(3)})), ValueError, "leaves no trainable matrix"),
    (lambda: overparameterize(linear()), ValueError, "found no attention blocks"),
    (lambda: planned(linear(torch.zeros(4, 4, dtype=torch.int8))), TypeError, "layer.weight is torch.int8"),
    (lambda: planned(linear(quantized()), targets=["layer"]), TypeError, "layer.weight is torch.qint8"),
    (lambda: planned(linear(torch.zeros(4, 4).to(torch.float8_e4m3fn))), TypeError, "layer.weight is torch.float8"),
    (lambda: planned(linear(nan(4, 4)).requires_grad_()), ValueError, "layer.weight holds NaN"),
    (lambda: planned(linear()).optimizer(torch.optim.LBFGS), TypeError, "LBFGS cannot step cores"),
    (lambda: planned(linear()).optimizer("adam"), TypeError, "inner is 'adam'"),
    (lambda: planned(linear()).optimizer(torch.optim.SGD, lr=-1.0), ValueError, "Invalid learning rate: -1"),
    (lambda: planned(linear()).optimizer(params=[]), ValueError, "empty parameter list"),
    (lambda: planned(linear()).load_state_dict({}), KeyError, "state_dict misses 5 cores"),
    (lambda: overparameterize(bert()).align(bert(hidden_size=4)), ValueError, "cannot follow"),
    (lambda: opdf.Constraint(weight=torch.inf), ValueError, "weight is inf"),
    (lambda: opdf.Constraint(layer_map="middle"), ValueError, "layer_map is 'middle'"),
    # student and teacher
    (lambda: keep_layers(nn.Linear(2, 2), 1), TypeError, "keep_layers needs a transformers model"),
    (lambda: keep_layers(bert(), 3), ValueError, "layers is 3; the teacher has 2 blocks"),
    (lambda: train(bert(num_labels=2), bert(num_labels=3)), ValueError, "has 2 labels and the teacher 3"),
    (lambda: train(bert(id2label={0: "a", 1: "b"}), bert(id2label={0: "b", 1: "a"})), ValueError, "in the same order"),
    (lambda: train(gpt(20), gpt(30)), ValueError, "vocabulary has 20 tokens and the teacher's 30"),
    (lambda: train(bert()), ValueError, "there is no teacher"),
    (lambda: (lambda m: train(m, m))(bert()), ValueError, "are the same object"),
    (lambda: train(bert(), bert(), constraint=Constraint()), ValueError, "constraint needs overparam"),
    (lambda: LogitsDistillation(temperature=0), ValueError, "temperature is 0"),
    (lambda: LogitsDistillation(temperature=torch.inf), ValueError, "temperature is inf"),
    (lambda: LogitsDistillation(alpha=-0.1), ValueError, "alpha is -0.1"),
    (lambda: HiddenDistillation(pairs="some"), ValueError, "pairs is 'some'"),
    (lambda: Theseus(rate=2), ValueError, "rate is 2"),
    (lambda: LGTM(held_out=0), ValueError, "held_out is 0"),
    (lambda: AttributionDistillation(steps=0), ValueError, "steps is 0"),
    (lambda: DecisionDistillation(copies=0), ValueError, "copies is 0"),
    (lambda: HiddenDistillation(hidden_weight=math.inf), ValueError, "hidden_weight is inf"),
    (lambda: EmbeddingDistillation(mse_weight=math.inf), ValueError, "mse_weight is inf"),
    (lambda: AttributionDistillation(attribution_weight=math.inf), ValueError, "attribution_weight is inf"),
    (lambda: DecisionDistillation(alpha=math.inf), ValueError, "alpha is inf"),
    (lambda: DecisionDistillation(scale=math.inf), ValueError, "scale is inf"),
    (lambda: DecisionDistillation(seed=-1), ValueError, "seed is -1"),
    (lambda: SparseLogitsDistillation(seed=-1), ValueError, "seed is -1"),
    (lambda: LGTM(radius=math.inf), ValueError, "radius is inf"),
    (lambda: LGTM(influence_scale=math.nan), ValueError, "influence_scale is nan"),
    (lambda: Theseus(slope=math.inf), ValueError, "slope is inf"),
    (lambda: decision_logits([[0, 0]]), ValueError, "counts of shape (1, 2)"),
    (lambda: count_decisions(lambda x: [5] * len(x), ["a"], 2, lambda x, r: x), ValueError, "chose class 5"),
    # training
    (lambda: DistillationArguments("x", learning_rate="fast"), TypeError, "learning_rate is 'fast'; give a number"),
    (lambda: DistillationArguments("x", learning_rate=0.0), ValueError, "learning_rate is 0.0; it must be a finite"),
    (lambda: DistillationArguments("x", num_train_epochs=0), ValueError, "num_train_epochs is 0"),
    (lambda: DistillationArguments("x", max_steps=2.5), TypeError, "max_steps is 2.5; give an integer"),
    (lambda: DistillationArguments("x", per_device_train_batch_size=0), ValueError, "per_device_train_batch_size is 0"),
    (lambda: DistillationArguments("x", seed=-1), ValueError, "seed is -1"),
    (lambda: DistillationArguments("x", deepspeed="zero.json"), ValueError, "DeepSpeed flattens or partitions"),
    # data
    (rows(text=[], label=[]), ValueError, "has no rows"),
    (rows(text=TEXTS, label=[1] * 40), ValueError, "has the one class"),
    (rows(text=["a", "b"], label=LABELS[:2]), ValueError, "2 rows, 2 different ones, are too few"),
    (rows(text=[*TEXTS[1:], None], label=LABELS), ValueError, "is empty in 1 of 40 rows: line 40; fill or"),
    (rows(text=TEXTS, label=[{"a": v} for v in LABELS]), ValueError, "are dict; classes are texts or integers"),
    (rows(text=TEXTS, label=["no"] * 40, task="regression"), ValueError, "a regression needs one number a row"),
    (rows(text=TEXTS, label=[*range(40)]), ValueError, "40 classes in 40 rows, 40 of them with one row each"),
    (rows(text=TEXTS, label=LABELS), ValueError, "40 rows, 1 different ones, are too few"),
    (rows(text=TEXTS, label=LABELS, labels=("no",)), ValueError, "labels is no, and 'label' of"),
    (rows(text=TEXTS, label=LABELS, labels=("no", "no")), ValueError, "name every class once"),
    (rows(text=TEXTS, label=LABELS, task="regression", labels=("no", "yes")), ValueError, "the task is regression"),
    (rows(text=TEXTS, label=LABELS, validation="none.csv"), FileNotFoundError, "validation is 'none.csv', which does"),
    (rows(text=TEXTS, label=LABELS, train_limit=-1), ValueError, "train_limit is -1"),
    (rows(text=TEXTS, label=LABELS, seed=2**40), ValueError, "seed is 1099511627776"),
    (lambda: load_data("digits", task="regression"), ValueError, "task is 'regression'; digits is for image"),
    (lambda: Task("ranking", ("text",), "label", ()), ValueError, "task is 'ranking'"),
    (lambda: TextNoise([], rate=2), ValueError, "rate is 2"),
    (lambda: ImageNoise(crop=0), ValueError, "crop is 0"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "error", "message"), CASES, ids=lambda v: v[:60] if isinstance(v, str) else "")
def test_refused(act: Any, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=re.escape(message)):
        act(tmp_path) if act.__code__.co_argcount else act()


def test_a_text_needs_room_beside_the_tokenizers_marks() -> None:
    class Marks:
        pad_token = "[PAD]"

        def num_special_tokens_to_add(self, pair: bool) -> int:
            return 3 if pair else 2

    for inputs, least in ((("a",), 3), (("a", "b"), 5)):
        with pytest.raises(ValueError, match=f"max_length is 2.*at least {least}"):
            encode(None, Task("classification", inputs, "l", ("x", "y")), Marks(), max_length=2)


@pytest.mark.parametrize("view", [lambda: torch.randn(4, 6).t(), lambda: torch.randn(6, 8)[:, ::2]])
def test_weights_that_are_not_contiguous_simply_work(view: Callable[[], torch.Tensor]) -> None:
    torch.manual_seed(0)
    weight = view()
    before = weight.clone()
    assert not weight.is_contiguous()
    torch.testing.assert_close(contract(decompose(weight, SHAPE)), weight, atol=1e-5, rtol=1e-5)
    stepped = []
    for values in (weight, weight.contiguous()):
        model = linear(rows=6, cols=4)
        model["layer"].weight, model["layer"].bias = nn.Parameter(values), nn.Parameter(torch.zeros(6))
        optimizer = planned(model).optimizer(torch.optim.SGD, lr=0.1)
        model["layer"](torch.ones(2, 4)).square().sum().backward()
        optimizer.step()
        stepped.append(model["layer"].weight.detach().clone())
    torch.testing.assert_close(stepped[0], stepped[1])
    assert not torch.equal(stepped[0], before)


def test_a_model_without_values_can_be_planned_but_not_trained() -> None:
    with torch.device("meta"):
        model = bert()
    over = overparameterize(model)
    assert over.train_params > over.inference_params
    optimizer = over.optimizer(lr=1e-3)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    with pytest.raises(ValueError, match="on the meta device and holds no values; load the weights first"):
        optimizer.step()


def test_there_are_sixty() -> None:
    assert len(CASES) > 60
    assert opdf.__version__
