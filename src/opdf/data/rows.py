"""Rows of a file, a folder of images or a pipe, one after the other, for predictions."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from opdf.data.read import (
    BLANK,
    METADATA,
    PICTURES,
    READERS,
    below,
    dialect,
    keys_once,
    path_of,
    pictures,
    read_file,
    records,
)

ROW_FORMATS = ("lines", "csv", "tsv", "jsonl")
"""Formats of text: one value a line, a table with a header, or an object a line."""

ENDINGS = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".txt": "lines"}


@dataclass(frozen=True)
class Row:
    """A row and its place.

    Attributes:
        where: it is, for messages: "line 3 of reviews.jsonl".
        values: by column; of a line without columns, a text or the name of an image, under the name None. What was
            found as an image is a Path.
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
        return _images(path, pictures(path, below(path)))
    form = form or ENDINGS.get(path.suffix.lower())
    if path.name in METADATA and form in ("csv", "jsonl"):
        return _described_images(path, form)
    if form is None and path.suffix.lower() in PICTURES:
        return _images(path, [path])
    if form is None and path.suffix.lower() in READERS:
        return (Row(f"row {k} of {path}", row) for k, row in enumerate(read_file(path), 1))
    if form is None:
        raise ValueError(f"{name} is no file that can be read; say what it holds, one of {', '.join(ROW_FORMATS)}")
    return _of_file(path, form)


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
    lines = _lines(stream, name)
    if form in ("csv", "tsv"):
        yield from _table(lines, name, cells)
        return
    for number, line in enumerate(lines, 1):
        text, where = line.rstrip("\r\n"), f"line {number} of {name}"
        if form == "lines":
            yield Row(where, {None: text})
        elif text.strip(BLANK):
            yield Row(where, _object(text, where))


def _lines(stream: IO[bytes], name: str) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"line {number} of {name} is no UTF-8: byte {line[error.start]:#x}; save it as UTF-8"
            ) from error


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text, object_pairs_hook=keys_once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}") from error
    except ValueError as error:
        raise ValueError(f"{where} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f'{where} is no object like {{"text": "..."}}')
    return found


def _table(lines: Iterable[str], name: str, form: Mapping[str, Any]) -> Iterator[Row]:
    """Rows under a header, without blank ones."""
    try:
        read = records(lines, form)
        names = next(read, [])
        twice = next((column for column in names if names.count(column) > 1), None)
        if twice is not None:
            raise ValueError(f"two columns of {name} are called {twice!r}; rename one")
        for number, cells in enumerate(read, 2):
            if cells and len(cells) != len(names):
                raise ValueError(f"row {number} of {name} has {len(cells)} cells and the header {len(names)}")
            if cells:
                yield Row(f"row {number} of {name}", dict(zip(names, cells, strict=True)))
    except csv.Error as error:
        if "new-line character" in str(error):  # csv speaks of how to open the file
            error = csv.Error(
                "a carriage return stands alone in it; end lines with line feeds, and put texts of several "
                "lines into quotes"
            )
        raise ValueError(f"{name} cannot be read as a table: {error}") from error


def _described_images(table: Path, form: str) -> Iterator[Row]:
    """The rows about a folder's images, with these in a column `image`, as in training."""
    for row in _of_file(table, form):
        name = row.values.get("file_name")
        image = {"image": table.parent / name} if isinstance(name, str) and name else {}
        yield replace(row, values={**image, **row.values})


def _images(folder: Path, paths: Iterable[Path]) -> Iterator[Row]:
    found = [Row(str(path), {None: path}) for path in paths]  # a Path is no text for a model of texts
    if not found:
        raise ValueError(f"folder {folder} has no images")
    return iter(found)
