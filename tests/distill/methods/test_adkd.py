"""Attributions against their defining property, finite differences and special cases."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification
from transformers.modeling_outputs import SequenceClassifierOutput

from opdf.distill import DistillationArguments, DistillationTrainer, keep_layers
from opdf.distill.methods.adkd import AttributionDistillation, _keys, attribute, integrated_gradients


def bert(labels: int = 2, layers: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=layers, num_attention_heads=2,
                        intermediate_size=8, num_labels=labels, hidden_dropout_prob=0.0, initializer_range=0.4,
                        attention_probs_dropout_prob=0.0)  # fmt: skip
    return BertForSequenceClassification(config).to(dtype).eval()


def batch(padding: int = 0, labels: Any = (0, 1, 1)) -> dict[str, torch.Tensor]:
    ids, mask = torch.arange(1, 16).reshape(3, 5), torch.ones(3, 5, dtype=torch.long)
    if padding:
        ids, mask = (torch.cat([t, torch.zeros(3, padding, dtype=torch.long)], 1) for t in (ids, mask))
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor(labels)}


def test_completeness() -> None:
    """The attributions of an example sum to log p(e) - log p(0), ever closer with m."""
    model, errors = bert(3), []
    for p in model.parameters():  # without biases everything is scale-free, and jumps at 0
        torch.nn.init.normal_(p, std=0.3)
    for steps in (16, 64, 256):
        gradients, embedding, logits = integrated_gradients(model, batch(), steps, create_graph=False)
        handle = model.base_model.embeddings.register_forward_hook(lambda _, __, output: output * 0)
        base = model(**batch()).logits.log_softmax(-1)
        handle.remove()
        expected = (logits.log_softmax(-1) - base).detach()
        found = torch.stack([(g * embedding).sum((1, 2)) for g in gradients], 1)
        errors.append(float((found - expected).norm() / expected.norm()))
    assert errors[2] < errors[1] < errors[0]
    assert errors[2] < 1e-3


def test_one_step_is_gradient_times_input() -> None:
    model = bert()
    embedding = model.base_model.embeddings(batch()["input_ids"]).detach().requires_grad_()
    encoded = model.bert.encoder(embedding)[0]
    scores = model.classifier(model.bert.pooler(encoded)).log_softmax(-1)
    (gradient,) = torch.autograd.grad(scores[torch.arange(3), torch.tensor([0, 1, 1])].sum(), embedding)
    found = integrated_gradients(model, batch(), 1, create_graph=False)
    torch.testing.assert_close(found[0][0], gradient)
    torch.testing.assert_close(found[1], embedding.detach())


def test_both_views_of_two_classes_are_the_same_map() -> None:
    maps = [attribute(bert(), batch(labels=labels), 1, create_graph=False)[1] for labels in ([0, 1, 1], [1, 0, 0])]
    torch.testing.assert_close(*maps)
    torch.testing.assert_close(maps[0].norm(dim=-1), torch.ones(1, 3, dtype=torch.float64))


@pytest.mark.parametrize("labels", [2, 3])
def test_an_equal_student_is_at_no_distance_and_top_k_is_not(labels: int) -> None:
    model = bert(labels)
    for top_k, far in ((None, False), (3, True)):
        parts = AttributionDistillation(top_k=top_k).losses(model, model, batch(), torch.tensor(3)).parts
        assert (float(parts["attribution"]) > 1e-8) == far


def own_maps(model: Any, data: dict[str, Tensor], top_k: int | None) -> tuple[Tensor, Tensor]:
    """Logits, and gradient times input of every view by autograd alone."""
    embedding = model.base_model.embeddings(data["input_ids"]).detach().requires_grad_()
    logits = model.classifier(model.bert.pooler(model.bert.encoder(embedding)[0]))
    labels = data["labels"]
    views = [(logits[:, 0] - labels).square()] if labels.is_floating_point() else logits.log_softmax(-1).unbind(-1)
    maps = []
    for view in views:
        (slopes,) = torch.autograd.grad(view.sum(), embedding, retain_graph=True)
        entries = (slopes * embedding).abs().sort(-1, descending=True).values[..., :top_k]
        maps.append(entries.norm(dim=-1) / entries.flatten(1).norm(dim=-1)[:, None])
    return logits.detach(), torch.stack(maps).detach()


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("labels", [(0, 2, -100), (0.5, -1.0, 2.0)], ids=["classes", "regression"])
def test_the_loss_is_its_formula(labels: Any, top_k: int | None) -> None:
    """In the middle of its annealing, from 3 to 1 over five epochs, and as a part of a step of six examples."""
    data, outputs = batch(labels=labels), 1 if isinstance(labels[0], float) else 3
    student, teacher = bert(outputs, seed=1), bert(outputs)
    objective = AttributionDistillation(3.0, alpha=0.3, attribution_weight=5.0, top_k=top_k, anneal=True)
    objective.on_train_begin(SimpleNamespace(state=SimpleNamespace(num_train_epochs=5, epoch=2.7)))  # type: ignore[arg-type]
    found = objective.losses(student, teacher, data, torch.tensor([6, 4]))
    (ours, student_maps), (theirs, teacher_maps) = own_maps(student, data, None), own_maps(teacher, data, top_k)
    if outputs == 1:
        task, soft = ((ours[:, 0] - data["labels"]) ** 2).sum() / 4, ((ours - theirs) / 2).square().sum() / 6
    else:
        task = torch.nn.functional.cross_entropy(ours, data["labels"], reduction="sum") / 4
        soft = -((theirs / 2).softmax(-1) * (ours / 2).log_softmax(-1)).sum() / 6
    distance = (teacher_maps - student_maps).square().sum() / 5 / 6  # of five tokens
    torch.testing.assert_close(found.total.detach(), 0.7 * task + 0.3 * soft + 5 * distance)
    for part, value in zip(found.parts.values(), (task, soft, distance), strict=True):
        torch.testing.assert_close(part, value)


def test_gradient_against_finite_differences() -> None:
    student, teacher = bert(3, 1, seed=1), bert(3)
    objective = AttributionDistillation(attribution_weight=5.0, steps=2)
    weight = student.bert.encoder.layer[0].attention.self.query.weight

    def loss() -> torch.Tensor:
        return objective.losses(student, teacher, batch(), torch.tensor(3)).total

    (gradient,) = torch.autograd.grad(loss(), weight)
    for index in ((0, 0), (3, 5), (7, 2)):
        values = []
        for shift in (1e-5, -2e-5, 1e-5):
            with torch.no_grad():
                weight[index] += shift
            values.append(float(loss().detach()))
        assert float(gradient[index]) == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-8)


def test_padding_changes_nothing_also_from_memory() -> None:
    student, teacher = bert(seed=1), bert()
    objective = AttributionDistillation()
    seen = [objective.losses(student, teacher, batch(padding), torch.tensor(3)) for padding in (0, 4, 0)]
    assert len(objective._known) == 3
    for other in seen[1:]:
        torch.testing.assert_close(other.total, seen[0].total)
    fresh = AttributionDistillation().losses(student, teacher, batch(4), torch.tensor(3))
    torch.testing.assert_close(fresh.total, seen[0].total)


class Pooled(nn.Module):
    """A classifier by the mean over tokens: padding on either side does not change what it says."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embeddings, self.inner, self.head = nn.Embedding(30, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.double().eval()

    @property
    def base_model(self) -> Any:
        return self

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        real = attention_mask.unsqueeze(-1).double()
        hidden = self.inner(self.embeddings(input_ids)).tanh() * real
        return SequenceClassifierOutput(logits=self.head(hidden.sum(1) / real.sum(1)))


@pytest.mark.parametrize("before", [0, 2, 4])
def test_nor_does_padding_before_the_text(before: int) -> None:
    """Known from a batch with padding on both sides, used in others."""
    student, teacher, objective = Pooled(0), Pooled(1), AttributionDistillation()
    seen = []
    for left, right in ((before, 4 - before), (0, 0), (1, 0), (0, 3)):
        given = batch()
        for name in ("input_ids", "attention_mask"):
            given[name] = nn.functional.pad(given[name], (left, right))
        seen.append(objective.losses(student, teacher, given, torch.tensor(3)).total)
    for loss in seen[1:]:
        torch.testing.assert_close(loss, seen[0])


def test_a_zero_attribution_gives_finite_gradients() -> None:
    student, teacher = bert(seed=1), bert()
    torch.nn.init.zeros_(student.classifier.weight)
    total = AttributionDistillation().losses(student, teacher, batch(), torch.tensor(3)).total
    total.backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


@pytest.mark.parametrize("sure", [8, 10])
@pytest.mark.parametrize("labels", [2, 3])
def test_a_teacher_in_half_precision_has_the_maps_of_one_in_double(labels: int, sure: float) -> None:
    """Where it is sure of itself, attributions are small, and their squares smaller than float16 knows."""
    teacher = bert(labels)
    with torch.no_grad():
        teacher.classifier.weight *= sure
    data = batch()
    data["labels"] = teacher(data["input_ids"]).logits.argmax(-1)
    wanted = attribute(teacher, data, 1, create_graph=False)[1]
    found = attribute(teacher.half(), data, 1, create_graph=False)[1]
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=0.05)


@pytest.mark.parametrize("sure", [20, 40])
def test_how_sure_a_teacher_is_changes_no_map(sure: float) -> None:
    """Of two classes it depends on the difference of the logits alone, also where probabilities are 0 and 1."""
    teacher, data = bert(dtype=torch.float32), batch()
    data["labels"] = teacher(data["input_ids"]).logits.argmax(-1)
    wanted = attribute(teacher, data, 1, create_graph=False)[1]
    with torch.no_grad():
        teacher.classifier.weight *= sure
    logits, found = attribute(teacher, data, 1, create_graph=False)
    assert (logits.softmax(-1) > 0.999999).any(-1).all()
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_teacher_without_a_doubt_tells_no_map_and_not_one_where_all_tokens_are_alike(dtype: torch.dtype) -> None:
    student, teacher, data = bert(seed=1), bert(), batch()
    with torch.no_grad():
        teacher.classifier.weight *= 1000
    data["labels"] = teacher(data["input_ids"]).logits.argmax(-1)
    assert not attribute(teacher.to(dtype), data, 1, create_graph=False)[1].any()
    losses = AttributionDistillation(alpha=0.0).losses(student, teacher, data, torch.tensor(3))
    assert losses.parts["attribution"] == 0
    losses.total.backward()
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


def test_labels_are_told_apart_where_there_are_as_many_as_tokens() -> None:
    """Padding is left out of what an example is known by, and labels have none."""
    data = batch(padding=2)
    keys = []
    for last in (1.0, 2.0):
        data["labels"] = torch.ones(3, 7)
        data["labels"][:, -1] = last
        keys.append(_keys(data))
    assert not {*keys[0]} & {*keys[1]}


def test_training_and_exact_resume(tmp_path: Path) -> None:
    results = []
    for folder, resume in (("a", None), ("b", str(tmp_path / "a/checkpoint-2"))):
        teacher = bert(layers=4, dtype=torch.float32)
        rows = [{"input_ids": [1 + i, 2, 3, 4], "attention_mask": [1] * 4, "labels": i % 2} for i in range(16)]
        arguments = DistillationArguments(
            str(tmp_path / folder), num_train_epochs=3, max_steps=-1, save_strategy="steps", save_steps=2,
            per_device_train_batch_size=8, disable_tqdm=True, learning_rate=1e-2, use_cpu=True, logging_steps=1,
        )  # fmt: skip
        objective = AttributionDistillation(temperature=3.0, anneal=True)
        student = keep_layers(teacher, 2)
        trainer = DistillationTrainer(
            student, arguments, teacher=teacher, objective=objective, train_dataset=Dataset.from_list(rows),
            overparam={"ones": 1}, constraint={},
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        assert objective.current_temperature == 1.0
        assert "attribution_loss" in trainer.state.log_history[-2]
        results.append(student)
    for a, b in zip(*(s.parameters() for s in results), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("options", [{"attribution_weight": -1.0}, {"steps": 0}, {"top_k": 0}])
def test_bad_arguments(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        AttributionDistillation(**options)


def test_what_has_no_one_class_an_example_is_refused() -> None:
    masked = BertForMaskedLM(bert().config).double().eval()
    with pytest.raises(ValueError, match="the student is a BertForMaskedLM; use the objective 'logits'"):
        AttributionDistillation().prepare(masked, masked)
    several = bert(3)
    with pytest.raises(ValueError, match="the model's outputs are multi-label"):
        AttributionDistillation().losses(several, bert(3), batch(labels=torch.eye(3).tolist()), torch.tensor(3))
    with pytest.raises(ValueError, match="the batch has no 'labels'"):
        AttributionDistillation().losses(bert(), bert(), {"input_ids": batch()["input_ids"]}, torch.tensor(3))


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"torch_compile": True}, r"differentiates twice, which torch\.compile cannot"),
        ({"gradient_checkpointing": True}, "and checkpointed blocks once; leave gradient_checkpointing out"),
        ({"fsdp": True, "fsdp_config": {"version": 2}}, "FSDP2 frees the gathered weights after the first time"),
    ],
)
def test_what_cannot_be_differentiated_twice_is_refused(tmp_path: Path, way: dict[str, Any], message: str) -> None:
    teacher = bert(dtype=torch.float32)
    arguments = DistillationArguments(str(tmp_path), use_cpu=True, max_steps=1, **way)
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(keep_layers(teacher, 1), arguments, teacher=teacher, objective=AttributionDistillation())


def test_attention_without_a_second_derivative_is_refused() -> None:
    student = bert()
    student.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="attn_implementation is 'flash_attention_2', whose kernels have no second"):
        AttributionDistillation().prepare(student, bert())
    AttributionDistillation().prepare(bert(), student)  # of the teacher the first one is enough
