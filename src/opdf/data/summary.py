"""The data of a run, in a few lines that a user can check."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image, concatenate_datasets

from opdf.data.classes import class_counts
from opdf.data.encode import encode_rows
from opdf.data.metrics import IGNORED
from opdf.data.prepared import Prepared
from opdf.data.splits import contents
from opdf.data.task import Task
from opdf.data.values import TEXT, dtype, values

LOOKED_AT = 500
"""Images of all splits together, at most, whose files are looked at for oddities."""

MANY_UNKNOWN = 0.2
"""Of the tokens: so many unknown ones are worth a note."""

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
        repeated: rows of every split that differ from a training row in case and punctuation only; of images those
            whose files have the same bytes.
        shared: rows of test that are validation rows too, in that sense, and no training rows.
        contradicting: rows that are the same as others in that sense, and have another class.
        blank: rows in which a text is empty.
        unknown: share of the training tokens that the tokenizer does not know.
        unread: words to be tagged of which the tokenizer makes no token, in rows that are not cut.
        odd_images: of up to `LOOKED_AT` images, how many have each oddity that is passed over.
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
    shared: int = 0
    contradicting: int = 0
    blank: int = 0
    unknown: float = 0.0
    unread: int = 0
    odd_images: dict[str, int] = field(default_factory=dict)
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
        same = "" if self.task.is_image else ", but for case and punctuation"  # of images the files' bytes are
        for part, count in self.repeated.items():
            if count:
                yield (
                    f"{count:,} of {self.rows[part]:,} rows of {part} are training rows too{same}, so that scores on "
                    "them say less"
                )
        if self.shared:
            yield (
                f"{self.shared:,} of {self.rows['test']:,} rows of test are validation rows too{same}, so that what is "
                "chosen by validation scores scores better on them"
            )
        rows = sum(self.rows.values())
        if self.contradicting:
            yield (
                f"{self.contradicting:,} of {rows:,} rows say the same as others of another class{same}; no model can "
                "have all of them right"
            )
        if self.blank:
            yield f"{self.blank:,} of {rows:,} rows have an empty text; {self.where}drop_empty leaves them out"
        if self.unknown > MANY_UNKNOWN:
            yield (
                f"{self.unknown:.0%} of the tokens are unknown to the tokenizer, which reads them all alike; it may be "
                "for another language or another script"
            )
        if self.unread:
            yield (
                f"{self.unread:,} words are nothing to the tokenizer (signs that nobody sees, say), and are neither "
                "learned nor scored; remove them with their tags"
            )
        for oddity, count in self.odd_images.items():
            yield f"{count:,} of the {min(rows, LOOKED_AT):,} images that were looked at {oddity}"
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
    said = {part: contents(rows, task.inputs) for part, rows in raw.items()}
    trained, chosen_by = set(said.get("train", ())), set(said.get("validation", ()))
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
        contradicting=_contradicting(said, labels) if task.has_classes else 0,
        blank=0 if task.is_image else sum(_blank(rows, task) for rows in raw.values()),
        unknown=0.0 if task.is_image else _unknown(prepared),
        unread=sum(_unread(prepared, part, some) for part, some in lengths.items())
        if task.kind == "token-classification"
        else 0,
        odd_images=_odd_images(raw, task.inputs[0]) if task.is_image else {},
        repeated={part: sum(row in trained for row in rows) for part, rows in said.items() if part != "train"},
        shared=sum(row in chosen_by and row not in trained for row in said.get("test", ())),
        where=where,
    )


def _contradicting(said: Mapping[str, Sequence[Hashable]], labels: Mapping[str, pa.ChunkedArray]) -> int:
    """Rows that say the same as a row of another class, of all splits together."""
    found = [pair for part, rows in said.items() for pair in zip(rows, labels.get(part, ()), strict=False)]
    classes: dict[Hashable, set[int]] = {}
    for row, label in found:
        classes.setdefault(row, set()).add(label.as_py())
    return sum(len(classes[row]) > 1 for row, _ in found)


def _blank(rows: Dataset, task: Task) -> int:
    """Rows in which a text is of spaces, or of nothing."""
    texts = [column for column in task.inputs if dtype(rows.features[column]) == TEXT]
    blank = [pc.equal(pc.utf8_trim_whitespace(values(rows, column)), "").to_numpy() for column in texts]
    return int(np.any(blank, axis=0).sum()) if blank else 0


def _unknown(prepared: Prepared) -> float:
    """The share of training tokens that stand for whatever the tokenizer does not know."""
    number = getattr(prepared.processor, "unk_token_id", None)
    others = {getattr(prepared.processor, name, None) for name in ("eos_token_id", "pad_token_id")}
    if number is None or number in others:  # a tokenizer of bytes knows all; it has this for its other ends
        return 0.0
    tokens = pc.list_flatten(values(prepared.data["train"], "input_ids"))
    return float(pc.mean(pc.equal(tokens, number)).as_py() or 0.0)


def _unread(prepared: Prepared, part: str, lengths: np.ndarray) -> int:
    """Words of a split without a token, in rows of some lengths in tokens that are not cut."""
    words = pc.list_value_length(values(prepared.raw[part], prepared.task.inputs[0])).to_numpy()
    labels = values(prepared.data[part], "labels")
    scored = pc.list_parent_indices(labels).filter(pc.not_equal(pc.list_flatten(labels), IGNORED)).to_numpy()
    whole = lengths <= prepared.max_length
    return int((words - np.bincount(scored, minlength=len(words)))[whole].sum())


def _odd_images(raw: Mapping[str, Dataset], column: str) -> dict[str, int]:
    """What is passed over in images, by their files' first bytes: nothing is decoded."""
    together = concatenate_datasets([rows.select_columns(column) for rows in raw.values()])
    stored = together.cast_column(column, Image(decode=False))
    counts = Counter[str]()
    for k in np.unique(np.linspace(0, len(stored) - 1, num=min(len(stored), LOOKED_AT), dtype=int)).tolist():
        value = stored[k][column]
        with PIL.Image.open(io.BytesIO(value["bytes"]) if value["bytes"] else value["path"]) as image:
            if getattr(image, "n_frames", 1) > 1:
                counts["have several pictures, of which the first is taken"] += 1
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                counts["have transparent parts, which are taken in the colour that they have beneath"] += 1
    return dict(counts)


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
