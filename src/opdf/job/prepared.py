"""The data of a job, as they are and as the Trainer takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from datasets import DatasetDict

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
        asked = {name: value for name, value in vars(options).items() if name != "max_length"}
        raw, task = load_data(**asked, where="data.")
        processor = load_processor(teacher, task)
        data, collator = encode(raw, task, processor, max_length=options.max_length, where="data.")
    return Prepared(raw, data, task, processor, collator)
