"""A small teacher, a student of it, sentences with labels, and a run on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from opdf.distill import DistillationArguments, DistillationTrainer, keep_layers


def bert(layers: int = 4, width: int = 16, **options: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * width,
        max_position_embeddings=16,
        **({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3} | options),
    )  # fmt: skip
    return BertForSequenceClassification(config)


def sentences(count: int = 24) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        ids = torch.randint(1, 50, (8,), generator=generator)
        rows.append({"input_ids": ids.tolist(), "attention_mask": [1] * 8, "labels": int(ids[0] > 25)})
    return Dataset.from_list(rows)


def labelled(column: str, labels: list[Any]) -> Dataset:
    return sentences(len(labels)).remove_columns("labels").add_column(column, labels)


def arguments(folder: Path, **options: Any) -> DistillationArguments:
    defaults: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1, "seed": 3,
        "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    return DistillationArguments(str(folder), **(defaults | options))


def train(folder: Path, **options: Any) -> tuple[DistillationTrainer, nn.Module]:
    student = options.pop("student", None) or keep_layers(bert(), 2)
    training, resume = options.pop("training", {}), options.pop("resume", None)
    options.setdefault("teacher", bert())
    options.setdefault("train_dataset", sentences())
    trainer = DistillationTrainer(student, arguments(folder, **training), **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, student


def noisy_student() -> BertForSequenceClassification:
    student = keep_layers(bert(), 2)
    for module in student.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.2
    return student


def scored_in_bf16(model: Any, folder: Path) -> Any:
    """A model that transformers' Trainer has been given, which makes it compute in half precision from then on."""
    arguments = TrainingArguments(
        str(folder), bf16=True, use_cpu=True, report_to="none", disable_tqdm=True, dataloader_pin_memory=False
    )
    Trainer(model, arguments).evaluate(sentences(8))
    assert "_original_forward" in vars(model)
    return model.eval()
