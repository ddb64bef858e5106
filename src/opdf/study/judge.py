"""How students of a study are judged: their answers for each example, the labels, and a score of the two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.stats import entropy

from opdf.data import IGNORED, Prepared, Task
from opdf.job import embedder, evaluator, pair_cosines

OF_TOKENS = ("causal-lm", "token-classification")
"""Tasks with a label for every token, so that another tokenizer makes other labels."""

POINT = "A point of perplexity is a hundredth of its logarithm: +5.0 is 4.9 % less of it."


@dataclass(frozen=True)
class Judge:
    """Scores answers against labels; higher is better.

    A language model's score is the mean logarithm of a token's probability: minus the logarithm of perplexity.

    Args:
        task: of the data.
    """

    task: Task

    @property
    def unit(self) -> str:
        """Of scores; those of one unit have a mean."""
        return "logarithm" if self.task.kind == "causal-lm" else "share"

    def score(self, answers: np.ndarray, labels: np.ndarray) -> float:
        """Of `answers_of` and `labels_of` the same examples."""
        if self.task.kind == "causal-lm":
            return -float(answers.sum() / (labels[:, 1:] != IGNORED).sum())
        return self.task.score(answers, labels)

    def chance(self, labels: np.ndarray) -> float:
        """The score of the best constant answer; for values, where any constant is as good, of 0.

        A language model's is the same guess at every place: each token as often as it occurs.
        """
        if self.task.kind == "causal-lm":
            tokens = labels[:, 1:]
            return -float(entropy(np.unique(tokens[tokens != IGNORED], return_counts=True)[1]))
        return max(self.score(np.broadcast_to(same, labels.shape), labels) for same in self._constants(labels))

    def no_answers(self, labels: np.ndarray, processor: Any) -> np.ndarray:
        """The answers that count for a student that diverged: class 0, no label, the value 0, all tokens alike.

        Its own outputs are NaN, to which no probe can be fitted and which have no correlation.

        Args:
            labels: of the examples.
            processor: a language model's tokenizer, which tells how many tokens there are; not used for other tasks.
        """
        if self.task.kind == "causal-lm":
            return (labels[:, 1:] != IGNORED).sum(axis=1) * np.log(len(processor))
        return np.zeros(labels.shape, int)

    def _constants(self, labels: np.ndarray) -> Iterator[np.ndarray]:
        if self.task.kind == "multi-label":  # the best answer is some of the most frequent ones
            place = np.argsort(np.argsort(-labels.sum(axis=0), kind="stable"))
            yield from ((place < count).astype(int) for count in range(labels.shape[1] + 1))
        elif self.task.has_classes or self.task.kind == "token-classification":
            yield from np.unique(labels[labels != IGNORED])
        else:
            yield np.zeros(())


def labels_of(prepared: Prepared, part: str) -> np.ndarray:
    """The labels of a split: class numbers `[examples]` or `[examples, tokens]`, 0 or 1 `[examples, classes]`, values.

    A language model's are the tokens themselves. Shorter rows end with -100.
    """
    task = prepared.task
    if task.kind in OF_TOKENS:
        rows = prepared.data[part].select_columns("labels").with_format(None)[:]["labels"]
        return np.array(list(zip_longest(*rows, fillvalue=IGNORED))).T
    return raw_labels(prepared.raw[part], task)


def raw_labels(rows: Dataset, task: Task) -> np.ndarray:
    """The same of rows that are not encoded, where labels are of examples."""
    found: np.ndarray = rows.select_columns(task.label).with_format("numpy")[:][task.label]
    return found


def answers_of(model: Any, prepared: Prepared, part: str) -> np.ndarray:
    """A model's answers for a split: as its labels are, cosines `[pairs]`, or the losses of texts `[examples]`."""
    task, rows = prepared.task, prepared.data[part]
    if task.kind == "similarity":
        return pair_cosines(embedder(model), rows, prepared.collator).numpy()
    found = evaluator(model, prepared).predict(rows)
    if task.kind == "causal-lm":
        scored = np.asarray(found.label_ids)[:, 1:] != IGNORED
        return np.where(scored, found.predictions[0], 0.0).sum(axis=1, dtype=np.float64)
    return task.answers(found.predictions)
