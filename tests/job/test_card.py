"""The model card of a real run, read back by huggingface_hub and compared with the run's own files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from opdf.data import Task
from opdf.job import run
from opdf.job.card import card_data, hub_name, teacher_of
from opdf.job.config import DataConfig, DistillConfig, TeacherConfig
from opdf.job.options import fill

CONFIG: dict[str, Any] = {
    "data": {"name": "digits"},
    "teacher": {"model": None, "finetune": True, "training": {"max_steps": 2}, "config": {
        "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32}},
    "student": {"layers": 1}, "training": {"max_steps": 3, "logging_steps": 1},
    "objective": {"name": "logits", "options": {"temperature": 3.0}},
}  # fmt: skip


@pytest.mark.parametrize("over", [True, False])
def test_a_card_says_what_the_run_did(tmp_path: Path, over: bool) -> None:
    changes = {"overparam": {"ones": 1}, "constraint": {"weight": 0.5}} if over else {}
    command = "opdf distill config.yaml --output 'small vit'"
    config = fill(DistillConfig, CONFIG | {"output": str(tmp_path / "small vit")} | changes, "config")
    run(config, command=command)
    metrics = json.loads((tmp_path / "small vit" / "metrics.json").read_text())
    card = ModelCard.load(tmp_path / "small vit" / "student" / "README.md")

    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-classification"
    assert card.data.model_name == "small vit"
    found = {(r.dataset_name, r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    expected = {
        ("digits", part, name): pytest.approx(metrics["student"][part][name], abs=1e-6)
        for part in ("validation", "test")
        for name in ("accuracy", "f1", "matthews")
    }
    assert found == expected

    assert "a vit built from a configuration, fine-tuned on the same data" in card.text
    for number in (metrics["train_params"], metrics["inference_params"], metrics["steps"]):
        assert f"{number:,}" in card.text
    for who in ("teacher", "student"):
        scores = [f"{metrics[who][part]['accuracy']:.4f}" for part in ("validation", "test")]
        assert f"| {who} | {scores[0]} | {scores[1]} |" in card.text
    assert "| objective | logits, temperature 3.0, alpha 0.9 |" in card.text
    assert "1,257 train, 180 validation, 360 test rows" in card.text
    assert all(f"{name} {version}" in card.text for name, version in metrics["versions"].items())
    assert command in card.text
    written = yaml.safe_load(card.text.split("```yaml\n")[1].split("```")[0])
    assert written == yaml.safe_load((tmp_path / "small vit" / "config.yaml").read_text())
    rows = [line for line in card.text.splitlines() if "T(" in line]
    assert len(rows) == len(metrics["shapes"]) == (3 if over else 0)
    assert sum(s["matrices"] for s in metrics["shapes"]) == (6 if over else 0)
    assert ("weight 0.5" in card.text) == over
    assert not list((tmp_path / "small vit" / "student").glob(".*"))


def test_only_names_of_the_hub_are_linked(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "bert").mkdir(parents=True)
    for name in ("models/bert", "./models/bert", "/models/bert", "~/bert", "minilm", "a/b/c", None):
        assert hub_name(name) is None
    assert hub_name("google/bert") == "google/bert"
    task = Task("classification", ("text",), "label", ("bad", "good"))
    metrics = {"metric": "accuracy", "student": {part: {"accuracy": 0.5} for part in ("validation", "test")}}
    folder = str(tmp_path / "models" / "bert")
    local = DistillConfig(teacher=TeacherConfig(model=folder), data=DataConfig(name=str(tmp_path / "x.csv")))
    assert teacher_of(local) == "bert"
    assert str(tmp_path) not in card_data(local, metrics, task).to_yaml()
