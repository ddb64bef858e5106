"""`opdf predict MODEL FILE`: predictions of a saved model for the rows of a file or a pipe."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from opdf.cli.options import parse
from opdf.files import check_writable, replacing
from opdf.job import UserError

DESCRIPTION = """Print a model's predictions for the rows of a file, a folder of images or a pipe.

opdf predict RUN reviews.csv takes the student of an output folder of opdf distill, or any saved model, and repeats
every row with the answer behind it: the class and its score, several labels, a number, a tag for every word, an
embedding, or a language model's continuation with the perplexity of the row.

cat reviews.txt | opdf predict RUN - reads a pipe with one text a line, unless --form says otherwise. For a model of
images the lines are their names. A pipe is answered in batches: --batch 1 answers every line at once."""

SEPARATOR = "|"
"""Between several labels in one cell, as in the data."""


@dataclass
class PredictConfig:
    """Options.

    Args:
        model: output folder of opdf distill, a saved model's folder, or a hub name.
        file: csv, tsv, json, jsonl, parquet, conll or txt file (one text a line), an image, a folder of images, or -.
        output: file for the answers, which is complete or absent; null prints them.
        to: csv or jsonl; null takes the ending of output, or jsonl if it has none.
        form: of a pipe, or of a file whose name does not tell: lines, csv, tsv or jsonl; null reads a pipe as lines.
        inputs: the column that is read, or two of a pair; those that the run was trained on if null.
        scores: add the score of every class.
        new_tokens: length of a language model's continuation; 0 gives perplexities only.
        max_length: of a text in tokens; the run's if null, else as many as the model takes.
        batch: rows at a time.
    """

    model: str
    file: str
    output: str | None = None
    to: str | None = None
    form: str | None = None
    inputs: list[str] | str | None = None
    scores: bool = False
    new_tokens: int = 50
    max_length: int | None = None
    batch: int = 32


OPTIONS = PredictConfig


def main(argv: list[str]) -> None:
    config = parse(argv, PredictConfig, "opdf predict", DESCRIPTION, positional="model file")
    form = _written_as(config)
    from opdf.job import counting, predict, quiet

    with quiet(), counting("predicting") as progress:
        answers = predict(
            config.model, sys.stdin.buffer if config.file == "-" else config.file, form=config.form,
            inputs=config.inputs, scores=config.scores, new_tokens=config.new_tokens, max_length=config.max_length,
            batch=config.batch, progress=progress,
        )  # fmt: skip
        if config.scores and form == "csv":
            answers = map(_spread, answers)
        with _opened(config.output) as stream:
            WRITERS[form](answers, stream)


def _written_as(config: PredictConfig) -> str:
    """The format of the answers: csv or jsonl.

    Raises:
        UserError: it is another one, or the output cannot be written there.
    """
    form = config.to or Path(config.output or "").suffix.lower().removeprefix(".") or "jsonl"
    if config.to and form not in WRITERS:
        raise UserError(f"to is {form!r}; expected one of {', '.join(WRITERS)}")
    if form not in WRITERS:  # else JSON lines would be called .tsv or .xlsx
        raise UserError(
            f"output is {config.output}, which ends like no format that is written; name a .jsonl or .csv file, or say "
            f"in --to which it is to be, {' or '.join(WRITERS)}"
        )
    if config.output and Path(config.output).is_dir():
        raise UserError(f"output {config.output} is a folder; name a file")
    if config.output and not Path(config.output).parent.is_dir():
        raise UserError(
            f"output is {config.output}, and there is no folder {Path(config.output).parent}; make it first"
        )
    if config.output and Path(config.output).resolve() == Path(config.file).resolve():
        raise UserError(f"output {config.output} is the file that is read and would be replaced; name another")
    if config.output:
        check_writable(Path(config.output).parent)
    return form


@contextmanager
def _opened(output: str | None) -> Iterator[IO[str]]:
    """Where answers go: a file, which is complete or absent, or stdout."""
    if output is None:
        yield sys.stdout
        return
    with replacing(Path(output)) as scratch, scratch.open("w", encoding="utf-8", newline="") as stream:
        yield stream


def _as_lines(rows: Iterator[dict[str, Any]], stream: IO[str]) -> None:
    for row in rows:
        stream.write(json.dumps(_finite(row), ensure_ascii=False, default=str) + "\n")
        stream.flush()


def _finite(value: Any) -> Any:
    """A value with null for numbers that JSON does not have: NaN, as parquet files have for none, and infinity."""
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_table(rows: Iterator[dict[str, Any]], stream: IO[str]) -> None:
    writer = None
    for row in rows:
        cells = _flat(row)
        if writer is None:
            writer = csv.DictWriter(stream, list(cells), lineterminator="\n")
            writer.writeheader()
        other = next((column for column in cells if column not in writer.fieldnames), None)
        if other is not None:
            raise UserError(f"a row has a column {other!r} that the first one does not have; write --to jsonl")
        writer.writerow(cells)
        stream.flush()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row of single values: texts of a list with bars between, other lists as JSON."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, list) and all(isinstance(one, str | None) for one in value):
            flat[name] = SEPARATOR.join(one or "" for one in value)
        else:
            flat[name] = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value
    return flat


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    """A row with a column for the score of every class."""
    scores = {f"score of {label}": score for label, score in row["scores"].items()}
    taken = next((column for column in scores if column in row), None)
    if taken is not None:
        raise UserError(f"a row has a column {taken!r}, as a score is called; rename it, or write --to jsonl")
    return {name: value for name, value in row.items() if name != "scores"} | scores


WRITERS = {"jsonl": _as_lines, "csv": _as_table}
