"""The trainer on small real models: plain where it must be, independent of accumulation, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    set_seed,
)

from opdf.distill import (
    Constraint,
    DistillationArguments,
    DistillationTrainer,
    HiddenDistillation,
    LogitsDistillation,
    Objective,
    keep_layers,
)
from opdf.overparam import OverParamConfig, OverParameterizedOptimizer


def bert(layers: int = 4, width: int = 16, **options: Any) -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * width,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, initializer_range=0.3, **options,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def sentences(count: int = 24) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        ids = torch.randint(1, 50, (8,), generator=generator)
        rows.append({"input_ids": ids.tolist(), "attention_mask": [1] * 8, "labels": int(ids[0] > 25)})
    return Dataset.from_list(rows)


def arguments(folder: Path, **options: Any) -> DistillationArguments:
    defaults: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1, "seed": 3,
        "save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "dataloader_pin_memory": False,
    }  # fmt: skip
    return DistillationArguments(str(folder), **(defaults | options))


class Gradients(TrainerCallback):
    """The dense gradients that the optimizer's first step sees."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        if not self.first:
            self.first = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def train(folder: Path, **options: Any) -> tuple[DistillationTrainer, nn.Module]:
    student = options.pop("student", None) or keep_layers(bert(), 2)
    training, resume = options.pop("training", {}), options.pop("resume", None)
    options.setdefault("teacher", bert())
    trainer = DistillationTrainer(student, arguments(folder, **training), train_dataset=sentences(), **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer, student


def test_alpha_zero_is_plain_training_bit_for_bit(tmp_path: Path) -> None:
    _, student = train(tmp_path, objective=LogitsDistillation(alpha=0.0))
    plain = keep_layers(bert(), 2)
    Trainer(plain, arguments(tmp_path), train_dataset=sentences()).train()
    for (name, ours), theirs in zip(student.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("objective", [LogitsDistillation, HiddenDistillation])
@pytest.mark.parametrize("model", ["classes", "tokens"])
def test_loss_and_gradients_do_not_depend_on_accumulation(tmp_path: Path, objective: Any, model: str) -> None:
    """24 examples in one window: 1 x 24, 3 x 8, and 5, 5, 5, 5, 4 (an unequal last micro-batch)."""
    seen = []
    for size, accumulation in ((24, 1), (8, 3), (5, 5)):
        gradients = Gradients()
        data, teacher, student = sentences(), bert(), keep_layers(bert(), 2)
        if model == "tokens":
            torch.manual_seed(0)
            teacher = GPT2LMHeadModel(
                GPT2Config(vocab_size=50, n_embd=16, n_layer=4, n_head=2, n_positions=16, resid_pdrop=0, attn_pdrop=0,
                           embd_pdrop=0, initializer_range=0.3)
            )  # fmt: skip
            student = keep_layers(teacher, 2)
            data = data.map(lambda row, i: {"labels": [-100] * (i % 5) + row["input_ids"][i % 5 :]}, with_indices=True)
        options = {"max_steps": 1, "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        trainer = DistillationTrainer(
            student, arguments(tmp_path, **options), teacher=teacher, objective=objective(), train_dataset=data,
            callbacks=[gradients],
        )  # fmt: skip
        trainer.train()
        log = trainer.state.log_history[0]
        seen.append((log["loss"], log["distillation_loss"], log["task_loss"], gradients.first))
    for loss, distillation, task, gradients_seen in seen[1:]:
        assert (loss, distillation, task) == pytest.approx(seen[0][:3], rel=1e-5)
        for name, gradient in gradients_seen.items():
            torch.testing.assert_close(gradient, seen[0][3][name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("over", [None, OverParamConfig(ones=2)])
def test_resumed_run_equals_uninterrupted(tmp_path: Path, over: OverParamConfig | None) -> None:
    constraint = Constraint(layer_map="first") if over else None
    save = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    runs: dict[str, Any] = {"overparam": over, "constraint": constraint, "training": save}
    objective = {"objective": HiddenDistillation(), "teacher": bert()}
    _, whole = train(tmp_path / "whole", **objective, **runs)
    _, resumed = train(tmp_path / "resumed", resume=str(tmp_path / "whole/checkpoint-2"), **objective, **runs)
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_resume_continues_projections(tmp_path: Path) -> None:
    save = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    states = []
    for folder, resume in ((tmp_path / "a", None), (tmp_path / "b", str(tmp_path / "a/checkpoint-2"))):
        set_seed(0)
        objective = HiddenDistillation()
        train(folder, student=bert(2, 8), objective=objective, training=save, resume=resume)
        states.append(objective.projections.state_dict())
    assert states[0].keys() == {"1-2.weight", "2-4.weight"}
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name])


def test_saved_student_is_the_plain_model(tmp_path: Path) -> None:
    trainer, student = train(
        tmp_path, student=bert(2, 8), objective=HiddenDistillation(), overparam=OverParamConfig(ones=1)
    )
    trainer.save_model(str(tmp_path / "student"))
    again = BertForSequenceClassification.from_pretrained(tmp_path / "student")
    assert again.state_dict().keys() == student.state_dict().keys()
    for a, b in zip(again.parameters(), student.parameters(), strict=True):
        assert torch.equal(a, b)


def test_optimizer_takes_the_arguments(tmp_path: Path) -> None:
    training = {"weight_decay": 0.1, "adam_beta2": 0.9, "optim": "adamw_torch", "max_steps": 1}
    trainer, _ = train(tmp_path, overparam=OverParamConfig(ones=1), training=training)
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, OverParameterizedOptimizer)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.1, 0.0]
    assert all(g["betas"] == (0.9, 0.9) for g in optimizer.param_groups)
    assert any(spec for group in optimizer.param_groups for spec in group["opdf_specs"])


def test_sgd_and_bf16_autocast(tmp_path: Path) -> None:
    training = {"optim": "sgd", "bf16": True, "learning_rate": 1e-2}
    trainer, student = train(tmp_path, overparam=OverParamConfig(ones=1), training=training)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in student.parameters())
    assert len(trainer.state.log_history) >= 4


def test_losses_are_logged_apart(tmp_path: Path) -> None:
    trainer, _ = train(
        tmp_path, objective=HiddenDistillation(hidden_weight=0.5), overparam=OverParamConfig(ones=1),
        constraint=Constraint(layer_map="first"), training={"logging_steps": 2},
    )  # fmt: skip
    for log in trainer.state.log_history[:2]:
        parts = 0.1 * log["task_loss"] + 0.9 * log["distillation_loss"] + 0.5 * log["hidden_loss"]
        assert log["loss"] == pytest.approx(parts, rel=1e-4)
        assert log["constraint_loss"] > 0
        assert log["constraint_grad_ratio"] > 0


def test_early_stopping_tensorboard_and_the_best_checkpoint(tmp_path: Path) -> None:
    training = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 20,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "report_to": "tensorboard",
        "learning_rate": 0.3, "lr_scheduler_type": "constant",
    }  # fmt: skip
    student = keep_layers(bert(), 2)
    trainer = DistillationTrainer(
        student, arguments(tmp_path, **training), teacher=bert(), overparam=OverParamConfig(ones=1),
        train_dataset=sentences(), eval_dataset=sentences(8), callbacks=[EarlyStoppingCallback(2)],
    )  # fmt: skip
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(losses) < 20
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_teacher_stays_frozen_and_out_of_the_student(tmp_path: Path) -> None:
    teacher = bert().train()
    before = {n: p.clone() for n, p in teacher.named_parameters()}
    _, student = train(tmp_path, teacher=teacher, overparam=OverParamConfig(ones=1))
    assert not teacher.training
    for name, p in teacher.named_parameters():
        assert not p.requires_grad
        assert p.grad is None
        assert torch.equal(p, before[name])
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}


class Breaks(Objective):
    """Switches the teacher to training mode in the middle of a run."""

    def on_train_begin(self, trainer: DistillationTrainer) -> None:
        assert trainer.teacher is not None
        trainer.teacher.train()

    losses = LogitsDistillation.losses
    combine = LogitsDistillation.combine
    alpha, temperature = 0.9, 2.0


def test_teacher_in_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="teacher is in training mode"):
        train(tmp_path, objective=Breaks())


def test_evaluation_reports_the_models_own_loss(tmp_path: Path) -> None:
    trainer, student = train(tmp_path)
    data = sentences(8)
    metrics = trainer.evaluate(data)
    with torch.no_grad():
        inputs = {k: torch.tensor(data[k]) for k in data.column_names}
        assert metrics["eval_loss"] == pytest.approx(float(student.eval()(**inputs).loss), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": bert(num_labels=3)}, "student has 2 labels and the teacher 3"),
        ({"teacher": None}, "alpha is 0.9 but there is no teacher"),
        ({"constraint": Constraint()}, "constraint needs overparam"),
        ({"objective": HiddenDistillation(attention_weight=1.0)}, "attn_implementation='eager'"),
        ({"objective": HiddenDistillation(pairs=[(5, 1)])}, r"pairs holds \(5, 1\)"),
        ({"teacher": bert(3), "objective": HiddenDistillation()}, "do not divide"),
    ],
)
def test_misfits_are_refused_before_training(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(keep_layers(bert(), 2), arguments(tmp_path), **({"teacher": bert()} | options))
