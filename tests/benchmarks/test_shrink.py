"""What students of real teachers are worth before any training, and that no trial of the benchmark is run twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.shrink import EXAMPLES, SIZES, TASKS, WAYS, Task, accuracy, report, said, trials
from datasets import Dataset
from transformers import default_data_collator

from benchmarks import pruned, shrink as benchmark
from families import batch, build
from opdf.distill import shrink

FLOORS = {
    ("images", "width 48"): 0.5, ("images", "width 24"): 4.0,
    ("text", "width 192"): 2.5, ("text", "width 96"): 6.0,
    ("text", "3 blocks"): 5.0, ("text", "3 blocks, width 192"): 6.5,
}  # fmt: skip
"""Points of test accuracy that a student may be behind its teacher."""


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_students_are_near_their_teachers_without_training(task: str) -> None:
    """Ten minutes where the teachers are still to be trained; they are kept under runs/."""
    given = TASKS[task]()
    teacher, examples, test = given.teacher.eval(), given.calibration(EXAMPLES), given.held_out()
    whole = accuracy(teacher, test)
    for sizes in SIZES[task]:
        if (task, said(sizes)) in FLOORS:
            assert whole - accuracy(shrink(teacher, examples, **sizes), test) <= FLOORS[task, said(sizes)], sizes


TOY = [("images", "vit"), ("text", "bert")]


def toy(kind: str) -> Task:
    torch.manual_seed(0)
    rows = {name: value.tolist() for name, value in batch(kind, 1024).items()}
    return Task(
        build(kind).eval(),
        dict.fromkeys(("train", "validation", "test"), Dataset.from_dict(rows)),
        default_data_collator,
    )


@pytest.mark.parametrize(("task", "kind"), TOY)
@pytest.mark.slow
def test_every_trial_runs(task: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = toy(kind)
    neurons = {"hidden_size": 8, "intermediate_size": given.teacher.config.intermediate_size // 2}
    sizes = ({"hidden_size": 8}, {"num_hidden_layers": 1}, {"num_hidden_layers": 1, "hidden_size": 8}, neurons)
    monkeypatch.setattr(benchmark, "RUNS", tmp_path / "shrink.jsonl")
    monkeypatch.setitem(benchmark.SIZES, task, sizes)
    monkeypatch.setitem(benchmark.TASKS, task, lambda: given)
    found = list(benchmark.measure(task))
    assert {row["way"] for row in found} == set(WAYS)
    assert all(-100 <= row["behind"] <= 100 for row in found)


@pytest.mark.parametrize(("task", "kind"), TOY)
@pytest.mark.slow
def test_pruned_students_are_trained(task: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = toy(kind)
    sizes = {"hidden_size": 8, "intermediate_size": given.teacher.config.intermediate_size // 2}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(benchmark.TASKS, task, lambda: given)
    monkeypatch.setitem(pruned.SIZES, task, sizes)
    monkeypatch.setattr(pruned, "STEPS", 3)
    rows = list(pruned.measure(task, ways=["shrink", "Torch-Pruning, Taylor"], seeds=[0, 1]))
    assert [row["start"] for row in rows] == ["shrink", "Torch-Pruning, Taylor"]
    assert all(0 <= row[part] <= 100 for row in rows for part in ("before", "after", "teacher"))


def test_trials_go_on_where_they_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RUNS", tmp_path / "shrink.jsonl")
    assert benchmark.done() == {}
    planned = [trial for task in TASKS for trial in trials(task)]
    rows = [
        {**dict(zip(("task", "sizes", "way", "examples"), trial.key, strict=True)), "behind": k / 10}
        for k, trial in enumerate(planned)
    ]
    benchmark.RUNS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = benchmark.done()
    assert set(found) == {trial.key for trial in planned}
    assert [*benchmark.measure("text")] == []  # no teacher is trained for it
    first = report(found)
    assert "| images | width 48 " in first
    for key in FLOORS:
        assert f"{found[*key, 'shrink', EXAMPLES]['behind']:.1f}" in first
