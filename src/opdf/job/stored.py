"""The teacher's outputs, made once and kept for any number of students."""

from __future__ import annotations

from opdf.distill import LogitsStore
from opdf.files import LOCK, check_writable
from opdf.job.checks import check_read_alike, check_task
from opdf.job.config import DistillConfig
from opdf.job.errors import UserError
from opdf.job.job import Job
from opdf.job.output import owned_together
from opdf.job.overview import stored_size
from opdf.job.prepared import prepare_data
from opdf.job.processes import tell
from opdf.job.progress import counting, quiet
from opdf.job.teacher import MADE, load_teacher, train_teacher

KNOWN = {"teacher", MADE, "teacher.log", "teacher-checkpoints", "logits", LOCK}


def cache_teacher(config: DistillConfig) -> LogitsStore:
    """Run the teacher once over the training data and keep its outputs. A second call goes on where one stopped.

    Args:
        config: of the students that will learn from them; its objective is sparse-logits with a store.

    Returns:
        The store, which is whole.

    Raises:
        UserError, ValueError, FileExistsError: as `opdf.job.run`, or the store's folder holds something else.
    """
    folder = Job(config).objective.cache
    if folder is None:
        raise UserError("cache-teacher needs objective.name sparse-logits and its folder in objective.options.store")
    check_writable(folder, "store")
    unknown = [p.name for p in folder.iterdir() if p.name not in KNOWN] if folder.is_dir() else []
    if unknown:
        raise FileExistsError(f"store {folder} holds {unknown[0]}, which is not ours; choose another folder")
    job = Job(config, teachers=folder)
    with quiet():
        prepared = prepare_data(config.data, config.teacher)
        check_task(job, prepared.task)
        teacher = load_teacher(job, prepared.task)
        prepared = prepared.named_by(teacher)
        check_read_alike(job, prepared, teacher)
        with owned_together(folder):
            tell(f"to store: {stored_size(job.objective.store_info(prepared, teacher))}, in {folder}")
            train_teacher(job, prepared, teacher)
            with counting("running the teacher") as progress:
                store = job.objective.write_cache(prepared, teacher, progress)
            store.verify()
    return store
