"""Data of a run: rows as they are, and as a model takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import DatasetDict

from opdf.data.encode import Collator, encode_rows
from opdf.data.task import Task


@dataclass(frozen=True)
class Prepared:
    """Data as it is and as the Trainer takes it, and what encodes it.

    Attributes:
        raw: splits "train", "validation" and "test" of rows with the task's columns.
        data: the same splits, encoded: model inputs and "labels".
        task: what the data ask for.
        processor: tokenizer or image processor.
        collator: encoded rows to a batch of tensors.
        max_length: of a text, in tokens.
    """

    raw: DatasetDict
    data: DatasetDict
    task: Task
    processor: Any
    collator: Collator
    max_length: int = 128

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Raw rows as model inputs; a row without a label gets label 0."""
        names = (*self.task.inputs, self.task.label)
        columns = {name: [row.get(name, 0) for row in rows] for name in names}
        encoded = encode_rows(columns, self.task, self.processor, max_length=self.max_length)
        return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
