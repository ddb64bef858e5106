"""The same five lines distill every family, and decoders learn what a loop over single tokens says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from families import FAMILIES, batch, build
from opdf import DistillationArguments, DistillationTrainer, OverParamConfig
from opdf.data import load_data, minilm
from opdf.distill import Constraint, LogitsDistillation, keep_layers

# Students of models with several depths are built from a smaller configuration.
SHALLOW = {"swin": [1, 1], "resnet": [1, 1]}
TARGETS = {"resnet": ["convolution"]}
REGRESSIONS = ("bert-regression", "roberta-regression", "distilbert-regression")
SLOW = ("mpnet", "deit", "dinov2", *REGRESSIONS[1:])
"""Much like others: as BERT, as ViT, and as the first regression."""
CASES = [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in (*FAMILIES, *REGRESSIONS)]


def pair(case: str, depth: int = 2) -> tuple[nn.Module, nn.Module, Any]:
    """Teacher, student, data."""
    family = case.removesuffix("-regression")
    options = {"num_labels": 1, "problem_type": "regression"} if case != family else {}
    if family in SHALLOW:
        teacher, student = build(family, **options), build(family, SHALLOW[family], **options)
    else:
        teacher = build(family, depth, **options)
        student = keep_layers(teacher, 1)
    rows = batch(family, 12)
    if case != family:
        rows["labels"] = torch.linspace(-1, 1, 12)
    columns = {k: v.tolist() for k, v in rows.items()}
    return teacher, student, Dataset.from_dict(columns).with_format("torch")


@pytest.mark.parametrize("case", CASES)
def test_five_lines(case: str, tmp_path: Path) -> None:
    teacher, student, data = pair(case)
    kind, names = type(student), student.state_dict().keys()
    trainer = DistillationTrainer(
        student, arguments(tmp_path), teacher=teacher, train_dataset=data,
        overparam=OverParamConfig(ones=1, targets=TARGETS.get(case, "blocks")),
    )  # fmt: skip
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]
    assert type(student) is kind
    assert student.state_dict().keys() == names
    student.save_pretrained(tmp_path / "student")
    again = kind.from_pretrained(tmp_path / "student").eval()
    inputs = {k: data[:2][k] for k in data.column_names}
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, student.eval()(**inputs).logits)


@pytest.mark.parametrize("case", ["distilbert", "vit", "gpt2", "llama", "t5"])
def test_the_constraint_pairs_encoders_decoders_and_both(case: str, tmp_path: Path) -> None:
    teacher, student, data = pair(case)
    trainer = DistillationTrainer(
        student, arguments(tmp_path, max_steps=2), teacher=teacher, train_dataset=data,
        overparam=OverParamConfig(ones=1), constraint=Constraint(layer_map="first"),
    )  # fmt: skip
    trainer.train()
    logs = [log for log in trainer.state.log_history if "constraint_grad_ratio" in log]
    assert logs
    assert all(log["constraint_grad_ratio"] > 0 for log in logs)


def test_timm(tmp_path: Path) -> None:
    """A timm model in transformers' wrapper; needs `opdf[timm]` beside a torch that torchvision was built for."""
    pytest.importorskip("timm", exc_type=ImportError)
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    def vit(depth: int) -> nn.Module:
        shape = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "num_heads": 2, "depth": depth}
        config = TimmWrapperConfig(architecture="vit_tiny_patch16_224", model_args=shape, num_labels=2)
        return TimmWrapperForImageClassification(config)

    columns = {k: v.tolist() for k, v in batch("vit", 12).items()}
    trainer = DistillationTrainer(
        vit(1), arguments(tmp_path), teacher=vit(2), overparam=OverParamConfig(ones=1),
        train_dataset=Dataset.from_dict(columns).with_format("torch"),
    )  # fmt: skip
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["amazon-sentiment", "amazon-scores"])
def test_minilm(data: str, tmp_path: Path) -> None:
    raw, task = load_data(data, train_limit=16)
    regression = task.kind == "regression"
    options = {"num_labels": 1, "problem_type": "regression"} if regression else {"num_labels": 2}
    torch.manual_seed(0)
    teacher = AutoModelForSequenceClassification.from_pretrained(minilm(), **options)
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    rows = dict(tokenizer(raw["train"]["text"][:], padding=True, truncation=True, max_length=16))
    student = keep_layers(teacher, 1)
    trainer = DistillationTrainer(
        student, arguments(tmp_path, max_steps=4, learning_rate=1e-4, per_device_train_batch_size=16), teacher=teacher,
        train_dataset=Dataset.from_dict(rows | {"labels": raw["train"]["label"][:]}),
        overparam=OverParamConfig(ones=1),
    )  # fmt: skip
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("family", "labelled"), [
    *((family, labelled) for family in ("gpt2", "llama", "qwen3") for labelled in (True, False)),
    ("t5", True),  # which makes its decoder's inputs of the labels
])  # fmt: skip
def test_token_level_loss_is_a_loop_over_tokens(family: str, labelled: bool) -> None:
    """Labels and padding of every length: each position is judged by the next token, padding by none."""
    teacher, student = (model.eval().double() for model in pair(family)[:2])
    data = batch(family, 5)
    if labelled:
        data["labels"][1, :3] = -100  # a prompt that is not learned
    else:
        del data["labels"]
    objective = LogitsDistillation(temperature=2.0, alpha=0.7 if labelled else 1.0)
    items = objective.count_items(student, data)
    found = objective.losses(student, teacher, data, items)

    inputs = {k: v for k, v in data.items() if k != "labels" or family == "t5"}
    with torch.no_grad():
        ours, theirs = student(**inputs).logits, teacher(**inputs).logits
    task = soft = count = 0.0
    for row in range(5):
        for place in range(8):
            label = int(data["labels"][row, place]) if labelled else int(data["input_ids"][row, place])
            if label == -100 or not data["attention_mask"][row, place]:
                continue
            seen = place if family == "t5" else place - 1  # a decoder predicts it from the tokens before
            if seen < 0:
                continue
            p, q = ours[row, seen], (theirs[row, seen] / 2).softmax(-1)
            task += float(p.logsumexp(-1) - p[label])
            soft += 4 * float((q * (q.log() - (p / 2).log_softmax(-1))).sum())
            count += 1
    assert items.tolist() == [count, count]
    assert float(found.parts["distillation"]) == pytest.approx(soft / count, rel=1e-6)
    if labelled:
        assert float(found.parts["task"]) == pytest.approx(task / count, rel=1e-6)
        assert float(found.total) == pytest.approx((0.3 * task + 0.7 * soft) / count, rel=1e-6)


def arguments(folder: Path, **options: Any) -> DistillationArguments:
    defaults: dict[str, Any] = {
        "max_steps": 8, "per_device_train_batch_size": 12, "learning_rate": 3e-3, "logging_steps": 1, "seed": 0,
        "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    return DistillationArguments(str(folder), **(defaults | options))
