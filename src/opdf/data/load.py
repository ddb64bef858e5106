"""Any dataset as train, validation and test with its task: by embedded name, local path or hub name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, load_dataset

from opdf.data import embedded
from opdf.data.checks import check_columns, without_gaps
from opdf.data.classes import with_classes
from opdf.data.columns import AUTO, Asked, infer, sources
from opdf.data.folders import read_folder
from opdf.data.hub import hub
from opdf.data.read import READERS, path_of, read_file
from opdf.data.splits import TEST, VALIDATION, split
from opdf.data.task import Task
from opdf.data.values import values


def load_data(
    name: str | Path,
    *,
    task: str | None = None,
    inputs: str | Sequence[str] | None = None,
    label: str | Sequence[str] | None = AUTO,
    labels: Sequence[str] | None = None,
    validation: float | str | Path = VALIDATION,
    test: float | str | Path = TEST,
    drop_empty: bool = False,
    train_limit: int | None = None,
    seed: int = 0,
    where: str = "",
) -> tuple[DatasetDict, Task]:
    """Load a dataset and find its task.

        load_data("reviews.csv", inputs="Review Body", label="stars", test="test.csv")

    Rows that differ only in case and punctuation come into the same split.

    Args:
        name: an embedded set ("movie-sentiment"), a file (csv, tsv, json, jsonl, parquet, conll, txt), a folder of
            images with one subfolder a class, or a hub name, with a configuration after a colon ("nyu-mll/glue:sst2").
        task: a kind of `Task`; inferred from the columns when None, but for "similarity" and "causal-lm".
        inputs: one or two text columns, the image column, a column of words (token-classification), or a column of a
            conversation's messages (causal-lm); inferred when None. Embedded sets have their own.
        label: the label column, or several of 0 and 1 (multi-label); "auto" takes "label" or "labels", or "tags" or
            "ner_tags" beside words. None if there are no labels, and the student learns from the teacher alone; the
            labels of embedded sets are left out then.
        labels: the classes in the order of their numbers. Integers that are none of them are named in rising order.
        validation, test: files or folders of their own, or fractions to cut off if the dataset lacks these splits (or
            their labels). Embedded sets have their own.
        drop_empty: leave out rows in which an input or the label is missing, which are refused otherwise.
        train_limit: keep this many training rows, chosen by `seed`.
        seed: of the splits.
        where: what stands before the names of these arguments in messages; the command line's are "data.label" etc.

    Raises:
        FileNotFoundError: a path does not exist.
        TypeError: the name is a table or something else.
        ConnectionError: the hub cannot be reached and its cache does not have the set.
        ValueError: a file or folder cannot be read; a column is missing, of the wrong type or has gaps; there are no
            rows, all labels are the same, most rows have a class of their own, or labels are out of range.
    """
    if not isinstance(name, str | Path):
        raise TypeError(
            f"{where}name is a {type(name).__name__}; name a file or a hub set: a table is written into one first, "
            "with frame.to_parquet('rows.parquet') say"
        )
    name = str(name)
    validation, test = (str(value) if isinstance(value, Path) else value for value in (validation, test))
    if train_limit is not None and train_limit < 1:
        raise ValueError(f"{where}train_limit is {train_limit}; it must be at least 1")
    columns = (inputs,) if isinstance(inputs, str) else None if inputs is None else tuple(inputs)
    named = label if label is None or isinstance(label, str) else tuple(label)
    asked = Asked(name, task, columns, named, None if labels is None else tuple(map(str, labels)), drop_empty, where)
    if name in embedded.names():
        data, found = _embedded(asked, validation, test, seed)
    else:
        data, found = _load(asked, validation, test, seed)
    _check_splits(data, found, asked)
    if train_limit is not None:
        rows = min(train_limit, len(data["train"]))
        data["train"] = data["train"].shuffle(seed=seed).select(range(rows))
    return data, found


def located(name: str) -> str:
    """The name of a dataset that is valid in every folder: an absolute path, or a name that is no file as it is."""
    path = path_of(name)
    return name if name in embedded.names() or not (name and path.exists()) else str(path.absolute())


def _embedded(asked: Asked, validation: float | str, test: float | str, seed: int) -> tuple[DatasetDict, Task]:
    """An embedded dataset, its text alone for a language model, or without its labels."""
    own = {
        "inputs": (asked.inputs, (None,)), "label": (asked.label, (AUTO, None)), "labels": (asked.labels, (None,)),
        "validation": (validation, (VALIDATION,)), "test": (test, (TEST,)),
    }  # fmt: skip
    for option, (value, usual) in own.items():
        if value not in usual:
            raise ValueError(
                f"{asked.option(option)} is {value!r}; {asked.name} has its own columns, classes and splits: leave it "
                "out"
            )
    data, task = embedded.load(asked.name, seed)
    if asked.task == "causal-lm" and task.inputs == ("text",):
        return data.select_columns("text"), Task("causal-lm", ("text",), None)
    if asked.task not in (None, task.kind):
        raise ValueError(f"{asked.option('task')} is {asked.task!r}; {asked.name} is for {task.kind}")
    if asked.label is None:
        return data.remove_columns(task.columns[-1]), Task(task.kind, task.inputs, None, task.labels)
    return data, task


def _load(asked: Asked, validation: float | str, test: float | str, seed: int) -> tuple[DatasetDict, Task]:
    """A dataset that is not embedded, from files or the hub."""
    data, files = _read(asked.name)
    given = {part: value for part, value in (("validation", validation), ("test", test)) if isinstance(value, str)}
    for part, name in given.items():
        data[part] = _read_part(part, name, files, asked)
    task = infer(data["train"], asked)
    mine = data if path_of(asked.name).exists() else given  # what a user has split is kept as it is
    data = own_splits(data, sources(task, asked)[-1] if task.label else None, keep=tuple(mine))
    for part, rows in data.items():
        absent = [column for column in sources(task, asked) if column not in rows.column_names]
        if absent:
            raise ValueError(f"{given.get(part, asked.name)} has no column {absent[0]!r}, which the training data have")
        check_columns(part if len(data) > 1 else "", rows, task, asked, files.get(part))
    if asked.drop_empty:
        data, task = _without_gaps(data, task, asked)
    data, task = with_classes(data, task, asked)
    wanted = {"validation": validation, "test": test}
    cut = {part: float(value) for part, value in wanted.items() if part not in data}
    parts = split(
        data["train"], seed, validation=cut.get("validation", 0.0), test=cut.get("test", 0.0), inputs=task.inputs,
        where=asked.where,
    )  # fmt: skip
    for part, fraction in cut.items():
        if part not in parts:
            raise ValueError(
                f"{asked.option(part)} is {fraction} and the data have no such split of their own; give a fraction "
                "above 0 or a file"
            )
    return DatasetDict({part: parts[part] if part in parts else data[part] for part in ("train", *wanted)}), task


def _read(name: str) -> tuple[DatasetDict, dict[str, Path]]:
    """A dataset, and the file that a split was read from if it was one."""
    path = path_of(name)
    if name and path.is_dir():
        return read_folder(path), {}
    if path.suffix.lower() in READERS:
        if not path.is_file():
            raise FileNotFoundError(f"{name} does not exist; give a data file, or one of {', '.join(embedded.names())}")
        return DatasetDict(train=read_file(path)), {"train": path}
    if path.is_file():
        raise ValueError(f"{name} is no data file that can be read; give one of {', '.join(READERS)}")
    if "/" not in name or name.startswith((".", "/", "~")) or name.endswith("/"):
        close = difflib.get_close_matches(name, embedded.names(), n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise FileNotFoundError(f"{name!r} is no embedded set, file or folder{meant} ({', '.join(embedded.names())})")
    repository, _, configuration = name.partition(":")
    with hub(repository):
        data = load_dataset(repository, configuration or None)
    if "train" not in data:
        raise ValueError(f"{name} has the splits {', '.join(data)}; one must be called train")
    return data, {}


def _read_part(part: str, name: str, files: dict[str, Path], asked: Asked) -> Dataset:
    """A split from a file or folder of its own."""
    if not path_of(name).exists():
        raise FileNotFoundError(f"{asked.option(part)} is {name!r}, which does not exist; give a file or a fraction")
    data, file = _read(name)
    if len(data) > 1:
        raise ValueError(f"{asked.option(part)} is {name}, which has the splits {', '.join(data)}; give one of them")
    if file:
        files[part] = file["train"]
    return data["train"]


def own_splits(data: DatasetDict, label: str | None, keep: Sequence[str] = ()) -> DatasetDict:
    """The splits of a dataset that can be used as train, validation and test.

    A split without its labels is left out. A benchmark that does not publish its test labels is tested on its
    validation split; validation has to be cut from train then.

    Args:
        data: with a split train.
        label: name of the label column, if there is one.
        keep: splits to take as they are.
    """
    usable = {k: v for k, v in data.items() if k in ("train", *keep) or not label or not _unlabelled(v, label)}
    validation = next((usable[k] for k in ("validation", "validation_matched", "dev") if k in usable), None)
    found = {"train": usable["train"], "validation": validation, "test": usable.get("test")}
    if found["test"] is None and "validation" not in keep:
        found["test"], found["validation"] = found["validation"], None
    return DatasetDict({part: rows for part, rows in found.items() if rows is not None})


def _unlabelled(data: Dataset, column: str) -> bool:
    """Whether a split hides its labels: it has no such column, or only -1 there, as GLUE's test splits do."""
    return column not in data.column_names or pc.unique(values(data, column)).to_pylist() == [-1]


def _without_gaps(data: DatasetDict, task: Task, asked: Asked) -> tuple[DatasetDict, Task]:
    kept = DatasetDict({part: without_gaps(rows, task, asked) for part, rows in data.items()})
    gone = {part: len(data[part]) - len(rows) for part, rows in kept.items()}
    if not sum(gone.values()):
        return data, task
    told = ", ".join(f"{count} of {len(data[part])} rows of {part}" for part, count in gone.items() if count)
    note = f"left out, because {' or '.join(map(repr, sources(task, asked)))} is empty: {told}"
    return kept, replace(task, notes=(*task.notes, note))


def _check_splits(data: DatasetDict, task: Task, asked: Asked) -> None:
    """Refuse splits without rows, and a train split whose labels are all the same."""
    for part, rows in data.items():
        if len(rows) == 0:
            raise ValueError(
                f"the {part} split of {asked.name} is empty; give more rows, or other {asked.option('validation')} and "
                f"{asked.option('test')} fractions"
            )
    if task.label is None or not (task.has_classes or task.kind == "regression"):
        return
    if len(seen := pc.unique(values(data["train"], task.label)).to_pylist()) < 2:
        raise ValueError(
            f"the train split of {asked.name} has only the class {task.labels[seen[0]]!r}; classification needs two "
            "or more"
            if task.has_classes
            else f"all rows of the train split of {asked.name} have {seen[0]} as {task.label!r}; regression needs "
            "numbers that differ"
        )
