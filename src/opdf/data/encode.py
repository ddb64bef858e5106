"""Rows to model inputs: tokens with dynamic padding, or pixel values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from datasets import DatasetDict
from transformers import DataCollatorWithPadding, default_data_collator

from opdf.data.task import Task

Collator = Callable[[list[Any]], dict[str, Any]]


def encode(data: DatasetDict, task: Task, processor: Any, *, max_length: int = 128) -> tuple[DatasetDict, Collator]:
    """A dataset as the Trainer takes it, and the collator that makes batches of it.

    Args:
        data, task: from `load_data`.
        processor: a tokenizer, or an image processor for image tasks.
        max_length: of a text (or pair), in tokens.
    """
    encoded = data.map(
        lambda rows: encode_rows(rows, task, processor, max_length=max_length),
        batched=True, batch_size=256, remove_columns=data["train"].column_names, desc="encoding",
    )  # fmt: skip
    if task.is_image:
        return encoded.with_format("torch"), default_data_collator
    return encoded, DataCollatorWithPadding(processor)


def encode_rows(rows: Mapping[str, Any], task: Task, processor: Any, *, max_length: int = 128) -> dict[str, Any]:
    """Columns of raw rows to columns of model inputs and "labels"."""
    if task.is_image:
        images = [image.convert("RGB") for image in rows[task.inputs[0]]]
        encoded = {"pixel_values": processor(images, return_tensors="np")["pixel_values"]}
    else:
        encoded = dict(processor(*(rows[c] for c in task.inputs), truncation=True, max_length=max_length))
    target = torch.float if task.kind == "regression" else torch.long
    return encoded | {"labels": torch.tensor(rows[task.label], dtype=target).tolist()}
