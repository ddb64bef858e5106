"""A teacher's outputs for data, computed once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor, nn
from transformers import BatchEncoding

from opdf.data import Prepared
from opdf.distill.arguments import half_precision, planned_passes
from opdf.distill.checkpoint import writing
from opdf.distill.losses import precise
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

Noise = Callable[[Any, np.random.Generator], Any]
"""A noisy copy of an example."""


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

    def ask() -> np.ndarray:
        order, found = _longest_first(rows), []
        for start in range(0, len(rows), BATCH):
            if run.progress is not None:
                run.progress(start, len(rows))
            found.append(answer([rows[int(k)] for k in order[start : start + BATCH]]))
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


def array_digest(values: np.ndarray) -> str:
    """A digest of an array's kind, shape and values: damage to a file's header can leave the bytes of the values."""
    digest = hashlib.sha256(f"{values.dtype} {values.shape}".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def with_column(rows: Any, name: str, values: np.ndarray) -> Any:
    """A `datasets.Dataset` with one more column, in the format that it has."""
    return rows.with_format(None).add_column(name, list(values)).with_format(rows.format["type"])


def noisy(example: Any, seed: int, noise: Noise | None) -> Any:
    """The example that a seed makes of another."""
    return example if noise is None else noise(example, np.random.Generator(np.random.PCG64(seed)))


def fingerprint(examples: Any, noise: Noise | None = None) -> str:
    """A digest of some examples, made noisy with known seeds: it changes with the data, the noise and its libraries.

    Args:
        examples: by row number: mappings, images, texts or numbers. Of a `datasets.Dataset` every row is read, of
            others, and with noise, up to 32 examples.
        noise: makes a noisy copy of one.
    """
    digest = _glance(examples, noise)
    if isinstance(examples, Dataset):
        _add_rows(digest, examples)
    return digest.hexdigest()[:32]


def _glance(examples: Any, noise: Noise | None = None) -> Any:
    digest = hashlib.sha256(f"{len(examples)}".encode())
    for row in np.linspace(0, len(examples) - 1, num=min(len(examples), 32), dtype=int):
        digest.update(_content(noisy(examples[int(row)], int(row), noise)))
    return digest


def _add_rows(digest: Any, rows: Dataset) -> None:
    """Add all rows to a digest as they are stored: images are not decoded."""
    for batch in rows.with_format("arrow").iter(1000):
        for column in sorted(batch.column_names):
            digest.update(column.encode())
            _add_values(digest, batch[column].combine_chunks())


def _add_values(digest: Any, values: Any) -> None:
    """Add an array of Arrow's to a digest: numbers by their bytes, which is fast, all else by Python's values."""
    if isinstance(values, pa.ChunkedArray):  # what combine_chunks makes of arrays of several dimensions
        values = pa.concat_arrays([chunk.storage for chunk in values.chunks])
    values = values.storage if isinstance(values, pa.ExtensionArray) else values
    if pa.types.is_list(values.type):
        digest.update(pc.list_value_length(values).to_numpy(zero_copy_only=False).tobytes())
        _add_values(digest, values.flatten())
    elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        digest.update(values.to_numpy(zero_copy_only=False).tobytes())
    else:
        for value in values.to_pylist():
            if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
                value = value["bytes"] or Path(value["path"]).read_bytes()
            digest.update(repr(value).encode())


def rows_glance(rows: Any, without: Collection[str] = ()) -> str | None:
    """A digest of the texts and whole numbers in up to 32 rows of a `datasets.Dataset`; None of other data.

    Fractions (pixels, a teacher's logits) may differ in their last bits on another machine.
    """
    if not isinstance(rows, Dataset):
        return None
    exact = [name for name, feature in rows.features.items() if name not in without and _is_exact(feature)]
    return _glance(rows.select_columns(exact).with_format(None)).hexdigest()[:32] if exact else None


def _is_exact(feature: Any) -> bool:
    while hasattr(feature, "feature"):  # a list
        feature = feature.feature
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "bool", "string", "large_string"))


def weights_digest(model: nn.Module) -> str:
    """A digest of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            values = tensor.detach().cpu().contiguous().flatten()
            digest.update(name.encode())
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _content(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"".join(key.encode() + _content(value[key]) for key in sorted(value))
    if hasattr(value, "tobytes"):  # an image or an array
        return repr(getattr(value, "size", "")).encode() + value.tobytes()
    return repr(value.tolist() if isinstance(value, Tensor) else value).encode()
