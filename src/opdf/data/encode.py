"""Rows to model inputs: tokens with dynamic padding, or pixel values."""

from __future__ import annotations

from collections.abc import Callable
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
    if task.is_image:
        return _encode_images(data, task, processor), default_data_collator

    def tokenize(rows: dict[str, list[Any]]) -> dict[str, Any]:
        encoded = processor(*(rows[c] for c in task.inputs), truncation=True, max_length=max_length)
        target = torch.float if task.kind == "regression" else torch.long
        encoded["labels"] = torch.tensor(rows[task.label], dtype=target).tolist()
        return dict(encoded)

    encoded = data.map(tokenize, batched=True, remove_columns=data["train"].column_names, desc="tokenizing")
    return encoded, DataCollatorWithPadding(processor)


def _encode_images(data: DatasetDict, task: Task, processor: Any) -> DatasetDict:
    def pixels(rows: dict[str, list[Any]]) -> dict[str, Any]:
        images = [image.convert("RGB") for image in rows[task.inputs[0]]]
        return {"pixel_values": processor(images, return_tensors="np")["pixel_values"], "labels": rows[task.label]}

    encoded = data.map(
        pixels, batched=True, batch_size=256, remove_columns=data["train"].column_names, desc="processing images"
    )
    return encoded.with_format("torch")
