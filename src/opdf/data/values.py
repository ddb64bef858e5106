"""Columns as they are stored: their values and their types."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from datasets import Dataset

TEXT = "string"


def values(data: Dataset, column: str) -> pa.ChunkedArray:
    """A column as it is stored."""
    return data.select_columns(column).with_format("arrow")[:][column]


def dtype(feature: Any) -> str:
    """The type of a column; of lists and images the name of their class."""
    return (getattr(feature, "dtype", None) or type(feature).__name__.lower()).removeprefix("large_")


def items_of(feature: Any) -> Any:
    """What a list holds; None of what is no list."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def described(feature: Any) -> str:
    inner = items_of(feature)
    return dtype(feature) if inner is None else f"lists of {described(inner)}"
