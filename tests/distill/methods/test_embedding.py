"""Embedding distillation: closed forms, padding, and a 3-layer MiniLM on real sentence pairs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DataCollatorWithPadding,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from opdf import DistillationArguments, DistillationTrainer, OverParamConfig
from opdf.data import load_data, minilm
from opdf.distill import EmbeddingDistillation, keep_layers, mean_pooled, shrink, shrink_report
from opdf.job.scoring import embedder, pair_cosines


def bert(width: int = 8, layers: int = 2) -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
                        intermediate_size=16, initializer_range=0.3)  # fmt: skip
    return BertModel(config).eval()


def batch() -> dict[str, Tensor]:
    ids = torch.arange(1, 19).reshape(3, 6)
    mask = (torch.arange(6) < torch.tensor([[6], [4], [1]])).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def test_equals_a_loop_over_unpadded_examples() -> None:
    student, teacher, data = bert(layers=1), bert(), batch()
    objective = EmbeddingDistillation(cosine_weight=0.5, mse_weight=2.0)
    objective.prepare(student, teacher)
    found = objective.losses(student, teacher, data, torch.tensor(5))  # two more are in the step's other micro-batches
    cosine = mse = torch.zeros(())
    for ids, mask in zip(data["input_ids"], data["attention_mask"], strict=True):
        words = ids[mask == 1][None]
        ours, theirs = (m(input_ids=words).last_hidden_state[0].mean(0) for m in (student, teacher))
        cosine = cosine + 1 - ours @ theirs / ours.norm() / theirs.norm()
        mse = mse + F.mse_loss(ours, theirs)
    torch.testing.assert_close(found.parts["cosine"], (cosine / 5).detach())
    torch.testing.assert_close(found.parts["mse"], (mse / 5).detach())
    torch.testing.assert_close(found.total, (0.5 * cosine + 2 * mse) / 5)
    found.total.backward()
    assert all(p.grad is not None for n, p in student.named_parameters() if "pooler" not in n)


def test_an_empty_text_is_embedded_as_zero() -> None:
    hidden, mask = torch.randn(2, 3, 4), torch.tensor([[1, 1, 0], [0, 0, 0]])
    pooled = mean_pooled(hidden, mask)
    torch.testing.assert_close(pooled, torch.stack([hidden[0, :2].mean(0), torch.zeros(4)]))


def test_states_in_half_precision_are_averaged_in_float32() -> None:
    hidden = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    for mask in (None, torch.arange(50).lt(40).expand(2, 50)):
        assert torch.equal(mean_pooled(hidden, mask), mean_pooled(hidden.float(), mask))


def test_nothing_to_learn_from_oneself() -> None:
    model = bert()
    losses = EmbeddingDistillation(mse_weight=1.0).losses(model, model, batch(), torch.tensor(3))
    assert float(losses.total) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EmbeddingDistillation(cosine_weight=-1), "cosine_weight is -1"),
        (lambda: EmbeddingDistillation(cosine_weight=0), "both 0"),
        (lambda: EmbeddingDistillation().prepare(bert(), None), "needs a teacher"),
        (lambda: EmbeddingDistillation().prepare(bert(4), bert(8)), "width 4 and the teacher's 8, .* with shrink"),
        (lambda: EmbeddingDistillation().prepare(narrow(bert(8)), bert(6)), "width 4 and the teacher's 6, .* with shr"),
        (
            lambda: EmbeddingDistillation().prepare(BertForSequenceClassification(bert().config), bert()),
            "student is a Bert",
        ),
    ],
)
def test_misfits(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def examples(count: int = 64) -> dict[str, Tensor]:
    ids = torch.randint(1, 30, (count, 6), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(6) < 6 - torch.arange(count)[:, None] % 3).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def narrow(teacher: BertModel) -> Any:
    return shrink(teacher, [examples()], hidden_size=4)


def test_an_encoder_with_a_decoder_is_refused() -> None:
    """T5 and Pegasus would ask for a decoder's inputs at the first step; BART's states were its decoder's."""
    sizes = {"d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    config = T5Config(vocab_size=30, d_model=8, **sizes)
    with pytest.raises(ValueError, match=r"the student is a T5Model, .* give an encoder alone"):
        EmbeddingDistillation().prepare(T5Model(config), bert())
    EmbeddingDistillation().prepare(T5EncoderModel(config), bert())


def test_a_narrower_student_learns_the_projected_embeddings() -> None:
    teacher, data = bert(), batch()
    student = narrow(teacher)
    objective = EmbeddingDistillation(mse_weight=2.0)
    objective.prepare(student, teacher)
    found = objective.losses(student, teacher, data, objective.count_items(student, data))
    projection = shrink_report(student).projection.double()
    total = torch.zeros((), dtype=torch.float64)
    for ids, mask in zip(data["input_ids"], data["attention_mask"], strict=True):
        words = ids[mask == 1][None]
        ours, theirs = (m(input_ids=words).last_hidden_state[0].double().mean(0).detach() for m in (student, teacher))
        goal = theirs @ projection
        total += (1 - ours @ goal / ours.norm() / goal.norm() + 2 * (ours - goal).square().mean()) / 3
    torch.testing.assert_close(found.total.double(), total, rtol=1e-5, atol=1e-6)
    started = 1 - F.cosine_similarity(*(mean_pooled(m(**examples()).last_hidden_state) @ p for m, p in (
        (student, torch.eye(4)), (teacher, projection.float())
    )))  # fmt: skip
    assert started.mean() < 0.2  # an untrained student's is about 1


def test_the_projection_of_another_teacher_is_told_of(recwarn: pytest.WarningsRecorder) -> None:
    student, other = narrow(bert()), bert()
    EmbeddingDistillation().prepare(copy.deepcopy(student), bert().double())
    assert not recwarn
    with torch.no_grad():
        other.embeddings.word_embeddings.weight.mul_(1.1)
    with pytest.warns(UserWarning, match="for another model make the student anew with shrink"):
        EmbeddingDistillation().prepare(student, other)


def test_a_resumed_run_has_the_projection_of_its_checkpoint(tmp_path: Path) -> None:
    rows = Dataset.from_dict({k: v.tolist() for k, v in examples(24).items()})

    def trainer(folder: str, **options: Any) -> DistillationTrainer:
        arguments = DistillationArguments(
            str(tmp_path / folder), max_steps=4, per_device_train_batch_size=8, learning_rate=1e-3, save_steps=2,
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, report_to="none",
        )  # fmt: skip
        teacher = bert()
        return DistillationTrainer(
            narrow(teacher), arguments, teacher=teacher, objective="embedding", train_dataset=rows,
            overparam={"ones": 1}, constraint={"weight": 0.1}, **options,
        )  # fmt: skip

    whole = trainer("out")
    whole.train()
    (projection,) = whole.method.tensors().values()
    resumed = trainer("out")
    resumed.method.tensors()["projection"].mul_(2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    torch.testing.assert_close(resumed.method.tensors()["projection"], projection, rtol=0, atol=0)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
def test_three_layers_of_minilm_come_closer_to_it(tmp_path: Path) -> None:
    raw, task = load_data("nyt-pairs", train_limit=32)
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    teacher = AutoModel.from_pretrained(minilm())
    student = keep_layers(teacher, 3)
    texts = [text for column in task.inputs for text in raw["train"][column]]
    data = Dataset.from_dict(dict(tokenizer(texts, truncation=True, max_length=24)))
    collator = DataCollatorWithPadding(tokenizer)
    arguments = DistillationArguments(
        str(tmp_path), max_steps=8, per_device_train_batch_size=16, learning_rate=1e-4, logging_steps=1,
        save_strategy="no", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, seed=0,
    )  # fmt: skip
    trainer = DistillationTrainer(
        student, arguments, teacher=teacher, objective=EmbeddingDistillation(), train_dataset=data,
        data_collator=collator, overparam=OverParamConfig(ones=1, targets=["*.attention.*"]),
    )  # fmt: skip
    trainer.train()
    losses = [log["cosine_loss"] for log in trainer.state.log_history if "cosine_loss" in log]
    assert losses[-1] < 0.7 * losses[0]


def test_cosines_are_of_neighbouring_rows() -> None:
    model, ids = bert(), torch.arange(1, 13)
    rows = []
    for changed in (0, 3, 12):
        other = torch.where(torch.arange(12) < changed, 29 - ids, ids)
        rows += [{"input_ids": t.tolist(), "attention_mask": [1] * 12} for t in (ids, other)]

    def collate(examples: list[dict[str, list[int]]]) -> dict[str, Tensor]:
        return {k: torch.tensor([e[k] for e in examples]) for k in examples[0]}

    found = pair_cosines(embedder(model), rows, collate, batch=4)
    with torch.no_grad():
        vectors = [model(input_ids=torch.tensor([r["input_ids"]])).last_hidden_state.mean(1)[0] for r in rows]
    expected = [float(a @ b / a.norm() / b.norm()) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    assert found[0] > found[1] > found[2]
