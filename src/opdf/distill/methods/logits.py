"""Logits distillation (Hinton, Vinyals, Dean: arXiv 1503.02531), the common ground of most other methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opdf.distill.chunks import Heads, Tokens, kept_tokens, over_chunks
from opdf.distill.ensemble import Ensemble, members, soften
from opdf.distill.losses import (
    DIVERGENCES,
    Batch,
    count_labelled,
    distillation_loss,
    kept_labels,
    kept_places,
    labels_of,
    precise,
    task_loss,
)
from opdf.distill.matching import check_has_logits, check_same_outputs
from opdf.distill.models import config_of, is_language_model, is_regression
from opdf.distill.objective import Losses, Objective
from opdf.distill.options import POSITIVE, number, numbers, one_of
from opdf.distill.outputs import BeforeTraining, teacher_logits, with_answers, worth_asking_ahead


class TaskAndLogits(Objective):
    """(1 - alpha) task + alpha distillation, of logits that a subclass computes.

    Args:
        temperature: T, above 0; useful from 1 to 8. Not used in a regression.
        alpha: weight of the distillation term, from 0 (plain training) to 1 (labels are not used).

    Attributes:
        divergence: one of `DIVERGENCES`.
        class_weights: how much a label of each class counts; None if all count alike.
    """

    divergence = "forward"
    class_weights: list[float] | None = None

    def __init__(self, temperature: float = 2.0, alpha: float = 0.9) -> None:
        self.temperature = number("temperature", temperature, POSITIVE)
        self.alpha = number("alpha", alpha, 0, 1)

    @property
    def needs_labels(self) -> bool:
        return self.alpha < 1

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        if teacher is None and self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha} but there is no teacher; pass one, or set alpha to 0")
        check_has_logits("student", student)
        for one in members(teacher) if teacher is not None else ():
            check_same_outputs(student, one)

    def count_items(self, student: nn.Module, batch: Batch) -> Tensor:
        return count_labelled(student, batch)

    def combine(
        self, student: nn.Module, ours: Tensor, theirs: Tensor | None, batch: Batch, num_items: Tensor
    ) -> Losses:
        """The weighted loss of logits; `theirs` may be None when alpha is 0."""
        parts: dict[str, Tensor] = {}
        total = ours.new_zeros(())
        items, labelled = num_items.expand(2)
        if self.alpha < 1:
            self._check_labels(batch)
            weights = None if self.class_weights is None else ours.new_tensor(self.class_weights, dtype=torch.float32)
            task = task_loss(student, ours, labels_of(student, batch), weights) / labelled
            parts["task"] = task.detach()
            # A factor of 1 is left out so that alpha=0 is plain training bit for bit.
            total = (1 - self.alpha) * task if self.alpha else task
        if theirs is not None and self.alpha > 0:
            soft = distillation_loss(student, ours, theirs, batch, self.temperature, self.divergence) / items
            parts["distillation"] = soft.detach()
            total = total + self.alpha * soft
        return Losses(total, parts)

    def combine_tokens(
        self,
        student: nn.Module,
        ours: Tokens | Tensor,
        soft: Callable[[Tensor, slice], Tensor] | None,
        labels: Tensor,
        batch: Batch,
        num_items: Tensor,
    ) -> Losses:
        """The same loss of tokens, chunk by chunk where they are not logits yet.

        Args:
            student: whose tokens these are.
            ours: its kept tokens, or all its logits `[batch, tokens, classes]`.
            soft: logits of some kept tokens and which they are, to what is learned from the teacher, summed over them.
            labels: `[batch, tokens]`, -100 where a token is not kept.
            batch, num_items: as for `losses`.
        """
        items, labelled = num_items.expand(2)
        right = kept_labels(student, labels)
        weights = {}
        if self.alpha < 1:
            self._check_labels(batch)
            weights["task"] = 1 - self.alpha
        if soft is not None and self.alpha > 0:
            weights["distillation"] = self.alpha

        def loss(logits: Tensor, rows: slice) -> dict[str, Tensor]:
            found = {}
            if "task" in weights:
                found["task"] = F.cross_entropy(logits, right[rows], reduction="sum") / labelled
            if soft is not None and "distillation" in weights:
                found["distillation"] = soft(logits, rows) / items
            return found

        if not isinstance(ours, Tensor):
            return Losses(*over_chunks(loss, ours, weights))
        parts = loss(precise(kept_places(student, ours, labels)), slice(None))
        total = torch.stack([factor * parts[name] for name, factor in weights.items()]).sum()
        return Losses(total, {name: part.detach() for name, part in parts.items()})

    def _check_labels(self, batch: Batch) -> None:
        if "labels" not in batch:
            raise ValueError(f"the batch has no 'labels' and alpha is {self.alpha}; set alpha to 1 to learn without")


class LogitsDistillation(TaskAndLogits):
    """(1 - alpha) task + alpha distillation.

    The task decides the two terms: cross-entropy and T^2 KL for classes and (shifted, unmasked) tokens, squared errors
    for a regression, binary cross-entropies for several labels at once. A vision model is a classifier. The teacher
    runs on every batch, unless the data brings its logits in a column "teacher_logits", as a run of several epochs sees
    to. A language model's logits are computed for some tokens at a time, where its head allows that.

    Args:
        temperature: T, above 0; useful from 1 to 8. Not used in a regression.
        alpha: weight of the distillation term, from 0 (plain training) to 1 (labels are not used).
        divergence: "forward" KL( teacher || student ), "reverse" KL( student || teacher ), or "js", the mean of both
            to their middle (Jensen-Shannon), whose gradients are about a quarter as large. Not used in a regression.
        class_weights: how much a label of each class counts in the task's term, in the order of their numbers.
    """

    tasks = (*Objective.tasks, "multi-label", "token-classification", "causal-lm")
    columns = ("teacher_logits",)
    several_teachers = True

    def __init__(
        self,
        temperature: float = 2.0,
        alpha: float = 0.9,
        divergence: str = "forward",
        class_weights: list[float] | None = None,
    ) -> None:
        super().__init__(temperature, alpha)
        self.class_weights = None if class_weights is None else numbers("class_weights", class_weights)
        if not all(0 < weight < math.inf for weight in self.class_weights or ()):
            raise ValueError(f"class_weights is {class_weights}; give finite numbers above 0")
        self.divergence = one_of("divergence", divergence, DIVERGENCES)
        self._heads = Heads()

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        super().prepare(student, teacher)
        soften(teacher, self.temperature)
        if self.divergence != "forward" and is_regression(student):
            raise ValueError(f"divergence is {self.divergence!r} and a regression has no distributions; leave it out")
        if self.class_weights is not None:
            self._check_weights(self.class_weights, student)

    def _check_weights(self, weights: list[float], student: nn.Module) -> None:
        """Refuse weights of classes that the student does not have one of for an example."""
        config = config_of(student)
        if self.alpha == 1:
            raise ValueError("class_weights are of labels, which alpha=1 does not use; leave them out or lower alpha")
        if config is None:
            return
        several = config.problem_type in ("regression", "multi_label_classification") or config.num_labels == 1
        if several or is_language_model(student):
            raise ValueError("class_weights are for one class an example or word; leave them out")
        if len(weights) != config.num_labels:
            raise ValueError(f"class_weights has {len(weights)} numbers and the student {config.num_labels} classes")

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        stored = batch.get("teacher_logits") if self.alpha else None
        asked = teacher if self.alpha and stored is None else None
        if stored is None:
            models = [student, *(members(asked) if asked is not None else [])]
            labels = self._heads.divide(models, batch, self.forward)
            if labels is not None:
                return self._by_chunks(student, asked, batch, labels, num_items)
        ours = self.forward(student, batch).logits
        theirs = self._said(asked, batch) if asked is not None else stored
        return self.combine(student, ours, None if theirs is None else theirs.to(ours.device), batch, num_items)

    def _said(self, teacher: nn.Module, batch: Batch) -> Tensor:
        """A teacher's logits. Labels tell several teachers what these mean, if their configurations leave it open."""
        said = [self.teacher_forward(one, batch).logits for one in members(teacher)]
        if not isinstance(teacher, Ensemble):
            return said[0]
        # Not the teacher's own: another objective that follows it too may have set that.
        return teacher.mean(said, batch.get("labels"), self.temperature)

    def _by_chunks(
        self, student: nn.Module, teacher: nn.Module | None, batch: Batch, labels: Tensor, num_items: Tensor
    ) -> Losses:
        """The same for a language model, of a head's inputs and chunks of its outputs."""
        theirs = [
            kept_tokens(one, batch, labels, self.teacher_forward, student).cast()
            for one in (members(teacher) if teacher is not None else ())
        ]
        ours = kept_tokens(student, batch, labels, self.forward, student)

        def soft(logits: Tensor, rows: slice) -> Tensor:
            said = [one.logits(rows) for one in theirs]
            if isinstance(teacher, Ensemble):
                target = teacher.mean(said, temperature=self.temperature)
            else:
                target = precise(said[0])
            return DIVERGENCES[self.divergence](logits, target.to(logits.device), self.temperature)

        return self.combine_tokens(student, ours, soft if theirs else None, labels, batch, num_items)

    def asks_ahead(self, run: BeforeTraining) -> bool:
        task = run.data.task
        by_token = task.kind in ("token-classification", "causal-lm")  # whose logits are too many to keep
        return bool(self.alpha) and not by_token and worth_asking_ahead(run, task.num_labels)

    def prepare_data(self, run: BeforeTraining) -> Any:
        """The training rows, with a column "teacher_logits" if the teacher answers ahead."""
        if run.data.class_weights is not None and self.alpha < 1:
            self.class_weights = run.data.class_weights
        if not self.asks_ahead(run):
            return run.data.training_rows()
        soften(run.teacher, self.temperature)
        return with_answers(run, "teacher_logits", partial(teacher_logits, run.teacher, run.data))
