"""A run that goes on: only as it was begun, and a finished one not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs import bert, digits, texts
from opdf.distill.checkpoint import MANIFEST, publish
from opdf.job import DistillConfig, UserError, run
from opdf.job.options import fill


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has come to its end."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    run(digits(folder))
    return folder


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """The same run as if it had been killed after its second step."""
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoints" / "checkpoint-4")
    shutil.rmtree(folder / "student")
    (folder / "metrics.json").unlink()
    return folder


def test_a_finished_run_stays_as_it_is(finished: Path, capsys: Any) -> None:
    before = content(finished)
    metrics = run(digits(finished, resume=True))
    assert metrics == json.loads((finished / "metrics.json").read_text())
    assert capsys.readouterr().err == f"opdf: {finished} is finished; nothing was changed\n"
    assert content(finished) == before


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"seed": 3}, "seed was 0 and is 3"),
    ({"data": {"seed": 5}}, "data.seed was 0 and is 5"),
    ({"data": {"train_limit": 32}}, "data.train_limit was 64 and is 32"),
    ({"teacher": {"training": {"max_steps": 9}}}, "teacher.training.max_steps was 3 and is 9"),
    ({"teacher": {"config": {"hidden_size": 32}}}, "teacher.config.hidden_size was 16 and is 32"),
    ({"student": {"layers": 1}}, "student.layers was 2 and is 1"),
    ({"objective": {"options": {"alpha": 0.5}}}, "objective.options.alpha was 0.9 and is 0.5"),
    ({"overparam": {"ones": 2}}, "overparam.ones was 1 and is 2"),
    ({"overparam": None, "constraint": None}, "overparam was {'ones': 1, .* and is null; constraint was"),
    ({"constraint": {"weight": 0.5}}, "constraint.weight was 1.0 and is 0.5"),
    ({"training": {"learning_rate": 1e-4}}, "training.learning_rate was 0.001 and is 0.0001"),
    ({"training": {"bf16": True}}, "training.bf16 was False and is True"),
    ({"training": {"max_steps": 3}}, "training.max_steps was 4 and is 3"),
    ({"training": {"per_device_train_batch_size": 4}}, "training.per_device_train_batch_size was 8 and is 4"),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_another_configuration_is_refused_with_both_values(
    finished: Path, stopped: Path, changes: dict[str, Any], message: str
) -> None:
    for folder in (finished, stopped):
        before = content(folder)
        with pytest.raises(UserError, match=f"{folder} goes on only as it was begun: .*{message}"):
            run(digits(folder, resume=True, **changes))
        assert content(folder) == before


@pytest.mark.slow
def test_where_the_best_is_chosen_other_saving_is_another_configuration(tmp_path: Path) -> None:
    """The Trainer refused it, after the metrics of a finished run had been removed."""
    best = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "max_steps": 2}
    out = tmp_path / "out"
    run(digits(out, training=best))
    before = content(out)
    with pytest.raises(UserError, match=r"goes on only as it was begun: training\.save_steps was 2.0 and is 4.0"):
        run(digits(out, resume=True, training=best | {"max_steps": 4, "save_steps": 4}))
    assert content(out) == before


def test_what_no_result_depends_on_may_change(finished: Path, stopped: Path) -> None:
    """Logging, saving, and as many examples a step in other portions; after memory ran out, what takes less of it."""
    training = {"logging_steps": 1, "save_steps": 1, "save_total_limit": 1, "learning_rate": "1e-3"}
    portions = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 16}
    less = {"overparam": {"keep_products": False}, "teacher": {"training": {"per_device_eval_batch_size": 16}}}
    metrics = run(digits(stopped, resume=True, training=training | portions, **less))
    assert metrics["steps"] == 4
    expected, found = (load_file(folder / "student" / "model.safetensors") for folder in (finished, stopped))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_a_log_has_every_step_once(stopped: Path) -> None:
    """The steps after the checkpoint are taken again; of a killed run the last line may be half written."""
    log = stopped / "train.log"
    with log.open("a") as file:
        file.write('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
    run(digits(stopped, resume=True, training={"logging_steps": 1}))
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [entry["step"] for entry in entries if "loss" in entry]
    assert steps == sorted(set(steps))
    assert {3, 4} <= set(steps)
    assert 1.0 not in [entry.get("loss") for entry in entries]
    assert entries[0]["kept"]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "expected"), [(1000.0, 1000.0), (None, 0.0)])
def test_the_time_before_the_stop_counts(
    stopped: Path, before: float | None, expected: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Checkpoints of earlier versions do not know it."""
    final = stopped / "checkpoints" / "checkpoint-2"
    scratch = final.rename(stopped / "scratch")
    file = scratch / "trainer_state.json"
    state = json.loads(file.read_text())
    assert 0 < state["stateful_callbacks"]["Clock"]["attributes"]["before"] < 600
    if before is None:
        del state["stateful_callbacks"]["Clock"]
    else:
        state["stateful_callbacks"]["Clock"]["attributes"]["before"] = before
    file.write_text(json.dumps(state))
    (scratch / MANIFEST).unlink()
    publish(scratch, final)
    metrics = run(digits(stopped, resume=True))
    assert f"goes on from {final}" in capsys.readouterr().err
    assert expected < metrics["train_seconds"] < expected + 600


@pytest.mark.slow
def test_more_steps_go_on_from_the_last_checkpoint(finished: Path, tmp_path: Path) -> None:
    constant = {"lr_scheduler_type": "constant"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(digits(whole, training=constant | {"max_steps": 6}))
    run(digits(parts, training=constant))
    assert run(digits(parts, resume=True, training=constant | {"max_steps": 6}))["steps"] == 6
    expected, found = (load_file(folder / "student" / "model.safetensors") for folder in (whole, parts))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    shutil.rmtree(parts / "checkpoints")
    before = content(parts)
    with pytest.raises(UserError, match=r"training.max_steps is 8 and .* has no checkpoint to go on from"):
        run(digits(parts, resume=True, training=constant | {"max_steps": 8}))
    assert content(parts) == before


def test_other_rows_under_the_same_name_are_refused(tmp_path: Path) -> None:
    bert(tmp_path / "teacher")

    def config(name: Path, **more: Any) -> DistillConfig:
        return fill(DistillConfig, {
            "data": {"name": str(name)}, "teacher": {"model": str(tmp_path / "teacher")}, "student": {"layers": 1},
            "training": {"max_steps": 1, "use_cpu": True, "save_strategy": "steps", "save_steps": 1},
            "output": str(tmp_path / "out"), **more,
        }, "config")  # fmt: skip

    rows = texts(tmp_path / "rows.jsonl")
    run(config(rows))
    moved, metrics = rows.rename(tmp_path / "moved.jsonl"), tmp_path / "out" / "metrics.json"
    metrics.unlink()  # as if it had been stopped before the end
    run(config(moved, resume=True))  # the same rows
    metrics.unlink()
    lines = moved.read_text().splitlines(keepends=True)
    moved.write_text("".join(lines[1:] + lines[:1]))
    with pytest.raises(UserError, match=r"the train split of .*moved.jsonl holds other rows"):
        run(config(moved, resume=True))


@pytest.mark.slow
def test_other_versions_are_told(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = stopped / "begun.json"
    begun = json.loads(file.read_text())
    assert begun["versions"]["torch"] == torch.__version__
    begun["versions"]["torch"] = "2.0"
    file.write_text(json.dumps(begun))
    run(digits(stopped, resume=True))
    assert f"note: this run was begun with torch 2.0 (now {torch.__version__}); it" in capsys.readouterr().err


def test_a_run_of_another_version_is_refused(stopped: Path) -> None:
    file = stopped / "config.yaml"
    file.write_text(file.read_text().replace("ones: 1", "method: mpo"))
    with pytest.raises(UserError, match=r"was begun by another version of opdf.*no option 'method'"):
        run(digits(stopped, resume=True))
