"""Scores of answers against labels. Higher is better, except for perplexity."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as entity_f1, precision_score as entity_precision, recall_score as entity_recall
from sklearn.metrics import f1_score, matthews_corrcoef

IGNORED = -100
"""The label that torch's cross-entropy passes over: of an example without one, a mark of the tokenizer's, or a further
piece of a word."""

Score = Callable[[np.ndarray, np.ndarray, Sequence[str]], float]
"""A score from answers, labels and the names of the classes."""


def accuracy(answers: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> float:
    """Share of the examples, or of the tokens, that are right."""
    return float(np.mean((answers == labels)[labels != IGNORED]))


def f1(answers: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> float:
    """Of the second of two classes; of more, the mean over classes."""
    return float(f1_score(labels, answers, average="binary" if len(names) == 2 else "macro", zero_division=0))


def matthews(answers: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> float:
    with warnings.catch_warnings(action="ignore"):  # of one class alone, which scores 0
        return float(matthews_corrcoef(labels, answers))


def f1_micro(answers: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> float:
    """Of all labels of all examples together, `[examples, classes]` of 0 and 1."""
    return float(f1_score(labels.reshape(-1), answers.reshape(-1), zero_division=0))


def f1_macro(answers: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> float:
    """The mean over labels, without those that no example has and no answer names."""
    if labels.shape[1] == 1:  # scikit-learn would take the single column for two classes, 0 and 1
        return f1_micro(answers, labels, names)
    score = float(f1_score(labels, answers, average="macro", zero_division=np.nan))
    return 0.0 if np.isnan(score) else score


def token_f1(answers: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> float:
    """The mean of F1 over the tags of single tokens `[examples, tokens]`."""
    scored = labels != IGNORED
    return float(f1_score(labels[scored], answers[scored], average="macro", zero_division=0))


def correlation(*coefficients: Callable[..., tuple[float, float]]) -> Score:
    def score(answers: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> float:
        values = labels.reshape(-1)
        if np.ptp(answers) == 0 or np.ptp(values) == 0:  # a constant has no correlation
            return 0.0
        return float(np.mean([coefficient(answers, values)[0] for coefficient in coefficients]))

    return score


SEQEVAL = {"L": "E", "U": "S"}
"""What seqeval calls the last word of an entity and the only one. It would not see where those called L and U end."""


def entities(metric: Callable[..., float]) -> Score:
    """A metric of seqeval's of whole entities: type, beginning and end must be right (CoNLL's rules)."""

    def score(answers: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> float:
        scored = [row != IGNORED for row in labels]
        tags = np.asarray([SEQEVAL.get(name[:1], name[:1]) + name[1:] for name in names], object)
        said, right = ([list(tags[row[k]]) for row, k in zip(some, scored, strict=True)] for some in (answers, labels))
        with warnings.catch_warnings(action="ignore"):  # of no entities at all, which scores 0
            return float(metric(right, said, zero_division=0))

    return score


SCORES: dict[str, dict[str, Score]] = {
    "classification": {"accuracy": accuracy, "f1": f1, "matthews": matthews},
    "image-classification": {"accuracy": accuracy, "f1": f1, "matthews": matthews},
    "multi-label": {"f1_micro": f1_micro, "f1_macro": f1_macro},
    "regression": {
        "pearson": correlation(pearsonr),
        "spearman": correlation(spearmanr),
        "pearson_spearman": correlation(pearsonr, spearmanr),
    },
    "similarity": {"spearman": correlation(spearmanr)},
    "token-classification": {"accuracy": accuracy, "f1": token_f1},
    "entities": {
        "f1": entities(entity_f1),
        "precision": entities(entity_precision),
        "recall": entities(entity_recall),
        "accuracy": accuracy,
    },
}
"""The scores of every kind of task. Token classification is of entities where all tags are, see `are_entities`."""

MARKS = tuple("BIESLU")
"""How tags begin that mark where entities begin, go on and end."""

LOWER_IS_BETTER = ("perplexity",)
"""Metrics whose smaller values are better; of all others larger ones are."""

JUDGED_BY = {
    "classification": "accuracy", "image-classification": "accuracy", "multi-label": "f1_micro",
    "regression": "pearson_spearman", "similarity": "spearman", "token-classification": "accuracy", "entities": "f1",
    "causal-lm": "perplexity",
}  # fmt: skip
"""The score that a task is judged by unless it says otherwise."""


def are_entities(names: Sequence[str]) -> bool:
    """Whether tags mark entities: O, and others that are B, I, E, S, L or U, with or without - and a type behind it."""
    return "O" in names and all(name == "O" or (name[:1] in MARKS and name[1:2] in ("", "-")) for name in names)


def token_agreement(answers: np.ndarray, others: np.ndarray, labels: np.ndarray) -> float:
    """Share of the tokens `[examples, tokens - 1]`, without those that labels ignore, that two models guess alike."""
    return float(np.mean((answers == others)[labels[:, 1:] != IGNORED]))


def perplexity(losses: np.ndarray, labels: np.ndarray) -> float:
    """exp of the mean loss a token, of losses `[examples, tokens - 1]` of the tokens that `labels[:, 1:]` keep."""
    return float(np.exp(losses[labels[:, 1:] != IGNORED].astype(np.float64).mean()))
