"""The data of a run, in a few lines that a user can check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from opdf.data.classes import class_counts
from opdf.data.columns import values
from opdf.data.encode import encode_rows
from opdf.data.metrics import IGNORED
from opdf.data.prepared import Prepared
from opdf.data.splits import contents
from opdf.data.task import Task

SHOWN = 10
"""How many classes are listed one by one."""


@dataclass(frozen=True)
class DataSummary:
    """What `describe` found; `str` gives it as lines.

    Attributes:
        name: of the data.
        task: with its columns, classes and notes.
        rows: of every split.
        classes: rows of every class in every split, or words: `classes["train"]["positive"]`; empty without classes.
        values: smallest and largest label and their mean, of a task without classes.
        max_length: tokens that a text is cut at; None for images.
        tokens: that are learned or scored in every split, of a language model; empty for others.
        truncated: rows of every split that are cut; empty for images.
        longest: tokens of the longest text.
        repeated: rows of every split that differ from a training row in case and punctuation only.
        where: what stands before the names of options.
    """

    name: str
    task: Task
    rows: dict[str, int]
    classes: dict[str, dict[str, int]]
    values: tuple[float, float, float] | None
    max_length: int | None
    tokens: dict[str, int]
    truncated: dict[str, int]
    longest: int
    repeated: dict[str, int]
    where: str = ""

    def __str__(self) -> str:
        return "\n".join(f"{what:<10} {text}" for what, text in self.lines())

    def lines(self) -> Iterator[tuple[str, str]]:
        """Pairs of a word and a sentence."""
        yield "data", self.name
        yield "task", self._task()
        yield "rows", ", ".join(f"{count:,} {part}" for part, count in self.rows.items())
        if self.tokens:
            yield "tokens", ", ".join(f"{count:,} {part}" for part, count in self.tokens.items())
        if self.classes:
            yield "classes", self._classes()
        if self.values:
            yield "labels", "from {:g} to {:g}, mean {:.3g}".format(*self.values)
        if cut := sum(self.truncated.values()):
            yield (
                "truncated",
                (
                    f"{cut:,} of {sum(self.rows.values()):,} rows are longer than {self.where}max_length, "
                    f"{self.max_length} tokens; the longest has {self.longest:,}"
                ),
            )
        for text in (*self.task.notes, *self._warnings()):
            yield "note", text

    def _task(self) -> str:
        found = f"{self.task.kind}: {' and '.join(map(repr, self.task.inputs))}"
        if self.task.label is not None:
            return f"{found} to {self.task.label!r}"
        return f"{found}, without labels: the teacher is all that is learned from" if self.task.is_unlabelled else found

    def _classes(self) -> str:
        counts = Counter[str]()
        for some in self.classes.values():
            counts.update(some)
        what = "words" if self.task.kind == "token-classification" else "rows"
        listed = [f"{name} ({counts[name]:,} {what})" for name in self.task.labels[:SHOWN]]
        if (others := len(self.task.labels) - SHOWN) > 0:
            listed.append(f"and {others} more")
        return f"{len(self.task.labels)}: {', '.join(listed)}"

    def _warnings(self) -> Iterator[str]:
        for part, count in self.repeated.items():
            if count:
                yield (
                    f"{count:,} of {self.rows[part]:,} rows of {part} are training rows too, but for case and "
                    "punctuation, so that scores on them say less"
                )
        absent = [name for name in self.task.labels if self.classes and not self.classes["train"].get(name)]
        if absent:
            more = f" and {len(absent) - SHOWN} more" if len(absent) > SHOWN else ""
            yield f"no training row has the class {', '.join(absent[:SHOWN])}{more}"


def describe(prepared: Prepared, name: str, *, where: str = "") -> DataSummary:
    """Task, columns, classes with counts, rows of each split, texts that are cut and rows that repeat.

    Args:
        prepared: the data.
        name: what they are called.
        where: what stands before the names of options: "data." on the command line.
    """
    raw, task = prepared.raw, prepared.task
    labels = {part: values(rows, task.label) for part, rows in raw.items()} if task.label is not None else {}
    lengths = {} if task.is_image or _is_packed(prepared) else {part: _lengths(prepared, part) for part in raw}
    said = {} if task.is_image else {part: contents(rows, task.inputs) for part, rows in raw.items()}
    trained = set(said.get("train", ()))
    return DataSummary(
        name=name,
        task=task,
        rows={part: len(rows) for part, rows in raw.items()},
        classes={part: class_counts(some, task) for part, some in labels.items()} if task.labels else {},
        values=_spread(list(labels.values())) if labels and not task.labels else None,
        max_length=None if task.is_image else prepared.max_length,
        tokens={part: _learned(rows) for part, rows in prepared.data.items()} if task.kind == "causal-lm" else {},
        truncated={part: int((some > prepared.max_length).sum()) for part, some in lengths.items()},
        longest=max((int(some.max()) for some in lengths.values()), default=0),
        repeated={part: sum(row in trained for row in rows) for part, rows in said.items() if part != "train"},
        where=where,
    )


def _spread(labels: list[pa.ChunkedArray]) -> tuple[float, float, float]:
    together = np.concatenate([some.to_numpy() for some in labels])
    return float(together.min()), float(together.max()), float(together.mean())


def _learned(rows: Dataset) -> int:
    labels = pc.list_flatten(values(rows, "labels"))
    return int(pc.sum(pc.not_equal(labels, IGNORED)).as_py())


def _is_packed(prepared: Prepared) -> bool:
    return prepared.task.kind == "causal-lm" and any(
        len(prepared.data[part]) != len(prepared.raw[part]) for part in prepared.raw
    )


def _lengths(prepared: Prepared, part: str) -> np.ndarray:
    """Tokens of every row of a split before anything is cut. Only rows that fill `max_length` are encoded once more."""
    raw = prepared.raw[part]
    lengths = _longest(pc.list_value_length(values(prepared.data[part], "input_ids")).to_numpy(), len(raw))
    full = np.flatnonzero(lengths >= prepared.max_length)
    if len(full):
        whole = encode_rows(raw.select(full)[:], prepared.task, prepared.processor, max_length=None)["input_ids"]
        lengths[full] = _longest(np.array([len(ids) for ids in whole]), len(full))
    return lengths


def _longest(lengths: np.ndarray, rows: int) -> np.ndarray:
    """A similarity task has two texts a row."""
    return lengths.reshape(rows, -1).max(1)
