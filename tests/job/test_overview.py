"""What is shown before a run starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jobs import bert, digits, texts
from opdf.data import describe
from opdf.distill import precision
from opdf.job import DistillConfig, StudentConfig, UserError, preview, run
from opdf.job.checks import check_fit
from opdf.job.cost import StepCost, step_cost
from opdf.job.job import Job
from opdf.job.options import fill
from opdf.job.overview import precision_of
from opdf.job.prepared import prepare_data
from opdf.job.teacher import load_teacher


def text_job(folder: Path, **changes: Any) -> DistillConfig:
    bert(folder / "teacher")
    texts(folder / "rows.jsonl")
    config = {
        "data": {"name": str(folder / "rows.jsonl"), "max_length": 3}, "teacher": {"model": str(folder / "teacher")},
        "student": {"layers": 1}, "overparam": {"ones": 1}, "output": str(folder / "out"),
        "training": {"num_train_epochs": 3, "per_device_train_batch_size": 8, "use_cpu": True},
    }  # fmt: skip
    made: DistillConfig = fill(DistillConfig, config | changes, "config")
    return made


def test_the_block_says_what_the_run_does(tmp_path: Path, capsys: Any) -> None:
    config = text_job(tmp_path)
    shown = preview(config)
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "out").exists()
    lines = dict(shown.lines)
    assert lines["task"] == "classification: 'text' to 'label'"
    assert lines["rows"] == "42 train, 6 validation, 12 test"
    assert lines["classes"] == "2: 0 (30 rows), 1 (30 rows)"
    assert lines["truncated"] == "60 of 60 rows are longer than data.max_length, 3 tokens; the longest has 4"
    metrics = run(config)
    said = str(shown)
    assert capsys.readouterr().out.startswith(said[: said.index("cost ")])  # which is measured anew
    assert f"{metrics['inference_params']:,} parameters" in lines["student"]
    assert f"{metrics['train_params']:,} parameters while training" in lines["overparam"]
    assert lines["training"].startswith(f"{metrics['steps']} steps of 8 examples, adamw")
    assert lines["constraint"] == "off"
    with pytest.raises(FileExistsError, match="is not empty"):  # as the run itself would
        preview(config)


def test_the_size_of_images_is_said(tmp_path: Path) -> None:
    """The configuration of a ResNet has none, and its images were made 28 x 28 without a word."""
    config = digits(tmp_path / "out", constraint=None, overparam=None)
    assert dict(preview(config).lines)["images"] == "the models see 8 x 8 pixels"
    fields = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    teacher = replace(config.teacher, config=fields)
    shown = preview(replace(config, teacher=teacher, student=StudentConfig(config={"hidden_sizes": [4]})))
    said = "the models see 28 x 28 pixels; the configuration of a resnet has no image_size: for another size save an"
    assert dict(shown.lines)["images"].startswith(said)


def test_a_plain_run_says_that_nothing_is_over_parameterized(tmp_path: Path) -> None:
    lines = dict(preview(text_job(tmp_path, overparam=None)).lines)
    assert lines["overparam"] == "off; the student trains as it is"
    assert "constraint" not in lines
    assert "times plain" not in lines["cost"]


@pytest.mark.slow
def test_with_json_the_block_is_not_among_the_results(tmp_path: Path, capsys: Any) -> None:
    run(digits(tmp_path / "out", json=True))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "student" in printed.err


def test_the_lines_about_data_are_those_of_describe(tmp_path: Path) -> None:
    config = text_job(tmp_path)
    prepared = prepare_data(config.data, config.teacher)
    shown = [
        line
        for line in preview(config).lines
        if line in set(describe(prepared, config.data.name, where="data.").lines())
    ]
    assert len(shown) == len(list(describe(prepared, config.data.name, where="data.").lines()))


def test_a_steps_operations_are_those_of_its_matrix_products(tmp_path: Path) -> None:
    """Counted by hand for a BERT of one block and one of two, 8 examples of 4 tokens: 2 operations a multiplication."""
    config = text_job(tmp_path)
    config.data.max_length = 8
    config.training |= {"gradient_accumulation_steps": 2, "max_steps": 1}  # the teacher answers in the steps
    job = Job(config)
    prepared = prepare_data(config.data, config.teacher)
    teacher = load_teacher(job, prepared.task)
    cost = step_cost(job, prepared, check_fit(job, prepared, teacher))
    assert cost is not None
    batch, tokens, width, inner = 8, 4, 8, 8
    block = batch * tokens * (4 * width * width + 2 * width * inner) + 2 * batch * tokens * tokens * width
    head = batch * (width * width + width * 2)
    assert cost.plain == 2 * (3 * 2 * (block + head) + 2 * (2 * block + head))
    assert cost.extra > 0
    assert cost.asking == 0
    assert cost.seconds(3) == pytest.approx(3 * (cost.plain + cost.extra) / cost.rate)


def test_a_training_takes_the_time_in_which_its_teacher_is_asked(tmp_path: Path) -> None:
    """The teacher's operations for every row once, where steps have none of it."""

    def counted(objective: str = "logits", **training: Any) -> StepCost:
        training = {"per_device_train_batch_size": 8} | training
        job = Job(text_job(tmp_path, overparam=None, training=training, objective={"name": objective}))
        prepared = prepare_data(job.config.data, job.config.teacher)
        found = step_cost(job, prepared, check_fit(job, prepared, load_teacher(job, prepared.task)))
        assert found is not None
        return found

    live, ahead = counted(num_train_epochs=1), counted(num_train_epochs=2)
    assert ahead.asking == pytest.approx(42 / 8 * (live.plain - ahead.plain))  # 42 rows are trained on
    assert ahead.seconds(12) == pytest.approx((ahead.asking + 12 * ahead.plain) / ahead.rate)
    assert counted("dbkd", num_train_epochs=1).plain == ahead.plain  # its teacher decides before the training


def test_the_faster_precision_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    rates = {torch.float32: 6e10, torch.bfloat16: 1.2e9}
    monkeypatch.setattr(precision, "product_rate", lambda device, dtype: rates[dtype])
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    for device, bf16, said in (
        (gpu, False, "float32, on cuda:0, which computes faster with training.bf16: true"),
        (gpu, True, "bf16, on cuda:0"),
        (cpu, False, "float32, on cpu"),
        (cpu, True, "bf16, on cpu, whose matrix products take 50 times as long in it as in float32"),
    ):
        arguments: Any = SimpleNamespace(device=device, bf16=bf16, fp16=False)
        assert precision_of(arguments) == said


def test_a_student_that_is_larger_than_its_teacher_is_told_of(tmp_path: Path) -> None:
    """The two were given the other way round, and trained without a word."""
    config = text_job(tmp_path, overparam=None)
    bert(tmp_path / "large", num_hidden_layers=3)
    swapped = replace(config, student=StudentConfig(model=str(tmp_path / "large")))
    told = "the student is larger than its teacher; if that is not meant, give them the other way round"
    assert told in dict(preview(swapped).lines).values()
    assert told not in dict(preview(config).lines).values()


def test_a_teacher_that_is_not_trained_though_options_for_it_are_given_is_told_of(tmp_path: Path) -> None:
    config = text_job(tmp_path, overparam=None)
    told = "the teacher is taken as it is; teacher.training is for teacher.finetune: true"
    assert told not in dict(preview(config).lines).values()
    config.teacher.training = {"num_train_epochs": 5}
    assert told in dict(preview(config).lines).values()
    config.teacher.finetune = True
    assert told not in dict(preview(config).lines).values()


def test_a_step_has_no_more_examples_than_there_are(tmp_path: Path) -> None:
    config = text_job(tmp_path, overparam=None, training={"max_steps": 1, "use_cpu": True})
    for rows, said in ((5, "1 step of 5 examples, "), (None, "1 step of 32 examples, ")):
        found = dict(preview(replace(config, data=replace(config.data, train_limit=rows))).lines)
        assert found["training"].startswith(said)


def test_optimizers_are_made_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"training.optim is 'sgd': .*momentum") as refused:
        preview(text_job(tmp_path, training={"optim": "sgd", "optim_args": "nesterov=True"}))
    assert not (tmp_path / "out").exists()
    assert isinstance(refused.value.__cause__, ValueError)
    rmsprop = {"optim": "rmsprop", "learning_rate": 1e-3}
    assert dict(preview(text_job(tmp_path, training=rmsprop)).lines)["training"].startswith(
        "6 steps of 32 examples, rm"
    )


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 18),  # 42 rows are 6 batches of 8
        pytest.param({"objective": {"name": "lgtm"}}, 15, marks=pytest.mark.slow),  # it holds out 4 of them
        pytest.param({"training": {"dataloader_drop_last": True}}, 15, marks=pytest.mark.slow),
    ],
)
def test_the_steps_are_those_that_are_made(changes: dict[str, Any], steps: int, tmp_path: Path) -> None:
    training = {"num_train_epochs": 3, "per_device_train_batch_size": 8, "use_cpu": True} | changes.pop("training", {})
    config = text_job(tmp_path, overparam=None, training=training, **changes)
    assert dict(preview(config).lines)["training"].startswith(f"{steps} steps of ")
    assert run(config)["steps"] == steps


def test_optimizers_that_cannot_step_cores_are_refused_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("schedulefree")
    schedule_free = {"optim": "schedule_free_adamw", "use_cpu": True}
    preview(text_job(tmp_path, training=schedule_free, overparam=None))
    with pytest.raises(UserError, match=r"training.optim is 'schedule_free_adamw': .* cannot step cores"):
        preview(text_job(tmp_path, training=schedule_free))
    assert not (tmp_path / "out").exists()


def test_models_that_look_at_values_have_no_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = text_job(tmp_path)
    job = Job(config)
    prepared = prepare_data(config.data, config.teacher)
    fit = check_fit(job, prepared, load_teacher(job, prepared.task))
    fit.student.register_forward_pre_hook(lambda module, args: bool(torch.zeros(1, device="meta")))
    assert step_cost(job, prepared, fit) is None
    json.dumps(preview(config).lines)
