"""Any dataset as train, validation and test with its task: by embedded name, local path or hub name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Image, load_dataset
from datasets.exceptions import DatasetGenerationError

from opdf.data import embedded
from opdf.data.splits import TEST, VALIDATION, split
from opdf.data.task import Task

READERS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


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
        task: "classification", "regression" or "image-classification"; inferred from the label when None.
        inputs: one or two text columns, or the image column; inferred when None.
        label: the label column; "label" or "labels" when None.
        validation, test: fractions to cut off where the dataset lacks these splits (or their labels).
        train_limit: keep this many training rows, chosen by `seed`.
        seed: of the splits.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a column is missing, there are no rows, there is one class only, or labels are out of range.
    """
    if name in embedded.names():
        data, found = embedded.load(name, seed)
    else:
        data = _with_splits(_read(name), validation, test, seed, label)
        found = _infer(data["train"], task, inputs, label)
        data = _as_classes(data, found)
        found = _named(data["train"], found)
    _check(name, data, found)
    if train_limit is not None:
        if train_limit < 1:
            raise ValueError(f"train_limit is {train_limit}; it must be at least 1")
        rows = min(train_limit, len(data["train"]))
        data["train"] = data["train"].shuffle(seed=seed).select(range(rows))
    return data, found


def _read(name: str) -> DatasetDict:
    path = Path(name)
    if path.is_dir():
        return load_dataset("imagefolder", data_dir=str(path))
    if path.suffix in READERS:
        if not path.is_file():
            raise FileNotFoundError(f"{name} does not exist; give a data file, or one of {', '.join(embedded.names())}")
        options = {"sep": "\t"} if path.suffix == ".tsv" else {}
        try:
            return load_dataset(READERS[path.suffix], data_files=str(path), **options)
        except DatasetGenerationError as error:
            raise ValueError(f"{name} cannot be read: {error.__cause__ or error}") from error
    if "/" not in name or name.startswith((".", "/", "~")):
        close = difflib.get_close_matches(name, embedded.names(), n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise FileNotFoundError(f"{name!r} is no embedded set, file or folder{meant} ({', '.join(embedded.names())})")
    repository, _, configuration = name.partition(":")
    return load_dataset(repository, configuration or None)


def _with_splits(data: DatasetDict, validation: float, test: float, seed: int, label: str | None) -> DatasetDict:
    column = label or _label_column(data["train"].column_names)
    usable = {k: v for k, v in data.items() if not _unlabelled(v, column)}
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
    return DatasetDict({k: found[k] if k != "train" and found[k] else rest[k] for k in found})


def _unlabelled(data: Dataset, column: str) -> bool:
    """Whether a split hides its labels, as GLUE's test splits do with -1."""
    return column in data.column_names and len(data) > 0 and set(data[:100][column]) == {-1}


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
            raise ValueError(f"there is no column {column!r}{meant} The columns are {', '.join(columns)}")
    label = label or _label_column(columns)
    images = [c for c in columns if isinstance(data.features[c], Image)]
    if inputs is None:
        texts = [
            c for c in columns if c != label and getattr(data.features[c], "dtype", "") in ("string", "large_string")
        ]
        inputs = images[:1] or texts[:2]
    if not 1 <= len(inputs) <= 2:
        raise ValueError(f"inputs is {list(inputs)}; name one or two text columns, or an image column")
    if task is None:
        floats = getattr(data.features[label], "dtype", "").startswith("float")
        task = "image-classification" if images else "regression" if floats else "classification"
    return Task(task, tuple(inputs), label, ())


def _as_classes(data: DatasetDict, task: Task) -> DatasetDict:
    feature = data["train"].features[task.label]
    if not task.has_classes or isinstance(feature, ClassLabel):
        return data
    if feature.dtype.startswith("float"):
        raise ValueError(f"labels in {task.label!r} are {feature.dtype} numbers; set task to 'regression'")
    return data.class_encode_column(task.label)


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
    seen = set(data["train"][task.label])
    if not all(0 <= value < len(task.labels) for value in seen):
        raise ValueError(f"{name} has labels {sorted(seen)}; expected 0 to {len(task.labels) - 1}")
