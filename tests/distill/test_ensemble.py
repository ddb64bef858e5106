"""Several teachers as one: their mean by scipy, and that learning from it is learning from all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logit, softmax
from tests.distill.small import arguments, bert, sentences
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from opdf.distill import DistillationTrainer, Ensemble, HiddenDistillation, LogitsDistillation, chunks, keep_layers
from opdf.distill.ensemble import softened

WEIGHTS = [3.0, 1.0]
"""Of two teachers: 0.75 and 0.25 once they are of sum 1."""


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_the_mean_is_of_probabilities_at_the_temperature(kind: str) -> None:
    options: dict[str, Any] = {"num_labels": 1 if kind == "regression" else 3, "problem_type": kind}
    teacher = Ensemble([bert(2, **options), bert(2, **options)], WEIGHTS)
    teacher.temperature.fill_(2.0)
    logits = torch.randn(2, 5, options["num_labels"], dtype=torch.float64) * 4
    first, second = logits.numpy()
    found = teacher.mean(list(logits)).numpy()
    if kind == "regression":
        np.testing.assert_allclose(found, 0.75 * first + 0.25 * second)
    elif kind == "multi_label_classification":
        np.testing.assert_allclose(found, 2 * logit(0.75 * expit(first / 2) + 0.25 * expit(second / 2)))
    else:
        expected = 0.75 * softmax(first / 2, -1) + 0.25 * softmax(second / 2, -1)
        np.testing.assert_allclose(softmax(found / 2, -1), expected)


def llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                         initializer_range=0.5)  # fmt: skip
    return LlamaForCausalLM(config).double().eval()


@pytest.mark.parametrize("chunk", [2**24, 120])
def test_the_gradient_is_the_sum_of_those_of_each_teacher(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    ids = torch.arange(14).reshape(2, 7)
    batch, items = {"input_ids": ids, "labels": ids}, torch.tensor(12)
    student, teachers = llama(0), [llama(1), llama(2)]
    several = Ensemble(teachers, WEIGHTS).eval()
    parameters, objective = list(student.parameters()), LogitsDistillation(temperature=2.0, alpha=1.0)
    objective.prepare(student, several)
    several.temperature.fill_(8.0)  # by another objective that follows them too
    found = torch.autograd.grad(objective.losses(student, several, batch, items).total, parameters)
    each = [torch.autograd.grad(objective.losses(student, one, batch, items).total, parameters) for one in teachers]
    expected = [0.75 * a + 0.25 * b for a, b in zip(*each, strict=True)]
    torch.testing.assert_close(list(found), expected, rtol=1e-4, atol=1e-6)  # LLaMA's norms are in float32


def test_packed_texts_do_not_attend_to_those_before_them() -> None:
    teachers = [llama(1), llama(2)]
    first, second = torch.arange(4)[None], torch.arange(10, 14)[None]
    places = {"input_ids": torch.cat([first, second], 1), "position_ids": torch.arange(4).repeat(2)[None]}
    several = Ensemble(teachers, WEIGHTS).eval()
    packed = LogitsDistillation(alpha=1.0).teacher_forward(several, places).logits
    apart = torch.cat([several(input_ids=ids).logits for ids in (first, second)], 1)
    torch.testing.assert_close(packed, apart, rtol=1e-4, atol=1e-5)


def test_labels_say_what_outputs_mean_where_configurations_leave_it_open() -> None:
    """Several labels an example with `problem_type` None: the same loss as with it set."""
    torch.manual_seed(0)
    batch = {"input_ids": torch.arange(8).reshape(2, 4), "labels": torch.tensor([[1.0, 0, 1], [0, 0, 1]])}
    teachers = [bert(2, num_labels=3, initializer_range=spread) for spread in (0.3, 0.6)]
    student = bert(1, num_labels=3)
    losses = []
    for problem in (None, "multi_label_classification"):
        for model in (student, *teachers):
            model.config.problem_type = problem
        objective, teacher = LogitsDistillation(temperature=2.0), Ensemble(teachers, WEIGHTS).eval()
        objective.prepare(student, teacher)
        losses.append(objective.losses(student.eval(), teacher, batch, torch.tensor(2)).total)
    assert torch.equal(*losses)


@pytest.mark.parametrize("chunk", [2**24, 40])
def test_teachers_that_make_their_decoders_inputs_from_labels(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", chunk)
    ids = torch.arange(8).reshape(2, 4)
    batch, items = {"input_ids": ids, "labels": ids}, torch.tensor(8)
    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    student, first, second = (T5ForConditionalGeneration(config).eval() for _ in range(3))
    objective, teacher = LogitsDistillation(temperature=2.0, alpha=1.0), Ensemble([first, second]).eval()
    objective.prepare(student, teacher)
    parameters = list(student.parameters())
    found, *each = (
        torch.autograd.grad(objective.losses(student, one, batch, items).total, parameters)
        for one in (teacher, first, second)
    )
    torch.testing.assert_close(list(found), [(a + b) / 2 for a, b in zip(*each, strict=True)])
    with torch.no_grad():
        own, *said = (model(**batch).logits for model in (teacher, first, second))
    expected = sum((logits / 2).softmax(-1) for logits in said) / 2
    torch.testing.assert_close((own / 2).softmax(-1), expected)
    with softened(teacher, 5.0):
        assert teacher.temperature == 5
    assert teacher.temperature == 2  # as before
    teacher.temperature.fill_(1.0)
    expected = (first(**batch).logits.softmax(-1) + second(**batch).logits.softmax(-1)) / 2
    torch.testing.assert_close(teacher(**batch).logits.softmax(-1), expected)


def test_runs_that_share_their_teachers_average_them_at_their_own_temperatures(tmp_path: Path) -> None:
    """Both trainers are made before the first one trains."""
    weights = []
    for others in ((), (8.0,)):
        teacher = Ensemble([bert(2), bert(2, initializer_range=0.5)])
        first, *_ = (
            DistillationTrainer(
                keep_layers(bert(2), 1), arguments(tmp_path), teacher=teacher, train_dataset=sentences(),
                objective=LogitsDistillation(temperature=temperature),
            )
            for temperature in (1.0, *others)
        )  # fmt: skip
        first.train()
        weights.append([first.record()["teacher"]["weights"], *first.model.parameters()])
    alone, beside = weights
    assert alone[0] == beside[0]
    assert all(torch.equal(a, b) for a, b in zip(alone[1:], beside[1:], strict=True))


def test_its_own_loss_is_a_mean_over_the_examples_that_have_a_label() -> None:
    model = bert(2).eval()
    batch = {"input_ids": torch.arange(32).reshape(4, 8), "labels": torch.tensor([0, -100, 1, -100])}
    torch.testing.assert_close(Ensemble([model, model]).eval()(**batch).loss, model(**batch).loss)


def test_the_trainer_takes_a_list(tmp_path: Path) -> None:
    bert(2, initializer_range=0.5).save_pretrained(tmp_path / "other")
    teachers = [bert(2), str(tmp_path / "other")]
    trainer = DistillationTrainer(
        keep_layers(bert(2), 1), arguments(tmp_path / "run"), teacher=teachers, train_dataset=sentences(),
        overparam={"ones": 1},
    )  # fmt: skip
    trainer.train()
    assert isinstance(trainer.teacher, Ensemble)
    assert trainer.teacher.temperature == trainer.method.temperature
    assert not any(p.requires_grad for p in trainer.teacher.parameters())


def test_what_needs_one_teacher_and_teachers_that_do_not_fit(tmp_path: Path) -> None:
    student, run = keep_layers(bert(2), 1), arguments(tmp_path)
    both = [bert(2), bert(2)]
    with pytest.raises(
        ValueError, match=r"the objective hidden reads one teacher from within .* take one of logits, spa"
    ):
        DistillationTrainer(student, run, teacher=both, objective=HiddenDistillation())
    with pytest.raises(ValueError, match=r"constraint pulls the student to one teacher's weights .*; leave it out"):
        DistillationTrainer(student, run, teacher=both, overparam={"ones": 1}, constraint={})
    with pytest.raises(ValueError, match="the student has 2 labels and the teacher 3"):
        DistillationTrainer(student, run, teacher=[bert(2), bert(2, num_labels=3)])
    named = [bert(2, id2label=dict(enumerate(names))) for names in (["no", "yes"], ["yes", "no"])]
    with pytest.raises(ValueError, match=r"labels of the teachers are \['no', 'yes'\] and \['yes', 'no'\]"):
        DistillationTrainer(student, run, teacher=named)
    for weights in ([1.0], [1.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match=r"weights is .*; give 2 numbers above 0, one for each teacher"):
            Ensemble(both, weights)
    with pytest.raises(TypeError, match="models is a BertForSequenceClassification; give a list of models"):
        Ensemble(both[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="models is empty"):
        Ensemble([])
