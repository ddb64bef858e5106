"""The data of a job, as they are and as the Trainer takes them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from accelerate import PartialState
from datasets import Dataset, DatasetDict

from opdf.data import Task, encode, load_data
from opdf.job.config import DataConfig, TeacherConfig
from opdf.job.models import load_processor


@dataclass(frozen=True)
class Prepared:
    """Data that are ready.

    Attributes:
        raw: texts or images with their labels.
        data: what a model reads, and `labels`.
        task: what the data ask for.
        processor: the tokenizer or image processor that made `data` of `raw`.
        collator: makes a batch of some rows of `data`.
    """

    raw: DatasetDict
    data: DatasetDict
    task: Task
    processor: Any
    collator: Any


def prepare_data(options: DataConfig, teacher: TeacherConfig) -> Prepared:
    """Load the data and encode them as the teacher reads them.

    Of several processes the first one works, and the others find the cache filled.
    """
    with PartialState().main_process_first():
        raw, task = load_data(
            options.name, task=options.task, inputs=options.inputs, label=options.label, validation=options.validation,
            test=options.test, train_limit=options.train_limit, seed=options.seed,
        )  # fmt: skip
        processor = load_processor(teacher, task)
        data, collator = encode(raw, task, processor, max_length=options.max_length)
    return Prepared(raw, data, task, processor, collator)


def rows_digest(rows: Dataset) -> str:
    """A digest of all rows in their order; of an image in a file, the file's name."""
    digest = hashlib.sha256(repr(sorted(rows.column_names)).encode())
    for batch in rows.with_format("arrow").iter(1000):
        for column in sorted(batch.column_names):
            for value in batch[column].to_pylist():
                if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
                    value = value["bytes"] or PurePath(value["path"]).name
                digest.update(repr(value).encode())
    return digest.hexdigest()[:32]
