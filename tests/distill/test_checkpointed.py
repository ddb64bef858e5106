"""Whole checkpoints: a resumed run goes on exactly, with everything that the student has, or is refused."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tests.distill.small import arguments, bert, noisy_student, sentences, train
from torch import nn
from torch.utils.data import DataLoader, WeightedRandomSampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, ViTConfig, ViTForImageClassification, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.trainer_pt_utils import safe_globals

from opdf.distill import LGTM, DistillationTrainer, HiddenDistillation, LogitsDistillation, Objective, keep_layers
from opdf.distill.checkpoint import MANIFEST, SCRATCH, damage, publish
from opdf.files import owned
from opdf.overparam import OverParamConfig


@pytest.mark.parametrize(
    "method", ["constraint", *(pytest.param(m, marks=pytest.mark.slow) for m in ("hidden", "lgtm"))]
)
def test_resume_is_exact_with_dropout_accumulation_and_bf16(tmp_path: Path, method: str) -> None:
    """Resumed in the middle of an epoch, and in the next one; every random draw has to follow on."""
    save = {"save_strategy": "steps", "save_steps": 1, "max_steps": 6, "bf16": True, "gradient_accumulation_steps": 2,
            "per_device_train_batch_size": 3}  # fmt: skip
    weights = []
    for folder, resume in (("whole", None), ("a", 2), ("b", 5)):
        set_seed(0)
        options: dict[str, Any] = {
            "hidden": {"student": bert(2, 8, hidden_dropout_prob=0.2), "objective": HiddenDistillation()},
            "constraint": {"overparam": {"ones": 1}, "constraint": {"layer_map": "first"}},
            "lgtm": {"objective": LGTM(teacher_learning_rate=1e-3)},
        }[method]  # fmt: skip
        options = {"student": noisy_student()} | options
        last = str(tmp_path / "whole" / f"checkpoint-{resume}") if resume else None
        training = save | ({"save_strategy": "no"} if resume else {})
        trainer, student = train(tmp_path / folder, training=training, resume=last, **options)
        weights.append(student.state_dict() | trainer.method.tensors())
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], value) for name, value in other.items())


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", pytest.param("greedy", marks=pytest.mark.slow)])
def test_a_rate_that_follows_a_metric_goes_on_where_it_was(tmp_path: Path, schedule: str) -> None:
    options: dict[str, Any] = {"patience": 0, "factor": 0.5} | ({"min_lr": 0.0} if schedule == "greedy" else {})
    training = {
        "lr_scheduler_type": schedule, "lr_scheduler_kwargs": options, "metric_for_best_model": "accuracy",
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 6,
        "learning_rate": 1e-2,
    }  # fmt: skip
    ends = []
    for folder, resume in (("whole", 0), ("a", 2), ("b", 4)):
        scores = iter([0.9, 0.8, 0.85, 0.7, 0.95, 0.5][resume:])
        trainer, student = train(
            tmp_path / folder, training=training, eval_dataset=sentences(8),
            compute_metrics=lambda _, scores=scores: {"accuracy": next(scores)},
            resume=str(tmp_path / "whole" / f"checkpoint-{resume}") if resume else None,
        )  # fmt: skip
        ends.append((trainer.optimizer.param_groups[0]["lr"], student.state_dict()))
    assert ends[0][0] < 1e-2
    for rate, weights in ends[1:]:
        assert rate == ends[0][0]
        assert all(torch.equal(ends[0][1][name], value) for name, value in weights.items())


class Seen(LogitsDistillation):
    """Remembers the rows of every micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Any] = []

    def losses(self, student: Any, teacher: Any, batch: Any, num_items: Any) -> Any:
        self.rows.append(batch["input_ids"].tolist())
        return super().losses(student, teacher, batch, num_items)


@pytest.mark.parametrize("strategy", ["random", "group_by_length", "sequential"])
def test_a_resumed_run_sees_the_rows_that_were_left(tmp_path: Path, strategy: str) -> None:
    """Stopped in the second epoch of three steps, after dropout has moved torch's generator."""
    data = sentences().add_column("length", [5 + k % 6 for k in range(24)])
    save = {"save_strategy": "steps", "save_steps": 4, "max_steps": 9, "train_sampling_strategy": strategy}
    seen = []
    for folder, resume in (("whole", None), ("again", str(tmp_path / "whole" / "checkpoint-4"))):
        trainer, _ = train(
            tmp_path / folder, student=noisy_student(), training=save, resume=resume, train_dataset=data,
            objective=Seen(),
        )  # fmt: skip
        seen.append(trainer.method.rows)
    whole, again = seen
    assert again == whole[4:]
    assert sorted(row for batch in whole[3:6] for row in batch) == sorted(data["input_ids"])
    assert (whole[:3] == whole[3:6]) == (strategy == "sequential")


class Anneals(TrainerCallback):
    trainer: DistillationTrainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert isinstance(self.trainer.method, LogitsDistillation)
        self.trainer.method.temperature = 4.0 - state.global_step / 2


def test_a_run_whose_callback_changes_the_objective_is_resumed(tmp_path: Path) -> None:
    """What it was made with is the same. It was refused, with the value of the checkpoint's step."""
    weights = []
    for resume in (False, True):
        callback = Anneals()
        callback.trainer = DistillationTrainer(
            keep_layers(bert(), 2), arguments(tmp_path, save_strategy="steps", save_steps=2), teacher=bert(),
            train_dataset=sentences(), callbacks=[callback],
        )  # fmt: skip
        callback.trainer.train(str(tmp_path / "checkpoint-2") if resume else None)
        weights.append(list(callback.trainer.model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class Weighted(DistillationTrainer):
    def _get_train_sampler(self, *_: Any) -> Any:
        return WeightedRandomSampler([1.0] * 24, 24, replacement=False)


class Drawn(DistillationTrainer):
    def _get_train_sampler(self, *_: Any) -> Any:
        draws = torch.Generator().manual_seed(7)
        return WeightedRandomSampler([1.0] * 24, 24, replacement=False, generator=draws)


class Loads(DistillationTrainer):
    def get_train_dataloader(self) -> Any:
        draws = torch.Generator().manual_seed(7)
        return DataLoader(
            self.train_dataset, batch_size=8, shuffle=True, generator=draws, collate_fn=self.data_collator
        )


@pytest.mark.parametrize("step", [pytest.param(3, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize(
    "kind", [Drawn, Loads, *(pytest.param(k, marks=pytest.mark.slow) for k in (Weighted, DistillationTrainer))]
)
def test_a_resumed_run_goes_on_with_the_order_of_any_sampler(
    tmp_path: Path, kind: type[DistillationTrainer], step: int
) -> None:
    """Stopped after the first epoch, which has three steps, and in the second."""
    save = {"save_strategy": "steps", "save_steps": step, "max_steps": 6}
    if kind is DistillationTrainer:
        save["accelerator_config"] = {"use_seedable_sampler": False}
    seen = []
    for folder in ("whole", "again"):
        trainer = kind(
            noisy_student(), arguments(tmp_path / folder, **save), teacher=bert(), objective=Seen(),
            train_dataset=sentences(),
        )  # fmt: skip
        trainer.train(str(tmp_path / "whole" / f"checkpoint-{step}") if folder == "again" else None)
        seen.append(trainer.method.rows)
    whole, again = seen
    assert again == whole[step:]
    assert sorted(row for batch in whole[3:] for row in batch) == sorted(sentences()["input_ids"])
    assert whole[:3] != whole[3:]


@pytest.mark.parametrize(
    "split",
    [pytest.param({}, marks=pytest.mark.slow), {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}],
)
@pytest.mark.parametrize("stop", [2, *(pytest.param(stop, marks=pytest.mark.slow) for stop in (4, 7))])
def test_a_resumed_run_sees_the_rows_of_a_stream_that_were_left(
    tmp_path: Path, stop: int, split: dict[str, Any]
) -> None:
    """In the first, second and later passes over 20 rows."""
    save = {"save_strategy": "steps", "save_steps": stop, "max_steps": 8, **split}
    seen, weights = [], []
    for folder, resume in (("whole", None), ("again", str(tmp_path / "whole" / f"checkpoint-{stop}"))):
        stream = sentences(20).to_iterable_dataset().shuffle(seed=0, buffer_size=20)
        trainer, student = train(
            tmp_path / folder, student=noisy_student(), training=save, resume=resume, train_dataset=stream,
            objective=Seen(),
        )  # fmt: skip
        seen.append(trainer.method.rows)
        weights.append(list(student.parameters()))
    each = len(split) or 1
    assert len(seen[0]) == 8 * each
    assert seen[1] == seen[0][stop * each :]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class Large(HiddenDistillation):
    """The second of the micro-batches that are too large does not fit into memory."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self._seen = most, 0

    def losses(self, student: Any, teacher: Any, batch: Any, num_items: Any) -> Any:
        self._seen += len(batch["input_ids"]) > self.most
        if self._seen > 1:
            self._seen = 0
            raise RuntimeError("CUDA out of memory.")
        return super().losses(student, teacher, batch, num_items)


@pytest.mark.slow
def test_a_batch_size_that_was_found_is_that_of_the_run(tmp_path: Path) -> None:
    """The step that was given up leaves nothing behind, and a resumed run goes on with as many examples a step."""
    save = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2}
    found = save | {"auto_find_batch_size": True}
    half = save | {"per_device_train_batch_size": 4}
    last = str(tmp_path / "found" / "checkpoint-2")
    runs = [
        train(tmp_path / name, student=bert(2, 8), objective=Large(4), training=training, resume=resume)[0]
        for name, training, resume in (
            ("found", found, None), ("half", half, None), ("again", found, last), ("told", half, last),
        )
    ]  # fmt: skip
    weights = [run.model.state_dict() | run.method.tensors() for run in runs]
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], value) for name, value in other.items())
    with pytest.raises(ValueError, match="examples_per_step was 8 and is 16"):
        train(tmp_path / "whole", student=bert(2, 8), objective=Large(8), training=save, resume=last)


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    training = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "lr_scheduler_type": "constant"}
    first, before = train(tmp_path, training=training)
    scratch = Path(first.args.output_dir) / SCRATCH  # of a process that was killed as it wrote its last checkpoint
    scratch.mkdir()
    trainer, after = train(tmp_path, training=training, resume=True)
    assert trainer.state.global_step == 4
    assert not scratch.exists()
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


class Foreign:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.folder),))


@pytest.mark.parametrize("name", ["scheduler.pt", "rng_state.pth"])
def test_pickled_objects_in_a_checkpoint_are_refused(tmp_path: Path, name: str) -> None:
    training = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    train(tmp_path / "run", training=training)
    whole, changed = tmp_path / "run" / "checkpoint-2", tmp_path / "changed"
    shutil.copytree(whole, changed)
    (changed / MANIFEST).unlink()
    torch.save(Foreign(tmp_path / "pwned"), changed / name)
    (tmp_path / "new").mkdir()
    publish(changed, tmp_path / "new" / "checkpoint-2")  # with a manifest that is right
    with pytest.raises(ValueError, match="checkpoint-2 holds pickled objects, which are not loaded"):
        train(tmp_path / "new", training=training, resume=True)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("objective", [LogitsDistillation(), LGTM()], ids=["logits", "lgtm"])
def test_every_file_of_a_checkpoint_is_read_without_unpickling(tmp_path: Path, objective: Objective) -> None:
    """Of torch's own files the random states name numpy's arrays, which the Trainer allows; the others no class."""
    trainer = DistillationTrainer(
        keep_layers(bert(), 2), arguments(tmp_path, save_strategy="steps", save_steps=2, max_steps=2), teacher=bert(),
        objective=objective, overparam=OverParamConfig(ones=1), train_dataset=sentences(),
    )  # fmt: skip
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu")  # as fp16 on a GPU has it
    trainer.train()
    torch_only = lambda path: torch.load(path, weights_only=True)  # noqa: E731
    readers: dict[str, Any] = {
        ".json": lambda path: json.loads(path.read_text()), ".safetensors": load_file, ".pt": torch_only,
    }  # fmt: skip
    found = {path.name: path for path in (tmp_path / "checkpoint-2").rglob("*")}
    with safe_globals():
        torch_only(found.pop("rng_state.pth"))
    for path in found.values():
        readers[path.suffix](path)
    assert {"scheduler.pt", "scaler.pt"} == {name for name in found if name.endswith(".pt")}


def test_a_damaged_checkpoint_is_refused_by_name_and_passed_over_otherwise(tmp_path: Path) -> None:
    save = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    _, whole = train(tmp_path, overparam=OverParamConfig(ones=1), training=save)
    last = tmp_path / "checkpoint-4"
    (last / "optimizer-00000.json").write_text("{}")
    with pytest.raises(ValueError, match=r"checkpoint-4 cannot be resumed from: optimizer-00000\.json is damaged"):
        train(tmp_path, overparam=OverParamConfig(ones=1), training=save, resume=str(last))
    with pytest.warns(UserWarning, match="checkpoint-4 is not used"):
        _, again = train(tmp_path, overparam=OverParamConfig(ones=1), training=save, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert damage(last) is None  # written again
    with pytest.raises(FileNotFoundError, match="holds no whole checkpoint"):
        train(tmp_path / "other", training=save, resume=True)


def test_checkpoints_without_optimizer_cannot_be_resumed(tmp_path: Path) -> None:
    train(tmp_path, training={"save_strategy": "steps", "save_steps": 2, "save_only_model": True})
    with pytest.raises(ValueError, match="no state of the optimizer"):
        train(tmp_path, resume=True)


def test_old_checkpoints_are_removed_only_after_the_new_one_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rename of the run is looked at; one that takes a name away comes after the next one was given."""
    seen = []
    rename = Path.rename

    def looked_at(self: Path, target: Any) -> Path:
        seen.append((Path(target).name, sorted(p.name for p in tmp_path.glob("checkpoint-*"))))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", looked_at)
    train(tmp_path, training={"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "save_total_limit": 1})
    one, two, three = (f"checkpoint-{k}" for k in (1, 2, 3))
    assert seen == [(one, []), (two, [one]), (one, [one, two]), (three, [two]), (two, [two, three])]
    assert [p.name for p in tmp_path.glob("[!.]*")] == ["checkpoint-3"]


def test_one_training_at_a_time_writes_checkpoints_into_a_folder(tmp_path: Path) -> None:
    """Another would take the half-written ones for what a killed run has left, and delete them."""
    train(tmp_path, training={"save_strategy": "steps", "save_steps": 2})
    before = sorted(tmp_path.rglob("*"))
    with owned(tmp_path):
        for training, resume in (({"save_strategy": "steps", "save_steps": 1}, None), ({"max_steps": 6}, True)):
            with pytest.raises(FileExistsError, match=rf"{tmp_path} is in use by process {os.getpid()} .*; wait"):
                train(tmp_path, training=training, resume=resume)
        train(tmp_path)  # which writes none
    assert sorted(tmp_path.rglob("*")) == before


# What a student has beside what its class makes.


class Plain(nn.Module):
    """No model of transformers; its two layers are one, and it holds a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 2)
        self.one = nn.Linear(16, 16)
        self.other = self.one
        self.norm = nn.BatchNorm1d(16)

    def forward(self, input_ids: torch.Tensor, attention_mask: Any = None, labels: Any = None) -> Any:
        hidden = self.other(self.one(self.embed(input_ids)).relu()).mean(1)
        logits = self.head(self.norm(hidden))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss, logits)


class Scaled(nn.Module):
    """A layer with a factor that is trained, and a count that is not."""

    def __init__(self, layer: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.layer, self.factor = layer, nn.Parameter(torch.rand(width))
        self.register_buffer("seen", torch.rand(()))

    def forward(self, hidden: torch.Tensor) -> Any:
        self.seen += 1
        return self.layer(hidden) * self.factor


def extended(kind: str, seed: int) -> Any:
    """A student with something that its class does not make; all of its values follow from the seed."""
    model = bert(2)
    torch.manual_seed(seed)
    if kind == "plain":
        return Plain()
    if kind == "vit":  # which transformers saves under other names than it has in memory
        config = ViTConfig(image_size=8, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                           intermediate_size=16)  # fmt: skip
        model = ViTForImageClassification(config)
        model.classifier = nn.Sequential(nn.LayerNorm(16), model.classifier)
        return model
    if kind == "adapters":
        student = pytest.importorskip("peft").get_peft_model(
            model, pytest.importorskip("peft").LoraConfig(target_modules=["query"], r=2)
        )
        student.base_model.model.classifier = Scaled(nn.Linear(16, 2), 2)
        return student
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3)
    model.classifier = Scaled(model.classifier, 2)
    model.dropout = nn.LayerNorm(16)
    if kind == "more":
        model.extra = nn.Linear(2, 2)
    if kind == "tied":
        model.bert.pooler.dense.weight = model.bert.encoder.layer[0].attention.output.dense.weight
    if kind == "half":
        return model.to(torch.bfloat16)
    return model


def rows_for(kind: str) -> Dataset:
    if kind != "vit":
        return sentences(16)
    pixels = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"pixel_values": pixels.tolist(), "labels": [0, 1] * 8}).with_format("torch")


@pytest.mark.parametrize(
    "kind",
    ["tied", "half", "adapters", *(pytest.param(k, marks=pytest.mark.slow) for k in ("extended", "plain", "vit"))],
)
def test_everything_that_a_student_has_comes_back(tmp_path: Path, kind: str) -> None:
    """Resumed with a student of other values; then as the best checkpoint, which is the first."""
    save = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "learning_rate": 1e-2,
            "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2,
            "metric_for_best_model": "first", "greater_is_better": True}  # fmt: skip
    data, seen = rows_for(kind), dict[Any, Any]()

    def run(folder: str, student: Any, resume: str | None = None) -> Any:
        values = iter([1.0, 0.0]) if resume is None else iter([0.0])
        trainer = DistillationTrainer(
            student, arguments(tmp_path / folder, **save), objective={"alpha": 0.0}, train_dataset=data,
            eval_dataset=data, compute_metrics=lambda _: {"first": next(values)}, callbacks=[States(seen, folder)],
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return student.state_dict()

    best = run("whole", extended(kind, 0))
    again = run("resumed", extended(kind, 1), str(tmp_path / "whole" / "checkpoint-2"))
    first, last, resumed = (seen[key] for key in (("whole", 2), ("whole", 4), ("resumed", 4)))
    assert last.keys() == resumed.keys()
    assert all(torch.equal(value, resumed[name]) for name, value in last.items())
    assert any(not torch.equal(value, first[name]) for name, value in last.items())
    assert all(torch.equal(value, best[name]) for name, value in first.items())
    assert all(torch.equal(value, again[name]) for name, value in best.items())


class States(TrainerCallback):
    """Keeps what a student is in every checkpoint."""

    def __init__(self, seen: dict[str, Any], name: str) -> None:
        self.seen, self.name = seen, name

    def on_save(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
        values = {n: v.clone() for n, v in model.state_dict().items() if n not in frozen}
        self.seen[self.name, state.global_step] = values


class Noted(nn.Identity):
    """A layer with something that is no tensor."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.note = {"kind": kind, "calls": torch.zeros(1)}

    def get_extra_state(self) -> Any:
        return self.note

    def set_extra_state(self, state: Any) -> None:
        self.note = state

    def forward(self, hidden: torch.Tensor) -> Any:
        self.note["calls"] = self.note["calls"] + 1
        return hidden


def test_what_is_no_tensor_comes_back_too(tmp_path: Path) -> None:
    save = {"save_strategy": "steps", "save_steps": 2}
    for kind, resume in (("first", None), ("second", str(tmp_path / "first" / "checkpoint-2"))):
        student = bert(2)
        student.dropout = Noted(kind)
        trainer, _ = train(tmp_path / kind, student=student, training=save, resume=resume)
        trainer.save_model(str(tmp_path / "saved"))
        assert student.dropout.note == {"kind": "first", "calls": torch.tensor([4.0])}


def test_transformers_own_trainer_resumes_to_the_same_student(tmp_path: Path) -> None:
    save = {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    states = []
    for kind, more in ((DistillationTrainer, {"objective": {"alpha": 0.0}}), (Trainer, {})):
        folder = tmp_path / kind.__name__
        for seed, resume in ((0, None), (1, str(folder / "checkpoint-2"))):
            student = extended("extended", seed)
            kind(student, arguments(folder, **save), train_dataset=sentences(16), **more).train(resume)
            states.append(student.state_dict())
    for other in states[1:]:
        assert all(torch.equal(value, other[name]) for name, value in states[0].items())


def test_another_student_is_refused_by_what_differs(tmp_path: Path) -> None:
    save = {"save_strategy": "steps", "save_steps": 2}
    train(tmp_path, student=extended("extended", 0), training=save)
    last = str(tmp_path / "checkpoint-2")
    for student, message in (
        (bert(2), r"the student has classifier.weight and \S+checkpoint-2 does not"),
        (extended("half", 0), r"is torch.float32 of shape \(\S+\) in .*, and torch.bfloat16 of shape"),
        (bert(2, 8), "student.hidden_size was 16 and is 8"),
        (extended("more", 0), "the student has extra.weight and"),
    ):
        with pytest.raises(ValueError, match=message):
            train(tmp_path, student=student, training=save, resume=last, teacher=bert(4))


# What a resumed run may not change.


def small_run(folder: Path, **changes: Any) -> DistillationTrainer:
    training = {"save_strategy": "steps", "save_steps": 2} | changes.pop("training", {})
    options = {
        "teacher": bert(), "objective": {"name": "hidden", "hidden_weight": 0.5}, "overparam": {"ones": 1},
        "constraint": {"layer_map": "first"}, "train_dataset": sentences(),
    } | changes  # fmt: skip
    student = options.pop("student", None) or keep_layers(bert(), 2)
    return DistillationTrainer(student, arguments(folder, **training), **options)


def other_teacher() -> Any:
    """One entry of many is not what it was."""
    teacher = bert()
    with torch.no_grad():
        teacher.bert.embeddings.word_embeddings.weight[7, 3] += 1e-3
    return teacher


def told_otherwise(model: Any, name: str, value: Any) -> Any:
    setattr(model.config, name, value)
    return model


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    small_run(folder).train()
    return folder / "checkpoint-2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"learning_rate": 1e-4}}, r"args\.learning_rate was 0\.001 and is 0\.0001"),
        ({"training": {"seed": 4}}, r"args\.seed was 3 and is 4"),
        ({"training": {"per_device_train_batch_size": 6}}, r"args\.examples_per_step was 8 and is 6"),
        ({"training": {"max_steps": 3}}, r"was to have 4 steps and is to have 3"),
        ({"overparam": {"ones": 2}}, r"overparam\.ones was 1 and is 2"),
        ({"overparam": None, "constraint": None}, r"constraint was \{.* and is null; overparam was \{.* is null"),
        ({"constraint": {"layer_map": "first", "weight": 0.2}}, r"constraint\.weight was 0\.1 and is 0\.2"),
        ({"objective": {"name": "hidden", "alpha": 0.5}}, r"objective\.alpha was 0\.9 and is 0\.5; objective\.hi"),
        ({"objective": "logits"}, r'objective\.name was "hidden" and is "logits"'),
        ({"teacher": other_teacher()}, r'teacher.weights was "\w+" and is "\w+"'),
        ({"teacher": told_otherwise(bert(), "layer_norm_eps", 1e-3)}, r"config.layer_norm_eps was 1e-12 and is 0.001"),
        ({"train_dataset": sentences(23)}, r"train_dataset\.rows was 24 and is 23"),
        ({"train_dataset": sentences().select([*range(1, 24), 0])}, r'train_dataset\.content was "\w+" and is "\w+"'),
        ({"student": bert(2, hidden_dropout_prob=0.2)}, r"student\.hidden_dropout_prob was 0\.0 and is 0\.2"),
    ],
)  # fmt: skip
def test_a_run_that_is_made_otherwise_is_not_resumed(
    begun: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    run = small_run(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        run.train(resume_from_checkpoint=str(begun))
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("best", [True, False])
def test_what_the_best_checkpoint_is_chosen_on_may_not_change(tmp_path: Path, best: bool) -> None:
    training = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
                "load_best_model_at_end": best}  # fmt: skip
    small_run(tmp_path, training=training, eval_dataset=sentences(8)).train()
    again = small_run(tmp_path, training=training, eval_dataset=sentences().select(range(8, 16)))
    refused = pytest.raises(ValueError, match=r'args\.eval_dataset\.content was "\w+" and is "\w+"')
    with refused if best else nullcontext():
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_a_resumed_run_may_go_further_and_report_otherwise(begun: Path, tmp_path: Path) -> None:
    training = {"max_steps": 6, "logging_steps": 3, "save_steps": 5, "report_to": "tensorboard",
                "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}  # fmt: skip
    run = small_run(tmp_path, training=training)
    run.train(resume_from_checkpoint=str(begun))
    assert run.state.global_step == 6
    recorded = json.loads((tmp_path / "checkpoint-5" / "run.json").read_text())
    assert recorded["overparam"]["ones"] == 1
    assert recorded["objective"] == {"name": "hidden", "temperature": 2.0, "alpha": 0.9, "hidden_weight": 0.5,
                                     "pairs": "uniform", "normalize": None}  # fmt: skip


def test_the_patience_of_early_stopping_is_resumed(tmp_path: Path) -> None:
    """Stopped after the second evaluation without gain, one of them before the checkpoint."""
    training = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 9,
                "load_best_model_at_end": True, "metric_for_best_model": "score",
                "greater_is_better": True}  # fmt: skip
    steps = []
    for folder, scores, resume in (("a", [3, 2, 1, 0], None), ("b", [1, 0], str(tmp_path / "a" / "checkpoint-2"))):
        values = iter(scores)
        trainer, _ = train(
            tmp_path / folder, training=training, resume=resume, eval_dataset=sentences(8),
            callbacks=[EarlyStoppingCallback(2)], compute_metrics=lambda _, v=values: {"score": next(v)},
        )  # fmt: skip
        steps.append(trainer.state.global_step)
    assert steps == [3, 3]


def scored(
    folder: Path, scores: list[float], resume: Any = None, callbacks: Any = None, **training: Any
) -> DistillationTrainer:
    """A run with dropout of steps of six rows, four an epoch, whose student gets these scores, one an evaluation."""
    values = iter(scores)
    given = {"metric_for_best_model": "score", "greater_is_better": True, "per_device_train_batch_size": 6,
             "lr_scheduler_type": "constant", "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps",
             "save_steps": 1}  # fmt: skip
    trainer, _ = train(
        folder, training=given | training, resume=resume, student=noisy_student(), eval_dataset=sentences(8),
        compute_metrics=lambda _: {"score": next(values)}, callbacks=callbacks,
    )  # fmt: skip
    return trainer


def check_same_weights(trainer: DistillationTrainer, other: DistillationTrainer) -> None:
    expected, found = trainer.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_the_best_checkpoint_is_found_under_another_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was forgotten, and removed as one too many: the student ended with its last weights."""
    monkeypatch.chdir(tmp_path)
    best = {"load_best_model_at_end": True, "save_total_limit": 2}
    whole = scored(Path("begun"), [1, 3, 2], max_steps=3, **best)
    Path("begun").rename("moved")
    last = str(tmp_path / "moved" / "checkpoint-3")
    check_same_weights(whole, scored(Path("moved"), [2, 2], resume=last, max_steps=5, **best))
    assert {path.name for path in Path("moved").glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-5"}
    (tmp_path / "moved" / "checkpoint-2" / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"at_end is true and .*checkpoint-2, the best so far in .*: model.safetensors"
    ):
        scored(Path("moved"), [2], resume=True, max_steps=6, **best)


def test_an_evaluation_at_the_start_is_not_made_again(tmp_path: Path) -> None:
    """Early stopping counted it: the resumed run ended two steps before the other one."""
    training = {"eval_on_start": True, "early_stopping_patience": 2, "max_steps": 9}
    whole = scored(tmp_path / "whole", [0, 3, 2, 4, 1, 0], **training)
    assert whole.state.global_step == 5
    check_same_weights(whole, scored(tmp_path / "b", [4, 1, 0], tmp_path / "whole" / "checkpoint-2", **training))


def test_a_run_that_stopped_early_has_nothing_left(tmp_path: Path) -> None:
    """Stopped while its results were written, it was trained on until the next evaluation."""
    training = {"early_stopping_patience": 2, "eval_steps": 2, "save_steps": 2, "max_steps": 12}
    whole = scored(tmp_path, [3, 2, 1], **training)
    assert whole.state.global_step == 6
    check_same_weights(whole, scored(tmp_path, [], True, **training))
    with pytest.warns(match="early stopping ended this run at step 6, and more steps change nothing"):
        check_same_weights(whole, scored(tmp_path, [], True, **training | {"max_steps": 20}))


@pytest.mark.slow
def test_a_checkpoint_of_an_epochs_last_step_knows_its_evaluation(tmp_path: Path) -> None:
    """It was written before that: early stopping missed an evaluation, and the resumed run ended an epoch later."""
    training = {"early_stopping_patience": 2, "eval_strategy": "epoch", "save_steps": 2, "max_steps": 40}
    whole = scored(tmp_path / "whole", [3, 2, 1], **training)
    assert whole.state.global_step == 12
    again = scored(tmp_path / "again", [1], tmp_path / "whole" / "checkpoint-8", **training)
    check_same_weights(whole, again)
    (tmp_path / "whole" / "checkpoint-12").rename(tmp_path / "checkpoint-12")
    check_same_weights(whole, scored(tmp_path / "last", [], tmp_path / "checkpoint-12", **training))


class AsksToSave(TrainerCallback):
    """Asks for a checkpoint after every step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = True


def test_a_checkpoint_that_is_asked_for_is_written_although_another_was_better(tmp_path: Path) -> None:
    """As a signal asks for one: it was said to be saved."""
    training = {"save_strategy": "best", "max_steps": 4}
    trainer = scored(tmp_path, [2, 1, 3, 0], callbacks=[AsksToSave()], **training)
    assert len(list(tmp_path.glob("checkpoint-*"))) == 4
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-3")
