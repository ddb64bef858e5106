"""What a run is about to learn from, in a few lines that its owner can check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from opdf.data.columns import values
from opdf.data.prepared import Prepared
from opdf.data.splits import contents
from opdf.data.task import Task

SHOWN = 10
"""Classes that are listed one by one."""


@dataclass(frozen=True)
class DataSummary:
    """What `describe` found; `str` gives it as lines.

    Attributes:
        name: of the data.
        task: with its columns, classes and notes.
        rows: of every split.
        classes: rows of every class in every split: `classes["train"]["positive"]`; empty without classes.
        values: smallest and largest label and their mean, of a task without classes.
        max_length: tokens that a text is cut at; None for images.
        truncated: rows of every split that are cut; empty for images.
        longest: tokens of the longest text.
        repeated: rows of every split that say the same as a training row, but for case and punctuation.
        where: what stands before the names of options.
    """

    name: str
    task: Task
    rows: dict[str, int]
    classes: dict[str, dict[str, int]]
    values: tuple[float, float, float] | None
    max_length: int | None
    truncated: dict[str, int]
    longest: int
    repeated: dict[str, int]
    where: str = ""

    def __str__(self) -> str:
        return "\n".join(f"{what:<10} {text}" for what, text in self.lines())

    def lines(self) -> Iterator[tuple[str, str]]:
        """Pairs of a word and a sentence."""
        inputs = " and ".join(map(repr, self.task.inputs))
        yield "data", self.name
        yield "task", f"{self.task.kind}: {inputs} to {self.task.label!r}"
        yield "rows", ", ".join(f"{count:,} {part}" for part, count in self.rows.items())
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

    def _classes(self) -> str:
        counts = Counter[str]()
        for some in self.classes.values():
            counts.update(some)
        listed = [f"{name} ({counts[name]:,} rows)" for name in self.task.labels[:SHOWN]]
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
        absent = [name for name in self.task.labels if not self.classes["train"].get(name)]
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
    labels = {part: values(rows, task.label).to_numpy() for part, rows in raw.items()}
    together = np.concatenate(list(labels.values()))
    lengths = {} if task.is_image else {part: _lengths(prepared, part) for part in raw}
    said = {} if task.is_image else {part: contents(rows, task.inputs) for part, rows in raw.items()}
    trained = set(said.get("train", ()))
    return DataSummary(
        name=name,
        task=task,
        rows={part: len(rows) for part, rows in raw.items()},
        classes={part: _counts(some, task) for part, some in labels.items()} if task.labels else {},
        values=None if task.labels else (float(together.min()), float(together.max()), float(together.mean())),
        max_length=None if task.is_image else prepared.max_length,
        truncated={part: int((some > prepared.max_length).sum()) for part, some in lengths.items()},
        longest=max((int(some.max()) for some in lengths.values()), default=0),
        repeated={part: sum(row in trained for row in rows) for part, rows in said.items() if part != "train"},
        where=where,
    )


def _counts(labels: np.ndarray, task: Task) -> dict[str, int]:
    counts = np.bincount(labels.astype(int), minlength=len(task.labels))
    return dict(zip(task.labels, counts.tolist(), strict=True))


def _lengths(prepared: Prepared, part: str) -> np.ndarray:
    """Tokens of every row of a split before anything is cut. Only rows that fill `max_length` are read once more."""
    raw, inputs = prepared.raw[part], prepared.task.inputs
    lengths = pc.list_value_length(values(prepared.data[part], "input_ids")).to_numpy().copy()
    full = np.flatnonzero(lengths >= prepared.max_length)
    if prepared.task.kind == "similarity":  # two encoded rows a pair
        texts: tuple[list[str], ...] = ([raw[int(k) // 2][inputs[int(k) % 2]] for k in full],)
    else:
        texts = tuple(raw.select(full)[column][:] for column in inputs)
    if len(full):
        lengths[full] = [len(ids) for ids in prepared.processor(*texts, truncation=False, verbose=False)["input_ids"]]
    return lengths.reshape(len(raw), -1).max(1)
