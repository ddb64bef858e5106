"""The trainer on small real models: plain where it must be, independent of accumulation, resumable."""

from __future__ import annotations

import copy
import inspect
import json
import os
import sqlite3
import warnings
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from accelerate import PartialState
from accelerate.data_loader import DataLoaderDispatcher
from datasets import ClassLabel, Dataset, DatasetDict
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.distill.small import arguments, bert, labelled, scored_in_bf16, sentences, train
from tests.families import build
from torch import Tensor, nn
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    HfArgumentParser,
    LlamaConfig,
    LlamaForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from opdf.distill import (
    LGTM,
    METHODS,
    AttributionDistillation,
    Constraint,
    DistillationArguments,
    DistillationTrainer,
    HiddenDistillation,
    LogitsDistillation,
    Losses,
    Objective,
    Theseus,
    TrainingDiverged,
    keep_layers,
)
from opdf.distill.checkpoint import damage
from opdf.distill.labels import check_labels
from opdf.distill.named import build_objective
from opdf.overparam import OverParamConfig, OverParameterizedOptimizer


class Gradients(TrainerCallback):
    """The dense gradients that the optimizer's first step sees."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        if not self.first:
            self.first = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_alpha_zero_is_plain_training_bit_for_bit(tmp_path: Path) -> None:
    _, student = train(tmp_path, objective=LogitsDistillation(alpha=0.0))
    plain = keep_layers(bert(), 2)
    Trainer(plain, arguments(tmp_path), train_dataset=sentences()).train()
    for (name, ours), theirs in zip(student.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("objective", [LogitsDistillation, pytest.param(HiddenDistillation, marks=pytest.mark.slow)])
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


class PassesNothingOn(DistillationTrainer):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        return super().compute_loss(model, inputs, return_outputs)


class HasALossOfItsOwn(DistillationTrainer):
    loss_is_scaled_for_ga = False  # as transformers asks of a loss that is a mean over a micro-batch

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        return model(**inputs).loss


@pytest.mark.parametrize("kind", [PassesNothingOn, HasALossOfItsOwn])
def test_a_subclass_learns_a_mean_over_a_steps_micro_batches(tmp_path: Path, kind: type[DistillationTrainer]) -> None:
    """It was their sum, without a word."""
    seen = []
    for size, accumulation in ((24, 1), (8, 3)):
        gradients = Gradients()
        options = {
            "max_steps": 1, "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation,
            "max_grad_norm": 0.0,
        }  # fmt: skip
        trainer = kind(
            keep_layers(bert(), 2), arguments(tmp_path, **options), teacher=bert(), train_dataset=sentences(),
            callbacks=[gradients],
        )  # fmt: skip
        trainer.train()
        seen.append(gradients.first)
    for name, gradient in seen[0].items():
        torch.testing.assert_close(seen[1][name], gradient, rtol=1e-4, atol=1e-7)


class Poison(TrainerCallback):
    """Makes a weight infinite after a step, as an overflow would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        if state.global_step == self.step:
            next(model.parameters()).data[:] = torch.inf


@pytest.mark.parametrize("accumulation", [1, 2])
def test_divergence_is_named_with_its_step_and_the_last_good_checkpoint(tmp_path: Path, accumulation: int) -> None:
    training = {"save_strategy": "steps", "save_steps": 2, "max_steps": 20, "logging_steps": 7,
                "gradient_accumulation_steps": accumulation}  # fmt: skip
    with pytest.raises(
        TrainingDiverged, match=r"diverged: .* in step 4; .*checkpoint-2\. .* lower learning_rate"
    ) as stop:
        train(tmp_path, training=training, callbacks=[Poison(3)])
    assert stop.value.step == 4
    assert stop.value.checkpoint == tmp_path / "checkpoint-2"
    assert damage(stop.value.checkpoint) is None
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["checkpoint-2"]


def test_a_checkpoint_of_broken_weights_is_not_written(tmp_path: Path) -> None:
    """The step before it broke them, and no loss has seen that yet."""
    training = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "logging_steps": 7}
    with pytest.raises(
        TrainingDiverged, match=r"a weight is infinite or not a number in step 2; .*checkpoint-1"
    ) as stop:
        train(tmp_path, training=training, callbacks=[Poison(2)])
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["checkpoint-1"]
    assert all(value.isfinite().all() for value in load_file(stop.value.checkpoint / "model.safetensors").values())


@pytest.mark.parametrize(
    "way",
    [{"gradient_checkpointing": True}, pytest.param({"torch_compile_backend": "aot_eager"}, marks=pytest.mark.slow)],
)
def test_compiled_and_checkpointed_students_train_as_plain_ones(tmp_path: Path, way: dict[str, Any]) -> None:
    over = OverParamConfig(ones=1)
    _, plain = train(tmp_path, overparam=over, constraint=Constraint(weight=1.0))
    trainer, student = train(tmp_path, overparam=over, constraint=Constraint(weight=1.0), training=way)
    assert trainer.args.torch_compile == ("torch_compile_backend" in way)
    for ours, theirs in zip(student.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_divergence_is_noticed_without_log_and_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match="in step 3; no checkpoint was written before"):
        train(tmp_path, training={"logging_strategy": "no"}, callbacks=[Poison(2)])


def test_steps_that_a_gradient_scaler_skips_are_no_divergence(tmp_path: Path) -> None:
    student = keep_layers(bert(), 2)
    trainer = DistillationTrainer(
        student, arguments(tmp_path, max_steps=12, max_grad_norm=0.0), teacher=bert(), train_dataset=sentences()
    )
    before = {n: p.clone() for n, p in student.named_parameters()}
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**66, growth_interval=99)
    trainer.train()
    assert any(not log["grad_norm"] < torch.inf for log in trainer.state.log_history if "grad_norm" in log)
    assert any(not torch.equal(p, before[n]) for n, p in student.named_parameters())
    assert all(p.isfinite().all() for p in student.parameters())
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-30)
    with pytest.raises(TrainingDiverged, match="no scale without overflow"):
        trainer.train()


def resources() -> tuple[float, int]:
    """Resident memory in MiB and open files of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd"))


class Gauge(TrainerCallback):
    def __init__(self) -> None:
        self.seen: dict[int, tuple[float, int]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seen[state.global_step] = resources()


def test_a_stream_is_learned_as_its_whole_steps_are(tmp_path: Path) -> None:
    """20 rows have two steps of two batches of 4, and one batch too many."""
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    training = {"max_steps": 6, "optim": "sgd", "learning_rate": 0.1, "train_sampling_strategy": "sequential"}
    runs = [
        train(tmp_path, training=training | more, train_dataset=data)
        for more, data in (({}, sentences(20).select(range(16))), (split, sentences(20).to_iterable_dataset()))
    ]
    for p, q in zip(*(student.parameters() for _, student in runs), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run, _ in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_stream_that_is_shorter_than_a_step_is_refused(tmp_path: Path) -> None:
    training = {"gradient_accumulation_steps": 4}
    with pytest.raises(ValueError, match="train_dataset ends after 3 batches, and a step has 4"):
        train(tmp_path, training=training, train_dataset=sentences(24).to_iterable_dataset())


def test_a_stream_whose_batches_cannot_be_shared_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As accelerate's process 0 reads it for two: texts of several lengths, each batch padded by itself."""
    run = DistillationTrainer(keep_layers(bert(), 2), arguments(tmp_path), teacher=bert(), train_dataset=sentences())
    run.state.max_steps = 1
    loader = DataLoaderDispatcher([{"input_ids": torch.ones(8 - k, dtype=torch.long)} for k in range(2)])
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    with pytest.raises(ValueError, match=r"batches differ in length; set accelerator_config=\{'dispatch_batches': Fa"):
        run.get_batch_samples(iter(loader), 1, torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [200, 3000])
def test_memory_and_open_files_do_not_grow(tmp_path: Path, steps: int) -> None:
    """The second half of a run, with checkpoints and logs in it, against the first."""
    gauge, width = Gauge(), 16 if steps > 1000 else 96  # the weights leaked once a step are more than the limit
    training = {
        "max_steps": steps, "save_strategy": "steps", "save_steps": steps // 20, "save_total_limit": 1,
        "logging_steps": 10, "bf16": True, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2,
    }  # fmt: skip
    train(
        tmp_path, objective=HiddenDistillation(), overparam=OverParamConfig(ones=1),
        constraint=Constraint(layer_map="first"), training=training, callbacks=[gauge], student=bert(2, width),
        teacher=bert(4, width),
    )  # fmt: skip
    middle, end = ([gauge.seen[k] for k in range(a, a + 20)] for a in (steps // 2, steps - 19))
    assert max(m for m, _ in end) - max(m for m, _ in middle) < 8  # MiB
    assert max(f for _, f in end) <= max(f for _, f in middle)


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
    assert optimizer.weights()


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
    best = tmp_path / f"checkpoint-{1 + losses.index(min(losses))}"
    assert trainer.state.best_model_checkpoint == str(best)
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_tensorboard_shows_every_part_of_the_loss(tmp_path: Path) -> None:
    training = {"report_to": "tensorboard", "max_steps": 3}
    trainer, _ = train(
        tmp_path, overparam=OverParamConfig(ones=1), constraint=Constraint(layer_map="first"), training=training
    )
    (events,) = tmp_path.rglob("events.out.tfevents*")
    seen = EventAccumulator(str(events)).Reload()
    names = ("loss", "task_loss", "distillation_loss", "constraint_loss", "constraint_grad_ratio", "learning_rate")
    for name in names:
        values = [event.value for event in seen.Scalars(f"train/{name}")]
        assert values == pytest.approx([log[name] for log in trainer.state.log_history if name in log])
        assert len(values) == 3


def test_trackio_keeps_the_same_without_an_account(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    training = {"report_to": "trackio", "max_steps": 3, "run_name": "small"}
    train(tmp_path, overparam=OverParamConfig(ones=1), constraint=Constraint(layer_map="first"), training=training)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with closing(sqlite3.connect(database)) as connection:
        entries = [json.loads(row[0]) for row in connection.execute("select metrics from metrics")]
    logged = [entry for entry in entries if "train/loss" in entry]
    assert len(logged) == 3
    assert all(entry["train/constraint_grad_ratio"] > 0 and "train/distillation_loss" in entry for entry in logged)


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


class Breaks(LogitsDistillation):
    """Switches the teacher to training mode in the middle of a run."""

    def on_train_begin(self, trainer: DistillationTrainer) -> None:
        assert trainer.teacher is not None
        trainer.teacher.train()


def test_teacher_in_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="teacher is in training mode"):
        train(tmp_path, objective=Breaks())


def test_a_teacher_that_was_trained_in_bf16_answers_as_one_that_is_loaded(tmp_path: Path) -> None:
    """Else a run that is resumed in another process would follow other answers."""
    given = [scored_in_bf16(bert(), tmp_path / "teacher"), bert()]
    students = [train(tmp_path, teacher=teacher)[1] for teacher in given]
    assert all(torch.equal(a, b) for a, b in zip(*(one.parameters() for one in students), strict=True))


@pytest.mark.parametrize("overparam", [None, OverParamConfig(ones=1)])
def test_a_student_that_was_scored_in_half_precision_is_trained_in_its_own(
    tmp_path: Path, overparam: OverParamConfig | None
) -> None:
    """`bf16_full_eval` left it in bfloat16, positions too, where small steps are lost; cores had no step at all."""

    def llama() -> LlamaForSequenceClassification:
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        return LlamaForSequenceClassification(LlamaConfig(vocab_size=50, pad_token_id=0, **sizes))

    students, data = [], sentences(8)
    for scored in (False, True):
        student = keep_layers(llama(), 1)
        trainer = DistillationTrainer(
            student, arguments(tmp_path, bf16_full_eval=True, learning_rate=1e-5), teacher=llama(), overparam=overparam,
            train_dataset=sentences(), eval_dataset=data,
        )  # fmt: skip
        for _ in range(2):
            if scored:
                halved = copy.deepcopy(student).bfloat16().eval()
                with torch.no_grad():
                    loss = halved(**{k: torch.tensor(data[k]) for k in data.column_names}).loss
                assert trainer.evaluate()["eval_loss"] == float(loss)
            trainer.train()
        students.append(student)
    for values in (nn.Module.parameters, nn.Module.buffers):
        assert all(torch.equal(a, b) for a, b in zip(*map(values, students), strict=True))


def test_evaluation_reports_the_models_own_loss(tmp_path: Path) -> None:
    trainer, student = train(tmp_path)
    data = sentences(8)
    metrics = trainer.evaluate(data)
    with torch.no_grad():
        inputs = {k: torch.tensor(data[k]) for k in data.column_names}
        assert metrics["eval_loss"] == pytest.approx(float(student.eval()(**inputs).loss), rel=1e-5)


def halving() -> Any:
    """A scheduler, of an optimizer of its own."""
    return torch.optim.lr_scheduler.StepLR(torch.optim.SGD(nn.Linear(1, 1).parameters()), 1, 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": bert(num_labels=3)}, "student has 2 labels and the teacher 3"),
        ({"teacher": None}, "alpha is 0.9 but there is no teacher"),
        ({"constraint": Constraint()}, "constraint needs overparam"),
        ({"objective": HiddenDistillation(pairs=[(5, 1)])}, r"pairs holds \(5, 1\)"),
        ({"teacher": bert(3), "objective": HiddenDistillation()}, "do not divide"),
        ({"teacher": bert().to("meta")}, "teacher is on the meta device and has no weights; load them first"),
        ({"train_dataset": sentences().select([])}, "train_dataset has no rows"),
        (
            {"train_dataset": labelled("labels", [0, 2, -1, 1])},
            r"2 rows of train_dataset have 'labels' outside 0 to 1, e.g. 2 in row 1 \(from 0\)",
        ),
        ({"train_dataset": labelled("label", [0, 7])}, "e.g. 7 in row 1 .*; the student has 2 labels: give it more"),
        (
            {"train_dataset": labelled("labels", [[0.0, 1.0], [1.0, -100.0]])},
            r"1 rows .* outside 0 to 1, e\.g\. \[1\.0, -1",
        ),
        ({"teacher": bert().bert}, "the teacher is a BertModel, which ends in hidden states"),
        (
            {"overparam": OverParamConfig(), "optimizers": (torch.optim.SGD(nn.Linear(1, 1).parameters()), None)},
            "optimizers has an optimizer, which would step the student's weights",
        ),
        ({"optimizers": (None, halving())}, r"a scheduler of an optimizer that is not trained with.*; give both"),
        ({"optimizers": (torch.optim.SGD(nn.Linear(1, 1).parameters()), halving())}, "not trained with"),
        ({"overparam": OverParamConfig(), "optimizers": (None, halving())}, "or name it in the arguments"),
    ],
)
def test_misfits_are_refused_before_training(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(keep_layers(bert(), 2), arguments(tmp_path), **({"teacher": bert()} | options))


def test_a_student_that_is_frozen_whole_is_refused_before_training(tmp_path: Path) -> None:
    """The first step said that a tensor does not require a gradient."""
    with pytest.raises(ValueError, match=r"weights are all frozen.*give student\.requires_grad_"):
        DistillationTrainer(keep_layers(bert(), 2).requires_grad_(False), arguments(tmp_path), teacher=bert())


@pytest.mark.parametrize("objective", ["logits", "hidden", "theseus", "lgtm", "adkd", "sparse-logits"])
def test_models_that_find_answers_are_refused_before_training(tmp_path: Path, objective: str) -> None:
    """Their outputs have start_logits and end_logits; it was said at the first step, and not what to do."""
    reader = BertForQuestionAnswering(bert(2).config)
    for student, teacher in ((bert(2), reader), (keep_layers(reader, 1), reader)):
        with pytest.raises(ValueError, match=r"is a BertForQuestionAnswering, which .*; write an Objective"):
            DistillationTrainer(student, arguments(tmp_path), teacher=teacher, objective=objective)
    with pytest.raises(ValueError, match="the student is a BertForQuestionAnswering"):
        DistillationTrainer(reader, arguments(tmp_path), objective={"name": "logits", "alpha": 0})


def test_a_teacher_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="teacher is a dict; give a model, its name, or a list of these"):
        DistillationTrainer(bert(2), arguments(tmp_path), teacher={"best": bert()})  # type: ignore[arg-type]


class OwnOptimizer(DistillationTrainer):
    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        assert self.model is not None
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3)
        return self.optimizer


@pytest.mark.parametrize(
    "options", [{"overparam": {"ones": 1}}, {"objective": "hidden", "model": bert(2, 8)}, {}], ids=["cores", "map", ""]
)
def test_an_optimizer_of_a_subclass_that_leaves_something_out_is_refused(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """The student was trained as it is, without its cores, and a map between two widths not at all."""
    given = {"model": keep_layers(bert(), 2), "teacher": bert(), "train_dataset": sentences(8)} | options
    trainer = OwnOptimizer(args=arguments(tmp_path, max_steps=1), **given)
    with pytest.raises(ValueError, match="the optimizer is a SGD of your own") if options else nullcontext():
        trainer.train()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_weights_that_lose_small_steps_are_said(tmp_path: Path, dtype: torch.dtype) -> None:
    """As transformers gives them from a file that holds them so, unless it is told otherwise."""
    bert(2).to(dtype).save_pretrained(tmp_path)
    student = BertForSequenceClassification.from_pretrained(tmp_path)
    with pytest.warns(
        UserWarning, match=rf"student's weights are {dtype}: steps .* are lost, .* Train student\.float\(\)"
    ):
        DistillationTrainer(student, arguments(tmp_path), teacher=bert())
    with pytest.warns(UserWarning, match=rf"teacher's weights are {dtype}: .* Train teacher\.float\(\)"):
        DistillationTrainer(
            bert(2), arguments(tmp_path), teacher=student, objective={"name": "lgtm"}, train_dataset=sentences()
        )
    frozen = student.requires_grad_(False)
    frozen.classifier.float().requires_grad_(True)  # as adapters are trained
    with warnings.catch_warnings(action="error"):
        DistillationTrainer(frozen, arguments(tmp_path), teacher=bert())


def test_scripts_read_the_arguments_as_transformers_own(tmp_path: Path) -> None:
    given = [f"--output_dir={tmp_path}", "--use_cpu=true", "--report_to=tensorboard", "--max_steps=3"]
    (found,) = HfArgumentParser(DistillationArguments).parse_args_into_dataclasses(given)  # type: ignore[arg-type]
    assert (found.max_steps, found.report_to, found.fsdp) == (3, ["tensorboard"], None)


def test_label_smoothing_is_refused(tmp_path: Path) -> None:
    message = r"label_smoothing_factor is 0\.1, and the loss is the objective's"
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, label_smoothing_factor=0.1)
    plain = TrainingArguments(str(tmp_path), use_cpu=True, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=message):
        DistillationTrainer(keep_layers(bert(), 2), plain, teacher=bert())


def test_a_loss_of_the_trainers_own_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"compute_loss_func is given.*; leave it out, or write an Objective"):
        DistillationTrainer(bert(2), arguments(tmp_path), teacher=bert(), compute_loss_func=nn.CrossEntropyLoss())


def test_of_several_gpus_one_is_used_without_a_launcher(tmp_path: Path) -> None:
    several = arguments(tmp_path)
    several._n_gpu = 2
    with pytest.warns(UserWarning, match="2 GPUs are visible and one is used: start with torchrun --nproc-per-node 2"):
        trainer = DistillationTrainer(keep_layers(bert(), 2), several, teacher=bert())
    assert trainer.args.n_gpu == 1
    assert trainer.args.train_batch_size == 8


def test_a_teacher_that_is_spread_over_devices_stays_there(tmp_path: Path) -> None:
    teacher = bert()
    teacher.hf_device_map = {"bert": 0, "classifier": 1}
    teacher.to = lambda *_: pytest.fail("it was moved")  # type: ignore[method-assign,assignment]
    DistillationTrainer(keep_layers(bert(), 2), arguments(tmp_path), teacher=teacher)


def test_a_step_without_a_kept_token_changes_nothing_and_is_no_divergence(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=1, n_positions=8, bos_token_id=0, eos_token_id=0)
    student, teacher = GPT2LMHeadModel(config), GPT2LMHeadModel(config)
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    data = Dataset.from_list([{"input_ids": [1, 2, 3], "labels": [-100] * 3}] * 8)
    DistillationTrainer(student, arguments(tmp_path, max_steps=2), teacher=teacher, train_dataset=data).train()
    assert all(torch.equal(before[name], p) for name, p in student.named_parameters())


def test_columns_of_the_objective_do_not_reach_a_plain_model_in_evaluation(tmp_path: Path) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 2)

        def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.head(input_ids.float())
            loss = nn.functional.cross_entropy(logits, labels) if labels is not None else None
            return {k: v for k, v in {"loss": loss, "logits": logits}.items() if v is not None}

    data = sentences(8).remove_columns("attention_mask").add_column("teacher_logits", [[0.0, 1.0]] * 8)
    trainer = DistillationTrainer(
        Plain(), arguments(tmp_path), objective=LogitsDistillation(alpha=0.0), train_dataset=data, eval_dataset=data
    )
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(
    ("student", "data"),
    [
        (bert(), labelled("labels", [0, 1, -100])),
        (bert(num_labels=1), labelled("labels", [0, 5])),  # a regression on whole numbers
        (bert(problem_type="multi_label_classification"), labelled("labels", [[0.0, 1.0], [1.0, 1.0]])),
        (bert().bert, labelled("label", [5, 9])),  # without a head the column is not used
    ],
)
def test_labels_that_fit_are_not_refused(student: Any, data: Dataset) -> None:
    check_labels(student, data)


def test_classes_of_a_kind_of_model_with_several_classes_for_a_task_are_checked_too() -> None:
    with pytest.raises(ValueError, match=r"outside 0 to 1, e\.g\. 2 in row 1"):
        check_labels(build("deit"), labelled("labels", [0, 2]))


def test_classes_that_the_data_have_in_another_order_are_refused(tmp_path: Path) -> None:
    """The teacher's and the labels' numbers are other classes; the student's names may be the configuration's own."""
    data = labelled("label", [0, 1]).cast_column("label", ClassLabel(names=["negative", "positive"]))
    for names in (["Negative", "Positive"], ["down", "up"], ["POSITIVE", "NEGATIVE"]):
        options = {"teacher": bert(id2label=dict(enumerate(names))), "train_dataset": data}
        if names[0] != "POSITIVE":
            DistillationTrainer(bert(2), arguments(tmp_path), **options)
            continue
        with pytest.raises(ValueError, match=r"has the classes .'negative', 'positive'. in 'label', and the Bert"):
            DistillationTrainer(bert(2), arguments(tmp_path), **options)


@pytest.mark.parametrize(
    ("given", "overparam", "message"),
    [
        ((torch.optim.Muon, {"lr": 1e-3}), OverParamConfig(ones=1), "Muon cannot step cores: .*2D parameters"),
        ((torch.optim.AdamW, {"lr": None}), OverParamConfig(ones=1), "lr is None and AdamW needs a number"),
    ],
)
def test_an_optimizer_that_cannot_step_cores_is_refused_when_the_trainer_is_made(
    tmp_path: Path, given: Any, overparam: OverParamConfig, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        DistillationTrainer(
            keep_layers(bert(), 2), arguments(tmp_path), teacher=bert(), overparam=overparam,
            optimizer_cls_and_kwargs=given,
        )  # fmt: skip


# Names and mappings in place of objects.


def test_names_and_mappings_are_the_objects_that_they_name(tmp_path: Path) -> None:
    """The same student to the last bit."""
    students = []
    for objective, over, constraint in (
        (HiddenDistillation(hidden_weight=0.5), OverParamConfig(ones=1), Constraint(weight=0.2, layer_map="first")),
        ({"name": "hidden", "hidden_weight": 0.5}, {"ones": 1}, {"weight": 0.2, "layer_map": "first"}),
    ):
        trainer, student = train(tmp_path, objective=objective, overparam=over, constraint=constraint)
        assert type(trainer.method) is HiddenDistillation
        students.append(student)
    assert all(torch.equal(p, q) for p, q in zip(*(s.parameters() for s in students), strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_name_and_tells_its_options(name: str) -> None:
    made = build_objective(name)
    arguments = inspect.signature(METHODS[name]).parameters
    assert made.options == {key: argument.default for key, argument in arguments.items()}
    assert build_objective({"name": name, **made.options}).options == made.options


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"objective": "hiden"}, ValueError, "objective is 'hiden'; expected one of logits, hidden"),
        ({"objective": {"name": "hidden", "weight": 1}}, TypeError, "hidden has no option 'weight'; it has temp"),
        ({"objective": 3}, TypeError, "objective is 3; give a name, a mapping with"),
        ({"overparam": {"one": 1}}, TypeError, "overparam has no option 'one'; it has ones"),
        ({"constraint": {"weigth": 1}}, TypeError, "constraint has no option 'weigth'; it has weight"),
        ({"overparam": 3}, TypeError, r"overparam is 3; give OverParamConfig\(...\), a mapping of its fields, or None"),
    ],
)
def test_what_names_nothing_is_refused(
    tmp_path: Path, options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        DistillationTrainer(keep_layers(bert(), 2), arguments(tmp_path), teacher=bert(), **options)


# A student that is made by the trainer, and searched for.


def new_student() -> nn.Module:
    with torch.random.fork_rng():  # the Trainer has set a seed, with which it goes on
        return keep_layers(bert(), 2)


def test_an_objective_serves_one_trainer_at_a_time(tmp_path: Path) -> None:
    """The second student learned from the first one's teacher: AD-KD knew that one's answers to the same rows."""
    objective = AttributionDistillation()
    first, second = (
        DistillationTrainer(
            keep_layers(bert(), 2), arguments(tmp_path, max_steps=1), teacher=bert(), objective=objective,
            train_dataset=sentences(8),
        )
        for _ in range(2)
    )  # fmt: skip
    with pytest.raises(ValueError, match="objective is a AttributionDistillation that another trainer was given"):
        first.train()
    second.train()


@pytest.mark.parametrize("objective", [Theseus(rate=0.5), LGTM(influence_scale=0.1, zero_heads=True)])
def test_every_training_begins_anew_with_model_init(tmp_path: Path, objective: Objective) -> None:
    """Also the schedule of Theseus, the rows that LGTM holds out and the teacher that it trains."""
    trainer = DistillationTrainer(
        args=arguments(tmp_path, max_steps=2), model_init=new_student, teacher=bert(), objective=objective,
        overparam={"ones": 1}, train_dataset=sentences(),
    )  # fmt: skip
    found = []
    for _ in range(2):
        trainer.train()
        teacher = trainer.teacher
        assert teacher is not None
        found.append((copy.deepcopy(trainer.model.state_dict()), copy.deepcopy(teacher.state_dict())))
        assert len(trainer.train_dataset) in (22, 24)
    given, _ = train(tmp_path, objective=copy.deepcopy(objective), overparam={"ones": 1}, training={"max_steps": 2})
    found.append((given.model.state_dict(), given.teacher.state_dict()))  # type: ignore[union-attr]
    for states in zip(*found, strict=True):
        assert all(torch.equal(value, other[name]) for other in states[1:] for name, value in states[0].items())


class StaysInEvalMode(BertForSequenceClassification):
    def train(self, mode: bool = True) -> StaysInEvalMode:
        return super().train(False)


def test_a_student_that_stays_in_eval_mode_learns_from_its_teacher(tmp_path: Path) -> None:
    """It learned from the labels alone, with the loss of its own."""
    _, usual = train(tmp_path)  # without dropout, so that the mode makes no difference
    student = StaysInEvalMode(usual.config)
    student.load_state_dict(keep_layers(bert(), 2).state_dict())
    train(tmp_path, student=student)
    assert all(torch.equal(a, b) for a, b in zip(usual.parameters(), student.parameters(), strict=True))


class AsksForOutputs(DistillationTrainer):
    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **options: Any) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **options)
        return (loss, outputs) if return_outputs else loss


def test_an_objective_has_no_outputs_to_give(tmp_path: Path) -> None:
    """A subclass that asked for them trained with the student's own loss."""
    data = sentences(8)
    trainer = AsksForOutputs(
        keep_layers(bert(), 2), arguments(tmp_path), teacher=bert(), train_dataset=data, eval_dataset=data
    )
    assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(ValueError, match="return_outputs is True in training"):
        trainer.train()


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("hidden", "lgtm") else pytest.param(name, marks=pytest.mark.slow)
        for name in METHODS
        if name not in ("dbkd", "embedding", "sparse-logits")
    ],
)
def test_an_objective_keeps_nothing_of_another_run(tmp_path: Path, name: str) -> None:
    """Used for another teacher before, it trains as a new one does."""
    weights = []
    for before in (True, False):
        objective = build_objective(name)
        if before:
            train(tmp_path, objective=objective, teacher=bert(), training={"max_steps": 3})
        _, student = train(tmp_path, objective=objective, teacher=bert(initializer_range=0.5))
        weights.append(list(student.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_search_tries_rates_on_new_students(tmp_path: Path) -> None:
    trainer = DistillationTrainer(
        args=arguments(tmp_path, max_steps=1), model_init=new_student, teacher=bert(),
        train_dataset=sentences(), eval_dataset=sentences(8),
    )  # fmt: skip
    rates = [1e-5, 1e-2]
    every = optuna.samplers.GridSampler({"learning_rate": rates})
    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_categorical("learning_rate", rates)},
        n_trials=2, direction="minimize", backend="optuna", sampler=every,
    )  # fmt: skip
    losses = []
    for rate in rates:
        run, _ = train(tmp_path, training={"max_steps": 1, "learning_rate": rate})
        losses.append(run.evaluate(sentences(8))["eval_loss"])
    assert best.objective == pytest.approx(min(losses), rel=1e-6)
    assert best.hyperparameters["learning_rate"] == rates[losses.index(min(losses))]


def test_a_trial_makes_its_student_with_its_own_arguments(tmp_path: Path) -> None:
    """It was made with the seed of the trial before, and its objective had been asked about that one's arguments."""
    given, made = arguments(tmp_path, max_steps=1), {}

    def init() -> Any:
        made[given.seed] = int(torch.randint(2**30, ()))
        return new_student()

    trainer = DistillationTrainer(
        args=given, model_init=init, teacher=bert(), train_dataset=sentences(), eval_dataset=sentences(8),
        objective="theseus",
    )  # fmt: skip
    for name, values in (("seed", [5, 6]), ("fp16", [True])):
        with pytest.raises(ValueError, match="use bf16 instead of fp16") if name == "fp16" else nullcontext():
            trainer.hyperparameter_search(
                lambda trial, name=name, values=values: {name: trial.suggest_categorical(name, values)},
                n_trials=2, backend="optuna", sampler=optuna.samplers.GridSampler({name: values}),
            )  # fmt: skip
    for seed in (5, 6):
        assert made[seed] == int(torch.randint(2**30, (), generator=torch.Generator().manual_seed(seed)))


def test_a_search_for_label_smoothing_is_refused(tmp_path: Path) -> None:
    """Its trials differed in nothing."""
    trainer = DistillationTrainer(
        args=arguments(tmp_path, max_steps=1), model_init=new_student, teacher=bert(), train_dataset=sentences()
    )
    with pytest.raises(ValueError, match=r"label_smoothing_factor is 0\.1, and the loss is the objective's"):
        trainer.hyperparameter_search(
            lambda trial: {"label_smoothing_factor": trial.suggest_categorical("label_smoothing_factor", [0.1])},
            n_trials=1, backend="optuna",
        )  # fmt: skip


# Columns of a method, and examples without a label.


class Linear(nn.Module):
    """A model that takes its inputs and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        return SequenceClassifierOutput(logits=self.head(input_ids.float()))


class Weighted(LogitsDistillation):
    columns = ("importance",)

    def losses(self, student: Any, teacher: Any, batch: Any, num_items: Tensor) -> Losses:
        assert batch["importance"].tolist() == [1.0] * 8
        return super().losses(student, teacher, batch, num_items)


class WeightedMaps(AttributionDistillation):
    columns = ("importance",)


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_methods_columns_reach_no_model(tmp_path: Path, evaluated: bool) -> None:
    data = sentences(8).remove_columns("attention_mask").add_column("importance", [1.0] * 8)
    trainer = DistillationTrainer(
        Linear(), arguments(tmp_path, max_steps=1), teacher=Linear(), objective=Weighted(), train_dataset=data
    )
    if evaluated:
        assert trainer.predict(data.remove_columns("labels")).predictions.shape == (8, 2)
    else:
        trainer.train()


def test_nor_those_that_see_its_gradients(tmp_path: Path) -> None:
    data = sentences(8).add_column("importance", [1.0] * 8)
    _, student = train(tmp_path, objective=WeightedMaps(), training={"max_steps": 1}, train_dataset=data)
    assert all(p.isfinite().all() for p in student.parameters())


@pytest.mark.parametrize(
    "name", ["logits", "lgtm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hidden", "theseus", "adkd"))]
)
def test_an_example_without_a_label_counts_where_the_teacher_teaches_alone(tmp_path: Path, name: str) -> None:
    """6 of 24 examples have a label; split into micro-batches of which some have none."""
    data = sentences().map(lambda row, k: {"labels": row["labels"] if k % 4 == 0 else -100}, with_indices=True)
    tasks, totals = [], []
    for size, accumulation in ((24, 1), (2, 12)):
        training = {"max_steps": 1, "per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation}
        options = {"held_out": 1e-9 + 1 / 24} if name == "lgtm" else {"rate": 1.0} if name == "theseus" else {}
        if name != "theseus":
            options |= {"alpha": 0.5}
        trainer, _ = train(tmp_path, objective={"name": name, **options}, training=training, train_dataset=data)
        tasks.append(trainer.state.log_history[0]["task_loss"])
        totals.append(trainer.state.log_history[0]["loss"])
    assert tasks[0] == pytest.approx(tasks[1], rel=1e-5)
    assert totals[0] == pytest.approx(totals[1], rel=1e-5)
    if name != "lgtm":  # which holds a row out
        with torch.no_grad():
            rows = {key: torch.tensor(data[:][key]) for key in data.column_names}
            assert tasks[0] == pytest.approx(float(keep_layers(bert(), 2).eval()(**rows).loss), rel=1e-4)


def test_the_teacher_is_followed_on_examples_without_a_label(tmp_path: Path) -> None:
    data = sentences(8).map(lambda _, k: {"labels": 0 if k < 2 else -100}, with_indices=True)
    runs = [
        train(tmp_path, objective={"alpha": 1.0}, training={"max_steps": 1}, train_dataset=rows)[0]
        for rows in (data, sentences(8))
    ]
    losses = [run.state.log_history[0]["distillation_loss"] for run in runs]
    assert losses[0] == losses[1] > 0


def several() -> BertForSequenceClassification:
    return bert(problem_type="multi_label_classification")


def adapted() -> Any:
    return get_peft_model(keep_layers(several(), 2), LoraConfig(target_modules=["query"]))


def empty(rows: list[Any]) -> dict[str, Tensor]:
    return {name: torch.empty((0, 8), dtype=torch.int64) for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_collator": empty}, "a batch of step 1 is empty; the data collator"),
        ({"data_collator": lambda rows: {}}, "a batch of step 1 is empty; the data collator"),
        ({"train_dataset": [dict(row, labels=2 if k == 5 else 0) for k, row in enumerate(sentences(8))]},
         r"example \d \(from 0\) of a batch of step 1 has the label 2; the student has 2 classes"),
        ({"train_dataset": [dict(row, labels=0.5) for row in sentences(8)]},
         "labels are float32 numbers, one an example, and the student has 2 classes; give class numbers as integers"),
        ({"train_dataset": [dict(row, labels=[0, 1]) for row in sentences(8)], "objective": {"alpha": 1.0}},
         "labels are 2 integers an example, and the student takes one class for each; give floats, or a student with"),
        ({"train_dataset": [dict(row, labels=[0]) for row in sentences(8)]},
         r"labels have the shape \[8, 1\], and the student takes one class for each example; flatten them"),
        ({"train_dataset": [dict(row, labels=[1.0, -100.0]) for row in sentences(8)]},
         r"example 0 \(from 0\) of a batch of step 1 has the labels \[1\.0, -100\.0\]; with several labels each is 0"),
        ({"train_dataset": [dict(row, labels=[0.0, 2.5]) for row in sentences(8)], "student": adapted(),
          "teacher": several()}, r"has the labels \[0\.0, 2\.5\]; .*; numbers to come near want problem_type='regr"),
    ],
)  # fmt: skip
def test_a_batch_that_nothing_can_be_learned_from(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """Of rows that are no `datasets.Dataset`, or by a collator of the user's."""
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **options)


@pytest.mark.parametrize("data", [DatasetDict(train=sentences(8)), sentences(8).to_pandas()])
def test_training_data_that_are_no_rows_are_refused(tmp_path: Path, data: Any) -> None:
    """It was a KeyError of 0 from the loader."""
    with pytest.raises(TypeError, match=f"train_dataset is a {type(data).__name__}; give"):
        DistillationTrainer(bert(), arguments(tmp_path), teacher=bert(), train_dataset=data)


def test_a_batch_without_names_is_refused(tmp_path: Path) -> None:
    """It was `'tuple' object has no attribute 'get'`."""
    with pytest.raises(TypeError, match="the batch is a tuple; have the data collator return a mapping of names"):
        train(tmp_path, data_collator=lambda rows: (torch.ones(8, 8, dtype=torch.int64), torch.zeros(8)))


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
@pytest.mark.parametrize(("metric", "better", "worse"), [("accuracy", 1, -1), ("loss", -1, 1), ("perplexity", -1, 1)])
def test_a_rate_is_lowered_where_its_metric_gets_worse(
    tmp_path: Path, schedule: str, metric: str, better: int, worse: int
) -> None:
    """It was lowered while accuracy rose."""
    options: dict[str, Any] = {"patience": 0, "factor": 0.5} | ({"min_lr": 0.0} if schedule == "greedy" else {})
    given = {
        "lr_scheduler_type": schedule, "lr_scheduler_kwargs": options, "metric_for_best_model": metric,
        "eval_strategy": "epoch", "learning_rate": 1e-3,
    }  # fmt: skip
    trainer, _ = train(tmp_path, eval_dataset=sentences(8), training=given, compute_metrics=lambda _: {metric: 0.0})

    def rate_after(direction: int) -> float:
        scheduler = trainer.create_scheduler(10, torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1e-3))
        for k in range(4):
            scheduler.step(float(10 + direction * k))
        return float(scheduler.optimizer.param_groups[0]["lr"])

    trainer.lr_scheduler = None
    assert rate_after(better) >= 1e-3
    trainer.lr_scheduler = None
    assert rate_after(worse) < 1e-3


@pytest.mark.slow
def test_the_rows_that_are_named_are_scored_where_workers_live_on(tmp_path: Path) -> None:
    """A student's test score was that of the validation rows, which were scored before."""
    trainer, _ = train(
        tmp_path, eval_dataset=sentences(8), compute_metrics=lambda found: {"rows": len(found.label_ids)},
        training={"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "eval_strategy": "epoch"},
    )  # fmt: skip
    assert trainer.evaluate()["eval_rows"] == 8
    assert trainer.evaluate(sentences(5))["eval_rows"] == 5
    assert trainer.args.dataloader_persistent_workers


def test_rows_are_scored_in_their_order_where_training_groups_them_by_length(tmp_path: Path) -> None:
    """A language model's answers were compared with its teacher's for other texts."""
    trainer, _ = train(tmp_path, training={"train_sampling_strategy": "group_by_length"})
    rows = sentences(40)
    trainer.eval_dataset = rows
    assert list(trainer.predict(rows).label_ids) == list(rows["labels"])
    assert [int(label) for batch in trainer.get_eval_dataloader() for label in batch["labels"]] == list(rows["labels"])
    assert trainer.args.train_sampling_strategy == "group_by_length"


@pytest.mark.parametrize("rows", [5, 8, 11])
def test_all_rows_are_scored_where_training_drops_the_last_batch(tmp_path: Path, rows: int) -> None:
    trainer, _ = train(
        tmp_path, eval_dataset=sentences(rows), compute_metrics=lambda found: {"rows": len(found.label_ids)},
        training={"dataloader_drop_last": True, "per_device_eval_batch_size": 8},
    )  # fmt: skip
    assert trainer.evaluate()["eval_rows"] == rows
    assert len(trainer.predict(sentences(rows)).predictions) == rows
    assert len(trainer.get_train_dataloader()) == 24 // 8
    with pytest.raises(ValueError, match="dataloader_drop_last is true and train_dataset has 7 rows, fewer than the 8"):
        train(tmp_path, train_dataset=sentences(7), training={"dataloader_drop_last": True})
