"""`opdf cache-teacher CONFIG.yaml [--key value ...]`"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from opdf.cli import UserError
from opdf.cli.config import DistillConfig, parse

DESCRIPTION = """Run the teacher once over the training data and keep its outputs.

Takes the file that opdf distill is then run with; its objective is sparse-logits and objective.options.store names
the folder. Stopped and run again it goes on where it was. The teacher is kept beside its outputs."""

KNOWN = {"teacher", "teacher.log", "teacher-checkpoints", "logits"}


def main(argv: list[str]) -> None:
    config = parse(argv, DistillConfig, "opdf cache-teacher", DESCRIPTION)
    from opdf.cli import job
    from opdf.cli.targets import write_store
    from opdf.distill import SparseLogitsDistillation

    objective = job.build_objective(config)
    if not isinstance(objective, SparseLogitsDistillation) or not objective.store:
        raise UserError("cache-teacher needs objective.name sparse-logits and its folder in objective.options.store")
    folder = Path(objective.store)
    unknown = [p.name for p in folder.iterdir() if p.name not in KNOWN] if folder.is_dir() else []
    if unknown:
        raise FileExistsError(f"store {folder} holds {unknown[0]}, which is not ours; choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    job.quiet()
    prepared = job.prepare_data(config)
    job.check_objective(config, prepared.task)
    teacher = job.prepare_teacher(replace(config, resume=True), prepared, folder)
    store = write_store(objective, config, prepared, teacher)
    entries = store.info.rows * store.info.epochs
    print(
        f"stored: {entries:,} outputs ({store.info.rows:,} examples, {store.info.epochs} epochs) in {folder}, "
        f"{store.nbytes / entries:.0f} bytes each, {store.nbytes / entries / 1e3:.2f} GB per million"
    )
