"""The teacher: by name, in one piece and frozen; what it must not share with its student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distill.small import arguments, bert, sentences, train
from torch import nn
from transformers import AutoModel, ModernBertForTokenClassification

from families import build
from opdf.data import minilm
from opdf.distill import DistillationTrainer, LogitsDistillation, keep_layers
from opdf.distill.teachers import check_apart, check_frozen, load_teacher


def with_a_module_of(teacher: Any) -> Any:
    student = keep_layers(teacher, 1)
    student.bert.encoder.layer = nn.ModuleList([teacher.bert.encoder.layer[1]])
    return student


def with_a_weight_of(teacher: Any) -> Any:
    student = keep_layers(teacher, 1)
    student.classifier.weight = nn.Parameter(teacher.classifier.weight.detach()[:])  # a view
    return student


def with_a_buffer_of(teacher: Any) -> Any:
    student = keep_layers(teacher, 1)
    for model in (teacher, student):
        model.register_buffer("running", None if model is student else torch.zeros(2))
    student.running = teacher.running
    return student


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (with_a_module_of, r"the student's bert\.encoder\.layer\.0 is a module of the teacher, which is frozen"),
        (with_a_weight_of, r"the student's classifier\.weight shares its memory with the teacher"),
        (with_a_buffer_of, r"the student's running shares its memory with the teacher"),
        (lambda teacher: teacher, "teacher and student are the same object"),
    ],
)
def test_a_student_that_shares_something_with_its_teacher_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    teacher = bert()
    student = make(teacher)
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(student, arguments(tmp_path), teacher=teacher, train_dataset=sentences())
    assert all(p.requires_grad for p in teacher.parameters())


def test_a_frozen_table_may_be_shared() -> None:
    teacher = bert().requires_grad_(False)
    student = keep_layers(teacher, 1).requires_grad_(True)
    student.bert.embeddings.word_embeddings.weight = teacher.bert.embeddings.word_embeddings.weight
    check_apart(student, teacher)
    with torch.device("meta"):
        check_apart(nn.Linear(2, 2), nn.Linear(2, 2))  # which have no memory


@pytest.mark.parametrize("name", ["", "bert", "bert.encoder.layer.1.attention.self.dropout"])
def test_a_teacher_of_which_a_part_is_in_training_mode_is_refused(name: str) -> None:
    teacher = bert().eval()
    check_frozen(teacher)
    teacher.get_submodule(name).training = True
    batch = {"input_ids": torch.tensor([[1, 2]]), "labels": torch.tensor([0])}
    with pytest.raises(RuntimeError, match=f"the teacher.*{name}.* is in training mode"):
        LogitsDistillation().losses(bert(2), teacher, batch, torch.tensor(1))


def test_a_teacher_by_name_is_of_the_students_kind(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "teacher")
    trainer, _ = train(tmp_path / "run", teacher=str(tmp_path / "teacher"), training={"max_steps": 1})
    found = trainer.teacher.state_dict()  # type: ignore[union-attr]
    assert all(torch.equal(value, found[name]) for name, value in bert().state_dict().items())
    assert not any(p.requires_grad for p in trainer.teacher.parameters())  # type: ignore[union-attr]


def test_the_embedded_model_is_a_teacher_by_name(tmp_path: Path) -> None:
    student = keep_layers(AutoModel.from_pretrained(minilm()), 1)
    trainer = DistillationTrainer(student, arguments(tmp_path), teacher="minilm", objective="embedding")
    assert trainer.teacher.config.num_hidden_layers == 6  # type: ignore[union-attr,operator]
    with pytest.raises(ValueError, match=r"not trained for a BertForSequenceClassification's task \(classif"):
        load_teacher("minilm", bert())
    assert load_teacher("minilm", bert(), trained=False).config.hidden_size == 384


def test_teachers_that_cannot_be_found_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="the student a Linear, which transformers cannot load; pass a model"):
        load_teacher("minilm", nn.Linear(1, 1))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="it has no weights"):
        load_teacher(tmp_path / "empty", bert())


def test_a_teacher_with_a_head_for_words_is_none_for_texts(tmp_path: Path) -> None:
    """ModernBERT's heads have the same names and sizes, so that the one was loaded as the other without a word."""
    student: Any = build("modernbert")
    ModernBertForTokenClassification(student.config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="saved as a ModernBertForTokenClassification and is not trained for a Mod"):
        load_teacher(tmp_path, student)
    load_teacher(tmp_path, student, trained=False)
    student.save_pretrained(tmp_path)
    load_teacher(tmp_path, student)


def test_a_teacher_in_half_precision_is_read_in_float32(tmp_path: Path) -> None:
    bert().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_teacher(tmp_path, bert()).dtype == torch.float32
