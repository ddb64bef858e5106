"""The demo: what it leaves, and what it says of a difference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opdf.job.demo import BEFORE, BLOCKS, OPDF, PLAIN, TASKS, demo, judge


@pytest.mark.parametrize(
    ("task", "data"), [("images", "digits"), pytest.param("text", "amazon-sentiment", marks=pytest.mark.slow)]
)
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, data: str) -> None:
    short = replace(TASKS[task], data=replace(TASKS[task].data, max_length=8))  # the tests' time is that of scoring
    monkeypatch.setitem(TASKS, task, short)
    folder, said = tmp_path / "demo", list[str]()
    folder.mkdir()
    (folder / "demo.yaml").touch()  # one that was stopped: it starts anew
    demo(task, folder, data=data, train_limit=64, say=said.append)
    printed = "\n".join(said)
    assert "Did OPDF gain on plain KD here?" in printed
    results = json.loads((folder / "results.json").read_text())["results"]
    assert list(results) == ["teacher", BEFORE, PLAIN, OPDF, BLOCKS]
    assert results[OPDF]["train_params"] > results[PLAIN]["train_params"]
    assert results[PLAIN]["inference_params"] < results[BLOCKS]["inference_params"]
    assert results[BEFORE]["inference_params"] == results[OPDF]["inference_params"]
    assert all(result["seconds_for_1"] > 0 for result in results.values())
    for name in ("half-width-kd", "half-width-opdf", "half-the-blocks-kd"):
        assert (folder / name / "student" / "model.safetensors").is_file()
    table = (folder / "results.md").read_text().strip()
    assert table in printed
    assert [line.partition(":")[0] for line in said[1:6]] == list(results)  # each as soon as it is there
    trained = f"{results[PLAIN]['inference_params']:,} parameters, {results[PLAIN]['train_seconds']:.0f} s trained"
    assert said[3].endswith(trained)


@pytest.mark.slow
def test_a_demo_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    """After the teacher and two rows; what is there is not made again, and the scores are those of a whole one."""

    def scores(folder: Path) -> dict[str, Any]:
        results = json.loads((folder / "results.json").read_text())["results"]
        return {name: result["student"] for name, result in results.items()}

    def stop(text: str) -> None:
        if text.startswith(f"{PLAIN}:"):
            raise KeyboardInterrupt

    options: dict[str, Any] = {"data": "digits", "train_limit": 64}
    demo("images", tmp_path / "whole", say=list[str]().append, **options)
    with pytest.raises(KeyboardInterrupt):
        demo("images", tmp_path / "parts", say=stop, **options)
    made = [tmp_path / "parts" / name for name in ("teacher", "half-width-kd/student")]
    times = [(folder / "model.safetensors").stat().st_mtime_ns for folder in made]
    said = list[str]()
    demo("images", tmp_path / "parts", say=said.append, **options)
    assert [(folder / "model.safetensors").stat().st_mtime_ns for folder in made] == times
    assert said[0].endswith("One that was stopped goes on")
    assert said[-1].startswith("What was left took")
    assert scores(tmp_path / "parts") == scores(tmp_path / "whole")


@pytest.mark.parametrize(
    ("ours", "plain", "verdict"),
    [
        ([1, 1, 0, 0] * 50, [1, 0, 1, 0] * 50, "No difference found: +0.00 points of accuracy on 200 test examples"),
        ([1, 1, 0, 0] * 50, [1, 0, 0, 0] * 50, "With this seed OPDF's student is ahead: +25.00 points"),
        ([1, 0, 0, 0] * 50, [1, 1, 0, 0] * 50, "With this seed KD's student is ahead: -25.00 points"),
    ],
)
def test_verdict_is_plain(ours: list[int], plain: list[int], verdict: str) -> None:
    found = judge(np.array(ours) == 1, np.array(plain) == 1)
    assert verdict in found
    each = 100 * (np.array(ours) - np.array(plain))
    assert f"standard error {each.std() / 200**0.5:.2f}" in found
