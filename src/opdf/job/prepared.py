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
        asked = {name: value for name, value in vars(options).items() if name != "max_length"}
        raw, task = load_data(**asked, where="data.")
        processor = load_processor(teacher, task)
        data, collator = encode(raw, task, processor, max_length=options.max_length, where="data.")
    return Prepared(raw, data, task, processor, collator, options.max_length)
