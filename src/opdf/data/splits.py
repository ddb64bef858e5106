"""Cutting a dataset into train, validation and test, the same way on every machine."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

VALIDATION, TEST = 0.1, 0.2
BATCH = 256
"""Images in memory at a time."""

ADDRESS = re.compile(r"(https?://|www\.)\S+")


def split(
    data: Dataset,
    seed: int,
    *,
    validation: float = VALIDATION,
    test: float = TEST,
    groups: Sequence[str] | None = None,
    inputs: Sequence[str] = (),
    where: str = "",
) -> DatasetDict:
    """Random splits. Rows of one group (sentences of one document) and near-duplicates stay together.

    Args:
        data: the rows to cut.
        seed: of the shuffle.
        validation, test: fractions of the rows; a fraction of 0 leaves that split out.
        groups: a key for every row.
        inputs: columns by which rows are compared, see `contents`; none compares nothing.
        where: what stands before the names of options in messages.

    Raises:
        ValueError: the fractions leave nothing to train on, or the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"{where}seed is {seed}; it must be from 0 to 2**32 - 1")
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ValueError(
            f"{where}validation is {validation} and {where}test {test}; give fractions from 0 on that leave some to "
            "train on"
        )
    fractions = {"test": test, "validation": validation / (1 - test)}
    try:
        parts = _cut_all(len(data), fractions, seed, groups)
        if inputs and len(parts) > 1:
            said = contents(data, inputs)
            together = _components([said] if groups is None else [said, groups])
            parts = _reunited(parts, together)
            if not all(map(len, parts.values())):  # few rows and many copies
                parts = _cut_all(len(data), fractions, seed, together)
    except ValueError as error:  # scikit-learn's message names other arguments
        different = f", {len(set(contents(data, inputs)))} different ones," if inputs else ""
        raise ValueError(
            f"{len(data)} rows{different} are too few to cut off {where}validation={validation} and "
            f"{where}test={test}; give more rows or other fractions"
        ) from error
    order = ("train", "validation", "test")
    return DatasetDict({name: data.select(parts[name]) for name in order if name in parts})


def contents(data: Dataset, inputs: Sequence[str]) -> list[Hashable]:
    """The content of every row without case, punctuation, web addresses and spaces; of an image its file's bytes.

    Rows with the same content are near-duplicates: a test on one means nothing if another was trained on.
    """
    columns = [_pictures(data, column) if _is_image(data, column) else _words(data, column) for column in inputs]
    return list(zip(*columns, strict=True))


def _is_image(data: Dataset, column: str) -> bool:
    return isinstance(data.features[column], Image)


def _words(data: Dataset, column: str) -> list[str]:
    return [_normal(_said(value)) for value in data.select_columns(column).with_format(None)[:][column]]


def _said(value: Any) -> str:
    """A text, words, or the contents of messages."""
    if isinstance(value, str):
        return value
    return " ".join(item if isinstance(item, str) else item["content"] or "" for item in value)


def _normal(text: str) -> str:
    """`Wow!! see http://a.b` -> `wow see`; a text without words stays as it is."""
    words = ADDRESS.sub(" ", unicodedata.normalize("NFKC", text).casefold()).translate(_SPACED)
    return " ".join(words.split()) or text.strip()


class _Spaced(dict[int, int]):
    """Punctuation, symbols and control characters to spaces."""

    def __missing__(self, code: int) -> int:
        self[code] = ord(" ") if unicodedata.category(chr(code))[0] in "PSZC" else code
        return self[code]


_SPACED = _Spaced()


def _pictures(data: Dataset, column: str) -> list[str]:
    stored = data.select_columns(column).with_format("arrow").iter(BATCH)
    files = (file for rows in stored for file in rows[column].to_pylist())
    return [hashlib.sha256(file["bytes"] or Path(file["path"]).read_bytes()).hexdigest() for file in files]


def _components(keys: Sequence[Sequence[Hashable]]) -> np.ndarray:
    """A number for every row, the same for rows that share a key directly or through other rows."""
    rows = len(keys[0])
    numbers: dict[Hashable, int] = {}
    nodes = [numbers.setdefault((k, key), rows + len(numbers)) for k, some in enumerate(keys) for key in some]
    size = rows + len(numbers)
    edges = (np.tile(np.arange(rows), len(keys)), nodes)
    graph = coo_array((np.ones(len(nodes), np.int8), edges), shape=(size, size))
    return connected_components(graph, directed=False)[1][:rows]


def _reunited(parts: dict[str, np.ndarray], components: np.ndarray) -> dict[str, np.ndarray]:
    """Splits in which every component is in the split of its first row; all other rows stay where they are."""
    names = list(parts)
    place = np.empty(len(components), int)
    for k, rows in enumerate(parts.values()):
        place[rows] = k
    _, first, component = np.unique(components, return_index=True, return_inverse=True)
    right = place[first][component]
    moved = place != right
    return {
        name: np.concatenate([rows[~moved[rows]], np.flatnonzero(moved & (right == k))])
        for k, (name, rows) in enumerate(zip(names, parts.values(), strict=True))
    }


def _cut_all(
    rows: int, fractions: dict[str, float], seed: int, groups: Sequence[Hashable] | np.ndarray | None
) -> dict[str, np.ndarray]:
    """Row numbers of every split, cut one after the other; the rest is train."""
    rest, keys, parts = np.arange(rows), None if groups is None else np.asarray(groups), {}
    for name, fraction in fractions.items():
        if fraction:
            cutter = (ShuffleSplit if keys is None else GroupShuffleSplit)(1, test_size=fraction, random_state=seed)
            kept, cut = next(cutter.split(rest, groups=None if keys is None else keys[rest]))
            rest, parts[name] = rest[kept], rest[cut]
    return {**parts, "train": rest}
