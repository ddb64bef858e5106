"""Labels as numbers: a class, a class for every word, or 0 and 1 for every class."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, List, Value

from opdf.data.checks import are_lists, truth
from opdf.data.columns import Asked
from opdf.data.lines import BLANK
from opdf.data.metrics import IGNORED
from opdf.data.task import Task
from opdf.data.values import TEXT, dtype, values

SEPARATOR = "|"
BALANCED = "balanced"
WHOLE = re.compile("-?[0-9]{1,18}")
FEW = 10
"""This many classes with one row each are accepted in any data."""


def with_classes(data: DatasetDict, task: Task, asked: Asked) -> tuple[DatasetDict, Task]:
    """Labels as class numbers, the same in all splits, also where a class is missing in one.

    Classes are in rising order, or in the order of `asked.labels`. Labels of a multi-label task become 0 or 1
    `[classes]`, and those of words class numbers `[words]`.

    Raises:
        ValueError: `asked.labels` does not fit the values, or the values are no classes.
    """
    if task.kind in ("regression", "similarity", "causal-lm"):
        if asked.labels:
            raise ValueError(f"{asked.option('labels')} names classes and the task is {task.kind}; leave it out")
        return data, task
    if task.label is None:
        return data, replace(task, labels=asked.labels or ())
    if task.kind == "multi-label" and isinstance(asked.label, str):
        _check_lists(data["train"], task, asked)
    found = {part: _found(rows, task, asked) for part, rows in data.items()}
    counts = Counter(value for rows in found.values() for row in rows for value in row)
    known = _known(data["train"], task, asked)
    numbers, names = (
        ({name: k for k, name in enumerate(known)}, known) if known else _numbered(counts, found, task, asked)
    )
    _check(counts, found, numbers, names, task, asked, given=bool(known or asked.labels))
    task = replace(
        task, notes=(*task.notes, *_odd(names), *_joined(names, task, asked), *_by_number(numbers, names, task, asked))
    )
    for part, rows in found.items():
        if task.kind != "multi-label" and _class_names(data[part].features[task.label]) == list(names):
            continue  # its labels are these numbers already
        data[part] = _with_label(data[part], task, asked, [[numbers[v] for v in row] for row in rows], names)
    return data, replace(task, labels=names, metric="")


def _check_lists(rows: Dataset, task: Task, asked: Asked) -> None:
    """Refuse lists with a 0 or 1 for every class, which would be two classes, 0 and 1, that every row has."""
    assert task.label is not None
    lists = [row for row in values(rows, task.label).to_pylist() if isinstance(row, list)]
    sizes = {len(row) for row in lists}
    if len(sizes) == 1 and max(sizes) > 1 and all(value in (0, 1) for row in lists for value in row):
        raise ValueError(
            f"{task.label!r} of {asked.name} holds lists of 0 and 1, {max(sizes)} in each, as if they had a place for "
            f"every class; give the names of each row's classes, or a column for every class in {asked.option('label')}"
        )


def plain_name(name: str) -> str:
    """A class's name without what a reader does not see: case, blanks at its ends, how its letters are coded."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _odd(names: Sequence[str]) -> Iterator[str]:
    """Notes on classes that a reader would take for one, or for none."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(plain_name(name), []).append(name)
    if str(IGNORED) in names:
        yield f"{IGNORED}, which often stands for no label, is taken as a class; leave its rows out if it is none"
    if "" in groups:
        yield f"the class {groups[''][0]!r} has no name that can be seen; leave its rows out if it stands for no label"
    for alike in groups.values():
        if len(alike) > 1:
            yield (
                f"the classes {' and '.join(map(ascii, alike))} differ in case, blanks or the coding of their letters "
                "alone; they are taken as they are, for different ones"
            )


def _joined(names: Sequence[str], task: Task, asked: Asked) -> Iterator[str]:
    """A note on classes with bars, or that are lists as texts: they may be several labels in one cell."""
    if are_lists(names) and task.kind == "classification" and asked.task is None:
        yield (
            f"{max(names, key=len)!r} in {task.label!r} is taken as one class; if it is a list of labels, write "
            f"them with | between and set {asked.option('task')} to multi-label"
        )
    joined = next((name for name in names if SEPARATOR in name.strip(SEPARATOR)), None)
    if joined is not None and task.kind == "classification" and asked.task is None:
        yield (
            f"{joined!r} in {task.label!r} is taken as one class; if bars separate labels, set {asked.option('task')} "
            "to multi-label"
        )


def _found(rows: Dataset, task: Task, asked: Asked) -> list[list[Any]]:
    """The classes of every row: integers, texts, or names where the numbers have some."""
    assert task.label is not None
    if isinstance(asked.label, tuple):
        columns = [values(rows, column).to_pylist() for column in asked.label]
        return [
            [name for name, value in zip(asked.label, row, strict=True) if truth(value)]
            for row in zip(*columns, strict=True)
        ]
    feature, raw = rows.features[task.label], values(rows, task.label).to_pylist()
    if task.kind == "multi-label" and dtype(feature) == TEXT:
        return [[name for part in (text or "").split(SEPARATOR) if (name := part.strip(BLANK))] for text in raw]
    lists = raw if task.kind in ("multi-label", "token-classification") else [[value] for value in raw]
    return [list(_named(row, _class_names(feature))) for row in lists]


def _named(row: Iterable[Any], names: list[str] | None) -> Iterable[Any]:
    for value in row:
        if names and 0 <= value < len(names):
            yield names[value]
        elif isinstance(value, bool):
            yield str(value).lower()  # as JSON, and csv files of the same data, write it
        else:  # a whole number, or one outside the names, which is refused later
            yield int(value) if isinstance(value, float) else value


def _class_names(feature: Any) -> list[str] | None:
    """Names that a column brings with it, as those of datasets do."""
    inner = getattr(feature, "feature", feature)
    return inner.names if isinstance(inner, ClassLabel) else None


def _known(rows: Dataset, task: Task, asked: Asked) -> tuple[str, ...]:
    """Classes in an order that is fixed before any value is seen."""
    if asked.labels:
        return ()
    if isinstance(asked.label, tuple):
        return asked.label
    return tuple(_class_names(rows.features[task.label]) or ())


def _numbered(
    counts: Counter[Any], found: Mapping[str, list[list[Any]]], task: Task, asked: Asked
) -> tuple[dict[Any, int], tuple[str, ...]]:
    """The class number of every value, and the names of the classes."""
    order = _rising(counts)
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
    others = [f"{value} ({counts[value]} times{_where([value], found)})" for value in order if str(value) not in labels]
    raise ValueError(
        f"{asked.option('labels')} is {', '.join(labels)}, and {task.label!r} of {asked.name} also holds "
        f"{', '.join(others[:5])}{' and others' if len(others) > 5 else ''}; name all classes, or remove those rows"
    )


def _where(some: Iterable[Any], found: Mapping[str, list[list[Any]]]) -> str:
    """The splits that have one of some classes, where there are several: each may be a file of its own."""
    wanted = {*some}
    parts = [part for part, rows in found.items() if any(value in wanted for row in rows for value in row)]
    return f", in {' and '.join(parts)}" if len(found) > 1 else ""


def _rising(values: Iterable[Any]) -> list[Any]:
    """Values in rising order, whole numbers as numbers also where a file has them as texts: 2 before 10."""
    if all(WHOLE.fullmatch(str(value)) for value in values):
        return sorted(values, key=lambda value: (int(value), str(value)))
    return sorted(values, key=str)


def _by_number(numbers: Mapping[Any, int], names: Sequence[str], task: Task, asked: Asked) -> Iterator[str]:
    """A note that integers are named by counting from 0, where not all are there to tell where they begin."""
    pairs = [f"{value} is {names[number]}" for value, number in numbers.items() if isinstance(value, int)]
    if asked.labels and len(pairs) == len(numbers) < len(names) and not {str(value) for value in numbers} <= {*names}:
        yield (
            f"{task.label!r} has {len(pairs)} integers for the {len(names)} classes of {asked.option('labels')}, which "
            f"are counted from 0: {', '.join(pairs[:FEW])}"
        )


def _check(
    counts: Counter[Any],
    found: Mapping[str, list[list[Any]]],
    numbers: dict[Any, int],
    names: tuple[str, ...],
    task: Task,
    asked: Asked,
    *,
    given: bool,
) -> None:
    """Refuse values that are no classes: numbers out of range, one class only, or nearly one class a row."""
    outside = [value for value in counts if value not in numbers]
    if outside:
        raise ValueError(
            f"{task.label!r} of {asked.name} has labels {sorted(outside, key=str)[:5]}{_where(outside, found)}; "
            f"expected one of {', '.join(names[:FEW])}, or 0 to {len(names) - 1} in a file that names its classes"
        )
    if len(names) < (1 if task.kind == "multi-label" else 2):
        raise ValueError(
            f"{asked.name} has the one class {names[0]!r}; classification needs two or more"
            if names
            else f"{task.label!r} of {asked.name} holds no label in any row"
        )
    alone = sum(count == 1 for count in counts.values())
    if not given and alone > FEW and 2 * alone > counts.total():
        other = f", or {asked.option('task')} to regression if these are numbers to be predicted"
        raise ValueError(
            f"{task.label!r} of {asked.name} has {len(counts):,} classes in {counts.total():,} rows, {alone:,} of them "
            f"with one row each, as identifiers or free texts have; set {asked.option('label')} to a column of "
            f"classes{'' if task.is_image else other}"
        )


def _with_label(rows: Dataset, task: Task, asked: Asked, numbers: list[list[int]], names: tuple[str, ...]) -> Dataset:
    """The rows with numbers in the place of their label."""
    one = ClassLabel(names=list(names))
    if task.kind == "multi-label":
        column: Any = [np.bincount(some, minlength=len(names)).clip(max=1).tolist() for some in numbers]
        feature: Any = List(Value("int64"))
    elif task.kind == "token-classification":
        column, feature = numbers, List(one)
    else:
        column, feature = [number for (number,) in numbers], one
    gone = asked.label if isinstance(asked.label, tuple) else (task.label,)
    return rows.remove_columns(list(gone)).add_column(task.label, column, feature=feature)


def class_counts(labels: pa.ChunkedArray, task: Task) -> dict[str, int]:
    """How often every class is there, of class numbers, lists of them, or lists of 0 and 1."""
    if task.kind == "multi-label":
        counts = np.sum(labels.to_pylist(), axis=0)
    else:
        numbers = pc.list_flatten(labels) if task.kind == "token-classification" else labels
        counts = np.bincount(numbers.to_numpy().astype(int), minlength=len(task.labels))
    return dict(zip(task.labels, counts.tolist(), strict=True))


def _meant(name: Any, labels: Sequence[str]) -> str:
    """The class that a key names; of true and false, which YAML reads as truth values, the one that is written so."""
    said = [label for label in labels if isinstance(name, bool) and truth(label) is name]
    return said[0] if said else str(name)


def class_weights(
    asked: str | Mapping[Any, Any] | None, rows: Dataset, task: Task, *, where: str = ""
) -> list[float] | None:
    """How much an example of each class counts in a loss against labels.

    Args:
        asked: "balanced": rows / (classes * rows of the class), so that all classes count alike and the mean over rows
            is 1, as in scikit-learn; or numbers above 0 by the names of classes, 1 for those that are left out.
        rows: the training split.
        task: of the data.
        where: what stands before the option's name in messages.

    Raises:
        ValueError: the task has no single classes, a name is none of theirs, or a number is not above 0.
    """
    if asked is None:
        return None
    option = f"{where}class_weights"
    if not (task.has_classes or task.kind == "token-classification") or task.label is None:
        raise ValueError(f"{option} is for labels of one class each, and the task is {task.kind}; leave it out")
    if isinstance(asked, str):
        if asked != BALANCED:
            raise ValueError(f"{option} is {asked!r}; expected {BALANCED} or a mapping of classes to numbers")
        counts = class_counts(values(rows, task.label), task)
        mean = sum(counts.values()) / sum(count > 0 for count in counts.values())
        return [mean / counts[name] if counts[name] else 1.0 for name in task.labels]
    given = {_meant(name, task.labels): value for name, value in asked.items()}
    unknown = next((name for name in given if name not in task.labels), None)
    if unknown is not None:
        raise ValueError(f"{option} has {unknown!r}; the classes are {', '.join(task.labels[:10])}")
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ValueError(f"{option} has {value!r} for {name!r}; give a finite number above 0")
    return [float(given.get(name, 1.0)) for name in task.labels]
