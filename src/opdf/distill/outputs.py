"""A teacher's outputs for data, computed once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from transformers import BatchEncoding

from opdf.data import Prepared
from opdf.distill.arguments import planned_passes
from opdf.distill.checkpoint import writing
from opdf.distill.digests import array_digest, fingerprint, weights_digest
from opdf.distill.losses import precise
from opdf.distill.precision import half_precision
from opdf.files import replacing
from opdf.mpo import Progress

if TYPE_CHECKING:
    from transformers import TrainingArguments

WORTH_ASKING_AHEAD = 1.5
"""Passes over the rows from which a teacher that answers once, before the training, is worth its pass."""

MOST_ASKED_AHEAD = 2**28
"""Numbers that are kept of a teacher at most, a GB."""

BATCH = 128
"""Examples that a teacher is given at a time."""

TEXTS = 8
"""Texts at a time, if a teacher has outputs for every token: each of them may be of a whole vocabulary."""


@dataclass(frozen=True)
class BeforeTraining:
    """What is at hand before a student's training, when its teacher may be asked about the rows.

    Attributes:
        data: of the run.
        teacher: as it is when the student's training begins.
        folder: for what takes long; a resumed run finds it there.
        arguments: of the training: how often it sees the rows, and in which precision the models compute.
        shared: whether other runs with this data, teacher and folder follow, so that more is worth keeping.
        progress: called with the numbers of examples done and in all.
    """

    data: Prepared
    teacher: nn.Module
    folder: Path
    arguments: TrainingArguments | None = None
    shared: bool = False
    progress: Progress | None = None


def teacher_logits(teacher: Any, data: Prepared, rows: list[dict[str, Any]]) -> Tensor:
    """Logits `[rows, classes]` of encoded rows, on the CPU."""
    outputs, _ = said(teacher, data, rows)
    return precise(outputs.logits).cpu()


def token_logits(teacher: Any, data: Prepared, rows: list[dict[str, Any]]) -> Iterator[Tensor]:
    """Logits `[tokens, classes]` of one encoded text after the other, on the teacher's device; padding has none."""
    outputs, batch = said(teacher, data, rows)
    yield from (some[mask.bool()] for some, mask in zip(outputs.logits, batch["attention_mask"], strict=True))


def said(teacher: Any, data: Prepared, rows: list[dict[str, Any]]) -> tuple[Any, Mapping[str, Tensor]]:
    """A teacher's outputs for encoded rows, and the batch that they make, on its device."""
    batch = BatchEncoding(data.collator(rows)).to(next(teacher.parameters()).device)
    batch.pop("labels", None)
    was = teacher.training
    with torch.no_grad():
        outputs = teacher.eval()(**batch)
    teacher.train(was)
    return outputs, batch


def worth_asking_ahead(run: BeforeTraining, outputs: int) -> bool:
    """Whether a teacher should answer once, before the training: if rows are seen again, in it or by other runs.

    Args:
        run: that is about to begin.
        outputs: numbers in an answer.
    """
    rows, arguments = len(run.data.data["train"]), run.arguments
    if run.data.noise is not None or rows * outputs > MOST_ASKED_AHEAD:
        return False
    alone = arguments is not None and arguments.world_size == 1  # one process asks, and several outrun it
    return run.shared or (alone and planned_passes(arguments, rows) >= WORTH_ASKING_AHEAD)


def with_answers(run: BeforeTraining, name: str, answer: Callable[[list[dict[str, Any]]], Tensor]) -> Any:
    """The training rows with a column of the teacher's answers, in the precision of the training.

    Runs that share the answers may train in several precisions, and get them in that of the teacher's weights.

    Args:
        run: that is about to begin. Its folder keeps the answers.
        name: of the column.
        answer: of the teacher to some rows, `[rows, outputs]` on the CPU.
    """
    rows = run.data.training_rows()
    size = BATCH if run.arguments is None or run.shared else run.arguments.per_device_eval_batch_size

    def ask() -> np.ndarray:
        order, found = _longest_first(rows), []
        for start in range(0, len(rows), size):
            if run.progress is not None:
                run.progress(start, len(rows))
            found.append(answer([rows[int(k)] for k in order[start : start + size]]))
        answers = torch.cat(found).numpy()
        return answers[np.argsort(order)]

    half = half_precision(run.arguments) if run.arguments is not None and not run.shared else None
    depends = [fingerprint(rows), weights_digest(run.teacher), *([half] if half else [])]
    device = next(run.teacher.parameters()).device.type
    with nullcontext() if half is None else torch.autocast(device, half):
        return with_column(rows, name, kept(run.folder, name, depends, ask))


def _longest_first(rows: Dataset) -> np.ndarray:
    """Numbers of rows in an order in which little is padded, and in which memory runs out at once if it does."""
    if "input_ids" not in rows.column_names:
        return np.arange(len(rows))
    lengths = [pc.list_value_length(batch["input_ids"]).to_numpy() for batch in rows.with_format("arrow").iter(1000)]
    return np.argsort(-np.concatenate(lengths), kind="stable")


def kept(folder: Path, name: str, of: list[Any], make: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that is made once for a folder, by one process, and read from there afterwards.

    Args:
        folder: where it is kept.
        name: what it is called there.
        of: all that it depends on, as values with a `repr`: other values give another file.
        make: makes it.

    Raises:
        StorageError: the disk is full.
    """
    digest = hashlib.sha256(repr(of).encode()).hexdigest()[:16]
    path = folder / f"{name}-{digest}.safetensors"
    with PartialState().main_process_first():
        with suppress(SafetensorError, FileNotFoundError, KeyError), safe_open(path, "np") as file:
            found: np.ndarray = file.get_tensor(name)
            if (file.metadata() or {}).get("sha256") == array_digest(found):
                return found  # a damaged file is made again
        values = make()
        folder.mkdir(parents=True, exist_ok=True)
        with writing(str(path)), replacing(path) as scratch:
            save_file({name: values}, scratch, {"sha256": array_digest(values)})
    return values


def with_column(rows: Any, name: str, values: np.ndarray) -> Any:
    """A `datasets.Dataset` with one more column, in the format that it has."""
    return rows.with_format(None).add_column(name, list(values)).with_format(rows.format["type"])
