"""The data of a job, loaded and encoded."""

from __future__ import annotations

from accelerate import PartialState
from datasets import DatasetDict

from opdf.data import ImageNoise, Prepared, Task, class_weights, encode, load_data
from opdf.job.config import DataConfig, TeacherConfig
from opdf.job.errors import UserError
from opdf.job.processors import load_processor

ENCODING = ("max_length", "pack", "answers_only")
"""Options of the data that only change what models are given."""

TRAINING = ("class_weights", "augment")
"""Those that are about what is learned of them."""


def load(options: DataConfig) -> tuple[DatasetDict, Task]:
    """The data as they are, and their task."""
    later = (*ENCODING, *TRAINING)
    return load_data(**{name: value for name, value in vars(options).items() if name not in later}, where="data.")


def prepare_data(options: DataConfig, teacher: TeacherConfig) -> Prepared:
    """Load the data and encode them as the teacher reads them.

    With several processes, the first one works and the others read the cache.
    """
    with PartialState().main_process_first():
        raw, task = load(options)
        processor = load_processor(teacher, task)
        how = {name: getattr(options, name) for name in ENCODING}
        data, collator = encode(raw, task, processor, **how, where="data.")
    weights = class_weights(options.class_weights, raw["train"], task, where="data.")
    if options.augment and not task.is_image:
        raise UserError(f"data.augment is true and the task is {task.kind}; it is for images: leave it out")
    noise = ImageNoise() if options.augment else None
    return Prepared(raw, data, task, processor, collator, options.max_length, weights, noise, options.seed)
