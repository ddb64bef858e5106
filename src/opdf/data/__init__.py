"""Datasets by name or path, and the ones that ship with the package."""

from typing import TYPE_CHECKING

from opdf.lazy import import_when_used

if TYPE_CHECKING:
    from opdf.data.augment import ImageNoise, TextNoise
    from opdf.data.embedded import names as embedded_names
    from opdf.data.encode import encode, encode_rows, longest_text
    from opdf.data.load import load_data, located
    from opdf.data.metrics import LOWER_IS_BETTER
    from opdf.data.packages import minilm
    from opdf.data.prepared import Prepared
    from opdf.data.pretrained import damaged_file, loading
    from opdf.data.summary import DataSummary, describe
    from opdf.data.task import Task

__all__ = [
    "LOWER_IS_BETTER",
    "DataSummary",
    "ImageNoise",
    "Prepared",
    "Task",
    "TextNoise",
    "damaged_file",
    "describe",
    "embedded_names",
    "encode",
    "encode_rows",
    "load_data",
    "loading",
    "located",
    "longest_text",
    "minilm",
]

import_when_used(__name__)
