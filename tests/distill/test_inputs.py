"""Teachers and students of different classes: each is given the inputs that it has."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.distill.small import arguments, bert, sentences
from torch import Tensor, nn
from transformers import BertForSequenceClassification, DistilBertConfig, DistilBertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from opdf.distill import DistillationTrainer


def distilbert() -> DistilBertForSequenceClassification:
    torch.manual_seed(1)
    config = DistilBertConfig(
        vocab_size=50, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=16, dropout=0.0,
        attention_dropout=0.0, seq_classif_dropout=0.0, initializer_range=0.3,
    )  # fmt: skip
    return DistilBertForSequenceClassification(config)


def exchanged(teacher: BertForSequenceClassification) -> BertForSequenceClassification:
    """The teacher, with its two segments' embeddings exchanged."""
    with torch.no_grad():
        segments = teacher.bert.embeddings.token_type_embeddings.weight
        segments.copy_(segments.flip(0))
    return teacher


def trained(folder: Path, student: nn.Module, teacher: nn.Module, name: str, *, segment: int | None) -> nn.Module:
    data = sentences()
    if segment is not None:
        data = data.add_column("token_type_ids", [[segment] * 8] * len(data))
    trainer = DistillationTrainer(
        student, arguments(folder, max_steps=2), teacher=teacher, objective=name, train_dataset=data, eval_dataset=data
    )
    trainer.train()
    assert trainer.evaluate()["eval_loss"] > 0
    return student


@pytest.mark.parametrize("name", ["logits", "hidden", "adkd", "lgtm"])
def test_a_teacher_is_given_the_segments_that_its_student_does_not_know(tmp_path: Path, name: str) -> None:
    """The second of exchanged segments is the first one, which a teacher takes where it is told none."""
    plain = trained(tmp_path, distilbert(), bert(), name, segment=None)
    told = trained(tmp_path, distilbert(), exchanged(bert()), name, segment=1)
    other = trained(tmp_path, distilbert(), bert(), name, segment=1)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), told.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain.parameters(), other.parameters(), strict=True))


class Bag(nn.Module):
    """A student without attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.words, self.head = nn.Embedding(50, 16), nn.Linear(16, 2)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.head(self.words(input_ids).mean(1))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def test_a_student_of_the_users_own_is_given_what_it_takes_and_its_teacher_the_rest(tmp_path: Path) -> None:
    plain = trained(tmp_path, Bag(), bert(), "logits", segment=None)
    told = trained(tmp_path, Bag(), exchanged(bert()), "logits", segment=1)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), told.parameters(), strict=True))
