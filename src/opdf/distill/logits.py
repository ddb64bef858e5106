"""Logits distillation (Hinton, Vinyals, Dean: arXiv 1503.02531), the common ground of all other methods."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from opdf.distill.objective import (
    Batch,
    Losses,
    Objective,
    config_of,
    forward,
    is_causal,
    is_language_model,
    teacher_forward,
    token_labels,
)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL( softmax(teacher / T) || softmax(student / T) ), summed over classes and items.

    T^2 keeps the size of the gradient independent of T.

    Args:
        student, teacher: logits `[items, classes]`.
        temperature: T > 0.
    """
    target = F.log_softmax(teacher / temperature, dim=-1)
    predicted = F.log_softmax(student / temperature, dim=-1)
    return F.kl_div(predicted, target, reduction="sum", log_target=True) * temperature**2


def soft_binary_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The same for several labels at once, each a sigmoid: mean over labels, summed over items."""
    target, scaled = torch.sigmoid(teacher / temperature), teacher / temperature
    cross = F.binary_cross_entropy_with_logits(student / temperature, target, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(scaled, target, reduction="none")
    return (cross - entropy).mean(-1).sum() * temperature**2


def squared_loss(student: Tensor, target: Tensor) -> Tensor:
    """Squared error of a regression, mean over outputs, summed over items."""
    return (student - target.reshape(student.shape)).square().flatten(1).mean(-1).sum()


class LogitsDistillation(Objective):
    """(1 - alpha) task + alpha distillation.

    The task decides the two terms: cross-entropy and `soft_loss` for classes and (shifted, unmasked) tokens, squared
    errors for a regression, binary cross-entropies for several labels at once. A vision model is a classifier. The
    teacher runs on every batch, unless the data brings its logits in a column "teacher_logits".

    Args:
        temperature: T, above 0; useful from 1 to 8. Not used in a regression.
        alpha: weight of the distillation term, from 0 (plain training) to 1 (labels are not used).
    """

    columns: tuple[str, ...] = ("teacher_logits",)

    def __init__(self, temperature: float = 2.0, alpha: float = 0.9) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; it must be a finite number above 0")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must be from 0 (labels only) to 1 (teacher only)")
        self.temperature = temperature
        self.alpha = alpha

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        if teacher is None and self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha} but there is no teacher; pass one, or set alpha=0")
        if teacher is not None:
            check_same_outputs(student, teacher)

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        ours = forward(student, batch).logits
        theirs = None
        if self.alpha and "teacher_logits" in batch:
            theirs = batch["teacher_logits"].to(ours.device)
        elif self.alpha and teacher is not None:
            theirs = teacher_forward(teacher, batch).logits
        return self.combine(student, ours, theirs, batch, num_items)

    def combine(
        self, student: nn.Module, ours: Tensor, theirs: Tensor | None, batch: Batch, num_items: Tensor
    ) -> Losses:
        """The weighted loss of logits that are already computed; `theirs` may be None when alpha is 0."""
        parts: dict[str, Tensor] = {}
        total = ours.new_zeros(())
        if self.alpha < 1:
            if "labels" not in batch:
                raise ValueError(f"the batch has no 'labels' and alpha is {self.alpha}; set alpha=1 to learn without")
            task = task_loss(student, ours, batch["labels"]) / num_items
            parts["task"] = task.detach()
            # A factor of 1 is left out so that alpha=0 is plain training bit for bit.
            total = (1 - self.alpha) * task if self.alpha else task
        if theirs is not None and self.alpha > 0:
            soft = distillation_loss(student, ours, theirs, batch, self.temperature) / num_items
            parts["distillation"] = soft.detach()
            total = total + self.alpha * soft
        return Losses(total, parts)


def task_loss(student: nn.Module, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss against labels, summed over items."""
    kind = kind_of(student, logits, labels)
    if kind == "tokens":  # chosen before they are made float32: a vocabulary of logits is large
        logits, labels = _kept_tokens(student, logits, labels)
    logits = precise(logits)
    if kind == "tokens":
        return F.cross_entropy(logits, labels, reduction="sum")
    if kind == "regression":
        return squared_loss(logits, labels.to(logits.dtype))
    if kind == "multi-label":
        target = labels.to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(-1).sum()
    return F.cross_entropy(logits, labels, reduction="sum")


def distillation_loss(student: nn.Module, ours: Tensor, theirs: Tensor, batch: Batch, temperature: float) -> Tensor:
    """The loss against the teacher's logits, summed over items."""
    kind = kind_of(student, ours, batch.get("labels"))
    if kind == "tokens":
        labels = token_labels(student, batch)
        if labels is None:
            raise ValueError("the batch has no 'labels' that say which tokens count; add them, -100 where none counts")
        ours, theirs = (_kept_tokens(student, logits, labels)[0] for logits in (ours, theirs))
    ours, theirs = precise(ours), precise(theirs)
    if kind == "regression":
        return squared_loss(ours, theirs)
    if kind == "multi-label":
        return soft_binary_loss(ours, theirs, temperature)
    return soft_loss(ours, theirs, temperature)


def kind_of(model: nn.Module, logits: Tensor, labels: Tensor | None = None) -> str:
    """ "tokens", "regression", "multi-label" or "classes", as transformers' own heads decide it.

    Where their configuration leaves it open, they take labels that are no integers for several labels an example, and
    write that into the configuration at the first loss of their own; ours may come before.
    """
    config = config_of(model)
    if logits.dim() == 3:
        return "tokens"
    problem = getattr(config, "problem_type", None)
    several = labels is not None and labels.is_floating_point() and logits.shape[-1] > 1
    if problem == "multi_label_classification" or (config is not None and problem is None and several):
        return "multi-label"
    return "regression" if problem == "regression" or logits.shape[-1] == 1 else "classes"


HEADLESS = {name for names in MODEL_MAPPING_NAMES.values() for name in ((names,) if isinstance(names, str) else names)}
"""Classes of transformers that end in hidden states."""


def check_same_outputs(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student and a teacher whose outputs do not mean the same.

    Raises:
        ValueError: different numbers of labels, different label names, or different vocabularies.
    """
    for who, model in (("student", student), ("teacher", teacher)):
        if type(model).__name__ in HEADLESS:
            raise ValueError(
                f"the {who} is a {type(model).__name__}, which ends in hidden states; load it with a head for the task "
                "(AutoModelFor...), or use EmbeddingDistillation"
            )
    ours, theirs = config_of(student), config_of(teacher)
    if ours is None or theirs is None:
        return
    if is_language_model(student):
        if ours.vocab_size != theirs.vocab_size:
            raise ValueError(
                f"the student's vocabulary has {ours.vocab_size} tokens and the teacher's {theirs.vocab_size}; "
                "token-level distillation needs the same tokenizer"
            )
        return
    if ours.num_labels != theirs.num_labels:
        raise ValueError(
            f"the student has {ours.num_labels} labels and the teacher {theirs.num_labels}; "
            "make both for the same task (num_labels=...)"
        )
    names = [list(map(str, c.id2label.values())) for c in (ours, theirs)]
    named = [not all(n.startswith("LABEL_") for n in labels) for labels in names]
    if all(named) and names[0] != names[1]:
        raise ValueError(f"the student's labels are {names[0]}, the teacher's {names[1]}; give both in the same order")


def _kept_tokens(model: nn.Module, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if is_causal(model):
        logits, labels = logits[:, :-1], labels[:, 1:]
    kept = labels != -100
    return logits[kept], labels[kept]


def precise(logits: Tensor) -> Tensor:
    """Logits in float32, or in float64 if they are."""
    return logits if logits.dtype == torch.float64 else logits.float()
