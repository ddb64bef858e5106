"""`opdf cache-teacher CONFIG.yaml [--key value ...]`"""

from __future__ import annotations

from dataclasses import replace

from opdf.cli.options import parse
from opdf.job.config import DistillConfig
from opdf.job.errors import UserError

DESCRIPTION = """Run the teacher once over the training data and keep its outputs.

Takes the file that opdf distill is then run with; its objective is sparse-logits and objective.options.store names
the folder. Stopped and run again it goes on where it was. The teacher is kept beside its outputs."""

KNOWN = {"teacher", "teacher.log", "teacher-checkpoints", "logits"}


def main(argv: list[str]) -> None:
    config = parse(argv, DistillConfig, "opdf cache-teacher", DESCRIPTION)
    from opdf.job import run as job
    from opdf.job.models import check_inputs
    from opdf.job.progress import counting

    objective = job.build_objective(config)
    folder = objective.cache
    if folder is None:
        raise UserError("cache-teacher needs objective.name sparse-logits and its folder in objective.options.store")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"store {folder} is a file; choose another folder")
    unknown = [p.name for p in folder.iterdir() if p.name not in KNOWN] if folder.is_dir() else []
    if unknown:
        raise FileExistsError(f"store {folder} holds {unknown[0]}, which is not ours; choose another folder")
    job.check_options(config)
    job.quiet()
    prepared = job.prepare_data(config)
    job.check_objective(config, prepared.task)
    config = replace(config, resume=True)
    teacher = job.load_teacher(config, prepared.task, folder)
    check_inputs("the teacher", teacher, prepared)
    folder.mkdir(parents=True, exist_ok=True)
    job.train_teacher(config, prepared, teacher, folder)
    with counting("running the teacher") as progress:
        store = objective.write_cache(prepared, teacher, progress)
    store.verify()
    entries = store.info.rows * store.info.epochs
    print(
        f"stored: {entries:,} outputs ({store.info.rows:,} examples, {store.info.epochs} epochs) in {folder}, "
        f"{store.nbytes / entries:.0f} bytes each, {store.nbytes / entries / 1e3:.2f} GB per million"
    )
