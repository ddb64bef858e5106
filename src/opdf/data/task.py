"""What a dataset asks for: its inputs, its labels and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

KINDS = ("classification", "regression", "image-classification")


@dataclass(frozen=True)
class Task:
    """The task of a dataset.

    Attributes:
        kind: "classification", "regression" (both of one text or a pair) or "image-classification".
        inputs: names of one or two text columns, or of the image column.
        label: name of the label column: an integer class, or a float.
        labels: names of the classes in the order of their numbers; empty for a regression.
        metric: the metric that the task is judged by.
    """

    kind: str
    inputs: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metric: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"task is {self.kind!r}; expected one of {', '.join(KINDS)}")
        if not self.metric:
            object.__setattr__(self, "metric", "pearson_spearman" if self.kind == "regression" else "accuracy")

    @property
    def num_labels(self) -> int:
        """Outputs of the model's head."""
        return len(self.labels) or 1

    @property
    def is_image(self) -> bool:
        return self.kind == "image-classification"

    def compute_metrics(self) -> Callable[[Any], dict[str, float]]:
        """A function of transformers' EvalPrediction for the Trainer."""
        return _regression_metrics if self.kind == "regression" else _classification_metrics


def standard_error(score: float, examples: int) -> float:
    """Of an accuracy measured on `examples` independent examples."""
    return float(np.sqrt(score * (1 - score) / examples))


def _logits(predictions: Any) -> np.ndarray:
    return np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)


def _classification_metrics(prediction: Any) -> dict[str, float]:
    guesses, labels = _logits(prediction.predictions).argmax(-1), np.asarray(prediction.label_ids)
    binary = _logits(prediction.predictions).shape[-1] == 2
    return {
        "accuracy": float(accuracy_score(labels, guesses)),
        "f1": float(f1_score(labels, guesses, average="binary" if binary else "macro")),
        "matthews": float(matthews_corrcoef(labels, guesses)),
    }


def _regression_metrics(prediction: Any) -> dict[str, float]:
    guesses, labels = _logits(prediction.predictions).reshape(-1), np.asarray(prediction.label_ids).reshape(-1)
    if np.ptp(guesses) == 0:  # a constant has no correlation
        return {"pearson": 0.0, "spearman": 0.0, "pearson_spearman": 0.0}
    pearson, spearman = float(pearsonr(guesses, labels)[0]), float(spearmanr(guesses, labels)[0])
    return {"pearson": pearson, "spearman": spearman, "pearson_spearman": (pearson + spearman) / 2}
