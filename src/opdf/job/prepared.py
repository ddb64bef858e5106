"""The data of a job, loaded and encoded."""

from __future__ import annotations

from accelerate import PartialState

from opdf.data import Prepared, encode, load_data
from opdf.job.config import DataConfig, TeacherConfig
from opdf.job.models import load_processor


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
    return Prepared(raw, data, task, processor, collator, options.max_length)
