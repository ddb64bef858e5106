"""BERT-of-Theseus on real models: its limits are the student and the teacher themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.distill.small import train
from tests.families import batch, build
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

from opdf.distill import Constraint, DistillationArguments, DistillationTrainer, keep_layers, shrink
from opdf.distill.methods.theseus import Theseus, hybrid
from opdf.overparam import OverParamConfig

BATCH = {"input_ids": torch.arange(1, 19).reshape(3, 6), "labels": torch.tensor([0, 1, 1])}


def bert(layers: int = 4, dropout: float = 0.0) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
                        intermediate_size=16, hidden_dropout_prob=dropout, initializer_range=0.3,
                        attention_probs_dropout_prob=dropout)  # fmt: skip
    return BertForSequenceClassification(config).eval()


def student_of(teacher: nn.Module) -> Any:
    student = keep_layers(teacher, [0, 1])
    for p in student.bert.encoder.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return student


def prepared(rate: float = 0.5, dropout: float = 0.0) -> tuple[Theseus, Any, Any]:
    teacher = bert(dropout=dropout)
    student, objective = student_of(teacher), Theseus(rate)
    objective.prepare(student, teacher)
    return objective, student.train(), teacher.requires_grad_(False)


def test_rate_one_is_the_student_and_all_predecessors_the_teacher() -> None:
    objective, student, teacher = prepared(1.0)
    loss = objective.losses(student, teacher, BATCH, torch.tensor(3)).total
    assert torch.equal(loss, student(**BATCH).loss)
    tower = student.bert.encoder.layer
    with hybrid(tower, objective._predecessors, [False, False]):
        assert torch.equal(student(**BATCH).logits, teacher(**BATCH).logits)
    assert not torch.equal(student(**BATCH).logits, teacher(**BATCH).logits)


def test_vision_models_too() -> None:
    torch.manual_seed(0)
    config = ViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=1,
                       intermediate_size=8)  # fmt: skip
    teacher = ViTForImageClassification(config).eval()
    student, objective = keep_layers(teacher, [0]), Theseus()
    objective.prepare(student, teacher)
    pixels = torch.randn(2, 3, 8, 8)
    with hybrid(student.get_submodule(objective._tower), objective._predecessors, [False]):
        assert torch.equal(student.eval()(pixel_values=pixels).logits, teacher(pixel_values=pixels).logits)


def test_a_fitted_student_takes_the_places_of_the_blocks_that_it_was_fitted_to() -> None:
    config = ViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=4, num_attention_heads=1,
                       intermediate_size=8)  # fmt: skip
    teacher, objective = ViTForImageClassification(config).eval(), Theseus()
    objective.prepare(shrink(teacher, [{"pixel_values": torch.randn(8, 3, 8, 8)}], num_hidden_layers=2), teacher)
    blocks = list(teacher.get_submodule(objective._tower).children())
    assert objective._predecessors == [blocks[:1], blocks[1:]]
    other = ViTForImageClassification(ViTConfig(**(config.to_dict() | {"num_hidden_layers": 6})))
    student = shrink(teacher, [{"pixel_values": torch.randn(8, 3, 8, 8)}], num_hidden_layers=2)
    objective.prepare(student, other)
    assert [len(group) for group in objective._predecessors] == [3, 3]  # fitted to another teacher


def test_only_the_chosen_branch_gets_gradients() -> None:
    objective, student, teacher = prepared()
    objective._draw = lambda: [False, True]  # type: ignore[method-assign]
    objective.losses(student, teacher, BATCH, torch.tensor(3)).total.backward()
    graded = {n.split(".")[3] for n, p in student.named_parameters() if p.grad is not None}
    assert graded == {"1"}
    assert all(p.grad is None for p in teacher.parameters())


def test_predecessors_drop_out_in_training_and_come_back_in_eval_mode() -> None:
    objective, student, teacher = prepared(dropout=0.5)
    objective._draw = lambda: [False, False]  # type: ignore[method-assign]
    losses = {float(objective.losses(student, teacher, BATCH, torch.tensor(3)).total.detach()) for _ in range(3)}
    assert len(losses) == 3
    assert not any(m.training for m in teacher.modules())


def test_linear_schedule() -> None:
    objective = Theseus(0.3, slope=0.0006)
    seen = {}
    for step in (0, 500, 1166, 1167):
        objective.step = step
        seen[step] = objective.replacement_rate()
    assert seen == {0: pytest.approx(0.3), 500: pytest.approx(0.6), 1166: pytest.approx(0.9996), 1167: 1.0}


def test_constant_schedule() -> None:
    objective = Theseus(0.5, "constant", steps=10)
    for step, rate in ((0, 0.5), (9, 0.5), (10, 1.0)):
        objective.step = step
        assert objective.replacement_rate() == rate


def test_draws_follow_the_rate_independently_of_each_other() -> None:
    objective, _, _ = prepared(0.3)
    draws = torch.tensor([objective._draw() for _ in range(10_000)]).double()
    deviation = (0.3 * 0.7 / 10_000) ** 0.5
    assert ((draws.mean(0) - 0.3).abs() < 4 * deviation).all()
    assert abs(float((draws[:, 0] * draws[:, 1]).mean()) - 0.09) < 4 * (0.09 * 0.91 / 10_000) ** 0.5
    objective.seed, objective.draws = 1, 0
    assert [objective._draw() for _ in range(50)] != draws[:50].bool().tolist()


def run(
    folder: Path, resume: str | None = None, over: OverParamConfig | None = None, slope: float | None = 0.1
) -> tuple[Theseus, Any, Any]:
    teacher = bert()
    student, objective = keep_layers(teacher, [0, 1]), Theseus(0.3, slope=slope)
    rows = [{"input_ids": [1 + i, 2, 3, 4], "labels": i % 2} for i in range(16)]
    arguments = DistillationArguments(
        str(folder), max_steps=6, save_strategy="steps", save_steps=3, per_device_train_batch_size=4, disable_tqdm=True,
        learning_rate=1e-2, use_cpu=True,
    )  # fmt: skip
    trainer = DistillationTrainer(
        student, arguments, teacher=teacher, objective=objective, train_dataset=Dataset.from_list(rows), overparam=over,
        constraint=Constraint() if over else None,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return objective, student, teacher


@pytest.mark.parametrize("seed", [-1, 2 * 10**13, 10**30])
def test_a_seed_may_be_any_whole_number(seed: int) -> None:
    """One above 1.8e13 ended the first step in an overflow."""
    objective = Theseus(seed=seed)
    objective._predecessors = [[]] * 64
    assert objective._draw() != objective._draw()


def test_by_default_the_student_runs_alone_from_half_of_the_steps_on(tmp_path: Path) -> None:
    objective, _, _ = run(tmp_path, slope=None)
    rates = []
    for objective.step in range(7):
        rates.append(objective.replacement_rate())
    assert rates == pytest.approx([0.3, 0.3 + 0.7 / 3, 0.3 + 1.4 / 3, 1.0, 1.0, 1.0, 1.0])


def test_training_changes_blocks_only_and_resumes_exactly(tmp_path: Path) -> None:
    over = OverParamConfig(ones=2)
    objective, student, teacher = run(tmp_path / "whole", over=over)
    assert objective.step == objective.draws == 6
    assert objective.replacement_rate() == pytest.approx(0.9)
    theirs = dict(teacher.named_parameters())
    for name, p in student.named_parameters():
        kept = torch.equal(p, theirs[name])
        # The query's bias is the one parameter of a block whose gradient may vanish.
        assert kept != (".layer." in name) or "key.bias" in name, name
    resumed, again, _ = run(tmp_path / "again", str(tmp_path / "whole/checkpoint-3"), over)
    assert resumed.step == 6
    for (name, a), b in zip(student.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0.0}, "rate is 0.0"),
        ({"rate": 1.5}, "rate is 1.5"),
        ({"schedule": "cosine"}, "schedule is 'cosine'"),
        ({"slope": -1.0}, "slope is -1.0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Theseus(**options)


def test_misfits() -> None:
    with pytest.raises(ValueError, match="pass a teacher"):
        Theseus().prepare(bert(2), None)
    with pytest.raises(ValueError, match="3 student blocks do not divide the teacher's 4"):
        Theseus().prepare(keep_layers(bert(), [0, 1, 2]), bert())
    narrow = BertForSequenceClassification(BertConfig(**(bert().config.to_dict() | {"hidden_size": 8})))
    with pytest.raises(ValueError, match=r"has no bert.embeddings.* of shape \(30, 8\); use a student of its width"):
        Theseus().prepare(narrow, bert())


def test_blocks_that_run_less_often_than_in_the_teacher_are_refused() -> None:
    """An ALBERT's do all its passes, and the teacher's ran as few times as the student's: it was another model."""

    def albert(passes: int) -> AlbertForSequenceClassification:
        sizes = {"embedding_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
        return AlbertForSequenceClassification(AlbertConfig(vocab_size=20, num_hidden_layers=passes, **sizes))

    with pytest.raises(ValueError, match="the student runs 1 blocks as 2 and the teacher 1 as 4"):
        Theseus().prepare(albert(2), albert(4))
    Theseus().prepare(albert(4), albert(4))


def test_a_student_whose_head_cannot_be_the_teachers_is_refused() -> None:
    """Its head stayed the table of the teacher's embeddings, frozen."""

    def llama(blocks: int, *, tied: bool) -> LlamaForCausalLM:
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": blocks, "num_attention_heads": 1}
        return LlamaForCausalLM(LlamaConfig(vocab_size=20, tie_word_embeddings=tied, **sizes))

    with pytest.raises(ValueError, match=r"the teacher has a lm_head\.weight and the student none of its own"):
        Theseus().prepare(llama(1, tied=True), llama(2, tied=False))
    for ours, theirs in ((False, False), (True, True), (False, True)):
        student, teacher = llama(1, tied=ours), llama(2, tied=theirs)
        Theseus().prepare(student, teacher)
        assert torch.equal(student.lm_head.weight, teacher.lm_head.weight)


@pytest.mark.parametrize("kinds", ["near far near far", "far far far far", "far far near near"])
def test_teacher_blocks_of_another_kind_than_the_students_are_refused(kinds: str) -> None:
    """The model gives a mask by the kind of the place, so that the teacher would answer wrongly."""
    names = {"near": "sliding_attention", "far": "full_attention"}
    config = Gemma2Config(
        vocab_size=20, hidden_size=8, num_hidden_layers=4, num_attention_heads=1, num_key_value_heads=1, head_dim=8,
        intermediate_size=8, sliding_window=2, layer_types=[names[kind] for kind in kinds.split()], pad_token_id=0,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    teacher = Gemma2ForSequenceClassification(config).eval()
    student, objective = keep_layers(teacher, 2).eval(), Theseus()
    if kinds.startswith("near"):
        with pytest.raises(ValueError, match="teacher's block 0 has sliding_attention and the student's block 0"):
            objective.prepare(student, teacher)
        return
    objective.prepare(student, teacher)
    with hybrid(student.model.layers, objective._predecessors, [False, False]):
        assert torch.equal(student(BATCH["input_ids"], use_cache=False).logits, teacher(BATCH["input_ids"]).logits)


def test_a_convolution_behind_the_first_block_stays_there() -> None:
    """That of a large DeBERTa; the teacher's second block ran before it."""
    teacher = build("deberta-v2", 4, conv_kernel_size=3, conv_act="gelu").requires_grad_(False)
    with pytest.raises(ValueError, match="several of the teacher's would run before it"):
        Theseus().prepare(keep_layers(teacher, 2), teacher)
    student, objective, data = keep_layers(teacher, 4), Theseus(), batch("deberta-v2")
    objective.prepare(student, teacher)
    with hybrid(student.deberta.encoder.layer, objective._predecessors, [False] * 4):
        assert torch.equal(student(**data).logits, teacher(**data).logits)


def test_models_may_ask_blocks_of_which_kind_they_are() -> None:
    """ModernBERT does, in its loop over them."""
    teacher = build("modernbert", 4, layer_types=["full_attention"] * 4).requires_grad_(False)
    student, objective, data = keep_layers(teacher, 2).eval(), Theseus(), batch("modernbert")
    objective.prepare(student, teacher)
    with hybrid(student.model.layers, objective._predecessors, [False, False]):
        assert torch.equal(student(**data).logits, teacher(**data).logits)


def test_a_second_training_begins_at_the_first_rate(tmp_path: Path) -> None:
    objective, seen = Theseus(0.3, slope=0.1), list[tuple[float, int]]()
    draw = objective._draw
    objective._draw = lambda: (seen.append((objective.replacement_rate(), objective.draws)), draw())[1]  # type: ignore[method-assign,func-returns-value]
    trainer, _ = train(tmp_path, objective=objective, training={"max_steps": 2})
    trainer.train()
    assert [rate for rate, _ in seen] == pytest.approx([0.3, 0.4, 0.3, 0.4])
    assert [number for _, number in seen] == [0, 1, 0, 1]


def test_decoders_run_without_a_cache() -> None:
    """Teacher blocks carry the numbers of their own places, which a cache of the student's depth does not have."""
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=4, n_head=1, n_positions=8, bos_token_id=0, eos_token_id=0)
    teacher = GPT2LMHeadModel(config).eval().requires_grad_(False)
    objective, student = Theseus(), keep_layers(teacher, 2).eval()
    objective.prepare(student, teacher)
    objective._draw = lambda: [False, False]  # type: ignore[method-assign]
    ids = torch.arange(12).reshape(2, 6)
    batch = {"input_ids": ids, "labels": ids}
    loss = objective.losses(student, teacher, batch, objective.count_items(student, batch)).total
    torch.testing.assert_close(loss, teacher(**batch).loss, check_stride=False)


def test_fp16_is_refused(tmp_path: Path) -> None:
    teacher = bert()
    arguments = DistillationArguments(str(tmp_path), use_cpu=True)
    arguments.fp16 = True  # which it takes on GPUs only
    with pytest.raises(ValueError, match="use bf16 instead of fp16"):
        DistillationTrainer(student_of(teacher), arguments, teacher=teacher, objective=Theseus())
