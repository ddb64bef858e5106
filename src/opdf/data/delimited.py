"""csv and tsv files."""

from __future__ import annotations

import csv
import itertools
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from opdf.data.lines import BLANK, lines_of, twice

PANDAS: dict[str, Any] = {
    "dtype_backend": "pyarrow", "low_memory": False, "encoding": "utf-8-sig", "index_col": False,
}  # fmt: skip
"""How pandas reads any csv or tsv file."""

CODE = "[+-]?0[0-9]"
"""How a cell of digits begins that is no number to its writer."""

SEPARATED = "; commas separate the cells of a csv file and tabs those of a tsv file, and quotes hold cells together"

csv.field_size_limit(2**31 - 1)  # a cell may be a whole document, as pandas has it; csv ends at 131,072 characters


def read_csv(path: Path) -> pa.Table:
    """The table of a csv or tsv file, see `opdf.data.read.read_file`."""
    options = {**PANDAS, **dialect(path)}
    with path.open("rb") as file:
        deque(records(lines_of(file), options), maxlen=0)  # pandas joins, fills and renames without a word
    frame = pd.read_csv(path, keep_default_na=False, na_values=[""], **options)
    words = [name for name in frame if pd.api.types.is_string_dtype(frame[name])]
    if words:
        # NA among numbers makes a column of words of a column of numbers. There it is a gap.
        with_gaps = pd.read_csv(path, usecols=words, **options)
        for name in words:
            if pd.api.types.is_numeric_dtype(with_gaps[name]) and with_gaps[name].notna().any():
                frame[name] = with_gaps[name]
    _keep_as_written(frame, path, options)
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()


def _keep_as_written(frame: pd.DataFrame, path: Path, options: Mapping[str, Any]) -> None:
    """Words for the columns that say true or false, and for codes such as 007: as classes they keep their names."""
    found = [name for name in frame if pd.api.types.is_bool_dtype(frame[name]) or _is_whole(frame[name])]
    if not found:
        return
    words = pd.read_csv(path, usecols=found, keep_default_na=False, na_values=[""], dtype=str, **options)
    for name in found:
        if not _is_whole(frame[name]) or words[name].str.match(CODE).any():
            frame[name] = words[name]


def _is_whole(column: Any) -> bool:
    return bool(pd.api.types.is_integer_dtype(column))


def dialect(path: Path) -> dict[str, Any]:
    """How cells are separated and quoted.

    In a tsv file quotes are plain characters if one would join lines, as when two texts begin with one.
    """
    if path.suffix.lower() != ".tsv":
        return {"sep": ",", "quoting": csv.QUOTE_MINIMAL}
    try:
        with warnings.catch_warnings(action="ignore", category=pd.errors.ParserWarning):
            quoted = pd.read_csv(path, sep="\t", keep_default_na=False, dtype=str, **PANDAS)
        joined = any(quoted[name].str.contains("\n").any() for name in quoted)
    except pd.errors.ParserError:
        joined = True
    return {"sep": "\t", "quoting": csv.QUOTE_NONE if joined else csv.QUOTE_MINIMAL}


def records(lines: Iterable[str], form: Mapping[str, Any]) -> Iterator[tuple[int, list[str]]]:
    """The records of a csv or tsv file that are not blank, the header first, with their numbers from 1.

    A column without a name is called `Unnamed: 0`, by its place, as pandas has it.

    Args:
        lines: of the file, with their ends, which are line feeds, with or without carriage returns.
        form: how cells are separated and quoted, see `dialect`.

    Raises:
        ValueError: two columns have one name; a record has more or fewer cells than the header; a carriage return
            stands alone; or a cell that begins with a quote joins lines and does not end with one, so that two texts
            would be one and the rows between them lost.
    """
    taken: list[str] = []  # the lines of a record

    def shown() -> Iterator[str]:
        for line in lines:
            taken.append(line)
            yield line

    how: Any = {"delimiter": form["sep"], "quoting": form["quoting"]}
    reader, names = csv.reader(shown(), **how), list[str]()
    for number in itertools.count(1):
        try:
            cells = next(reader, None)
        except csv.Error as error:  # it speaks of how to open the file
            raise ValueError(
                f"line {reader.line_num} has a carriage return that stands alone; end lines with line feeds, and "
                "put texts of several lines into quotes"
            ) from error
        if cells is None:
            return
        if len(taken) > 1:
            _check_quotes(taken, reader.line_num, how)
        blank = len(cells) < 2 and not "".join(taken).strip(BLANK)  # "" in a column by itself is an empty text
        taken.clear()
        if blank:
            continue
        if not names:
            cells = names = [name or f"Unnamed: {k}" for k, name in enumerate(cells)]
            if (name := twice(names)) is not None:
                raise ValueError(f"two columns are called {name!r}; rename one")
        elif len(cells) != len(names):
            raise ValueError(f"row {number} has {len(cells)} cells and the header {len(names)}{SEPARATED}")
        yield number, cells


def _check_quotes(lines: Sequence[str], last: int, how: Any) -> None:
    """Refuse a record of several lines that a quote joins by mistake. `last` is the number of its last line."""
    try:
        list(csv.reader(lines, **how, strict=True))
    except csv.Error as error:
        raise ValueError(
            f"lines {last - len(lines) + 1} to {last} are joined by a cell that begins with a quote and does not end "
            "with one; remove the quote, or put the text into quotes and double those in it"
        ) from error
