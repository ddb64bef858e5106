"""Cutting a dataset into train, validation and test, the same way on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset, DatasetDict
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

VALIDATION, TEST = 0.1, 0.2


def split(
    data: Dataset,
    seed: int,
    *,
    validation: float = VALIDATION,
    test: float = TEST,
    groups: Sequence[str] | None = None,
) -> DatasetDict:
    """Random splits; rows of one group (sentences of one document) stay together.

    Args:
        data: the rows to cut.
        seed: of the shuffle.
        validation, test: fractions of the rows; a fraction of 0 leaves that split out.
        groups: a key for every row.

    Raises:
        ValueError: the fractions leave nothing to train on, or the seed is out of range.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; it must be from 0 to 2**32 - 1")
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise ValueError(f"validation is {validation} and test {test}; fractions from 0 on that leave some to train on")
    keys = np.asarray(groups) if groups is not None else None
    rows = np.arange(len(data))
    parts: dict[str, np.ndarray] = {}
    for name, fraction in (("test", test), ("validation", validation / (1 - test))):
        if fraction:
            try:
                rows, parts[name] = _cut(rows, fraction, seed, keys)
            except ValueError as error:  # scikit-learn's words are about other arguments
                raise ValueError(
                    f"{len(data)} rows are too few to cut off validation={validation} and test={test}; "
                    "give more rows or other fractions"
                ) from error
    order = ("train", "validation", "test")
    parts["train"] = rows
    return DatasetDict({name: data.select(parts[name]) for name in order if name in parts})


def _cut(rows: np.ndarray, fraction: float, seed: int, keys: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    cls = ShuffleSplit if keys is None else GroupShuffleSplit
    cutter = cls(n_splits=1, test_size=fraction, random_state=seed)
    kept, cut = next(cutter.split(rows, groups=None if keys is None else keys[rows]))
    return rows[kept], rows[cut]
