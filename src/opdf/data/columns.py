"""Which columns a task reads, and what is wrong with them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image

from opdf.data.read import PICTURES, rows_of
from opdf.data.task import KINDS, Task

AUTO = "auto"
TEXT = "string"
NUMBERS = ("int", "uint", "float")
LABELS, TAGS = ("label", "labels"), ("tags", "ner_tags", "labels", "label")
TRUTH = {"true": True, "false": False}
MANY = 20
"""Up to this many whole numbers are taken for classes, more for scores."""

WORDS, MESSAGES = ("tokens", "words"), ("messages", "conversations")

AS_WORDS = re.compile(r"\[\s*['\"].*['\"]\s*\]", re.DOTALL)
AS_MESSAGES = re.compile(r"\[\s*\{.*\}\s*\]", re.DOTALL)
"""Lists of words and of messages that were written as texts, by Python or as JSON."""

FIRST = 100
"""How many texts of a column are looked at for whether they are lists."""

MESSAGE = {"role": (TEXT,), "content": (TEXT, "null")}
"""What a message has, and the types of that; one without a text, of calls alone, has null."""


@dataclass(frozen=True)
class Asked:
    """What a user asks of a dataset, see `load_data`.

    Attributes:
        name: of the data, for messages.
        label: a column, several columns of 0 and 1, "auto", or None for data without labels.
        where: what stands before an option's name in messages: "data." on the command line.
    """

    name: str
    task: str | None = None
    inputs: tuple[str, ...] | None = None
    label: str | tuple[str, ...] | None = AUTO
    labels: tuple[str, ...] | None = None
    drop_empty: bool = False
    where: str = ""

    def option(self, name: str) -> str:
        return f"{self.where}{name}"


def infer(data: Dataset, asked: Asked) -> Task:
    """The task of a table from what is asked, its columns' names and their types.

    Raises:
        ValueError: a column does not exist, or none can be found for the inputs or the label.
    """
    if asked.task is not None and asked.task not in KINDS:
        raise ValueError(f"{asked.option('task')} is {asked.task!r}; expected one of {', '.join(KINDS)}")
    columns = data.column_names
    for column in (*(asked.inputs or ()), *(() if asked.label == AUTO else _each(asked.label))):
        if column not in columns:
            close = difflib.get_close_matches(column, columns, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ";"
            raise ValueError(f"there is no column {column!r}{meant} the columns are {', '.join(columns)}")
    label = _label(data, asked)
    kind = asked.task or _kind(data, label, asked)
    inputs = asked.inputs or _inputs(data, kind, label)
    if kind == "image-classification" and not inputs:
        raise ValueError(
            f"{asked.name} has no images in its columns {', '.join(columns)}; name a folder of images, one subfolder a "
            "class, or with a table metadata.csv whose column file_name has their paths"
        )
    least = 2 if kind == "similarity" else 1
    most = 1 if kind in ("image-classification", "token-classification") else 2
    if not least <= len(inputs) <= most:
        raise ValueError(
            f"{asked.option('inputs')} is {list(inputs)}; name {INPUTS[kind]} of {asked.name}, which has "
            f"{', '.join(columns)}"
        )
    both = [column for column in _each(label) if column in inputs]
    if both:
        raise ValueError(
            f"{both[0]!r} is both an input and the label; name other columns in {asked.option('inputs')} or "
            f"{asked.option('label')}"
        )
    if isinstance(label, tuple) and kind == "image-classification":
        raise ValueError(
            f"{asked.option('label')} names several columns, and images are learned with one class each; name one of "
            f"{', '.join(label)}"
        )
    if isinstance(label, tuple):
        return Task(kind, inputs, _free_name(columns))
    task = Task(kind, inputs, label)
    return replace(task, notes=_notes(data, task, asked))


def _each(label: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else label or ()


def _label(data: Dataset, asked: Asked) -> str | tuple[str, ...] | None:
    """The label column, or the columns that labels are made of."""
    if asked.task == "causal-lm":
        if asked.label not in (AUTO, None):
            raise ValueError(
                f"{asked.option('label')} is {asked.label!r}; a causal-lm learns its own text: leave it out"
            )
        return None
    if asked.label != AUTO:
        if asked.label is None and asked.task == "similarity":
            raise ValueError(
                f"{asked.option('label')} is null; a similarity is scored by its labels: name their column"
            )
        if isinstance(asked.label, tuple) and asked.task not in (None, "multi-label"):
            raise ValueError(f"{asked.option('label')} names several columns; only the task multi-label has them")
        return asked.label
    tags = asked.task == "token-classification" or (asked.task is None and _words(data) is not None)
    found = next((column for column in (TAGS if tags else LABELS) if column in data.column_names), None)
    if found is None and _images_alone(data):
        raise ValueError(
            f"{asked.name} has images and no labels; put those of each class into a subfolder, or set "
            f"{asked.option('label')} to null to learn what the teacher says of them"
        )
    if found is None and len(data.column_names) == 1:
        if set(data.column_names[0]) & set(";\t"):  # a csv file as spreadsheets write it in many countries
            raise ValueError(
                f"{asked.name} has the one column {data.column_names[0]!r}; separate columns by commas in a csv "
                "file and by tabs in a tsv file"
            )
        raise ValueError(
            f"{asked.name} has the one column {data.column_names[0]!r} and so no labels; set {asked.option('task')} to "
            f"causal-lm to learn the texts, or {asked.option('label')} to null to learn what the teacher says of them"
        )
    if found is None:
        without = "" if asked.task in ("similarity", "token-classification") else ", or to null if there are no labels"
        raise ValueError(
            f"no column of {asked.name} is called 'label'; set {asked.option('label')} to one of "
            f"{', '.join(data.column_names)}{without}"
        )
    return found


def _kind(data: Dataset, label: str | tuple[str, ...] | None, asked: Asked) -> str:
    if any(isinstance(feature, Image) for feature in data.features.values()):
        return "image-classification"
    if label is None:
        raise ValueError(
            f"{asked.option('label')} is null, so {asked.option('task')} cannot be told from it; set it to "
            "classification or regression, as the teacher's head is"
        )
    if isinstance(label, tuple):
        return "multi-label"
    if _items(data.features[label]) is not None:
        return "token-classification" if _words(data) else "multi-label"
    return "regression" if dtype(data.features[label]).startswith("float") else "classification"


INPUTS = {
    "image-classification": "an image column",
    "token-classification": "a column of words",
    "causal-lm": "one text column, two of prompts and answers, or one of messages, each with texts as role and content",
    "similarity": "two text columns",
    **dict.fromkeys(("classification", "multi-label", "regression"), "one or two text columns"),
}


def _inputs(data: Dataset, kind: str, label: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The columns that look like the inputs of a task, if there are any."""
    texts = [c for c, feature in data.features.items() if c not in _each(label) and dtype(feature) == TEXT]
    if label is None:  # the teacher is learned from alone; what the data themselves say is no text to be read
        texts = [column for column in texts if column not in LABELS] or texts
    if kind == "image-classification":
        return tuple(column for column, feature in data.features.items() if isinstance(feature, Image))[:1]
    if kind == "token-classification":
        return tuple(column for column in [_words(data)] if column)
    if kind == "causal-lm":
        named = [c for c in (*MESSAGES, "text") if c in data.column_names]
        return tuple([*named, *texts][:1])
    return tuple(texts[:2])


def _words(data: Dataset) -> str | None:
    """The column of lists of words, if there is one."""
    return next((column for column in WORDS if dtype(_items(data.features.get(column))) == TEXT), None)


def _free_name(columns: Sequence[str]) -> str:
    """A name for the column that several columns of labels become."""
    name = "labels"
    while name in columns:
        name += "_"
    return name


def _notes(data: Dataset, task: Task, asked: Asked) -> tuple[str, ...]:
    """Notes about inferred choices that the user may have meant otherwise."""
    notes = []
    texts = [column for column, feature in data.features.items() if column != task.label and dtype(feature) == TEXT]
    if asked.inputs is None and task.inputs[0] in texts and len(texts) > 1:
        notes.append(
            f"of the text columns {', '.join(texts)} the model reads {' and '.join(task.inputs)}; set "
            f"{asked.option('inputs')} to choose"
        )
    if asked.task is None and task.label is not None and dtype(data.features[task.label]).startswith(NUMBERS):
        found = [value for value in pc.unique(values(data, task.label)).to_pylist() if value is not None]
        named = isinstance(data.features[task.label], ClassLabel)
        if task.kind == "classification" and not named and len(found) > 2:
            notes.append(_taken(task.label, "integers", "classes", "scores", "regression", asked))
        if task.kind == "regression" and len(found) <= MANY and all(value.is_integer() for value in found):
            notes.append(_taken(task.label, "numbers", "scores", "classes", "classification", asked))
    return tuple(notes)


def _taken(label: str, what: str, taken: str, meant: str, task: str, asked: Asked) -> str:
    return f"the {what} in {label!r} are taken as {taken}; if they are {meant}, set {asked.option('task')} to {task}"


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
                f"column {column!r} of {name} holds {_described(rows.features[column])}; task {task.kind} needs "
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


def _images_alone(data: Dataset) -> bool:
    return all(isinstance(feature, Image) for feature in data.features.values())


def sources(task: Task, asked: Asked) -> tuple[str, ...]:
    """The columns that a task is read from: several may become one label."""
    return (*task.inputs, *asked.label) if isinstance(asked.label, tuple) else task.columns


def _may_be_missing(rows: Dataset, column: str, task: Task) -> bool:
    """Whether an empty cell means no label: where labels are separated by bars."""
    return task.kind == "multi-label" and column == task.label and dtype(rows.features[column]) == TEXT


def _is_input(feature: Any, kind: str) -> bool:
    if kind == "image-classification":
        return isinstance(feature, Image)
    if kind == "token-classification":
        return dtype(_items(feature)) == TEXT
    if kind == "causal-lm" and _items(feature) is not None:
        message = _items(feature)
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
            f"labels in {task.label!r} are {_described(rows.features[task.label])}; classes are texts or integers, "
            "one a row"
        )


def _check_labels(rows: Dataset, task: Task, asked: Asked, name: str, file: Path | None) -> None:
    assert task.label is not None
    if not isinstance(asked.label, tuple):
        feature = rows.features[task.label]
        if dtype(feature) != TEXT and not _is_class(_items(feature)):
            raise ValueError(
                f"labels in {task.label!r} are {_described(feature)}; give lists of classes, texts separated by |, or "
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
    problem = f"labels in {task.label!r} of {name} are {kind}; a {task.kind} needs numbers"
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
    if not _is_class(_items(feature)):
        raise ValueError(f"labels in {task.label!r} are {_described(feature)}; give a list of tags, one for every word")
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
    if _items(feature) is not None:
        inner = _is_gap(pc.list_flatten(found), _items(feature))
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
        elif column in task.inputs and _items(rows.features[column]) is not None:
            blank = pc.equal(pc.list_value_length(found), 0)
        else:
            continue
        gaps |= set(pc.indices_nonzero(pc.fill_null(blank, False)).to_pylist())
    return rows.select([k for k in range(len(rows)) if k not in gaps]) if gaps else rows


def values(data: Dataset, column: str) -> pa.ChunkedArray:
    """A column as it is stored."""
    return data.select_columns(column).with_format("arrow")[:][column]


def dtype(feature: Any) -> str:
    """The type of a column; of lists and images the name of their class."""
    return (getattr(feature, "dtype", None) or type(feature).__name__.lower()).removeprefix("large_")


def _items(feature: Any) -> Any:
    """What a list holds; None of what is no list."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def _is_class(feature: Any) -> bool:
    return dtype(feature).startswith(("int", "uint")) or dtype(feature) in ("bool", TEXT)


def _described(feature: Any) -> str:
    inner = _items(feature)
    return dtype(feature) if inner is None else f"lists of {_described(inner)}"
