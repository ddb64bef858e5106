"""What a dataset asks for: its inputs, its labels and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

CORRELATIONS = {"pearson": (pearsonr,), "spearman": (spearmanr,), "pearson_spearman": (pearsonr, spearmanr)}
"""Metrics of a regression, each the mean of some coefficients."""

CLASS_METRICS = ("accuracy", "f1", "matthews")
KINDS = ("classification", "regression", "image-classification", "similarity")


@dataclass(frozen=True)
class Task:
    """The task of a dataset.

    Attributes:
        kind: "classification", "regression" (both of one text or a pair), "image-classification", or "similarity":
            two texts with a number that says how alike they are, which a model without a head is scored on.
        inputs: names of one or two text columns, or of the image column.
        label: name of the label column: an integer class, or a float.
        labels: names of the classes in the order of their numbers; empty for a regression.
        metric: the metric that the task is judged by.
        notes: sentences about how the data were taken that their owner should read; no part of what the task is.
    """

    kind: str
    inputs: tuple[str, ...]
    label: str
    labels: tuple[str, ...]
    metric: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"task is {self.kind!r}; expected one of {', '.join(KINDS)}")
        if not self.metric:
            metrics = {"regression": "pearson_spearman", "similarity": "spearman"}
            object.__setattr__(self, "metric", metrics.get(self.kind, "accuracy"))

    @property
    def num_labels(self) -> int:
        """Outputs of the model's head."""
        return len(self.labels) or 1

    @property
    def columns(self) -> tuple[str, ...]:
        """All that the task reads: its inputs and its label."""
        return (*self.inputs, self.label)

    @property
    def has_classes(self) -> bool:
        return self.kind in ("classification", "image-classification")

    @property
    def is_image(self) -> bool:
        return self.kind == "image-classification"

    def compute_metrics(self) -> Callable[[Any], dict[str, float]] | None:
        """A function of transformers' EvalPrediction for the Trainer; None for similarities, which have no logits."""
        if self.kind == "similarity":
            return None
        return lambda prediction: self.metrics(self.answers(prediction.predictions), np.asarray(prediction.label_ids))

    def answers(self, predictions: Any) -> np.ndarray:
        """A model's outputs `[examples, classes or 1]` as class numbers or values `[examples]`."""
        outputs = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
        return outputs.reshape(-1) if self.kind == "regression" else outputs.argmax(-1)

    def metrics(self, answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Every metric of the task, higher is better; `metric` names the one that counts."""
        names = {"regression": tuple(CORRELATIONS), "similarity": ("spearman",)}.get(self.kind, CLASS_METRICS)
        return {name: self.score(answers, labels, name) for name in names}

    def score(self, answers: np.ndarray, labels: np.ndarray, metric: str = "") -> float:
        """One metric, by default the one that the task is judged by."""
        if not self.has_classes:
            return _correlation(answers, labels.reshape(-1), metric or self.metric)
        if (metric or self.metric) == "matthews":
            return float(matthews_corrcoef(labels, answers))
        if (metric or self.metric) == "f1":
            average = "binary" if len(self.labels) == 2 else "macro"
            return float(f1_score(labels, answers, average=average))
        return float(np.mean(answers == labels))


def _correlation(answers: np.ndarray, labels: np.ndarray, metric: str) -> float:
    if np.ptp(answers) == 0 or np.ptp(labels) == 0:  # a constant has no correlation
        return 0.0
    return float(np.mean([coefficient(answers, labels)[0] for coefficient in CORRELATIONS[metric]]))
