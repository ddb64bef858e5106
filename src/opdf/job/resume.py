"""Whether a run that goes on is the one that was begun: what may change between its parts, and what is refused.

output/config.yaml   the configuration, written when the run begins
output/begun.json    digests of the rows of each split, and how many examples a step takes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Any

from datasets import Dataset, DatasetDict

from opdf.distill import DistillationArguments, newest_whole
from opdf.job.config import DistillConfig
from opdf.job.errors import UserError
from opdf.job.job import Job, located, resolved
from opdf.job.options import clipped, plain, read_config
from opdf.job.output import CONFIG, METRICS, write_json
from opdf.job.processes import tell

BEGUN = "begun.json"

MAY_CHANGE = (
    "output", "overwrite", "resume", "json", "data.name",
    "training.log*", "training.report_to", "training.run_name", "training.project", "training.save_*",
    "teacher.training.log*", "teacher.training.report_to", "teacher.training.run_name", "teacher.training.project",
    "teacher.training.save_*",
)  # fmt: skip
"""Options that no result depends on, as shell patterns. The file of the data may move: its rows are compared."""

MAY_GROW = ("training.max_steps", "training.num_train_epochs")
A_STEP = ("training.per_device_train_batch_size", "training.gradient_accumulation_steps")
"""Options that may change together, so that another number of processes makes steps of as many examples."""


@dataclass(frozen=True)
class Begun:
    """What a run began with, beside its configuration.

    Attributes:
        rows: a digest of the rows of each split.
        examples: of an optimizer step, over all micro-batches and processes.
    """

    rows: dict[str, str]
    examples: int

    @classmethod
    def of(cls, job: Job, data: DatasetDict) -> Begun:
        return cls({part: rows_digest(rows) for part, rows in data.items()}, examples_of(job))

    def write(self, folder: Path) -> None:
        write_json(asdict(self), folder / BEGUN)


def rows_digest(rows: Dataset) -> str:
    """A digest of all rows in their order; of an image in a file, the file's name."""
    digest = hashlib.sha256(repr(sorted(rows.column_names)).encode())
    for batch in rows.with_format("arrow").iter(1000):
        for column in sorted(batch.column_names):
            for value in batch[column].to_pylist():
                if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
                    value = value["bytes"] or PurePath(value["path"]).name
                digest.update(repr(value).encode())
    return digest.hexdigest()[:32]


def examples_of(job: Job) -> int:
    """Examples of an optimizer step, over all micro-batches and processes."""
    arguments = job.training
    return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)


def check_same_configuration(job: Job) -> None:
    """Refuse to go on with a run under another configuration.

    Raises:
        UserError: something differs that its result depends on; the message names it and both values.
    """
    folder, begun = job.folder, _begun(job.folder)
    then, now = plain(begun_config(folder)), plain(located(job.config))
    changed = [(key, a, b) for key, a, b in differences(then, now) if not _may_change(key, a, b)]
    if begun is not None and begun.examples == examples_of(job):
        changed = [entry for entry in changed if entry[0] not in A_STEP]
    elif begun is not None:
        tell(f"note: a step of this run had {begun.examples} examples and goes on with {examples_of(job)}")
    if changed:
        said = "; ".join(f"{key} was {clipped(a)} and is {clipped(b)}" for key, a, b in changed[:3])
        raise UserError(
            f"{folder} goes on only as it was begun: {said}. Give what it was begun with, or start a new run in "
            "another folder"
        )


def check_same_rows(job: Job, data: DatasetDict) -> None:
    """Refuse to go on with a run on other rows: some of them could have been trained on, and be tested on now.

    Raises:
        UserError: a split holds other rows, or the same in another order.
    """
    begun = _begun(job.folder)
    for part, rows in data.items():
        if begun is not None and rows_digest(rows) != begun.rows.get(part):
            raise UserError(
                f"the {part} split of {job.config.data.name} holds other rows than {job.folder} was begun with; give "
                "the same data, or start a new run in another folder"
            )


def _begun(folder: Path) -> Begun | None:
    """What a run began with; None if it was stopped before that was written."""
    file = folder / BEGUN
    return Begun(**json.loads(file.read_text())) if file.is_file() else None


def is_finished(job: Job) -> bool:
    """Whether nothing is left to do of a run: it has its metrics, and no more steps are asked for.

    Raises:
        UserError: more steps are asked for, and the run has no checkpoint to go on from.
    """
    metrics = job.folder / METRICS
    if not metrics.is_file():
        return False
    then, now = begun_config(job.folder).training, job.config.training
    more = [key for key in ("max_steps", "num_train_epochs") if now.get(key, -1) > then.get(key, -1)]
    if more and newest_whole(Path(job.training.output_dir)) is None:
        raise UserError(
            f"training.{more[0]} is {now[more[0]]} and {job.folder} is finished and has no checkpoint to go on from; "
            "start a new run in another folder"
        )
    return not more


def begun_config(folder: Path) -> DistillConfig:
    """The configuration that a run began with.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return resolved(read_config(str(folder / CONFIG)))
    except ValueError as error:
        raise UserError(f"{folder} was begun by another version of opdf, or its {CONFIG} changed: {error}") from error


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


def _may_change(key: str, then: Any, now: Any) -> bool:
    if key in MAY_GROW and None not in (then, now):
        return bool(0 < then < now)
    return any(fnmatchcase(key, pattern) for pattern in MAY_CHANGE)
