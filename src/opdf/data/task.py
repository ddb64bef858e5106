"""The task of a dataset: its inputs, its labels and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from opdf.data.metrics import JUDGED_BY, SCORES, are_entities, perplexity

KINDS = (
    "classification", "multi-label", "regression", "image-classification", "token-classification", "similarity",
    "causal-lm",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """The task of a dataset.

    Attributes:
        kind: "classification" (one class) and "multi-label" (any number of them) and "regression", of one text or a
            pair; "image-classification"; "token-classification", a tag for every word; "similarity": two texts with a
            number for how alike they are, on which a model without a head is scored; "causal-lm": text whose next
            token is predicted.
        inputs: names of one or two text columns, of the image column, of a column of words, or of the column of a
            conversation's messages.
        label: name of the label column: a class number, class numbers of words, 0 or 1 for every class, or a number.
            None without labels: a language model needs none, and other tasks learn from the teacher alone.
        labels: names of the classes in the order of their numbers; empty without classes, or if the teacher gives
            them.
        metric: the metric that the task is judged by.
        notes: sentences for the user about how the data were read; they are no part of the task.
    """

    kind: str
    inputs: tuple[str, ...]
    label: str | None
    labels: tuple[str, ...] = ()
    metric: str = ""
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"task is {self.kind!r}; expected one of {', '.join(KINDS)}")
        if not self.metric:
            object.__setattr__(self, "metric", "agreement" if self.is_unlabelled else JUDGED_BY[self._scored_as])

    @property
    def num_labels(self) -> int:
        """Outputs of the model's head."""
        return len(self.labels) or 1

    @property
    def columns(self) -> tuple[str, ...]:
        """All that the task reads: its inputs and its label."""
        return (*self.inputs, *([self.label] if self.label is not None else []))

    @property
    def has_classes(self) -> bool:
        """Whether an example has one class."""
        return self.kind in ("classification", "image-classification")

    @property
    def is_image(self) -> bool:
        return self.kind == "image-classification"

    @property
    def is_unlabelled(self) -> bool:
        """Whether students learn from the teacher alone and are scored against its answers."""
        return self.label is None and self.kind != "causal-lm"

    @property
    def follows_teacher(self) -> bool:
        """Whether students are scored against their teacher's answers."""
        return self.is_unlabelled or self.kind == "causal-lm"

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The metrics that a model is scored by."""
        if self.kind == "causal-lm":
            return ("perplexity",)
        return ("agreement",) if self.is_unlabelled else tuple(SCORES[self._scored_as])

    def compute_metrics(self) -> Callable[[Any], dict[str, float]] | None:
        """A function of transformers' EvalPrediction for the Trainer; None for similarities, which have no logits.

        The Trainer is to be given `kept_outputs` as `preprocess_logits_for_metrics`, see `Prepared.for_trainer`.
        """
        if self.kind == "similarity":
            return None
        if self.kind == "causal-lm":
            return lambda prediction: {"perplexity": perplexity(prediction.predictions[0], prediction.label_ids)}
        return lambda prediction: self.metrics(self.answers(prediction.predictions), np.asarray(prediction.label_ids))

    def kept_outputs(self, outputs: Any, labels: Tensor) -> Any:
        """The part of a batch's outputs that scores are computed from.

        For a language model's logits `[batch, tokens, vocabulary]` these are the loss and the likeliest token
        `[batch, tokens - 1]` at every place but the last. Other outputs stay as they are.
        """
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        if self.kind != "causal-lm":
            return logits
        pairs = zip(logits[:, :-1], labels[:, 1:], strict=True)  # one after the other: a vocabulary of logits is large
        losses = torch.stack([F.cross_entropy(row.float(), right, reduction="none") for row, right in pairs])
        return losses, logits[:, :-1].argmax(-1)

    def answers(self, predictions: Any) -> np.ndarray:
        """A model's answers.

        Class numbers `[examples]` or `[examples, tokens]`, 0 or 1 `[examples, classes]`, values `[examples]`, or
        the likeliest next tokens `[examples, tokens - 1]` of a language model's `kept_outputs`.
        """
        if self.kind == "causal-lm":
            return np.asarray(predictions[1])
        outputs = np.asarray(predictions[0] if isinstance(predictions, tuple) else predictions)
        if self.kind == "multi-label":
            return (outputs > 0).astype(int)
        return outputs.reshape(-1) if self.kind == "regression" else outputs.argmax(-1)

    def metrics(self, answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Every metric of the task, higher is better; `metric` names the one that counts.

        Args:
            answers: see `answers`; of a similarity cosines `[pairs]`.
            labels: of the same shape; tokens labelled -100 are not scored.
        """
        if self.is_unlabelled and np.array_equal(answers, labels):
            return {"agreement": 1.0}  # also where a score is none: no label in any row, the same number in all
        if self.is_unlabelled:
            return {"agreement": replace(self, label="teacher", metric="").score(answers, labels)}
        return {name: score(answers, labels, self.labels) for name, score in SCORES[self._scored_as].items()}

    def score(self, answers: np.ndarray, labels: np.ndarray, metric: str = "") -> float:
        """One metric, by default the one that the task is judged by."""
        if self.is_unlabelled:
            return self.metrics(answers, labels)["agreement"]
        return SCORES[self._scored_as][metric or self.metric](answers, labels, self.labels)

    @property
    def _scored_as(self) -> str:
        entities = self.kind == "token-classification" and are_entities(self.labels)
        return "entities" if entities else self.kind
