"""Labels that a student's head has no output for, found before training."""

from __future__ import annotations

from typing import Any

from datasets import ClassLabel, Dataset, Value
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

IGNORED = -100
"""The label that torch's cross-entropy passes over."""


def check_labels(student: Any, data: Any) -> None:
    """Refuse classes that the student's head does not have; on a GPU, the first step would not say what was wrong.

    Looked at are integer columns `labels` and `label` of a `datasets.Dataset`, for classifiers of transformers.

    Raises:
        ValueError: a label is below 0, other than -100, or not below `config.num_labels`.
    """
    heads = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if not isinstance(data, Dataset) or not any(type(student).__name__ in names.values() for names in heads):
        return
    classes = student.config.num_labels
    if classes == 1 or student.config.problem_type not in (None, "single_label_classification"):
        return
    for column in ("labels", "label"):
        feature = data.features.get(column)
        if isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "int" in feature.dtype):
            values = data.select_columns([column]).with_format("numpy")[:][column]
            outside = values[(values != IGNORED) & ((values < 0) | (values >= classes))]
            if len(outside):
                raise ValueError(
                    f"{len(outside)} rows of train_dataset have {column!r} outside 0 to {classes - 1}, e.g. "
                    f"{outside[0]}; the student has {classes} labels: give it more (num_labels), or clean the data"
                )
