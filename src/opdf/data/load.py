"""Any dataset as train, validation and test with its task: by embedded name, local path or hub name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Image, concatenate_datasets, load_dataset
from datasets.exceptions import DatasetsError
from pyarrow.lib import ArrowException

from opdf.data import embedded
from opdf.data.hub import hub
from opdf.data.splits import TEST, VALIDATION, split
from opdf.data.task import Task

READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


PICTURES = set(PIL.Image.registered_extensions())
TEXT = "string"
NO_ROWS = ("corresponds to no data", "at least one example")
"""How versions of datasets say that a file has no rows."""


def load_data(
    name: str,
    *,
    task: str | None = None,
    inputs: Sequence[str] | None = None,
    label: str | None = None,
    validation: float = VALIDATION,
    test: float = TEST,
    train_limit: int | None = None,
    seed: int = 0,
) -> tuple[DatasetDict, Task]:
    """Load a dataset and say what its task is.

    Args:
        name: an embedded set ("movie-sentiment"), a file (csv, tsv, json, jsonl, parquet), a folder of images with one
            subfolder a class, or a hub name, with a configuration after a colon ("nyu-mll/glue:sst2").
        task: "classification", "regression", "image-classification" or "similarity"; inferred from the label when None.
        inputs: one or two text columns, or the image column; inferred when None. Embedded sets have their own.
        label: the label column; "label" or "labels" when None. Embedded sets have their own.
        validation, test: fractions to cut off where the dataset lacks these splits (or their labels). Embedded sets
            have their own.
        train_limit: keep this many training rows, chosen by `seed`.
        seed: of the splits.

    Raises:
        FileNotFoundError: a path does not exist.
        ConnectionError: the hub cannot be reached and its cache does not have the set.
        ValueError: a file or folder cannot be read; a column is missing, of the wrong type or has gaps; there are no
            rows, there is one class only, or labels are out of range.
    """
    if train_limit is not None and train_limit < 1:
        raise ValueError(f"train_limit is {train_limit}; it must be at least 1")
    if name in embedded.names():
        asked = {"inputs": inputs, "label": label, "validation": validation, "test": test}
        for option, usual in (("inputs", None), ("label", None), ("validation", VALIDATION), ("test", TEST)):
            if asked[option] != usual:
                raise ValueError(f"{option} is {asked[option]!r}; {name} has its own columns and splits: leave it out")
        data, found = embedded.load(name, seed)
        if task not in (None, found.kind):
            raise ValueError(f"task is {task!r}; {name} is for {found.kind}")
    else:
        whole = _read(name)
        found = _infer(whole["train"], task, inputs, label)
        for part in whole:
            _check_columns(name, part, whole[part], found)
        data = _as_classes(_with_splits(whole, validation, test, seed, found.label), found)
        found = _named(data["train"], found)
    _check(name, data, found)
    if train_limit is not None:
        rows = min(train_limit, len(data["train"]))
        data["train"] = data["train"].shuffle(seed=seed).select(range(rows))
    return data, found


def _read(name: str) -> DatasetDict:
    path = Path(name)
    if name and path.is_dir():
        if not any(p.suffix.lower() in PICTURES for p in path.rglob("*")):
            raise ValueError(f"folder {name} has no images; expected one subfolder of them for each class")
        return _loaded(name, "imagefolder", data_dir=str(path))
    if path.suffix in READERS:
        if not path.is_file():
            raise FileNotFoundError(f"{name} does not exist; give a data file, or one of {', '.join(embedded.names())}")
        options = {"sep": "\t"} if path.suffix == ".tsv" else {}
        return _loaded(name, READERS[path.suffix], data_files=str(path), **options)
    if path.is_file():
        raise ValueError(f"{name} is no data file that can be read; give one of {', '.join(READERS)}")
    if "/" not in name or name.startswith((".", "/", "~")):
        close = difflib.get_close_matches(name, embedded.names(), n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise FileNotFoundError(f"{name!r} is no embedded set, file or folder{meant} ({', '.join(embedded.names())})")
    repository, _, configuration = name.partition(":")
    with hub(repository):
        data = load_dataset(repository, configuration or None)
    if "train" not in data:
        raise ValueError(f"{name} has the splits {', '.join(data)}; one must be called train")
    return data


def _loaded(name: str, reader: str, **options: Any) -> DatasetDict:
    try:
        return load_dataset(reader, **options)
    except (DatasetsError, ArrowException, ValueError, StopIteration) as error:
        reason = str(error.__cause__ or error).strip()
        if not reason or any(words in reason for words in NO_ROWS):
            raise ValueError(f"{name} has no rows") from error
        raise ValueError(f"{name} cannot be read as {reader}: {reason.splitlines()[0]}") from error


def _with_splits(data: DatasetDict, validation: float, test: float, seed: int, column: str) -> DatasetDict:
    usable = {k: v for k, v in data.items() if k == "train" or not _unlabelled(v, column)}
    found = {
        "train": usable["train"],
        "validation": next((usable[k] for k in ("validation", "validation_matched", "dev") if k in usable), None),
        "test": usable.get("test"),
    }
    if found["test"] is None and found["validation"] is not None:
        # A benchmark that keeps its test labels: its validation split is the test, and validation comes from train.
        found["test"], found["validation"] = found["validation"], None
    rest = split(
        found["train"], seed, validation=0.0 if found["validation"] else validation, test=0.0 if found["test"] else test
    )
    for part, fraction in (("validation", validation), ("test", test)):
        if not found[part] and part not in rest:
            raise ValueError(f"{part} is {fraction} and the data has no such split of its own; give a fraction above 0")
    return DatasetDict({k: found[k] if k != "train" and found[k] else rest[k] for k in found})


def _unlabelled(data: Dataset, column: str) -> bool:
    """Whether a split hides its labels: it has no such column, or only -1 there, as GLUE's test splits do."""
    return column not in data.column_names or pc.unique(_values(data, column)).to_pylist() == [-1]


def _values(data: Dataset, column: str) -> pa.ChunkedArray:
    return data.select_columns(column).with_format("arrow")[:][column]


def _label_column(columns: Sequence[str]) -> str:
    found = next((c for c in ("label", "labels") if c in columns), None)
    if found is None:
        raise ValueError(f"no column is called 'label'; name it with label=, one of {', '.join(columns)}")
    return found


def _infer(data: Dataset, task: str | None, inputs: Sequence[str] | None, label: str | None) -> Task:
    columns = data.column_names
    for column in [*(inputs or ()), *([label] if label else [])]:
        if column not in columns:
            close = difflib.get_close_matches(column, columns, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"there is no column {column!r}{meant or ';'} the columns are {', '.join(columns)}")
    label = label or _label_column(columns)
    images = [c for c in columns if isinstance(data.features[c], Image)]
    if inputs is None:
        texts = [c for c in columns if c != label and _dtype(data.features[c]) == TEXT]
        inputs = images[:1] or texts[:2]
    if not 1 <= len(inputs) <= 2:
        raise ValueError(
            f"inputs is {list(inputs)}; name one or two text columns, or an image column, of {', '.join(columns)}"
        )
    if label in inputs:
        raise ValueError(f"{label!r} is both an input and the label; name other columns in inputs or label")
    if task is None:
        floats = getattr(data.features[label], "dtype", "").startswith("float")
        task = "image-classification" if images else "regression" if floats else "classification"
    return Task(task, tuple(inputs), label, ())


def _as_classes(data: DatasetDict, task: Task) -> DatasetDict:
    """Labels as class numbers, which are the same in all splits, also where a class is missing in one."""
    if not task.has_classes or isinstance(data["train"].features[task.label], ClassLabel):
        return data
    together = concatenate_datasets(list(data.values())).class_encode_column(task.label)
    ends = np.cumsum([len(rows) for rows in data.values()])
    starts = [0, *ends[:-1]]
    return DatasetDict({k: together.select(range(*ends)) for k, *ends in zip(data, starts, ends, strict=True)})


def _check_columns(name: str, part: str, rows: Dataset, task: Task) -> None:
    """Refuse columns of the wrong type, and rows without a text or a label."""
    absent = [column for column in (*task.inputs, task.label) if column not in rows.column_names]
    if absent:
        return  # a split without labels, which is not used
    for column in task.inputs:
        feature = rows.features[column]
        if isinstance(feature, Image) != task.is_image or not (task.is_image or _dtype(feature) == TEXT):
            wanted = "images" if task.is_image else "texts"
            raise ValueError(f"column {column!r} of {name} holds {_dtype(feature)}; task {task.kind} needs {wanted}")
    kind = _dtype(rows.features[task.label])
    numbers = kind.startswith(("int", "uint", "float"))
    if not task.has_classes and not numbers:
        raise ValueError(f"labels in {task.label!r} are {kind}; a {task.kind} needs numbers")
    for column in (*task.inputs, task.label):
        gaps = pc.is_null(_values(rows, column), nan_is_null=True)
        if missing := pc.sum(gaps).as_py():
            first = pc.index(gaps, True).as_py()
            raise ValueError(
                f"column {column!r} of {name} is empty in {missing} of {len(rows)} rows of the {part} split, first in "
                f"row {first}; fill or remove them"
            )
    if task.has_classes and kind.startswith("float"):
        raise ValueError(f"labels in {task.label!r} are {kind} numbers; set task to 'regression'")
    if task.has_classes and not (numbers or kind in ("bool", TEXT)):
        raise ValueError(f"labels in {task.label!r} are {kind}; classes are texts or integers, one a row")


def _dtype(feature: Any) -> str:
    """The type of a column; what has none (lists, images) by its class."""
    return (getattr(feature, "dtype", None) or type(feature).__name__.lower()).removeprefix("large_")


def _named(data: Dataset, task: Task) -> Task:
    if not task.has_classes:
        return task
    return Task(task.kind, task.inputs, task.label, tuple(data.features[task.label].names))


def _check(name: str, data: DatasetDict, task: Task) -> None:
    for part, rows in data.items():
        if len(rows) == 0:
            raise ValueError(
                f"the {part} split of {name} is empty; give more rows, or other validation and test fractions"
            )
    if not task.has_classes:
        return
    if len(task.labels) < 2:
        raise ValueError(f"{name} has the one class {task.labels}; classification needs two or more")
    for part, rows in data.items():
        seen = set(rows[task.label])
        if not all(0 <= value < len(task.labels) for value in seen):
            raise ValueError(
                f"the {part} split of {name} has labels {sorted(seen)}; expected 0 to {len(task.labels) - 1}"
            )
        if part == "train" and len(seen) < 2:
            raise ValueError(
                f"the train split of {name} has only the class {task.labels[seen.pop()]!r}; classification needs "
                "two or more"
            )
