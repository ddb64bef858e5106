"""Which columns a task reads, what is wrong with them, and labels as class numbers."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Image

from opdf.data.read import rows_of
from opdf.data.task import KINDS, Task

TEXT = "string"


@dataclass(frozen=True)
class Asked:
    """What a user says of a dataset, see `load_data`.

    Attributes:
        name: of the data, for messages.
        where: what stands before an option's name in messages: "data." on the command line.
    """

    name: str
    task: str | None = None
    inputs: tuple[str, ...] | None = None
    label: str | None = None
    labels: tuple[str, ...] | None = None
    drop_empty: bool = False
    where: str = ""

    def option(self, name: str) -> str:
        return f"{self.where}{name}"


def infer(data: Dataset, asked: Asked) -> Task:
    """The task of a table from what is asked, its columns' names and their types.

    Raises:
        ValueError: a column does not exist, or none can be told for the inputs or the label.
    """
    if asked.task is not None and asked.task not in KINDS:
        raise ValueError(f"{asked.option('task')} is {asked.task!r}; expected one of {', '.join(KINDS)}")
    columns = data.column_names
    for column in [*(asked.inputs or ()), *([asked.label] if asked.label else [])]:
        if column not in columns:
            close = difflib.get_close_matches(column, columns, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ";"
            raise ValueError(f"there is no column {column!r}{meant} the columns are {', '.join(columns)}")
    label = asked.label or _label_column(columns, asked)
    images = [c for c in columns if isinstance(data.features[c], Image)]
    inputs = asked.inputs
    if inputs is None:
        texts = [c for c in columns if c != label and dtype(data.features[c]) == TEXT]
        inputs = tuple(images[:1] or texts[:2])
    if not 1 <= len(inputs) <= 2:
        raise ValueError(
            f"{asked.option('inputs')} is {list(inputs)}; name one or two text columns, or an image column, of "
            f"{', '.join(columns)}"
        )
    if label in inputs:
        raise ValueError(
            f"{label!r} is both an input and the label; name other columns in {asked.option('inputs')} or "
            f"{asked.option('label')}"
        )
    return Task(asked.task or _kind(data, label, bool(images)), inputs, label, (), notes=_notes(data, label, asked))


def _label_column(columns: Sequence[str], asked: Asked) -> str:
    found = next((c for c in ("label", "labels") if c in columns), None)
    if found is None:
        raise ValueError(
            f"no column of {asked.name} is called 'label'; set {asked.option('label')} to one of {', '.join(columns)}"
        )
    return found


def _kind(data: Dataset, label: str, images: bool) -> str:
    if images:
        return "image-classification"
    return "regression" if dtype(data.features[label]).startswith("float") else "classification"


def _notes(data: Dataset, label: str, asked: Asked) -> tuple[str, ...]:
    feature = data.features[label]
    if asked.task or isinstance(feature, ClassLabel) or not dtype(feature).startswith(("int", "uint")):
        return ()
    if len(pc.unique(values(data, label))) < 3:
        return ()
    return (
        f"the integers in {label!r} are taken as classes; if they are scores, set {asked.option('task')} to regression",
    )


def check_columns(part: str, rows: Dataset, task: Task, asked: Asked, file: Path | None) -> None:
    """Refuse columns of the wrong type, and rows without a text or a label.

    Args:
        part: the split, for messages; "" where the data has one alone.
        rows: of the split.
        task, asked: what is known of the data.
        file: what the rows were read from, to name them as they are there.
    """
    name = str(file or asked.name)
    for column in task.inputs:
        feature = rows.features[column]
        if isinstance(feature, Image) != task.is_image or not (task.is_image or dtype(feature) == TEXT):
            wanted = "images" if task.is_image else "texts"
            raise ValueError(f"column {column!r} of {name} holds {dtype(feature)}; task {task.kind} needs {wanted}")
    kind = dtype(rows.features[task.label])
    numbers = kind.startswith(("int", "uint", "float"))
    if not task.has_classes and not numbers:
        raise ValueError(_no_numbers(rows, task, kind, name, file))
    for column in task.columns:
        gaps = missing(rows, column)
        if gaps and not asked.drop_empty:
            split = f" of the {part} split" if part else ""
            raise ValueError(
                f"column {column!r} of {name} is empty in {len(gaps)} of {len(rows)} rows{split}: "
                f"{rows_of(file, gaps)}; fill or remove them, or set {asked.option('drop_empty')} to true"
            )
    if task.has_classes and kind.startswith("float"):
        raise ValueError(
            f"labels in {task.label!r} are {kind} numbers; set {asked.option('task')} to 'regression', or "
            f"{asked.option('label')} to a column of classes"
        )
    if task.has_classes and not (numbers or kind in ("bool", TEXT)):
        raise ValueError(f"labels in {task.label!r} are {kind}; classes are texts or integers, one a row")


def _no_numbers(rows: Dataset, task: Task, kind: str, name: str, file: Path | None) -> str:
    """What to say of labels that should be numbers: which are not, if most are."""
    found = f"labels in {task.label!r} of {name} are {kind}; a {task.kind} needs numbers"
    if kind != TEXT:
        return found
    words = [k for k, text in enumerate(values(rows, task.label).to_pylist()) if text is not None and not _number(text)]
    if len(words) > len(rows) / 2:
        return found
    example = values(rows, task.label)[words[0]].as_py()
    return f"{found}, and {len(words)} of {len(rows)} rows hold none ({example!r}): {rows_of(file, words)}"


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def missing(rows: Dataset, column: str) -> list[int]:
    """Rows in which a column has no value."""
    return pc.indices_nonzero(pc.is_null(values(rows, column), nan_is_null=True)).to_pylist()


def without_gaps(rows: Dataset, task: Task) -> Dataset:
    """The rows in which all that the task reads has a value, and texts have more than spaces."""
    gaps = set()
    for column in task.columns:
        gaps |= set(missing(rows, column))
        if dtype(rows.features[column]) == TEXT:
            blank = pc.equal(pc.utf8_trim_whitespace(values(rows, column)), "")
            gaps |= set(pc.indices_nonzero(pc.fill_null(blank, True)).to_pylist())
    return rows.select([k for k in range(len(rows)) if k not in gaps]) if gaps else rows


def values(data: Dataset, column: str) -> pa.ChunkedArray:
    """A column as it is stored."""
    return data.select_columns(column).with_format("arrow")[:][column]


def dtype(feature: Any) -> str:
    """The type of a column; what has none (lists, images) by its class."""
    return (getattr(feature, "dtype", None) or type(feature).__name__.lower()).removeprefix("large_")


def with_classes(data: DatasetDict, task: Task, asked: Asked) -> tuple[DatasetDict, Task]:
    """Labels as class numbers, the same in all splits, also where a class is missing in one.

    Classes are in rising order, or in the order of `asked.labels`.

    Raises:
        ValueError: `asked.labels` does not fit the values.
    """
    if not task.has_classes:
        if asked.labels:
            raise ValueError(f"{asked.option('labels')} names classes and the task is {task.kind}; leave it out")
        return data, task
    feature = data["train"].features[task.label]
    if isinstance(feature, ClassLabel) and not asked.labels:
        return data, replace(task, labels=tuple(feature.names))
    found = {part: _classes(rows, task.label) for part, rows in data.items()}
    numbers, names = _numbered(Counter(value for some in found.values() for value in some), task, asked)
    for part, some in found.items():
        codes = np.array([numbers[value] for value in some])
        rows = data[part].remove_columns(task.label)
        data[part] = rows.add_column(task.label, codes, feature=ClassLabel(names=list(names)))
    return data, replace(task, labels=names)


def _classes(rows: Dataset, column: str) -> list[Any]:
    """Integers or texts, which are the names where numbers have some."""
    feature, found = rows.features[column], values(rows, column).to_pylist()
    if isinstance(feature, ClassLabel):
        return [feature.int2str(value) for value in found]
    return [str(value) for value in found] if dtype(feature) == "bool" else found


def _numbered(counts: Counter[Any], task: Task, asked: Asked) -> tuple[dict[Any, int], tuple[str, ...]]:
    """The class number of every value, and the names of the classes."""
    order = sorted(counts, key=None if len({type(value) for value in counts}) == 1 else str)
    labels = asked.labels
    if labels is None:
        names = tuple(dict.fromkeys(map(str, order)))
        return {value: names.index(str(value)) for value in order}, names
    if len(set(labels)) < len(labels):
        raise ValueError(f"{asked.option('labels')} is {list(labels)}; name every class once")
    if all(str(value) in labels for value in order):
        return {value: labels.index(str(value)) for value in order}, labels
    if all(isinstance(value, int) for value in order):
        if len(order) == len(labels):
            return {value: number for number, value in enumerate(order)}, labels
        if order[0] >= 0 and order[-1] < len(labels):
            return {value: value for value in order}, labels
    others = [f"{value} ({counts[value]} rows)" for value in order if str(value) not in labels]
    raise ValueError(
        f"{asked.option('labels')} is {', '.join(labels)}, and {task.label!r} of {asked.name} also holds "
        f"{', '.join(others[:5])}{' and others' if len(others) > 5 else ''}; name all classes, or remove those rows"
    )
