"""Files of this machine as tables. A name is a plain path, never a pattern, variable or address.

Tables are kept as Arrow files in the cache of datasets. So they are read once and then mapped into memory.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Image

from opdf.data.delimited import dialect, read_csv, records
from opdf.data.jsonl import TOO_DEEP, read_json, read_json_lines
from opdf.data.lines import BLANK, lines_of, twice, words_of
from opdf.data.values import dtype
from opdf.files import digest_of, replacing

READ_BY = hashlib.sha256(
    b"".join(
        Path(__file__).with_name(f"{name}.py").read_bytes()
        for name in ("read", "lines", "delimited", "jsonl", "folders")
    )
).hexdigest()[:8]
"""The version of the code that reads, since another one may read the same file otherwise."""

INDEX = re.compile("__index_level_[0-9]+__")

SHOWN = 5
"""How many rows a message names."""


def path_of(name: str) -> Path:
    """A name as a path; `~` at its beginning is the home folder, unless there is a file of that very name."""
    path = Path(name)
    return path.expanduser() if name.startswith("~") and not path.exists() else path


def read_file(path: Path) -> Dataset:
    """The rows of a csv, tsv, json, jsonl, parquet, conll or txt file.

    Empty cells of a csv or tsv file are missing values. `NA`, `null`, `nan` and the like are missing in a column of
    numbers, and words in a column of words. `true`, `false` and digits with zeros in front are words.

    A conll file has a word and, last, its tag in every line, with spaces or tabs between, and a blank line between
    sentences. Its columns are `tokens` and `tags`. A txt file has the column `text`: paragraphs between blank lines, or
    lines if none is blank. Lines end with line feeds, with or without carriage returns, and with nothing else.

    Raises:
        ValueError: the file cannot be read or has no rows.
    """
    reader = READERS[path.suffix.lower()]
    try:
        rows = kept(f"{digest_of(path)}{path.suffix.lower()}", lambda: _with_images(Dataset(_plain(reader(path)))))
    except (ValueError, TypeError, OverflowError, RecursionError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix[1:]}: {_reason(error)}") from error
    if not len(rows):
        raise ValueError(f"{path} has no rows")
    return rows


def rows_of(path: Path | None, rows: Sequence[int]) -> str:
    """Rows of a table, counted from 0, as a user finds them in the file: 'rows 2, 5 and 9'.

    Rows count from 1. In a csv or tsv file the header is row 1, and blank lines count. In a jsonl file they are lines,
    in a conll file sentences and in a txt file paragraphs.
    """
    kind = path.suffix.lower() if path else ""
    places = {".csv": _records, ".tsv": _records, ".jsonl": _lines}.get(kind)
    shown = list(rows[:SHOWN])
    numbers = [k + 1 for k in shown] if places is None or path is None else _pick(places(path), shown)
    what = {".jsonl": "line", ".conll": "sentence", ".txt": "paragraph"}.get(kind, "row")
    if len(rows) == 1:
        return f"{what} {numbers[0]}"
    if len(rows) > SHOWN:
        return f"{what}s {', '.join(map(str, numbers))} and {len(rows) - SHOWN} more"
    return f"{what}s {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def kept(key: str, make: Callable[[], Dataset]) -> Dataset:
    """A dataset from the cache of datasets, made and written there first if need be."""
    file = Path(datasets.config.HF_DATASETS_CACHE) / "opdf" / f"{key}-{READ_BY}" / "data.arrow"
    if not file.is_file():
        table = make().data.table
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as scratch, pa.ipc.new_stream(str(scratch), table.schema) as writer:
            writer.write_table(table, max_chunksize=datasets.config.DEFAULT_MAX_BATCH_SIZE)
    return Dataset.from_file(str(file))


def _plain(table: pa.Table) -> pa.Table:
    """A table without categories and views of texts, which pandas and Polars write into parquet files."""
    for k, field in enumerate(table.schema):
        if (kind := _plain_type(field.type)) != field.type:
            table = table.set_column(k, field.name, table.column(k).cast(kind))
    return table


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain_type(kind.value_type))
    return pa.string() if pa.types.is_string_view(kind) else kind


def _with_images(rows: Dataset) -> Dataset:
    """Rows whose images are known for such, also where pandas or Polars has rewritten what datasets wrote."""
    for column, feature in rows.features.items():
        if isinstance(feature, dict) and feature.keys() == {"bytes", "path"} and dtype(feature["bytes"]) == "binary":
            rows = rows.cast_column(column, Image())
    return rows


def _parquet(path: Path) -> pa.Table:
    """Without the columns in which pandas keeps an index of names; a model of texts would read them."""
    table = pq.ParquetFile(path).read()
    if (name := twice(table.column_names)) is not None:
        raise ValueError(f"two columns are called {name!r}; rename one")
    return table.drop_columns([name for name in table.column_names if INDEX.fullmatch(name)])


def _conll(path: Path) -> pa.Table:
    sentences: list[list[tuple[str, str]]] = [[]]
    columns = 0  # of the sentence's first line
    with path.open("rb") as file:
        for number, line in enumerate(lines_of(file), 1):
            cells = words_of(line)
            if not cells:
                sentences.append([])
                columns = 0
            elif len(cells) == 1:
                raise ValueError(f"line {number} has a word without a tag")
            elif columns and len(cells) != columns:
                raise ValueError(
                    f"line {number} has {len(cells)} columns and the one before it {columns}; remove it if it is a "
                    "comment, and put no blanks into words"
                )
            elif cells[0] != "-DOCSTART-":
                sentences[-1].append((cells[0], cells[-1]))
                columns = len(cells)
    table = {name: [[pair[k] for pair in some] for some in sentences if some] for k, name in enumerate(CONLL)}
    return pa.table({name: pa.array(column, pa.list_(pa.string())) for name, column in table.items()})


def _paragraphs(path: Path) -> pa.Table:
    with path.open(encoding="utf-8-sig", newline="") as file:
        text = file.read().replace("\r\n", "\n")
    parts = re.split(r"\n(?:[ \t]*\n)+", text.strip(BLANK))
    return pa.table(
        {"text": pa.array([part for part in (parts if len(parts) > 1 else text.split("\n")) if part.strip()])}
    )


CONLL = ("tokens", "tags")
READERS: dict[str, Callable[[Path], pa.Table]] = {
    ".csv": read_csv, ".tsv": read_csv, ".json": read_json, ".jsonl": read_json_lines,
    ".parquet": _parquet, ".conll": _conll, ".txt": _paragraphs,
}  # fmt: skip


def _reason(error: Exception) -> str:
    """The first line of what is wrong."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no UTF-8; save the file as UTF-8"
    if isinstance(error, pd.errors.EmptyDataError):
        return "it is empty"
    if isinstance(error, RecursionError):
        return TOO_DEEP
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].removeprefix("Error tokenizing data. C error: ")


def _records(path: Path) -> Iterator[int]:
    """Numbers of the records of a csv file that hold data."""
    found = dialect(path)
    with path.open("rb") as file:
        yield from (number for number, _ in itertools.islice(records(lines_of(file), found), 1, None))


def _lines(path: Path) -> Iterator[int]:
    with path.open("rb") as file:
        yield from (number for number, line in enumerate(lines_of(file), 1) if line.strip(BLANK))


def _pick(numbers: Iterator[int], rows: Sequence[int]) -> list[int]:
    """The numbers at some rows, which are in rising order."""
    wanted = set(rows)
    return [number for k, number in enumerate(numbers) if k in wanted]
