"""Rows of a file, a folder of images or a pipe, one after the other, for predictions."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from datasets import Dataset, Image

from opdf.data.delimited import dialect, records
from opdf.data.folders import METADATA, PICTURES, below, pictures, refuse_saved, tables_of
from opdf.data.jsonl import objects
from opdf.data.lines import lines_of
from opdf.data.read import READERS, path_of, read_file

ROW_FORMATS = ("lines", "csv", "tsv", "jsonl")
"""Formats of text: one value a line, a table with a header, or an object a line."""

ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".txt": "lines"}


@dataclass(frozen=True)
class Row:
    """A row and its place.

    Attributes:
        where: it is, for messages: "line 3 of reviews.jsonl".
        values: by column; of a line without columns, a text or the name of an image, under the name None. What was
            found as an image is a Path, or of a parquet file a mapping of its `bytes` and its `path`.
    """

    where: str
    values: Mapping[Any, Any]


def read_rows(name: str | Path, form: str | None = None) -> Iterator[Row]:
    """The rows of a file or folder, whose columns are taken as they are: `007` in a csv file stays a text.

    Args:
        name: a csv, tsv, json, jsonl, parquet or conll file; a txt file, of one text a line; an image; or a folder of
            images, which may lie in subfolders. Names of images in a folder's `metadata.csv` or `metadata.jsonl` are
            relative to the folder, and the images are in the column `image`.
        form: one of `ROW_FORMATS`, for a file whose name does not say it.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it cannot be read, or is none of these.
    """
    path = path_of(str(name))
    if not path.exists():
        raise FileNotFoundError(f"{name} does not exist; give a file, a folder of images, or - for a pipe")
    if path.is_dir():
        refuse_saved(path)
        return _images(path, pictures(path, below(path)))
    form = form or ENDINGS.get(path.suffix.lower())
    if path.name in METADATA and form in ("csv", "jsonl"):
        return _described_images(path, form)
    if form is None and path.suffix.lower() in PICTURES:
        return _images(path, [path])
    if form is None and path.suffix.lower() in READERS:
        return (Row(f"row {k} of {path}", row) for k, row in enumerate(_as_stored(read_file(path)), 1))
    if form is None:
        raise ValueError(f"{name} is no file that can be read; say what it holds, one of {', '.join(ROW_FORMATS)}")
    return _of_file(path, form)


def _as_stored(rows: Dataset) -> Dataset:
    """Rows whose images are not decoded yet, as one that is broken would end the reading of all."""
    images = [column for column, feature in rows.features.items() if isinstance(feature, Image)]
    for column in images:
        rows = rows.cast_column(column, Image(decode=False))
    return rows


def parse_rows(stream: IO[bytes], form: str, name: str = "the input") -> Iterator[Row]:
    """The rows of a stream of bytes in UTF-8, as they come.

    Args:
        stream: of bytes.
        form: one of `ROW_FORMATS`.
        name: what the stream is called in messages.

    Raises:
        ValueError: it cannot be read.
    """
    return _parsed(stream, form, name, _cells(form))


def _of_file(path: Path, form: str) -> Iterator[Row]:
    named = ENDINGS.get(path.suffix.lower()) == form
    with path.open("rb") as stream:
        yield from _parsed(stream, form, str(path), dialect(path) if named else _cells(form))


def _cells(form: str) -> dict[str, Any]:
    """How cells are separated and quoted in a table that cannot be looked at as a whole."""
    return {"sep": "\t" if form == "tsv" else ",", "quoting": csv.QUOTE_MINIMAL}


def _parsed(stream: IO[bytes], form: str, name: str, cells: Mapping[str, Any]) -> Iterator[Row]:
    lines = lines_of(stream)
    read = _table(lines, cells) if form in ("csv", "tsv") else _texts(lines) if form == "lines" else objects(lines)
    what = "row" if form in ("csv", "tsv") else "line"
    try:
        for number, values in read:
            yield Row(f"{what} {number} of {name}", values)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as {form}: {error}") from error


def _table(lines: Iterable[str], cells: Mapping[str, Any]) -> Iterator[tuple[int, dict[Any, Any]]]:
    """The rows under a header, with their numbers."""
    read = records(lines, cells)
    _, names = next(read, (0, []))
    yield from ((number, dict(zip(names, values, strict=True))) for number, values in read)


def _texts(lines: Iterable[str]) -> Iterator[tuple[int, dict[Any, Any]]]:
    yield from ((number, {None: line.rstrip("\r\n")}) for number, line in enumerate(lines, 1))


def _described_images(table: Path, form: str) -> Iterator[Row]:
    """The rows about a folder's images, with these in a column `image`, as in training."""
    for row in _of_file(table, form):
        name = row.values.get("file_name")
        image = {"image": table.parent / name} if isinstance(name, str) and name else {}
        yield replace(row, values={**image, **row.values})


def _images(folder: Path, paths: Iterable[Path]) -> Iterator[Row]:
    found = [Row(str(path), {None: path}) for path in paths]  # a Path is no text for a model of texts
    if not found:
        tables = tables_of(below(folder))
        raise ValueError(
            f"folder {folder} has no images{f'; name a file of it, such as {tables[0]}' if tables else ''}"
        )
    return iter(found)
