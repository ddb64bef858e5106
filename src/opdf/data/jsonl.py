"""json and jsonl files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from opdf.data.lines import BLANK, lines_of, twice

HALF = re.compile("[\ud800-\udfff]")
"""Of a sign that UTF-16 writes as two."""

TOO_DEEP = "more lists inside each other than can be read"


def read_json(path: Path) -> pa.Table:
    """A list of objects, or lines as in a jsonl file."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text, object_pairs_hook=_keys_once)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return read_json_lines(path)
    if isinstance(rows, dict) and _holds_rows(rows):
        raise ValueError(
            "it is one object that holds the rows; write a list of objects, one a row (of a DataFrame "
            "frame.to_json(..., orient='records'))"
        )
    found = enumerate(rows if isinstance(rows, list) else [rows], 1)
    return _table(((number, _object(row, f"row {number}")) for number, row in found), "row")


def _holds_rows(found: Mapping[str, Any]) -> bool:
    """Whether an object is no row but a whole table: by columns, as pandas writes them, or as a list in it."""
    lists = [value for value in found.values() if isinstance(value, list)]
    mappings = sum(isinstance(value, dict) for value in found.values())
    inner = [item for some in lists for item in some if isinstance(item, list | dict)]
    inside = any(isinstance(item, list) or "role" not in item for item in inner)  # of a conversation they have one
    return bool(mappings or inside) and len(lists) + mappings == len(found)


def read_json_lines(path: Path) -> pa.Table:
    """The table of a jsonl file."""
    with path.open("rb") as file:
        return _table(objects(lines_of(file)), "line")


def objects(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a jsonl file with the numbers of their lines, from 1; blank lines are left out.

    Raises:
        ValueError: a line is no object, or one that has a key twice or a text that is none.
    """
    for number, line in enumerate(lines, 1):
        if line.strip(BLANK):
            try:
                found = json.loads(line, object_pairs_hook=_keys_once)
            except json.JSONDecodeError as error:
                raise ValueError(f"line {number}, column {error.colno}: {error.msg}") from error
            except RecursionError as error:
                raise ValueError(f"line {number}: {TOO_DEEP}") from error
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            yield number, _object(found, f"line {number}")


def _object(found: Any, where: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f'{where} is no object like {{"text": "..."}}')
    return found


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of a key that it has twice, json would keep the last value without a word.

    Raises:
        ValueError: it has a key twice, or a text that is none: with one of two surrogates.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"an object has the key {twice([key for key, _ in pairs])!r} twice; rename one")
    half = next((key for key, text in pairs if isinstance(text, str) and HALF.search(text)), None)
    if half is not None:
        raise ValueError(f"{half!r} has half of a sign, such as \\ud83d, as texts have that were cut; remove it")
    return found


def _table(numbered: Iterable[tuple[int, Mapping[str, Any]]], what: str) -> pa.Table:
    """Objects with their numbers as a table; a key that an object does not have is missing there."""
    rows, columns = list(numbered), {}
    for name in dict.fromkeys(key for _, row in rows for key in row):
        try:
            columns[name] = pa.array([row.get(name) for _, row in rows])
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(f"column {name!r} holds values of different kinds{_kinds(rows, name, what)}") from error
    return pa.table(columns)


def _kinds(rows: Sequence[tuple[int, Mapping[str, Any]]], name: str, what: str) -> str:
    """Two places of a column with values of different kinds, for a message; nothing where lists or objects differ."""
    first: dict[str, int] = {}
    for number, row in rows:
        if row.get(name) is not None:
            first.setdefault(KINDS.get(type(row[name]), "an object"), number)
    if len(first) < 2:
        return ""
    (one, here), (other, there), *_ = first.items()
    return f": {what} {here} has {one} and {what} {there} {other}"


KINDS = {str: "a text", int: "a number", float: "a number", bool: "true or false", list: "a list"}
"""What values of JSON are called."""
