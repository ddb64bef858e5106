"""The teacher's outputs, made once and kept for any number of students."""

from __future__ import annotations

from pathlib import Path

from opdf.distill import LogitsStore, SparseLogitsDistillation
from opdf.job.checks import check_inputs, check_task
from opdf.job.config import DistillConfig
from opdf.job.errors import UserError
from opdf.job.job import Job
from opdf.job.prepared import prepare_data
from opdf.job.progress import quiet
from opdf.job.targets import store_of, write_store
from opdf.job.teacher import load_teacher, train_teacher

KNOWN = {"teacher", "teacher.log", "teacher-checkpoints", "logits"}


def cache_teacher(config: DistillConfig) -> LogitsStore:
    """Run the teacher once over the training data and keep its outputs; stopped and run again it goes on.

    Args:
        config: of the students that will learn from them; its objective is sparse-logits with a store.

    Returns:
        The store, which is whole.

    Raises:
        UserError, ValueError, FileExistsError: as `opdf.job.run`, or the store's folder holds something else.
    """
    folder = Path(config.objective.options.get("store") or "")
    job = Job(config, teachers=folder)
    objective = job.objective
    if not isinstance(objective, SparseLogitsDistillation) or not objective.store:
        raise UserError("cache-teacher needs objective.name sparse-logits and its folder in objective.options.store")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"store {folder} is a file; choose another folder")
    unknown = [p.name for p in folder.iterdir() if p.name not in KNOWN] if folder.is_dir() else []
    if unknown:
        raise FileExistsError(f"store {folder} holds {unknown[0]}, which is not ours; choose another folder")
    with quiet():
        prepared = prepare_data(config.data, config.teacher)
        check_task(job, prepared.task)
        teacher = load_teacher(job, prepared.task)
        check_inputs("the teacher", teacher, prepared)
        store_of(objective, config, prepared, teacher)
        folder.mkdir(parents=True, exist_ok=True)
        train_teacher(job, prepared, teacher)
        store = write_store(objective, config, prepared, teacher)
        store.verify()
    return store
