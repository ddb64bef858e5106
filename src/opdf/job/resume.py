"""Checks that a resumed run is the one that was begun: what may change, and what is refused.

output/config.yaml   the configuration, written when the run begins
output/begun.json    digests of what is read from outside (the rows of each split, the files of the models) and how
                     many examples a step takes
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset, DatasetDict

import opdf
from opdf.distill import DistillationArguments, examples_per_step, may_change, newest_whole
from opdf.files import LOCK, is_half_written
from opdf.job.config import DataConfig, DistillConfig
from opdf.job.errors import UserError
from opdf.job.job import Job, located, located_data, resolved
from opdf.job.models import file_digests, files_of
from opdf.job.options import clipped, plain, read_config
from opdf.job.output import BEGUN, CONFIG, METRICS, STUDENT, read_json, write_json
from opdf.job.processes import tell

ANEW = "start a new run in another folder, or this one anew with --overwrite true"

MAY_CHANGE = (
    "output", "overwrite", "resume", "push_to_hub", "json", "data.name", "overparam.keep_products",
    "training.log*", "training.report_to", "training.run_name", "training.project", "training.save_*",
    "training.per_device_eval_batch_size",
    "teacher.training.log*", "teacher.training.report_to", "teacher.training.run_name", "teacher.training.project",
    "teacher.training.save_*", "teacher.training.per_device_eval_batch_size",
)  # fmt: skip
"""Options that no result depends on, as shell patterns. The data's file may move, because its rows are compared.

Those of a Trainer may change as far as it lets them: `save_steps` decides where the best checkpoint is chosen.
"""

MAY_GROW = ("training.max_steps", "training.num_train_epochs")
A_STEP = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")
"""Options that may change together, so that another number of processes makes steps of as many examples."""


@dataclass(frozen=True)
class Begun:
    """What a run began with, beside its configuration.

    Attributes:
        rows: a digest of the rows of each split.
        examples: of an optimizer step, over all micro-batches and processes.
        files: digests of the files of each model, by the option that names it; see `opdf.job.models.files_of`.
        versions: of the packages that the result depends on.
    """

    rows: dict[str, str]
    examples: int
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, job: Job, data: DatasetDict) -> Begun:
        rows = {part: rows_digest(rows) for part, rows in data.items()}
        return cls(rows, examples_per_step(job.training), files_read(job), versions())

    def write(self, folder: Path) -> None:
        write_json(asdict(self), folder / BEGUN)

    def other_split(self, data: DatasetDict) -> str | None:
        """The first split that holds other rows, or the same in another order."""
        return next((part for part, rows in data.items() if rows_digest(rows) != self.rows.get(part)), None)

    def tell_other_versions(self) -> None:
        """Say so if the run goes on with other packages, whose results can differ."""
        others = [
            f"{name} {then} (now {now})"
            for name, now in versions().items()
            if (then := self.versions.get(name, now)) != now
        ]
        if others:
            tell(f"note: this run was begun with {', '.join(others)}; it may not end as it would have with that")

    def with_teacher(self, job: Job) -> Begun:
        """With the files of fine-tuned teachers, which a resumed run reads."""
        return replace(self, files=self.files | kept_files(job))

    def with_student(self, folder: Path) -> Begun:
        """With the files of the saved student, so that a later change is noticed."""
        return replace(self, files=self.files | {"output/student": file_digests(folder / STUDENT)})


def versions() -> dict[str, str]:
    """Versions of the packages that a result depends on."""
    return {
        "opdf": opdf.__version__, "torch": torch.__version__, "transformers": transformers.__version__,
        "python": platform.python_version(),
    }  # fmt: skip


def files_read(job: Job) -> dict[str, dict[str, str]]:
    """Digests of the files of all models that a run reads, by what names them."""
    return {option: files_of(name) for option, name in named_models(job.config).items()} | kept_files(job)


def named_models(config: DistillConfig) -> dict[str, str]:
    """Names of all models that a configuration names, by the option that does."""
    several = config.teacher.models or ()
    named = {
        "teacher.model": None if several else config.teacher.model,
        **{f"teacher.models[{k}]": name for k, name in enumerate(several)},
        "student.model": config.student.model,
    }
    return {option: name for option, name in named.items() if name}


def kept_files(job: Job) -> dict[str, dict[str, str]]:
    """Digests of the files of teachers that were fine-tuned for this run, and are read when it goes on."""
    folders = {"output/teacher": job.teachers, "store/teacher": job.objective.cache}
    kept = {name: str(folder / "teacher") for name, folder in folders.items() if folder}
    return {name: files_of(folder) for name, folder in kept.items() if (Path(folder) / "config.json").is_file()}


def teacher_made_of(job: Job) -> dict[str, Any]:
    """What a fine-tuned teacher is made of; a model in a folder by its files, so that it may move."""
    made: dict[str, Any] = plain(job.config.teacher)
    name = made["model"]
    return made | {"model": file_digests(Path(name)) if name and Path(name).is_dir() else name}


def check_stored_teacher(job: Job, made: dict[str, Any]) -> None:
    """Refuse a teacher that was fine-tuned for a store, and is another than a configuration asks for now.

    Args:
        job: what is asked for.
        made: what that teacher was made of, see `teacher_made_of`.

    Raises:
        UserError: something differs that it depends on; the message names it and both values.
    """
    given = differences(made, teacher_made_of(job), "teacher.")
    changed = {
        key: f"{key} was {clipped(then)} and is {clipped(now)}"
        for key, then, now in given
        if not _may_change(job, key, then, now)
    }
    files = [key for key in changed if key.startswith("teacher.model.")]
    if files:
        changed = {"": "teacher.model is another"} | {k: said for k, said in changed.items() if k not in files}
    if changed:
        raise UserError(
            f"the teacher in {job.objective.cache} was made otherwise: {'; '.join(list(changed.values())[:3])}. Give "
            "what it was made with, or another folder in objective.options.store"
        )


def rows_digest(rows: Dataset) -> str:
    """A digest of all rows in their order, with the bytes of images."""
    digest = hashlib.sha256(repr(sorted(rows.column_names)).encode())
    for batch in rows.with_format("arrow").iter(1000):
        for column in sorted(batch.column_names):
            for value in batch[column].to_pylist():
                if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
                    value = value["bytes"] or Path(value["path"]).read_bytes()
                digest.update(repr(value).encode())
    return digest.hexdigest()[:32]


def check_same_configuration(job: Job) -> None:
    """Refuse to go on with a run under another configuration.

    Raises:
        UserError: something differs that its result depends on; the message names it and both values.
    """
    folder, begun = job.folder, begun_with(job.folder)
    examples = examples_per_step(job.training)
    then, now = plain(begun_config(folder)), plain(located(job.config))
    changed = [(key, a, b) for key, a, b in differences(then, now) if not _may_change(job, key, a, b)]
    if begun is not None and begun.examples == examples:
        changed = [entry for entry in changed if entry[0] not in A_STEP]
    elif begun is not None and not any(key in A_STEP for key, _, _ in changed):
        raise UserError(
            f"{folder} goes on only as it was begun: a step had {begun.examples} examples and has {examples} "
            f"now (processes: {job.training.world_size}). Set training.per_device_train_batch_size and "
            "training.gradient_accumulation_steps so that they make as many"
        )
    if changed:
        said = "; ".join(f"{key} was {clipped(a)} and is {clipped(b)}" for key, a, b in changed[:3])
        raise UserError(
            f"{folder} goes on only as it was begun: {said}. Give what it was begun with, or start a new run in "
            "another folder"
        )
    if begun is not None:
        begun.tell_other_versions()


def check_same_rows(job: Job, data: DatasetDict) -> None:
    """Refuse to go on with a run on other rows: some of them could have been trained on, and be tested on now.

    Raises:
        UserError: a split holds other rows, or the same in another order.
    """
    if (begun := begun_with(job.folder)) is not None:
        part = begun.other_split(data)
        if part is not None:
            raise UserError(
                f"the {part} split of {job.config.data.name} holds other rows than {job.folder} was begun with; give "
                f"the same data, or {ANEW}"
            )


def check_same_files(job: Job) -> None:
    """Refuse to go on with other weights, another configuration or another tokenizer of a model that is read.

    Raises:
        UserError: a file of a model is not what it was; the message names it.
    """
    if (begun := begun_with(job.folder)) is None:
        return
    names = named_models(job.config)
    for option, now in files_read(job).items():
        then = begun.files.get(option, now)
        changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
        if changed:
            what = f"{option} {names[option]}" if option in names else option
            said = ", ".join(
                f"{name} {'is new' if name not in then else 'is missing' if name not in now else 'has changed'}"
                for name in changed
            )
            raise UserError(
                f"{what} is not what {job.folder} was begun with: {said}. Bring back what it was, or {ANEW}"
            )


def check_rows_of_run(folder: Path, data: DataConfig, splits: DatasetDict) -> None:
    """Refuse to score a run's student on the run's own data if they have changed since.

    A split of other rows can have test rows that the student was trained on.

    Args:
        folder: of a run; other folders pass.
        data: what is scored on; other data than the run's pass.
        splits: the same, loaded.

    Raises:
        UserError: they have changed, or the run's files cannot be read.
    """
    if not (folder / CONFIG).is_file() or plain(begun_config(folder).data) != plain(located_data(data)):
        return
    if not (folder / BEGUN).is_file():
        tell(f"warning: {folder / BEGUN} is missing; the student may have been trained on rows that it is scored on")
        return
    begun = begun_with(folder)
    if problem := student_problem(folder):
        tell(f"warning: {problem}")
    part = begun.other_split(splits) if begun is not None else None
    if part is not None:
        raise UserError(
            f"the {part} split of {data.name} holds other rows than {folder} was trained with, so that a score would "
            "count rows that the student has seen; bring the old data back, or name others with --data.name"
        )


def begun_with(folder: Path) -> Begun | None:
    """What a run began with; None if it was stopped before it had done anything.

    Raises:
        UserError: the file is damaged, or missing beside what a run leaves.
    """
    begins = (path.name in (CONFIG, LOCK) or is_half_written(path, CONFIG, BEGUN) for path in folder.iterdir())
    if not (folder / BEGUN).is_file() and all(begins):
        return None
    content = read_json(folder / BEGUN, f"what the run read cannot be compared without it: {ANEW}")
    try:
        begun = Begun(**content)
        begun.rows["train"], begun.examples + 1, begun.files.items(), begun.versions.items()
    except (TypeError, LookupError, AttributeError) as error:
        raise UserError(f"{folder / BEGUN} is damaged ({error}); {ANEW}") from error
    return begun


def is_finished(job: Job) -> bool:
    """Whether nothing is left to do of a run: it has its metrics and its student, and no more steps are asked for.

    Raises:
        UserError: more steps are asked for, and the run has no checkpoint to go on from; or its student is lost.
    """
    if not (job.folder / METRICS).is_file():
        return False
    then, now = begun_config(job.folder).training, job.config.training
    more = [key for key in ("max_steps", "num_train_epochs") if now.get(key, -1) > then.get(key, -1)]
    if more and newest_whole(Path(job.training.output_dir)) is None:
        raise UserError(
            f"training.{more[0]} is {now[more[0]]} and {job.folder} is finished and has no checkpoint to go on from; "
            "start a new run in another folder"
        )
    if not more:
        check_student(job.folder)
    return not more


def check_student(folder: Path) -> None:
    """Refuse a finished run whose student is not what it saved.

    Raises:
        UserError: a file of it is missing, damaged or changed; the message names it.
    """
    if problem := student_problem(folder):
        raise UserError(f"{folder} is finished and {problem}; bring it back, or {ANEW}")


def student_problem(folder: Path) -> str | None:
    """What is wrong with the student that a run has saved; None if nothing is, or if it has saved none yet."""
    begun, student = begun_with(folder), folder / STUDENT
    then = begun.files.get("output/student", {}) if begun else {}
    now = file_digests(student) if student.is_dir() else {}
    changed = next((name for name in then if then[name] != now.get(name)), None)
    if not student.is_dir() or changed is None:
        return None if student.is_dir() else f"{student} is missing"
    return f"{student / changed} {'has changed since it was saved' if changed in now else 'is missing'}"


def begun_config(folder: Path) -> DistillConfig:
    """The configuration that a run began with.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return resolved(read_config(str(folder / CONFIG)))
    except ValueError as error:
        raise UserError(
            f"{folder} was begun by another version of opdf, or its {CONFIG} changed: {error}. Bring back what it was, "
            f"or {ANEW}"
        ) from error


def differences(then: Any, now: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys that differ between two configurations as mappings, with both values."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            default = _default(key) if where.endswith("training.") else None
            yield from differences(then.get(key, default), now.get(key, default), f"{where}{key}.")
    elif then != now:
        yield where.removesuffix("."), then, now


def _default(name: str) -> Any:
    """Of an argument of the Trainer."""
    item = next((f for f in fields(DistillationArguments) if f.name == name), None)
    if item is None or item.default is MISSING:
        return None
    return item.default


def _may_change(job: Job, key: str, then: Any, now: Any) -> bool:
    if key in MAY_GROW and None not in (then, now):
        return bool(0 < then < now)
    section, _, name = key.rpartition(".")
    arguments = {"training": job.training, "teacher.training": job.teacher_training}.get(section)
    if arguments is not None and not may_change(name, arguments):
        return False
    return any(fnmatchcase(key, pattern) for pattern in MAY_CHANGE)
