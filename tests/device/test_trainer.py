"""The trainer and the command line on a device of its own: what they train there is what they train on the CPU."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, TrainerCallback, training_args

from families import FAMILIES, batch, build
from opdf import DistillationArguments, DistillationTrainer, OverParamConfig
from opdf.distill import (
    LGTM,
    AttributionDistillation,
    Constraint,
    Ensemble,
    HiddenDistillation,
    LogitsDistillation,
    Theseus,
    chunks,
    keep_layers,
)
from opdf.job import DistillConfig, cache_teacher, evaluate, run
from opdf.job.options import fill
from opdf.job.training import train

pytestmark = pytest.mark.device

Choose = Callable[[torch.device], None]
CPU = torch.device("cpu")
OBJECTIVES = [LogitsDistillation, HiddenDistillation, AttributionDistillation, Theseus, LGTM]
SHALLOW = {"swin": [1, 1], "resnet": [1, 1]}
TARGETS = {"resnet": ["convolution"]}
DROPOUT = (
    "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "attn_pdrop", "resid_pdrop",
    "embd_pdrop", "dropout_rate", "drop_path_rate", "seq_classif_dropout",
)  # fmt: skip
VIT = {
    "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


def trainer(folder: Path, models: tuple[nn.Module, nn.Module], data: Dataset, **options: Any) -> DistillationTrainer:
    defaults: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-2,
        "optim": "sgd", "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "dataloader_pin_memory": False,
        "use_cpu": os.environ["ACCELERATE_TORCH_DEVICE"] == "cpu",
    }  # fmt: skip
    args = DistillationArguments(str(folder), **(defaults | options.pop("training", {})))
    options.setdefault("overparam", OverParamConfig(ones=1))
    student, teacher = models
    return DistillationTrainer(student, args, teacher=teacher, train_dataset=data, **options)


def rows(family: str) -> Dataset:
    return Dataset.from_dict({k: v.tolist() for k, v in batch(family, 24).items()}).with_format("torch")


def pair(family: str) -> tuple[nn.Module, nn.Module]:
    """A student and its teacher, without dropout: devices draw different random numbers."""
    off = dict.fromkeys((name for name in DROPOUT if hasattr(AutoConfig.for_model(family), name)), 0.0)
    teacher = build(family, **off)
    return (build(family, SHALLOW[family], **off) if family in SHALLOW else keep_layers(teacher, 1)), teacher


def trained(run: DistillationTrainer, device: torch.device) -> nn.Module:
    run.train()
    assert {p.device for p in run.model.parameters()} == {device}
    return run.model


def assert_same(model: nn.Module, other: nn.Module, tolerance: float = 1e-5) -> None:
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.cpu(), q.cpu(), rtol=tolerance, atol=tolerance, msg=name)


def check_same_on(
    device: torch.device, train_on: Choose, folder: Path, family: str, objective: Any = None, **options: Any
) -> None:
    models, found = pair(family), []
    for place in (CPU, device):
        train_on(place)
        wanted = {"objective": objective() if objective else None} | options
        found.append(trained(trainer(folder / place.type, copy.deepcopy(models), rows(family), **wanted), place))
    assert_same(*found)
    start = zip(models[0].parameters(), found[1].parameters(), strict=True)
    assert not all(torch.equal(p, q.cpu()) for p, q in start)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tmp_path: Path, device: torch.device, train_on: Choose, family: str) -> None:
    overparam = OverParamConfig(ones=1, targets=TARGETS.get(family, "blocks"))
    check_same_on(device, train_on, tmp_path, family, overparam=overparam)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("overparam", [None, OverParamConfig(ones=1)])
def test_every_objective(
    tmp_path: Path, device: torch.device, train_on: Choose, objective: Any, overparam: OverParamConfig | None
) -> None:
    check_same_on(device, train_on, tmp_path, "bert", objective, overparam=overparam)


@pytest.mark.usefixtures("single_only")
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_where_there_is_no_float64(
    tmp_path: Path, device: torch.device, train_on: Choose, objective: Any
) -> None:
    check_same_on(device, train_on, tmp_path, "bert", objective)


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.usefixtures("single_only")
def test_tokens_in_chunks(
    tmp_path: Path, device: torch.device, train_on: Choose, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a language model, with one teacher and with two, against whole logits on the CPU."""
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    student, *teachers = (
        LlamaForCausalLM(LlamaConfig(vocab_size=50, initializer_range=0.5, **sizes)) for _ in range(3)
    )
    ids = torch.randint(0, 50, (24, 6))
    data = Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()}).with_format("torch")
    found = []
    for place, size in ((CPU, 2**24), (device, 200)):
        monkeypatch.setattr(chunks, "CHUNK", size)
        train_on(place)
        mine, first, second = copy.deepcopy((student, *teachers))
        teacher = Ensemble([first, second], [2, 1]) if several else first
        found.append(trained(trainer(tmp_path / place.type, (mine, teacher), data), place))
    assert_same(*found)


@pytest.mark.parametrize("there", [(True, False), (False, True), (True, True)])
def test_models_may_be_anywhere_before(
    tmp_path: Path, device: torch.device, train_on: Choose, there: tuple[bool, bool]
) -> None:
    models, options = pair("bert"), {"constraint": Constraint(0.1)}
    train_on(CPU)
    plain = trained(trainer(tmp_path / "cpu", copy.deepcopy(models), rows("bert"), **options), CPU)
    for model, moved in zip(models, there, strict=True):
        model.to(device if moved else CPU)
    train_on(device)
    assert_same(plain, trained(trainer(tmp_path / "there", models, rows("bert"), **options), device))


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
@pytest.mark.parametrize("objective", [LogitsDistillation, LGTM])
def test_a_resumed_run_is_the_uninterrupted_one(
    tmp_path: Path, device: torch.device, train_on: Choose, optim: str, objective: Any
) -> None:
    train_on(device)
    models, training = pair("bert"), {"optim": optim, "save_strategy": "steps", "save_steps": 2}
    whole, again = (
        trainer(tmp_path, copy.deepcopy(models), rows("bert"), objective=objective(), training=training)
        for _ in range(2)
    )
    whole.train()
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for p, q in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(p.cpu(), q.cpu())


def test_a_run_goes_on_on_another_device(tmp_path: Path, device: torch.device, train_on: Choose) -> None:
    models, training = pair("bert"), {"save_strategy": "steps", "save_steps": 2}
    train_on(device)
    whole = trained(trainer(tmp_path, copy.deepcopy(models), rows("bert"), training=training), device)
    train_on(CPU)
    again = trainer(tmp_path, models, rows("bert"), training=training)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(whole, again.model)


def test_bf16_autocast(tmp_path: Path, device: torch.device, train_on: Choose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    train_on(device)
    run = trainer(tmp_path, pair("bert"), rows("bert"), training={"bf16": True}, constraint=Constraint(0.1))
    trained(run, device)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    losses = [log["loss"] for log in run.state.log_history if "loss" in log]
    assert len(losses) == 4
    assert all(0 < loss < 10 for loss in losses)


def test_over_parameterization_adds_no_waits(
    tmp_path: Path, device: torch.device, train_on: Choose, count_waits: Any
) -> None:
    """Where no rate is measured, after two steps; transformers waits in some models' passes, and we no more often."""
    counts = []
    for over in (None, OverParamConfig(ones=1)):
        train_on(device)
        steps = Waits(count_waits)
        constraint = Constraint(0.1) if over else None
        run = trainer(
            tmp_path, pair("bert"), rows("bert"), overparam=over, constraint=constraint, callbacks=[steps],
            training={"logging_steps": 100},
        )  # fmt: skip
        run.train()
        counts.append(steps.counts[2:])
    assert counts[0] == counts[1] != []


class Waits(TrainerCallback):
    """How often the device was waited for in every step."""

    def __init__(self, count_waits: Any) -> None:
        self.count_waits, self.counts = count_waits, []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.counting = self.count_waits()
        self.found = self.counting.__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.counting.__exit__(None, None, None)
        self.counts += self.found


@pytest.mark.parametrize("name", ["logits", "sparse-logits"])
@pytest.mark.parametrize("kind", ["any", "single_only"])
def test_a_run(
    tmp_path: Path, device: torch.device, train_on: Choose, name: str, kind: str, request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def kept_off(trainer: DistillationTrainer, *args: Any, **options: Any) -> float:
        assert trainer.teacher is not None
        assert trainer.teacher.device == CPU  # it has been asked ahead
        return train(trainer, *args, **options)

    monkeypatch.setattr(sys.modules[run.__module__], "train", kept_off)
    train_on(device)
    if kind == "single_only":
        request.getfixturevalue(kind)
    objective = {"name": name} | ({"options": {"store": str(tmp_path / "store")}} if name == "sparse-logits" else {})
    config = {
        "data": {"name": "digits", "train_limit": 64}, "output": str(tmp_path / "out"),
        "teacher": {"model": None, "finetune": True, "config": VIT, "training": {"max_steps": 2}},
        "student": {"layers": 1}, "objective": objective, "overparam": {"ones": 1},
        "constraint": {"weight": 0.1},
        "training": {"max_steps": 12, "per_device_train_batch_size": 8, "eval_strategy": "steps", "eval_steps": 6},
    }  # fmt: skip
    job = fill(DistillConfig, config, "config")
    if name == "sparse-logits":
        cache_teacher(job)
    metrics = run(job)
    assert bool(list((tmp_path / "out").glob("teacher_logits-*"))) == (name == "logits")  # it sees its rows again
    assert 0 <= metrics["student"]["test"]["accuracy"] <= 1
    assert evaluate(str(tmp_path / "out" / "student"), job.data)["test"] == metrics["student"]["test"]
