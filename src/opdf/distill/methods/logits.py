"""Logits distillation (Hinton, Vinyals, Dean: arXiv 1503.02531), the common ground of most other methods."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from opdf.data import Prepared
from opdf.distill.losses import Batch, count_labelled, distillation_loss, task_loss
from opdf.distill.models import check_same_outputs
from opdf.distill.objective import Losses, Objective
from opdf.distill.outputs import all_logits, fingerprint, kept, weights_digest, with_column
from opdf.mpo import Progress


class TaskAndLogits(Objective):
    """(1 - alpha) task + alpha distillation, of logits that a subclass computes.

    Args:
        temperature: T, above 0; useful from 1 to 8. Not used in a regression.
        alpha: weight of the distillation term, from 0 (plain training) to 1 (labels are not used).
    """

    def __init__(self, temperature: float = 2.0, alpha: float = 0.9) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature is {temperature}; it must be a finite number above 0")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is {alpha}; it must be from 0 (labels only) to 1 (teacher only)")
        self.temperature = temperature
        self.alpha = alpha

    @property
    def needs_labels(self) -> bool:
        return self.alpha < 1

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        if teacher is None and self.alpha > 0:
            raise ValueError(f"alpha is {self.alpha} but there is no teacher; pass one, or set alpha=0")
        if teacher is not None:
            check_same_outputs(student, teacher)

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
            if "labels" not in batch:
                raise ValueError(f"the batch has no 'labels' and alpha is {self.alpha}; set alpha=1 to learn without")
            task = task_loss(student, ours, batch["labels"]) / labelled
            parts["task"] = task.detach()
            # A factor of 1 is left out so that alpha=0 is plain training bit for bit.
            total = (1 - self.alpha) * task if self.alpha else task
        if theirs is not None and self.alpha > 0:
            soft = distillation_loss(student, ours, theirs, batch, self.temperature) / items
            parts["distillation"] = soft.detach()
            total = total + self.alpha * soft
        return Losses(total, parts)


class LogitsDistillation(TaskAndLogits):
    """(1 - alpha) task + alpha distillation.

    The task decides the two terms: cross-entropy and T^2 KL for classes and (shifted, unmasked) tokens, squared errors
    for a regression, binary cross-entropies for several labels at once. A vision model is a classifier. The teacher
    runs on every batch, unless the data brings its logits in a column "teacher_logits".

    Args:
        temperature: T, above 0; useful from 1 to 8. Not used in a regression.
        alpha: weight of the distillation term, from 0 (plain training) to 1 (labels are not used).
    """

    tasks = (*Objective.tasks, "multi-label", "token-classification", "causal-lm")
    columns = ("teacher_logits",)

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        ours = self.forward(student, batch).logits
        theirs = None
        if self.alpha and "teacher_logits" in batch:
            theirs = batch["teacher_logits"].to(ours.device)
        elif self.alpha and teacher is not None:
            theirs = self.teacher_forward(teacher, batch).logits
        return self.combine(student, ours, theirs, batch, num_items)

    def prepare_data(
        self,
        data: Prepared,
        teacher: nn.Module,
        folder: Path,
        *,
        shared: bool = False,
        progress: Progress | None = None,
    ) -> Any:
        """Several runs share one column "teacher_logits"; a single one may end before it has seen all rows."""
        rows = data.data["train"]
        by_token = data.task.kind in ("token-classification", "causal-lm")  # of which the teacher says too much to keep
        if not shared or not self.alpha or by_token:
            return rows
        depends = [fingerprint(rows), weights_digest(teacher)]
        logits = kept(folder, "teacher_logits", depends, lambda: all_logits(teacher, data, rows, progress))
        return with_column(rows, "teacher_logits", logits)
