"""Data of a run: raw rows, and encoded ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from datasets import DatasetDict

from opdf.data.augment import AugmentedImages, ImageNoise
from opdf.data.encode import Collator, encode_rows
from opdf.data.task import Task


@dataclass(frozen=True)
class Prepared:
    """Data as it is and as the Trainer takes it, and what encodes it.

    Attributes:
        raw: splits "train", "validation" and "test" of rows with the task's columns.
        data: the same splits, encoded: model inputs and "labels".
        task: of the data.
        processor: tokenizer or image processor.
        collator: encoded rows to a batch of tensors.
        max_length: of a text, in tokens.
        class_weights: how much an example of each class counts in the loss against labels; None if all count alike.
        noise: of the images that are trained on; None trains on them as they are.
        seed: of the noise.
        said: for language models, the teacher's `task.answers` by split, with which students are compared.
    """

    raw: DatasetDict
    data: DatasetDict
    task: Task
    processor: Any
    collator: Collator
    max_length: int = 128
    class_weights: list[float] | None = None
    noise: ImageNoise | None = None
    seed: int = 0
    said: Mapping[str, np.ndarray] = field(default_factory=dict)

    def training_rows(self) -> Any:
        """The encoded training split; with `noise`, as other images in every epoch."""
        if self.noise is None:
            return self.data["train"]
        return AugmentedImages(self.raw["train"], self.task.inputs[0], self.noise, self.encode, self.seed)

    def for_trainer(self) -> dict[str, Any]:
        """Arguments of a Trainer that make batches of the data and score answers to them."""
        return {
            "data_collator": self.collator, "compute_metrics": self.task.compute_metrics(),
            "preprocess_logits_for_metrics": self.task.kept_outputs,
        }  # fmt: skip

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Raw rows as model inputs; a row without a label gets label 0."""
        columns = {name: [row.get(name, 0) for row in rows] for name in self.task.columns}
        encoded = encode_rows(columns, self.task, self.processor, max_length=self.max_length)
        return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]

    def named_by(self, teacher: Any) -> Prepared:
        """Unlabelled data with the class names of a transformers teacher, unless they have some."""
        task = self.task
        if not task.is_unlabelled or task.labels or task.kind == "regression":
            return self
        names = teacher.config.id2label
        return replace(self, task=replace(task, labels=tuple(names[number] for number in sorted(names))))

    def judged_by(self, answers: Mapping[str, np.ndarray]) -> Prepared:
        """Data on which students are compared with their teacher.

        Unlabelled ones get the teacher's answers as the labels of their validation and test splits.

        Args:
            answers: `task.answers` of the teacher for both splits.
        """
        if self.task.kind == "causal-lm":
            return replace(self, said=answers)
        data = DatasetDict(self.data)
        for part, said in answers.items():
            rows = data[part]
            labels = said.astype(float) if self.task.kind == "multi-label" else said
            data[part] = rows.with_format(None).add_column("labels", labels.tolist()).with_format(rows.format["type"])
        return replace(self, data=data)
