"""Training rows and batches that a student cannot learn from; its own error would not say why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from datasets import ClassLabel, Dataset, Value
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from opdf.data import IGNORED, plain_name
from opdf.distill.models import (
    SEVERAL,
    classes_in,
    config_of,
    has_no_head,
    names_of_labels,
    unwrapped,
    without_adapters,
)

CLASSIFIERS = {
    *classes_in(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    *classes_in(MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
}
"""Classes of transformers with one output for an example."""


def check_names(models: Iterable[nn.Module], data: Any) -> None:
    """Refuse a column of named classes that are a model's in another order: its labels have other numbers there.

    It looks at columns `labels` and `label` of a `datasets.Dataset`. Other names than the model's tell nothing.

    Raises:
        ValueError: there is one.
    """
    headed = [model for model in models if not has_no_head(model)]
    for column in ("labels", "label") if isinstance(data, Dataset) else ():
        feature = data.features.get(column)
        classes: list[str] = getattr(getattr(feature, "feature", feature), "names", [])  # of one class, or of a list
        for model in headed if classes else ():
            ours, theirs = ([plain_name(name) for name in names] for names in (names_of_labels(model) or [], classes))
            if ours != theirs and sorted(ours) == sorted(theirs):
                raise ValueError(
                    f"train_dataset has the classes {classes} in {column!r}, and the {type(unwrapped(model)).__name__} "
                    f"{names_of_labels(model)}; number the data's as the model's (align_labels_with_mapping), or name "
                    "them so, if they are numbered so (cast_column)"
                )


def check_rows(data: Any) -> None:
    """Refuse training data of which the Trainer would ask for rows and get columns or splits.

    Raises:
        TypeError: they are a DataFrame, or a mapping such as a DatasetDict.
    """
    if isinstance(data, Mapping):
        raise TypeError(f"train_dataset is a {type(data).__name__}; give one of its splits, data['train'] say")
    if type(data).__name__ == "DataFrame":
        raise TypeError("train_dataset is a DataFrame; give rows: datasets.Dataset.from_pandas(frame)")


def check_labels(student: Any, data: Any) -> None:
    """Refuse classes that the student's head does not have; on a GPU, the first step would not say what was wrong.

    It looks at columns `labels` and `label` of a `datasets.Dataset`, for classifiers of transformers: integers, and
    lists of several labels.

    Raises:
        ValueError: a class is below 0, other than -100, or not below `config.num_labels`; or one of several labels is
            not from 0 to 1.
    """
    if not isinstance(data, Dataset) or type(without_adapters(student)).__name__ not in CLASSIFIERS:
        return
    classes, problem = student.config.num_labels, student.config.problem_type
    if classes == 1 or problem == "regression":
        return
    for column in ("labels", "label"):
        feature = data.features.get(column)
        inner = getattr(feature, "feature", None)
        if isinstance(inner, Value) and (problem == SEVERAL or (problem is None and "float" in inner.dtype)):
            _check_several(data, column)
        elif problem == SEVERAL:
            continue
        elif isinstance(feature, ClassLabel) or (isinstance(feature, Value) and "int" in feature.dtype):
            values = data.select_columns([column]).with_format("numpy")[:][column]
            (outside,) = ((values != IGNORED) & ((values < 0) | (values >= classes))).nonzero()
            if len(outside):
                raise ValueError(
                    f"{len(outside)} rows of train_dataset have {column!r} outside 0 to {classes - 1}, e.g. "
                    f"{values[outside[0]]} in row {outside[0]} (from 0); the student has {classes} labels: give "
                    "it more (num_labels), or clean the data"
                )


_SEVERAL_LABELS = (
    f"with several labels each is 0 or 1, and {IGNORED} does not mean none: leave those rows out, or set 0; numbers to "
    "come near want problem_type='regression'"
)


def _check_several(data: Dataset, column: str) -> None:
    rows = data.select_columns([column]).with_format("numpy")[:][column]
    wrong = [row.tolist() for row in rows if ((row < 0) | (row > 1)).any()]
    if wrong:
        raise ValueError(
            f"{len(wrong)} rows of train_dataset have {column!r} outside 0 to 1, e.g. {wrong[0]}; {_SEVERAL_LABELS}"
        )


def check_batch(student: nn.Module, batch: Any, step: int) -> None:
    """Refuse a batch that cannot be learned from; the model's own error would not say why.

    Args:
        student: whose classes labels are of.
        batch: as the collator made it.
        step: for the message.

    Raises:
        ValueError: it has no tensors or no rows, or a label is no class of the student's.
    """
    tensors = [value for value in batch.values() if isinstance(value, Tensor)] if isinstance(batch, Mapping) else []
    if isinstance(batch, Mapping) and not any(tensor.numel() for tensor in tensors):
        raise ValueError(
            f"a batch of step {step} is empty; the data collator, or the batch sampler, makes batches without rows"
        )
    labels, config = (batch.get("labels") if tensors else None), config_of(student)
    if type(without_adapters(unwrapped(student))).__name__ not in CLASSIFIERS or labels is None:
        return
    classes, problem = config.num_labels, config.problem_type
    floats = problem is None and classes > 1 and labels.is_floating_point()
    if (problem == SEVERAL or floats) and labels.dim() == 2:
        (outside,) = ((labels < 0) | (labels > 1)).any(1).nonzero(as_tuple=True)
        if len(outside):
            raise ValueError(
                f"example {int(outside[0])} (from 0) of a batch of step {step} has the labels "
                f"{labels[outside[0]].tolist()}; {_SEVERAL_LABELS}"
            )
    if classes == 1 or problem not in (None, "single_label_classification"):
        return
    if labels.dim() == 2 and labels.shape[1] > 1 and not labels.is_floating_point():
        raise ValueError(
            f"labels are {labels.shape[1]} integers an example, and the student takes one class for each; give floats, "
            f"or a student with problem_type={SEVERAL!r}, for several labels"
        )
    if labels.dim() == 2 and not labels.is_floating_point():
        raise ValueError(
            f"labels have the shape {list(labels.shape)}, and the student takes one class for each example; flatten "
            "them in the data collator: labels.view(-1)"
        )
    if labels.dim() != 1:
        return
    if labels.is_floating_point():
        raise ValueError(
            f"labels are {str(labels.dtype).removeprefix('torch.')} numbers, one an example, and the student has "
            f"{classes} classes; give class numbers as integers, or a student with num_labels=1 for a regression"
        )
    (outside,) = ((labels != IGNORED) & ((labels < 0) | (labels >= classes))).nonzero(as_tuple=True)
    if len(outside):
        raise ValueError(
            f"example {int(outside[0])} (from 0) of a batch of step {step} has the label {int(labels[outside[0]])}; "
            f"the student has {classes} classes, from 0: give it more (num_labels), or clean the data"
        )
