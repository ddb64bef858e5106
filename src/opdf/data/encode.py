"""Rows to model inputs: tokens with dynamic padding, or pixel values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict, Image
from transformers import DataCollatorWithPadding, default_data_collator

from opdf.data.task import Task

Collator = Callable[[list[Any]], dict[str, Any]]


def encode(
    data: DatasetDict, task: Task, processor: Any, *, max_length: int = 128, where: str = ""
) -> tuple[DatasetDict, Collator]:
    """A dataset as the Trainer takes it, and the collator that makes batches of it.

    Args:
        data, task: from `load_data`.
        processor: a tokenizer, or an image processor for image tasks.
        max_length: of a text (or pair), in tokens.
        where: what stands before the names of options in messages.

    Raises:
        ValueError: `max_length` leaves no token of the text, or a row cannot be read; the message names it.
    """
    if not task.is_image:
        special = processor.num_special_tokens_to_add(pair=len(task.inputs) > 1)
        if max_length < special + len(task.inputs):
            raise ValueError(
                f"{where}max_length is {max_length}; {special} tokens go to the tokenizer's own marks, "
                f"so it must be at least {special + len(task.inputs)}"
            )
    try:
        encoded = data.map(
            lambda rows: encode_rows(rows, task, processor, max_length=max_length),
            batched=True, batch_size=256, remove_columns=data["train"].column_names, desc="encoding",
        )  # fmt: skip
    except Exception as error:
        problem = _unreadable_row(data, task, processor)
        if problem is None:
            raise
        raise ValueError(problem) from error
    if task.is_image:
        return encoded.with_format("torch"), default_data_collator
    return encoded, DataCollatorWithPadding(processor)


def longest_text(rows: Dataset) -> int:
    """Tokens of the longest of some encoded texts."""
    tokens = rows.select_columns("input_ids").with_format("arrow")[:]["input_ids"]
    return int(pc.max(pc.list_value_length(tokens)).as_py())


def encode_rows(rows: Mapping[str, Any], task: Task, processor: Any, *, max_length: int = 128) -> dict[str, Any]:
    """Columns of raw rows to columns of model inputs and "labels".

    A pair of a similarity task becomes two rows, one after the other, without a label.
    """
    if task.kind == "similarity":
        texts = [text for pair in zip(*(rows[c] for c in task.inputs), strict=True) for text in pair]
        return dict(processor(texts, truncation=True, max_length=max_length))
    if task.is_image:
        images = [image.convert("RGB") for image in rows[task.inputs[0]]]
        encoded = {"pixel_values": processor(images, return_tensors="np")["pixel_values"]}
    else:
        encoded = dict(processor(*(rows[c] for c in task.inputs), truncation=True, max_length=max_length))
    target = torch.float if task.kind == "regression" else torch.long
    return encoded | {"labels": torch.tensor(rows[task.label], dtype=target).tolist()}


def _unreadable_row(data: DatasetDict, task: Task, processor: Any) -> str | None:
    """The first row that cannot be encoded by itself, and what is known of it: batches hide which one it was."""
    for part, rows in data.items():
        for k in range(len(rows)):
            try:
                encode_rows(rows[k : k + 1], task, processor)
            except Exception as error:
                return f"{_as_stored(rows, k, task)} of the {part} split cannot be read: {error}"
    return None


def _as_stored(rows: Dataset, k: int, task: Task) -> str:
    if task.is_image:
        stored = rows.cast_column(task.inputs[0], Image(decode=False))[k][task.inputs[0]]
        return str(stored["path"] or f"{len(stored['bytes'])} bytes without a file name")
    return f"the row { ({column: rows[k][column] for column in task.columns})!r}"[:200]
