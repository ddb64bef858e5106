"""What is wrong with the columns that a task reads: types, gaps, lists that were written as texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image

from opdf.data.columns import INPUTS, MESSAGES, NUMBERS, Asked, sources
from opdf.data.folders import PICTURES
from opdf.data.read import rows_of
from opdf.data.task import Task
from opdf.data.values import TEXT, described, dtype, items_of, values

TRUTH = {"true": True, "false": False}

AS_WORDS = re.compile(r"\[\s*['\"].*['\"]\s*\]", re.DOTALL)
AS_MESSAGES = re.compile(r"\[\s*\{.*\}\s*\]", re.DOTALL)
"""Lists of words and of messages that were written as texts, by Python or as JSON."""

FIRST = 100
"""How many texts of a column are looked at for whether they are lists."""

MESSAGE = {"role": (TEXT,), "content": (TEXT, "null")}
"""What a message has, and the types of that; one without a text, of calls alone, has null."""


def check_columns(part: str, rows: Dataset, task: Task, asked: Asked, file: Path | None) -> None:
    """Refuse columns of the wrong type, and rows without an input or a label.

    Args:
        part: the split, for messages; "" where the data has one alone.
        rows: of the split.
        task, asked: what is known of the data.
        file: what the rows were read from, to name them as they are there.
    """
    name = str(file or asked.name)
    for column in task.inputs:
        if not _is_input(rows.features[column], task.kind):
            raise ValueError(
                f"column {column!r} of {name} holds {described(rows.features[column])}; task {task.kind} needs "
                f"{INPUTS[task.kind]}"
            )
        texts = values(rows, column).drop_null()[:FIRST].to_pylist() if dtype(rows.features[column]) == TEXT else []
        if texts and all(is_list_as_text(text, column, task.kind) for text in texts):
            raise ValueError(
                f"column {column!r} of {name} holds lists that were written as texts, such as {texts[0][:60]!r}; write "
                "lists into a jsonl or parquet file"
            )
        if texts and asked.task is None and all(Path(text).suffix.lower() in PICTURES for text in texts):
            raise ValueError(
                f"column {column!r} of {name} holds names of images, such as {texts[0][:60]!r}; name the folder of the "
                "images, with the table in it as metadata.csv and the names in its column file_name, or set "
                f"{asked.option('task')} to {task.kind} to learn the names as texts"
            )
    if task.label is not None and dtype(rows.features.get(task.label)) != "null":  # else all are missing, see below
        CHECKS[task.kind](rows, task, asked, name, file)
    for column in sources(task, asked):
        gaps = missing(rows, column) if not _may_be_missing(rows, column, task) else []
        if gaps and not asked.drop_empty:
            split = f" of the {part} split" if part else ""
            raise ValueError(
                f"column {column!r} of {name} is empty in {len(gaps)} of {len(rows)} rows{split}: "
                f"{rows_of(file, gaps)}; fill or remove them, or set {asked.option('drop_empty')} to true"
            )


def _may_be_missing(rows: Dataset, column: str, task: Task) -> bool:
    """Whether an empty cell means no label: where labels are separated by bars."""
    return task.kind == "multi-label" and column == task.label and dtype(rows.features[column]) == TEXT


def _is_input(feature: Any, kind: str) -> bool:
    if kind == "image-classification":
        return isinstance(feature, Image)
    if kind == "token-classification":
        return dtype(items_of(feature)) == TEXT
    if kind == "causal-lm" and items_of(feature) is not None:
        message = items_of(feature)
        return isinstance(message, dict) and all(dtype(message.get(name)) in said for name, said in MESSAGE.items())
    return dtype(feature) == TEXT


def _check_class(rows: Dataset, task: Task, asked: Asked, name: str, file: Path | None) -> None:
    assert task.label is not None
    kind = dtype(rows.features[task.label])
    if kind.startswith("float"):
        found = pc.unique(values(rows, task.label).drop_null()).to_pylist()
        broken = [value for value in found if value == value and not value.is_integer()]  # a NaN is missing
        if not broken:
            return
        classes = f"{asked.option('label')} to a column of classes"
        remedy = classes if task.is_image else f"{asked.option('task')} to 'regression', or {classes}"
        raise ValueError(f"labels in {task.label!r} are {kind} numbers such as {broken[0]}; set {remedy}")
    if not _is_class(rows.features[task.label]):
        raise ValueError(
            f"labels in {task.label!r} are {described(rows.features[task.label])}; classes are texts or integers, "
            "one a row"
        )


def _check_labels(rows: Dataset, task: Task, asked: Asked, name: str, file: Path | None) -> None:
    assert task.label is not None
    if not isinstance(asked.label, tuple):
        feature = rows.features[task.label]
        if dtype(feature) != TEXT and not _is_class(items_of(feature)):
            raise ValueError(
                f"labels in {task.label!r} are {described(feature)}; give lists of classes, texts separated by |, or "
                f"several columns of 0 and 1 in {asked.option('label')}"
            )
        found = pc.unique(values(rows, task.label).drop_null()).to_pylist() if dtype(feature) == TEXT else []
        if are_lists(found):
            raise ValueError(
                f"labels in {task.label!r} of {name} are lists that were written as texts, such as "
                f"{max(found, key=len)!r}; write labels with | between, or write lists into a jsonl or parquet file"
            )
        return
    for column in asked.label:
        found = [value for value in pc.unique(values(rows, column)).to_pylist() if value is not None]
        if not all(truth(value) in (0, 1) for value in found):
            raise ValueError(f"column {column!r} of {name} holds {found[:5]}; a label among several is 0 or 1")


def are_lists(texts: Sequence[str]) -> bool:
    """Whether texts are lists as Python prints them, which is how tables of lists get into a csv file."""
    written = [text.strip() for text in texts if text.strip()]
    return bool(written) and all(text[0] == "[" and text[-1] == "]" for text in written)


def is_list_as_text(text: str, column: str, kind: str) -> bool:
    """Whether a text is the list of words or of messages that a task reads, as a table of lists gets into a csv file.

    A model would read its brackets and quotes, too.
    """
    if kind == "token-classification":
        return AS_WORDS.fullmatch(text.strip()) is not None
    return kind == "causal-lm" and column in MESSAGES and AS_MESSAGES.fullmatch(text.strip()) is not None


def truth(value: Any) -> Any:
    """What a word for true or false says; other values as they are."""
    return TRUTH.get(value.lower(), value) if isinstance(value, str) else value


def _check_numbers(rows: Dataset, task: Task, asked: Asked, name: str, file: Path | None) -> None:
    """Name the rows that hold no number, if most do, or one that float32 does not have."""
    assert task.label is not None
    kind = dtype(rows.features[task.label])
    if kind.startswith(NUMBERS):
        found = values(rows, task.label).to_numpy().astype(float)
        large = np.flatnonzero(np.abs(found) > np.finfo(np.float32).max).tolist()
        if large:
            raise ValueError(
                f"labels in {task.label!r} of {name} are up to {np.nanmax(np.abs(found)):g}, which float32 cannot "
                f"hold, in {rows_of(file, large)}; remove those rows, or scale the labels"
            )
        return
    problem = f"labels in {task.label!r} of {name} are {kind}; a {task.kind} needs one number a row"
    texts = values(rows, task.label).to_pylist() if kind == TEXT else []
    words = [k for k, text in enumerate(texts) if text is not None and not _number(text)]
    if words and len(words) < len(rows) / 2:
        problem += f", and {len(words)} of {len(rows)} rows hold none ({texts[words[0]]!r}): {rows_of(file, words)}"
    elif words:
        problem += f", not texts such as {texts[words[0]]!r}"
        if any(sign.isdigit() for sign in texts[words[0]]):  # 0,5 or 50 %
            problem += "; write digits and a decimal point alone"
    if texts and not words:
        problem += ", not texts of digits; write them without quotes and without zeros in front"
    raise ValueError(problem)


def _check_tags(rows: Dataset, task: Task, asked: Asked, name: str, file: Path | None) -> None:
    assert task.label is not None
    feature = rows.features[task.label]
    if not _is_class(items_of(feature)):
        raise ValueError(f"labels in {task.label!r} are {described(feature)}; give a list of tags, one for every word")
    words, tags = (pc.list_value_length(values(rows, column)) for column in (task.inputs[0], task.label))
    uneven = pc.indices_nonzero(pc.fill_null(pc.not_equal(words, tags), False)).to_pylist()
    if uneven:
        raise ValueError(
            f"{len(uneven)} of {len(rows)} rows of {name} have other numbers of tags in {task.label!r} than words in "
            f"{task.inputs[0]!r}: {rows_of(file, uneven)}"
        )


CHECKS: dict[str, Callable[[Dataset, Task, Asked, str, Path | None], None]] = {
    "classification": _check_class,
    "image-classification": _check_class,
    "multi-label": _check_labels,
    "token-classification": _check_tags,
    "regression": _check_numbers,
    "similarity": _check_numbers,
}


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def missing(rows: Dataset, column: str) -> list[int]:
    """Rows in which a column has no value, or a list of values with a gap.

    -1 is no value where a column names its classes: datasets writes it for none.
    """
    found, feature = values(rows, column), rows.features[column]
    gaps = set(pc.indices_nonzero(pc.is_null(found, nan_is_null=True)).to_pylist())
    if items_of(feature) is not None:
        inner = _is_gap(pc.list_flatten(found), items_of(feature))
        return sorted(gaps | set(pc.list_parent_indices(found).filter(inner).to_pylist()))
    return sorted(gaps | set(pc.indices_nonzero(_is_gap(found, feature)).to_pylist()))


def _is_gap(cells: Any, feature: Any) -> Any:
    gaps = pc.is_null(cells, nan_is_null=True)
    return pc.or_(gaps, pc.fill_null(pc.equal(cells, -1), False)) if isinstance(feature, ClassLabel) else gaps


def without_gaps(rows: Dataset, task: Task, asked: Asked) -> Dataset:
    """The rows whose columns all have a value: texts with more than spaces, and lists that are not empty."""
    gaps: set[int] = set()
    for column in sources(task, asked):
        if _may_be_missing(rows, column, task):
            continue
        gaps |= set(missing(rows, column))
        found = values(rows, column)
        if dtype(rows.features[column]) == TEXT:
            blank = pc.equal(pc.utf8_trim_whitespace(found), "")
        elif column in task.inputs and items_of(rows.features[column]) is not None:
            blank = pc.equal(pc.list_value_length(found), 0)
        else:
            continue
        gaps |= set(pc.indices_nonzero(pc.fill_null(blank, False)).to_pylist())
    return rows.select([k for k in range(len(rows)) if k not in gaps]) if gaps else rows


def _is_class(feature: Any) -> bool:
    return dtype(feature).startswith(("int", "uint")) or dtype(feature) in ("bool", TEXT)
