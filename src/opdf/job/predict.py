"""Predictions of a saved model for the rows of a file or a pipe."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import PartialState
from PIL import Image

from opdf.data import ROW_FORMATS, Row, Task, is_list_as_text, padding, parse_rows, read_rows
from opdf.distill import has_no_head, label_names
from opdf.job.answer import ANSWERS, Asked, is_stored, name_of
from opdf.job.config import TeacherConfig
from opdf.job.errors import UserError
from opdf.job.heads import HEADS, SEQUENCES
from opdf.job.models import check_tokens, load_saved, places
from opdf.job.options import read_config
from opdf.job.output import CONFIG
from opdf.job.processors import load_processor, settle_padding
from opdf.job.saved import Saved, find_saved
from opdf.mpo import Progress

KINDS = {**{end: task for task, end in HEADS.items()}, "ForCausalLM": "causal-lm", "LMHeadModel": "causal-lm"}
"""Endings of the names of transformers' classes, and the tasks that they are for."""

USUAL = {
    "image-classification": ("image", "file_name", "file"),
    "token-classification": ("tokens", "words", "text"),
    "causal-lm": ("messages", "conversations", "text"),
}
"""Columns that a model reads if nobody names them, by task; other tasks read `text`."""

ADDED = {
    "regression": ("prediction",),
    "similarity": ("embedding", "similarity"),
    "causal-lm": ("prediction", "perplexity"),
}
"""Names of the columns that are added, by task; other tasks have `prediction`, `score` and `scores`."""

MOST_TOKENS = 512
"""Tokens of a text, if neither run nor tokenizer nor model says how many."""


def predict(
    name: str | Path,
    rows: str | Path | IO[bytes] | Iterable[Any],
    *,
    form: str | None = None,
    inputs: str | Sequence[str] | None = None,
    scores: bool = False,
    new_tokens: int = 50,
    max_length: int | None = None,
    batch: int = 32,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """Predictions of a saved model for some rows, one after the other.

        for answer in predict("runs/mine", ["A fine film.", "Dull."]):
            print(answer["prediction"], answer["score"])

    Added to a row are, by the model's task:

    - a class: `prediction`, its name, and `score`, its probability
    - several labels: lists of them
    - a regression: `prediction`, a number
    - tags of words: `prediction` and `score`, lists with an entry for every word, null for words that are cut off
    - a sentence model: `embedding`, the mean of the last hidden states, or the cosine `similarity` of two texts
    - a language model: `prediction`, its likeliest continuation, and `perplexity` of the row itself; it continues a
      conversation without the last answer

    Args:
        name: an output folder of `opdf distill`, a saved model's folder, or a hub name.
        rows: a file, a folder of images, an open stream of bytes, or values: texts, names of images, images, or
            mappings with the columns.
        form: lines, csv, tsv or jsonl, of a stream (lines by default) or of a file whose name does not say it.
        inputs: the column that is read, or two of a pair; those that the run was trained on by default.
        scores: add `scores`, the probability of every class by name.
        new_tokens: length of a continuation; 0 gives perplexities only.
        max_length: of a text in tokens; the run's by default, else as many as tokenizer and model take.
        batch: rows at a time.
        progress: called with the numbers of rows done and in all; of a stream with the first twice.

    Raises:
        UserError, ValueError, TypeError, FileNotFoundError: the model or the rows cannot be read, or rows are not what
            the model reads. Files and values are checked before the first answer, a stream row by row.
    """
    if batch < 1 or new_tokens < 0:
        raise UserError(f"batch is {batch} and new_tokens {new_tokens}; give at least 1 and at least 0")
    if form is not None and form not in ROW_FORMATS:
        raise UserError(f"form is {form!r}; expected one of {', '.join(ROW_FORMATS)}")
    saved = find_saved(str(name))
    found, is_stream = _rows(rows, form)
    first = next(found, None)
    if first is None:
        return iter(())
    asked = _asked(saved, first, inputs, scores, new_tokens, max_length)
    read = (_read(row, asked.task) for row in itertools.chain([first], found))
    known = read if is_stream else list(read)
    return _answered(known, asked, batch, progress)


def _rows(rows: Any, form: str | None) -> tuple[Iterator[Row], bool]:
    """The rows, and whether they come from a stream and can be looked at only once."""
    if isinstance(rows, str | Path):
        return read_rows(rows, form), False
    if hasattr(rows, "read"):
        return parse_rows(rows, form or "lines"), True
    if isinstance(rows, Mapping) or hasattr(rows, "columns"):  # both give the names of their columns one by one
        raise TypeError(
            f"rows is a {type(rows).__name__}; give a list of rows: of one row [row], of a DataFrame "
            "frame.to_dict('records'), of a DatasetDict one of its splits"
        )
    values = (value if isinstance(value, Mapping) else {None: value} for value in rows)
    return (Row(f"row {k}", value) for k, value in enumerate(values, 1)), False


def _asked(
    saved: Saved, first: Row, inputs: str | Sequence[str] | None, scores: bool, new_tokens: int, max_length: int | None
) -> Asked:
    model = load_saved(saved.model)
    kind = _kind(saved.model, model)
    _check_options(saved.model, kind, scores, max_length)
    names = (inputs,) if isinstance(inputs, str) else tuple(inputs or saved.metrics.get("inputs", ()))
    _check_number(saved, kind, names)
    labels = () if kind in ("regression", "causal-lm") else tuple(label_names(model.config))
    task = Task(kind, names or _usual(first, kind), None, labels)
    processor = load_processor(TeacherConfig(model=saved.model), task)
    if not task.is_image:
        check_tokens(saved.model, model, processor)
    length = 0
    if kind == "causal-lm":
        processor = padding(processor)
        if (most := places(model)) is not None and new_tokens >= most:
            raise UserError(f"new_tokens is {new_tokens}; {saved.model} has places for {most} tokens")
    elif not task.is_image:
        settle_padding(saved.model, model)
        length = _length(saved, model, processor, max_length)
    return Asked(model.to(PartialState().device), processor, task, scores, new_tokens, length)


def _check_options(name: str, kind: str, scores: bool, max_length: int | None) -> None:
    """Refuse options that say nothing to a model of this kind."""
    if scores and kind not in ("classification", "multi-label", "image-classification"):
        raise UserError(f"scores is true and {name} is for {kind}; it is for classes of whole rows: leave it out")
    if max_length is not None and kind in ("image-classification", "causal-lm"):
        raise UserError(f"max_length is {max_length} and {name} is for {kind}, of which nothing is cut: leave it out")


def _check_number(saved: Saved, kind: str, names: Sequence[str]) -> None:
    """Refuse one column of a run that was trained on pairs, and two of one that was not.

    A pair of sentences may be embedded one by one, and a prompt has no answer yet.
    """
    trained = saved.metrics.get("inputs", ())
    if trained and len(names) != len(trained) and kind not in ("similarity", "causal-lm"):
        raise UserError(
            f"inputs is {', '.join(names)}, and {saved.run} was trained on {' and '.join(trained)}; name as many "
            "columns"
        )


def _kind(name: str, model: Any) -> str:
    """The kind of task that a model is for.

    Raises:
        UserError: there are no predictions for its task.
    """
    kind = type(model).__name__
    if kind.endswith(SEQUENCES):
        problem = model.config.problem_type
        if problem == "multi_label_classification":
            return "multi-label"
        return "regression" if problem == "regression" or model.config.num_labels == 1 else "classification"
    found = next((task for end, task in KINDS.items() if kind.endswith(end)), None)
    if found == "image-classification" and not _has_one_class(model.config):
        raise UserError(f"{name} is a {kind} for several labels or for a number; of images predict says one class each")
    if found is None:
        if has_no_head(model) and not model.config.is_encoder_decoder and model.main_input_name == "input_ids":
            return "similarity"
        raise UserError(
            f"{name} is a {kind}; predict is for classes, numbers and tags of texts, classes of images, sentence "
            "embeddings and decoders"
        )
    return found


def _has_one_class(config: Any) -> bool:
    """Whether the outputs are scores of classes, of which an example has one."""
    return config.problem_type in (None, "single_label_classification") and config.num_labels > 1


def _usual(first: Row, kind: str) -> tuple[str, ...]:
    """The column that is read, if nobody has named it.

    Raises:
        UserError: there are several that could be meant.
    """
    columns = [column for column in first.values if column is not None]
    if not columns:
        return ("image" if kind == "image-classification" else "text",)
    if len(columns) == 1 and set(str(columns[0])) & set(";\t"):  # a csv file as spreadsheets write it in many countries
        raise UserError(
            f"{first.where} has the one column {columns[0]!r}; separate columns by commas in a csv file and by tabs in "
            "a tsv file (a csv file with tabs is read by form tsv)"
        )
    named = [column for column in USUAL.get(kind, ("text",)) if column in columns]
    texts = named or [column for column, value in first.values.items() if isinstance(value, str)]
    if not named and len(texts) != 1:
        raise UserError(f"{first.where} has the columns {', '.join(columns)}; say in inputs which the model reads")
    return (texts[0],)


def _length(saved: Saved, model: Any, processor: Any, given: int | None) -> int:
    """Tokens of a text at most; of a run as many as in its training, whatever its tokenizer says of lengths."""
    room = places(model)
    most = min(processor.model_max_length, room or MOST_TOKENS)
    usual = most
    if saved.run is not None:
        trained = read_config(str(saved.run / CONFIG)).data.max_length
        usual = min(trained, room or trained)
    most = max(most, usual)
    if given is not None and not 0 < given <= most:
        raise UserError(f"max_length is {given}; {saved.model} reads 1 to {most} tokens")
    return int(given or usual)


def _read(row: Row, task: Task) -> Row:
    """A row with its columns named, and with values that the model can read.

    Raises:
        ValueError: something is missing or is not what the model reads.
    """
    values = dict(row.values)
    if None in values:
        if len(task.inputs) > 1:
            raise ValueError(f"{row.where} is one text and the model reads {' and '.join(task.inputs)}; give columns")
        values[task.inputs[0]] = values.pop(None)
    taken = next((c for c in ADDED.get(task.kind, ("prediction", "score", "scores")) if c in values), None)
    if taken is not None:
        raise ValueError(f"{row.where} has a column {taken!r}, which answers are called; rename it")
    for column in task.inputs:
        if column not in values:
            raise ValueError(
                f"{row.where} has no column {column!r}, which the model reads; it has {', '.join(map(str, values))}: "
                "name others in inputs"
            )
        if not _fits(values[column], task.kind):
            raise ValueError(
                f"{row.where} has {str(values[column])[:40]!r} in {column!r}; the model reads {READ[task.kind]}"
            )
        if isinstance(values[column], str) and is_list_as_text(values[column], column, task.kind):
            raise ValueError(
                f"{row.where} has {values[column][:40]!r} in {column!r}, a list that was written as a text; write "
                "lists into a jsonl or parquet file"
            )
    return replace(row, values=values)


READ = {
    "image-classification": "images or their names",
    "token-classification": "texts or lists of words",
    "causal-lm": "texts or lists of messages",
    **dict.fromkeys(("classification", "multi-label", "regression", "similarity"), "texts"),
}


def _fits(value: Any, kind: str) -> bool:
    if kind == "image-classification":
        named = isinstance(value, str | Path) and bool(str(value))
        return named or isinstance(value, Image.Image) or is_stored(value)
    if kind == "token-classification" and isinstance(value, list):
        return bool(value) and all(isinstance(word, str) for word in value)
    if kind == "causal-lm" and isinstance(value, list):
        return bool(value) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    return isinstance(value, str)


def _answered(rows: Iterable[Row], asked: Asked, batch: int, progress: Progress | None) -> Iterator[dict[str, Any]]:
    waiting, done, total = iter(rows), 0, len(rows) if isinstance(rows, list) else None
    while some := list(itertools.islice(waiting, batch)):
        with torch.no_grad():
            answers = ANSWERS[asked.task.kind](some, asked)
        for row, answer in zip(some, answers, strict=True):
            yield {**_shown(row.values, asked.task), **answer}
        done += len(some)
        if progress is not None:
            progress(done, total or done)


def _shown(values: Mapping[Any, Any], task: Task) -> dict[str, Any]:
    """A row as it is repeated: an image by its name."""
    images = task.inputs if task.is_image else ()
    return {
        column: name_of(value) if column in images or is_stored(value) else value for column, value in values.items()
    }
