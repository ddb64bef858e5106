"""Which columns a task reads, from their names and types and from what a user asks for."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image

from opdf.data.task import KINDS, Task
from opdf.data.values import TEXT, described, dtype, items_of, values

AUTO = "auto"
NUMBERS = ("int", "uint", "float")
LABELS, TAGS = ("label", "labels"), ("tags", "ner_tags", "labels", "label")
MANY = 20
"""Up to this many whole numbers are taken for classes, more for scores."""

WORDS, MESSAGES = ("tokens", "words"), ("messages", "conversations")


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
            f"class, or with a table metadata.csv whose column file_name has their paths{_bytes_alone(data)}"
        )
    least = 2 if kind == "similarity" else 1
    most = 1 if kind in ("image-classification", "token-classification") else 2
    if asked.inputs is None and len(inputs) < least:
        types = ", ".join(f"{column} ({described(feature)})" for column, feature in data.features.items())
        raise ValueError(
            f"the columns of {asked.name} are {types}; a task of {kind} reads {INPUTS[kind]} beside the label: name "
            f"others in {asked.option('inputs')} and {asked.option('label')}, or another file{_bytes_alone(data)}"
        )
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


def _bytes_alone(data: Dataset) -> str:
    """What to do with images of which a table has the bytes alone, for messages; nothing where there are no bytes."""
    found = next((column for column, feature in data.features.items() if dtype(feature) == "binary"), None)
    if found is None:
        return ""
    return f". If {found!r} holds images, write the file by datasets, with cast_column({found!r}, Image())"


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
    if items_of(data.features[label]) is not None:
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
    return next((column for column in WORDS if dtype(items_of(data.features.get(column))) == TEXT), None)


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


def _images_alone(data: Dataset) -> bool:
    return all(isinstance(feature, Image) for feature in data.features.values())


def sources(task: Task, asked: Asked) -> tuple[str, ...]:
    """The columns that a task is read from: several may become one label."""
    return (*task.inputs, *asked.label) if isinstance(asked.label, tuple) else task.columns
