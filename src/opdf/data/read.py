"""Files and folders of this machine as tables. A name is a plain path, never a pattern, variable or address.

Tables are kept as Arrow files in the cache of datasets. So they are read once and then mapped into memory.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import datasets
import pandas as pd
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Image

from opdf.data.values import dtype
from opdf.files import digest_of, replacing

PICTURES = {end for end, kind in PIL.Image.registered_extensions().items() if kind in PIL.Image.OPEN}
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Folders that are splits, not classes, if one of them is called train; in capitals too."""

METADATA = ("metadata.csv", "metadata.jsonl")
"""Files in a folder of images with a column `file_name`, as datasets has them."""

READ_BY = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:8]
"""The version of this file, since another one may read the same file otherwise."""

PANDAS: dict[str, Any] = {
    "dtype_backend": "pyarrow", "low_memory": False, "encoding": "utf-8-sig", "index_col": False,
}  # fmt: skip
"""How pandas reads any csv or tsv file."""

BLANK = " \t\r\n"
"""What separates words, cells and lines in a file. Other spaces of Unicode, U+00A0 say, belong to the words."""

CODE = "[+-]?0[0-9]"
"""How a cell of digits begins that is no number to its writer."""

INDEX = re.compile("__index_level_[0-9]+__")

HALF = re.compile("[\ud800-\udfff]")
"""Of a sign that UTF-16 writes as two."""

CELLS = re.compile(r"(?:[ \t\n]|\r\n)+")

SEPARATED = "; commas separate the cells of a csv file and tabs those of a tsv file, and quotes hold cells together"

csv.field_size_limit(2**31 - 1)  # a cell may be a whole document, as pandas has it; csv ends at 131,072 characters

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
        rows = _kept(f"{digest_of(path)}{path.suffix.lower()}", lambda: _with_images(Dataset(_plain(reader(path)))))
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


def read_folder(folder: Path) -> DatasetDict:
    """Images with the name of their subfolder as label, in one split, or in a split for each of its folders.

    Images may lie deeper in a class's folder. A folder without subfolders has no labels, or those of `metadata.csv` or
    `metadata.jsonl`, whose column `file_name` says which image a row is about.

    Raises:
        ValueError: there are no images, or some lie beside the folders of the classes or splits.
    """
    _check_folder(folder)
    inside = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    splits = {child: SPLITS[child.name.lower()] for child in inside if child.name.lower() in SPLITS}
    others = [child.name for child in inside if child not in splits and _has_images(child)]
    found = sorted({*splits.values()})
    if "train" not in found or (others and len(found) < 2):
        return DatasetDict(train=_images(folder))
    names = ", ".join(child.name for child in splits)
    if others:
        raise ValueError(
            f"folder {folder} has the splits {names}, and beside them {', '.join(others)}; move what is no split away"
        )
    if len(found) < len(splits):
        raise ValueError(f"folder {folder} has {names}; keep one folder for each of {', '.join(found)}")
    parts = {part: _images(child) for child, part in splits.items()}
    return DatasetDict({name: parts[name] for name in ("train", "validation", "test") if name in parts})


def _has_images(folder: Path) -> bool:
    shown = (p for p in below(folder) if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    return any(path.suffix.lower() in PICTURES for path in shown)


def _check_folder(folder: Path) -> None:
    """Refuse a folder of other data than images, and say what to do with them."""
    refuse_saved(folder)
    names = {path.name for path in folder.iterdir()}
    tables = tables_of(folder.iterdir())
    if tables and not any((folder / name).is_dir() or Path(name).suffix.lower() in PICTURES for name in names):
        raise ValueError(
            f"folder {folder} has no images; of its files name one as the data, such as {tables[0]}, and "
            "others as its validation and test"
        )


def refuse_saved(folder: Path) -> None:
    """Refuse a folder that datasets' save_to_disk has written.

    Raises:
        ValueError: it is one.
    """
    names = {path.name for path in folder.iterdir()}
    if "dataset_dict.json" in names or {"dataset_info.json", "state.json"} <= names:
        raise ValueError(
            f"folder {folder} was written by save_to_disk; write each split into a file, with "
            "load_from_disk(...).to_parquet(...), and name the files"
        )


def tables_of(paths: Iterable[Path]) -> list[Path]:
    """The data files among some paths, those of training first."""
    found = [path for path in paths if path.suffix.lower() in READERS and path.name not in METADATA]
    return sorted(found, key=lambda path: ("train" not in path.name.lower(), path))


def _images(folder: Path) -> Dataset:
    table = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if table is not None:
        return _described_images(folder, table)
    beside = pictures(folder, folder.iterdir())
    inside = {child.name: pictures(child, below(child)) for child in sorted(folder.iterdir()) if child.is_dir()}
    classes = {name: paths for name, paths in inside.items() if paths and not name.startswith(".")}
    if beside and classes:
        raise ValueError(
            f"folder {folder} has {len(beside)} images, such as {beside[0].name}, beside its subfolders; move them "
            "into the subfolder of their class"
        )
    paths = beside or [path for some in classes.values() for path in some]
    if not paths:
        tables = tables_of(below(folder))
        other = f", or the name of a file, such as {tables[0]}" if tables else ""
        raise ValueError(f"folder {folder} has no images; expected one subfolder of them for each class{other}")
    columns = {"image": [str(path) for path in paths]}
    if classes:
        columns["label"] = [name for name, some in classes.items() for _ in some]
    # The labels belong to the key: the same images have others where a folder above them is named.
    return _kept_images(paths, lambda: Dataset.from_dict(columns).cast_column("image", Image()), columns.get("label"))


def _described_images(folder: Path, table: Path) -> Dataset:
    rows = read_file(table)
    if "file_name" not in rows.column_names:
        raise ValueError(f"{table} has no column 'file_name'; it says which image a row is about")
    paths = [folder / str(name) for name in rows["file_name"]]
    for k, path in enumerate(paths):
        if not path.is_file():
            raise ValueError(f"{table} names {path.name} in {rows_of(table, [k])}, and {path} does not exist")
    named = {os.path.abspath(path) for path in paths}
    unnamed = [path for path in pictures(folder, below(folder)) if str(path) not in named]
    if unnamed:
        warnings.warn(f"left out, as {table} does not name them: {len(unnamed)} images ({unnamed[0]})", stacklevel=2)
    images = pa.chunked_array([pa.array([str(path) for path in paths])])
    with_images = rows.data.table.drop_columns("file_name").append_column("image", images)
    return _kept_images([table, *paths], lambda: Dataset(with_images).cast_column("image", Image()))


def below(folder: Path) -> Iterator[Path]:
    """All that a folder holds at any depth, behind links too. What may not be looked into is left out.

    A folder that several links lead to is looked into once, so that a link back to a folder above has an end.
    """
    waiting, seen = [folder], set[Path]()
    while waiting:
        place = waiting.pop()
        if (real := place.resolve()) in seen:
            continue
        seen.add(real)
        with suppress(PermissionError):
            for path in sorted(place.iterdir()):
                yield path
                if path.is_dir():
                    waiting.append(path)


def pictures(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Absolute paths of the images among some paths in a folder, none of them hidden, in the order of their names.

    Files that are no images are left out with a warning.

    Raises:
        ValueError: one is a link that leads nowhere.
    """
    files = (path for path in paths if not path.is_dir())
    shown = sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    found = [path for path in shown if path.suffix.lower() in PICTURES]
    lost = next((path for path in found if not path.exists()), None)
    if lost is not None:
        raise ValueError(f"{lost} is a link that leads nowhere; bring back the image, or remove the link")
    others = [path for path in shown if path.suffix.lower() not in PICTURES and path.name not in METADATA]
    if others:
        kinds = ", ".join(sorted({path.suffix.lower() or path.name for path in others}))
        count = f"{len(others)} file{'s' if len(others) > 1 else ''} ({kinds})"
        warnings.warn(f"left out of {folder}, as no images that can be read: {count}", stacklevel=2)
    return [Path(os.path.abspath(path)) for path in found]


def _kept_images(paths: Sequence[Path], make: Callable[[], Dataset], labels: Sequence[str] | None = None) -> Dataset:
    """A table of images, kept as long as none of the files and labels changes."""
    states = [(str(path), (state := path.stat()).st_mtime_ns, state.st_size) for path in paths]
    return _kept(hashlib.sha256(repr((states, labels)).encode()).hexdigest(), make)


def _kept(key: str, make: Callable[[], Dataset]) -> Dataset:
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


def _csv(path: Path) -> pa.Table:
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


def lines_of(stream: IO[bytes]) -> Iterator[str]:
    """The lines of a stream of bytes in UTF-8, with their ends. Only a line feed ends a line.

    Raises:
        ValueError: a line is no UTF-8.
    """
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number} is no UTF-8: byte {line[error.start]:#x}; save it as UTF-8") from error


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
            if (twice := _twice(names)) is not None:
                raise ValueError(f"two columns are called {twice!r}; rename one")
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


def _json(path: Path) -> pa.Table:
    """A list of objects, or lines as in a jsonl file."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        rows = json.loads(text, object_pairs_hook=_keys_once)
    except json.JSONDecodeError as error:
        if error.msg != "Extra data":
            raise
        return _json_lines(path)
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


def _json_lines(path: Path) -> pa.Table:
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
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {_reason(error)}") from error
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
        raise ValueError(f"an object has the key {_twice([key for key, _ in pairs])!r} twice; rename one")
    half = next((key for key, text in pairs if isinstance(text, str) and HALF.search(text)), None)
    if half is not None:
        raise ValueError(f"{half!r} has half of a sign, such as \\ud83d, as texts have that were cut; remove it")
    return found


def _twice(names: Sequence[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


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


def _parquet(path: Path) -> pa.Table:
    """Without the columns in which pandas keeps an index of names; a model of texts would read them."""
    table = pq.ParquetFile(path).read()
    if (twice := _twice(table.column_names)) is not None:
        raise ValueError(f"two columns are called {twice!r}; rename one")
    return table.drop_columns([name for name in table.column_names if INDEX.fullmatch(name)])


def words_of(text: str) -> list[str]:
    """The words of a text, with blanks between them."""
    inner = text.strip(BLANK)
    return CELLS.split(inner) if inner else []


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
    ".csv": _csv, ".tsv": _csv, ".json": _json, ".jsonl": _json_lines,
    ".parquet": _parquet, ".conll": _conll, ".txt": _paragraphs,
}  # fmt: skip


def _reason(error: Exception) -> str:
    """The first line of what is wrong."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is no UTF-8; save the file as UTF-8"
    if isinstance(error, pd.errors.EmptyDataError):
        return "it is empty"
    if isinstance(error, RecursionError):
        return "more lists inside each other than can be read"
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
