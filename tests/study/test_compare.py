"""Finished runs side by side: real runs of tiny students."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.study.example import STUDY

from jobs import digits
from opdf.data import Task
from opdf.job import DataConfig, DistillConfig, StudentConfig, TeacherConfig, run
from opdf.job.options import fill
from opdf.job.prepared import prepare_data
from opdf.study.compare import Finished, against, compare, load, remarks, table
from opdf.study.judge import POINT

TRAINING = {"max_steps": 20, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students of one teacher, and one that was tested on another split."""
    folder = tmp_path_factory.mktemp("runs")
    teacher = fill(TeacherConfig, STUDY["common"]["teacher"], "teacher")
    for name, layers, seed in (("one", 1, 0), ("two", 2, 0), ("elsewhere", 1, 5)):
        data = DataConfig("digits", train_limit=200, seed=seed)
        run(DistillConfig(data, teacher, StudentConfig(layers), training=TRAINING, output=str(folder / name)))
    return folder


@pytest.mark.slow
def test_runs_side_by_side(runs: Path) -> None:
    folders = [runs / name for name in ("one", "two", "elsewhere")]
    rows = compare(folders, batch=16)
    for row, folder in zip(rows, folders, strict=True):
        metrics = json.loads((folder / "metrics.json").read_text())
        assert row["run"] == str(folder)
        assert row["test"] == metrics["student"]["test"]["accuracy"]
        assert row["before"] == metrics["student before training"]["test"]["accuracy"]
        assert row["teacher"] == metrics["teacher"]["test"]["accuracy"]
        assert row["parameters"] == metrics["inference_params"]
        assert row["megabytes"] == pytest.approx(4e-6 * row["parameters"], rel=0.2)
        assert 0 < row["milliseconds"] < 1000
    assert [row["against"] is None for row in rows] == [True, False, True]
    assert [row["same_examples"] for row in rows] == [True, True, False]

    # Of accuracies, the interval is that of the mean of paired differences.
    one, two = (answers_of(folder) for folder in folders[:2])
    differences = two.astype(float) - one
    error = differences.std(ddof=1) / len(differences) ** 0.5
    found = rows[1]["against"]
    assert found["mean"] == pytest.approx(rows[1]["test"] - rows[0]["test"]) == pytest.approx(differences.mean())
    assert found["high"] - found["low"] == pytest.approx(2 * 1.96 * error, rel=0.15)

    head, _, *lines = table(rows, 16).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (head, *lines)]
    column = cells[0].index(f"test, minus {runs / 'one'}")
    shown = f"{100 * found['mean']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
    assert [line[column] for line in cells[1:]] == ["", shown, ""]
    assert "ms for 16" in cells[0]
    other, interval = remarks(rows)
    assert other.startswith(f"Other test examples than {folders[0]}'s: {folders[2]}. ")
    assert remarks(rows[:2]) == [interval]


@pytest.mark.slow
def test_language_models_beside_their_teachers(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(f"a film of {k} words and a {k % 7} behind it" for k in range(40)))
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 8}
    config = {
        "data": {"name": str(tmp_path / "texts.txt"), "task": "causal-lm", "max_length": 16},
        "teacher": {"model": "minilm", "finetune": True, "training": {"max_steps": 1},
                    "config": {"model_type": "llama", "vocab_size": 30522, **sizes}},
        "student": {"layers": 1, "start": "copy"}, "training": {"max_steps": 1}, "output": str(tmp_path / "run"),
    }  # fmt: skip
    metrics = run(fill(DistillConfig, config, "config"))
    rows = compare([tmp_path / "run", tmp_path / "run"])
    assert [row["agreement"] for row in rows] == [metrics["student"]["test"]["agreement"]] * 2
    assert remarks(rows)[0] == POINT
    other = rows[1] | {"run": "other", "against": None}  # as with another tokenizer
    assert [line.split(" than ")[0] for line in remarks([rows[0], other])] == ["Other tokens"]
    head, _, first, _ = ([cell.strip() for cell in line.split("|")] for line in table(rows, 32).splitlines())
    assert first[head.index("agreement")] == f"{100 * rows[0]['agreement']:.1f}"
    assert first[head.index("test")] == f"{metrics['student']['test']['perplexity']:.2f}"


def answers_of(folder: Path) -> np.ndarray:
    """Which test examples the saved student gets right, by plain transformers."""
    from transformers import AutoModelForImageClassification

    prepared = prepare_data(DataConfig("digits", train_limit=200), TeacherConfig(model=str(folder / "student")))
    model, test = AutoModelForImageClassification.from_pretrained(folder / "student").eval(), prepared.data["test"]
    with torch.no_grad():
        logits = model(pixel_values=torch.stack([row["pixel_values"] for row in test])).logits
    right: np.ndarray = (logits.argmax(-1) == torch.stack([row["labels"] for row in test])).numpy()
    return right


def test_a_bar_in_the_name_of_a_folder_begins_no_cell() -> None:
    numbers = ("teacher", "before", "validation", "test", "parameters", "megabytes", "milliseconds",
               "milliseconds_batch", "steps", "train_seconds")  # fmt: skip
    row = dict.fromkeys(numbers, 1) | {"run": "a|b", "metric": "accuracy", "agreement": None, "against": None}
    head, rule, line = table([row], 32).splitlines()
    assert r"test, minus a\|b" in head
    assert line.startswith(r"| a\|b ")
    assert head.count("|") - 1 == line.count("|") - 1 == rule.count("|")


def test_words_that_stand_at_other_places_are_not_paired() -> None:
    """Two tokenizers give the same rows as many tokens where texts are cut off, and the words' labels other places."""
    task: Any = SimpleNamespace(task=Task("token-classification", ("tokens",), "tags", ("no", "yes")))
    one, other = (np.tile(labels, (4, 1)) for labels in ([0, 1, -100], [0, -100, 1]))
    first, second, copy = (Finished(Path(), {}, None, task, some, some, "rows") for some in (one, other, one.copy()))
    assert against(second, first) is None
    found = against(copy, first)
    assert found is not None
    assert found.mean == 0


def test_scores_that_cannot_be_compared_are_named() -> None:
    first = {"run": "one", "metric": "f1", "same_examples": True, "against": None}
    assert remarks([first, first | {"run": "two"}]) == [
        "Other tokens than one's, or texts that are cut elsewhere: two. Their scores cannot be compared with its."
    ]
    first["metric"] = "agreement"
    (line,) = remarks([first, first | {"run": "two"}])
    assert line.startswith("Agreement is with each run's own teacher")


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    run(digits(one := tmp_path / "one"))
    with pytest.raises(ValueError, match="give two or more"):
        compare([one])
    with pytest.raises(FileNotFoundError, match="holds no run"):
        compare([one, tmp_path])
    unfinished = shutil.copytree(one, tmp_path / "unfinished")
    (unfinished / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"is not finished; opdf distill .* --resume true"):
        compare([one, unfinished])
    changed = shutil.copytree(one, tmp_path / "changed")
    begun: dict[str, Any] = json.loads((changed / "begun.json").read_text())
    begun["rows"]["test"] = "0" * 32
    (changed / "begun.json").write_text(json.dumps(begun))
    with pytest.raises(ValueError, match=r"holds other rows than .*changed was scored on"):
        load(changed)
