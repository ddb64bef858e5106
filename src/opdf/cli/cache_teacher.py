"""`opdf cache-teacher CONFIG.yaml [--key value ...]`"""

from __future__ import annotations

from pathlib import Path

from opdf.cli.options import parse
from opdf.job.config import DistillConfig
from opdf.job.errors import UserError

DESCRIPTION = """Run the teacher once over the training data and keep its outputs.

Takes the file that opdf distill is then run with; its objective is sparse-logits and objective.options.store names
the folder. Stopped and run again it goes on where it was. The teacher is kept beside its outputs."""

KNOWN = {"teacher", "teacher.log", "teacher-checkpoints", "logits"}


def main(argv: list[str]) -> None:
    config = parse(argv, DistillConfig, "opdf cache-teacher", DESCRIPTION)
    from opdf.distill import SparseLogitsDistillation
    from opdf.job.checks import check_inputs, check_task
    from opdf.job.job import Job
    from opdf.job.prepared import prepare_data
    from opdf.job.progress import quiet
    from opdf.job.targets import store_of, write_store
    from opdf.job.teacher import load_teacher, train_teacher

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
    entries = store.info.rows * store.info.epochs
    print(
        f"stored: {entries:,} outputs ({store.info.rows:,} examples, {store.info.epochs} epochs) in {folder}, "
        f"{store.nbytes / entries:.0f} bytes each, {store.nbytes / entries / 1e3:.2f} GB per million"
    )
