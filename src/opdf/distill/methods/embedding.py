"""Distillation of embeddings (Reimers and Gurevych: arXiv 2004.09813): the student's vectors become the teacher's."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opdf.distill.losses import Batch, main_input
from opdf.distill.models import config_of, has_no_head
from opdf.distill.objective import Losses, Objective
from opdf.distill.options import number
from opdf.distill.outputs import BeforeTraining, said, with_answers, worth_asking_ahead
from opdf.distill.shrink import find_report, has_another_teacher


class EmbeddingDistillation(Objective):
    """cosine_weight (1 - cos(student, teacher)) + mse_weight MSE(student, teacher), averaged over examples.

    An embedding is the mean of the last hidden states over an example's real tokens (or patches); student and teacher
    are models without a head (AutoModel). No labels are used.

    A student of another width has to come from `shrink`. It learns the teacher's embeddings in its own coordinates:
    times `shrink_report(student).projection`, which checkpoints hold.

    Args:
        cosine_weight: factor of the cosine distance, 0 or more.
        mse_weight: factor of the squared difference, a mean over the width, 0 or more; lengths are learned with it.
    """

    tasks = ("similarity",)
    columns = ("teacher_embeddings",)

    def __init__(self, cosine_weight: float = 1.0, mse_weight: float = 0.0) -> None:
        self.cosine_weight = number("cosine_weight", cosine_weight, 0)
        self.mse_weight = number("mse_weight", mse_weight, 0)
        if not cosine_weight and not mse_weight:
            raise ValueError("cosine_weight and mse_weight are both 0; set one of them above 0")
        self._projection: Tensor | None = None

    @property
    def needs_labels(self) -> bool:
        return False

    def prepare(self, student: nn.Module, teacher: nn.Module | None) -> None:
        if teacher is None:
            raise ValueError("embedding distillation needs a teacher; pass one")
        for who, model in (("student", student), ("teacher", teacher)):
            if not has_no_head(model) or not hasattr(config_of(model), "hidden_size"):
                raise ValueError(
                    f"the {who} is a {type(model).__name__}; embeddings come from a transformers model without a head "
                    "and of one width: load it by AutoModel"
                )
            if getattr(config_of(model), "is_encoder_decoder", False):
                raise ValueError(
                    f"the {who} is a {type(model).__name__}, whose last hidden states are its decoder's; give an "
                    "encoder alone (T5EncoderModel, BERT, ...), whose states are of the text's own tokens"
                )
        self._projection = _projection(student, config_of(teacher).hidden_size, config_of(student).hidden_size)
        if self._projection is not None and has_another_teacher(student, teacher):
            warnings.warn(
                "shrink made the student of a teacher with other weights than this one has, and this one's embeddings "
                "are projected as that one's were; for another model make the student anew with shrink",
                stacklevel=2,
            )

    def tensors(self) -> dict[str, Tensor]:
        return {} if self._projection is None else {"projection": self._projection}

    def asks_ahead(self, run: BeforeTraining) -> bool:
        return worth_asking_ahead(run, config_of(run.teacher).hidden_size)

    def prepare_data(self, run: BeforeTraining) -> Any:
        """The training rows, with a column "teacher_embeddings" if the teacher answers ahead."""

        def answer(some: list[dict[str, Any]]) -> Tensor:
            outputs, batch = said(run.teacher, run.data, some)
            return mean_pooled(outputs.last_hidden_state, batch.get("attention_mask")).cpu()

        return with_answers(run, "teacher_embeddings", answer) if self.asks_ahead(run) else run.data.training_rows()

    def losses(self, student: nn.Module, teacher: nn.Module | None, batch: Batch, num_items: Tensor) -> Losses:
        mask, theirs = batch.get("attention_mask"), batch.get("teacher_embeddings")
        ours = mean_pooled(self.forward(student, batch).last_hidden_state, mask)
        if theirs is None:
            assert teacher is not None
            theirs = mean_pooled(self.teacher_forward(teacher, batch).last_hidden_state, mask)
        if self._projection is not None:
            theirs = theirs @ self._projection.to(theirs.device)
        total, parts = ours.new_zeros(()), {}
        if self.cosine_weight:
            cosine = (1 - F.cosine_similarity(ours, theirs)).sum() / num_items
            total, parts["cosine"] = total + self.cosine_weight * cosine, cosine.detach()
        if self.mse_weight:
            mse = (ours - theirs).square().mean(-1).sum() / num_items
            total, parts["mse"] = total + self.mse_weight * mse, mse.detach()
        return Losses(total, parts)

    def count_items(self, student: nn.Module, batch: Batch) -> Tensor:
        """Examples, also where labels of some other task are among the columns."""
        rows = main_input(student, batch)
        return torch.full((), rows.shape[0], device=rows.device)


def _projection(student: nn.Module, theirs: int, ours: int) -> Tensor | None:
    """`[theirs, ours]`, from the teacher's coordinates to the student's; None where they are the same.

    Raises:
        ValueError: the widths differ, and no projection between them is known.
    """
    if ours == theirs:
        return None
    report = find_report(student)
    if report is None or report.projection.shape != (theirs, ours):
        raise ValueError(
            f"the student's embeddings have width {ours} and the teacher's {theirs}, and no projection between them is "
            "known; make the student of this teacher with shrink (in a run, student.start: teacher), in the process "
            "that trains it, or give one of the teacher's width"
        )
    return report.projection.clone()


def mean_pooled(hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Embeddings `[batch, width]` in float32.

    Args:
        hidden: last hidden states `[batch, tokens, width]`.
        mask: `[batch, tokens]`, 0 where a token is padding; None counts all. An empty text, without tokens, gives 0.
    """
    hidden = hidden.float()
    if mask is None:
        return hidden.mean(1)
    real = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * real).sum(1) / real.sum(1).clamp(min=1)
