"""Datasets by name or path, and the ones that ship with the package."""

from typing import TYPE_CHECKING

from opdf.lazy import import_when_used

if TYPE_CHECKING:
    from opdf.data.augment import AugmentedImages, EpochDataset, ImageNoise, TextNoise, as_rgb as as_rgb
    from opdf.data.checks import is_list_as_text as is_list_as_text
    from opdf.data.classes import class_weights, plain_name as plain_name
    from opdf.data.embedded import names as embedded_names
    from opdf.data.encode import TextCollator as TextCollator, count_tokens, encode, encode_rows, longest_text
    from opdf.data.folders import METADATA as METADATA, PICTURES as PICTURES, below as below
    from opdf.data.language import encode_language, padding, right_padded, without_nulls as without_nulls
    from opdf.data.lines import words_of as words_of
    from opdf.data.load import load_data, located
    from opdf.data.metrics import IGNORED as IGNORED, LOWER_IS_BETTER, token_agreement
    from opdf.data.packages import minilm
    from opdf.data.prepared import Prepared
    from opdf.data.pretrained import damaged_file, loading
    from opdf.data.rows import ROW_FORMATS, Row, parse_rows, read_rows
    from opdf.data.summary import DataSummary, describe
    from opdf.data.task import Task

__all__ = [
    "LOWER_IS_BETTER",
    "ROW_FORMATS",
    "AugmentedImages",
    "DataSummary",
    "EpochDataset",
    "ImageNoise",
    "Prepared",
    "Row",
    "Task",
    "TextNoise",
    "class_weights",
    "count_tokens",
    "damaged_file",
    "describe",
    "embedded_names",
    "encode",
    "encode_language",
    "encode_rows",
    "load_data",
    "loading",
    "located",
    "longest_text",
    "minilm",
    "padding",
    "parse_rows",
    "read_rows",
    "right_padded",
    "token_agreement",
]

import_when_used(__name__)
