"""Losses that methods share, summed over items, and how many items there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opdf.data import IGNORED
from opdf.distill.models import config_of, is_causal, is_language_model, is_regression, kind_of, unwrapped

Batch = Mapping[str, Tensor]
"""What the collator made: input_ids and attention_mask `[batch, tokens]` int64, or pixel_values
`[batch, channels, height, width]` float32; labels `[batch]` or `[batch, tokens]`; the objective's `columns`."""


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL( softmax(teacher / T) || softmax(student / T) ), summed over classes and items.

    T^2 keeps the size of the gradient independent of T.

    Args:
        student, teacher: logits `[items, classes]`; -inf is a class that the teacher rules out, which adds nothing.
        temperature: T > 0.
    """
    predicted = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(predicted, _target(teacher, temperature), reduction="sum", log_target=True) * temperature**2


def _target(teacher: Tensor, temperature: float) -> Tensor:
    """log softmax(teacher / T), finite where the teacher's logit is -inf: 0 * -inf would make the loss NaN."""
    return F.log_softmax((teacher / temperature).clamp_(min=torch.finfo(teacher.dtype).min), dim=-1)


def reverse_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL( student || teacher ): the student keeps to what the teacher finds likely (MiniLLM: arXiv 2306.08543).

    It is infinite where the teacher rules a class out by -inf.
    """
    target, predicted = (F.log_softmax(logits / temperature, dim=-1) for logits in (student, teacher))
    return F.kl_div(predicted, target, reduction="sum", log_target=True) * temperature**2


def jensen_shannon_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 (KL( teacher || m ) + KL( student || m )) / 2 with their mean m (GKD: arXiv 2306.13649, beta = 1/2)."""
    target = _target(teacher, temperature)
    predicted = F.log_softmax(student / temperature, dim=-1)
    middle = torch.logaddexp(target, predicted) - math.log(2)
    both = [F.kl_div(middle, side, reduction="sum", log_target=True) for side in (target, predicted)]
    return (both[0] + both[1]) * (temperature**2 / 2)


Divergence = Callable[[Tensor, Tensor, float], Tensor]
"""Logits `[items, classes]` of student and teacher and a temperature, to a loss summed over items."""

DIVERGENCES: dict[str, Divergence] = {"forward": soft_loss, "reverse": reverse_loss, "js": jensen_shannon_loss}
"""How far a student's distribution is from its teacher's, by the names of an option."""


def soft_binary_loss(
    student: Tensor, teacher: Tensor, temperature: float, divergence: Divergence = soft_loss
) -> Tensor:
    """The same for several labels at once, each a sigmoid: mean over labels, summed over items."""
    ours, theirs = (torch.stack([logits, torch.zeros_like(logits)], -1) for logits in (student, teacher))
    return divergence(ours, theirs, temperature) / student.shape[-1]


def squared_loss(student: Tensor, target: Tensor) -> Tensor:
    """Squared error of a regression, mean over outputs, summed over items."""
    return (student - target.reshape(student.shape)).square().flatten(1).mean(-1).sum()


def task_loss(student: nn.Module, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The loss against labels, summed over items; `weights` are of classes `[classes]`."""
    kind = kind_of(student, logits, labels)
    if kind == "tokens":  # chosen before they are made float32: a vocabulary of logits is large
        logits, labels = kept_places(student, logits, labels), kept_labels(student, labels)
    elif weights is not None and kind != "classes":
        raise ValueError(
            f"class_weights are for one class an example or word, and the outputs are {kind}; leave them out"
        )
    logits = precise(logits)
    if kind == "regression":
        return squared_loss(logits, labels.to(logits.dtype))
    if kind == "multi-label":
        target = labels.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1).sum()
    _check_shares(labels)
    weights = None if weights is None else weights.to(logits.dtype)
    return F.cross_entropy(logits, labels, weights, reduction="sum")


def _check_shares(labels: Tensor) -> None:
    """Refuse labels that are no shares of classes where an example has one: several labels, or numbers to come near.

    Raises:
        ValueError: a share is below 0, or those of an example are more than 1 together.
    """
    if labels.is_floating_point() and labels.dim() == 2:
        wrong = labels[(labels < 0).any(-1) | (labels.sum(-1) > 1.01)]  # rounding in bf16 may add so much
        if len(wrong):
            raise ValueError(
                f"an example has the labels {wrong[0].tolist()}, which are no shares of classes, and an example has "
                "one class; for several labels or numbers an example give a model of transformers whose problem_type "
                "says so, or write an Objective"
            )


def distillation_loss(
    student: nn.Module, ours: Tensor, theirs: Tensor, batch: Batch, temperature: float, divergence: str = "forward"
) -> Tensor:
    """The loss against the teacher's logits, summed over items; one of `DIVERGENCES`, or squares in a regression.

    Raises:
        ValueError: the teacher has outputs of another shape, of which one alone would be taken for all classes; or
            labels say that outputs are no classes.
    """
    kind = kind_of(student, ours, batch.get("labels"))
    if kind == "tokens":
        labels = token_labels(student, batch)
        if labels is None:
            raise ValueError("the batch has no 'labels' that say which tokens count; add them, -100 where none counts")
        ours, theirs = (kept_places(student, logits, labels) for logits in (ours, theirs))
    ours, theirs = precise(ours), precise(theirs)
    if kind == "regression":
        return squared_loss(ours, theirs)
    check_alike(ours, theirs)
    if kind == "classes" and (given := batch.get("labels")) is not None:
        _check_shares(given)
    if kind == "multi-label":
        return soft_binary_loss(ours, theirs, temperature, DIVERGENCES[divergence])
    return DIVERGENCES[divergence](ours, theirs, temperature)


def check_alike(ours: Tensor, theirs: Tensor) -> None:
    """Refuse logits of a student and a teacher that are not of the same classes."""
    if ours.shape != theirs.shape:
        raise ValueError(
            f"the student's outputs are of shape {tuple(ours.shape)} and the teacher's {tuple(theirs.shape)}; give a "
            "teacher, or a column of its outputs, for the same classes"
        )


def check_one_each(outputs: Tensor, labels: Tensor) -> None:
    """Refuse outputs `[batch, tokens, ...]` of more tokens or fewer than there are labels `[batch, tokens]` for.

    Raises:
        ValueError: they are.
    """
    if outputs.shape[:2] != labels.shape:
        raise ValueError(
            f"a model's outputs are of {outputs.shape[1]} tokens and the labels of {labels.shape[1]} (prompt tuning "
            "adds tokens, speech models have frames); give models with one output for each label (LoRA or prefix "
            "tuning in place of prompts), or write an Objective"
        )


def kept_labels(student: nn.Module, labels: Tensor) -> Tensor:
    """`[tokens]`, those of labels `[batch, tokens]` that are not -100 and that a model predicts."""
    labels = labels[:, 1:] if is_causal(student) else labels
    return labels[labels != IGNORED]


def kept_places(student: nn.Module, values: Tensor, labels: Tensor) -> Tensor:
    """`[tokens, ...]` of values `[batch, tokens, ...]` at the places where the same tokens are predicted."""
    check_one_each(values, labels)
    values, labels = (values[:, :-1], labels[:, 1:]) if is_causal(student) else (values, labels)
    return values[(labels != IGNORED).to(values.device)]


def precise(values: Tensor) -> Tensor:
    """Values in float32, or in float64 if they are."""
    return values if values.dtype == torch.float64 else values.float()


def token_labels(model: nn.Module, batch: Batch) -> Tensor | None:
    """Labels `[batch, tokens]`, -100 where nothing is learned, or None where a batch has no label per token.

    Without labels a language model learns at every token that is not padding, an encoder-decoder of its decoder's. A
    causal one does not learn the first token of a text: where padding stands before it, that token would be predicted
    of nothing, or not at all, depending on the batch.

    Raises:
        TypeError: the batch has no names.
    """
    _check_has_names(batch)
    config = config_of(model)
    if getattr(config, "problem_type", None) in ("multi_label_classification", "regression"):
        return None
    side = "decoder_" if getattr(config, "is_encoder_decoder", False) else ""
    labels = batch.get("labels")
    if labels is None and f"{side}input_ids" in batch and is_language_model(model):
        labels, mask = batch[f"{side}input_ids"], batch.get(f"{side}attention_mask")
        labels = labels if mask is None else labels.masked_fill(mask == 0, IGNORED)
    if labels is None or labels.dim() != 2 or labels.is_floating_point():
        return None
    mask = batch.get("attention_mask")
    if mask is None or mask.shape != labels.shape or not is_causal(model):
        return labels
    real = (mask != 0).long()
    return labels.masked_fill(real.cumsum(1) == real, IGNORED)  # no real token before


def labels_of(model: nn.Module, batch: Batch) -> Tensor:
    """The labels of a batch; those of tokens as `token_labels` has them.

    Raises:
        ValueError: it has none.
    """
    if "labels" not in batch:
        raise ValueError("the batch has no 'labels', which this method learns from; add them to the training data")
    labels = token_labels(model, batch)
    return batch["labels"] if labels is None else labels


def count_labelled(student: nn.Module, batch: Batch) -> Tensor:
    """`[2]` int64: the items of a batch, and those of them that have a label; -100 is none.

    What is learned from a teacher is a mean over the first, what is learned from labels a mean over the second.
    """
    items, labels = items_by_example(student, batch).sum(), batch.get("labels")
    if labels is None or labels.dim() != 1 or labels.is_floating_point() or is_regression(student):
        return torch.stack([items, items])
    return torch.stack([items, labels.ne(IGNORED).sum()])


def items_by_example(student: nn.Module, batch: Batch) -> Tensor:
    """`[batch]` int64: 1 each; kept tokens (label not -100, shifted as the model does) where labels are per token."""
    labels = token_labels(student, batch)
    if labels is not None:
        return (labels[:, 1:] if is_causal(student) else labels).ne(IGNORED).sum(1)
    rows = batch["labels"] if "labels" in batch else main_input(student, batch)
    return torch.ones(rows.shape[0], dtype=torch.int64, device=rows.device)


def main_input(model: nn.Module, batch: Batch) -> Tensor:
    """The input of a model that has a row for each example: positions, say, may be one row for all.

    Raises:
        TypeError: the batch has no names.
    """
    _check_has_names(batch)
    name = getattr(unwrapped(model), "main_input_name", "")
    return batch[name] if name in batch else next(iter(batch.values()))


def _check_has_names(batch: Any) -> None:
    """Refuse what collators for loops of one's own make, such as pairs of inputs and labels."""
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"the batch is a {type(batch).__name__}; have the data collator return a mapping of names to tensors, with "
            "the models' inputs and labels"
        )
