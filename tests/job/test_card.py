"""The model card of a real run, read back by huggingface_hub and compared with the run's own files."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from jobs import TEXTS, WORDS, bert
from opdf.data import Task
from opdf.job import predict, run
from opdf.job.card import card_data, facts, hub_name, teacher_of
from opdf.job.config import DataConfig, DistillConfig, TeacherConfig
from opdf.job.options import fill
from opdf.overparam import Constraint

CONFIG: dict[str, Any] = {
    "data": {"name": "digits"},
    "teacher": {"model": None, "finetune": True, "training": {"max_steps": 2}, "config": {
        "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32}},
    "student": {"layers": 1}, "training": {"max_steps": 3, "logging_steps": 1},
    "objective": {"name": "logits", "options": {"temperature": 3.0}},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("over", [True, False])
def test_a_card_says_what_the_run_did(tmp_path: Path, over: bool, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert "| objective | logits, temperature 3.0, alpha 0.9, divergence forward |" in card.text
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
    photo = tmp_path / "small vit" / "student" / "photo.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(photo)
    (ours,) = predict(tmp_path / "small vit", photo)
    best = used(photo.parent, monkeypatch)["answers"][0]
    assert (best["label"], best["score"]) == (ours["prediction"], pytest.approx(ours["score"], abs=1e-6))


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


def test_how_strong_a_constraint_was_is_known_of_logged_steps_alone() -> None:
    metrics = dict.fromkeys(("train_params", "inference_params", "steps", "train_seconds", "seed"), 1)
    said = facts(
        DistillConfig(constraint=Constraint(weight=0.5)),
        metrics | {"versions": {}, "constraint_grad_ratio": 0.25},
        SimpleNamespace(raw={}),  # type: ignore[arg-type]
    )
    line = "its gradient at most 0.25 of the distillation loss's, of the steps that were logged"
    assert dict(said)["constraint loss"].endswith(line)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts, its body, a decoder and a ViT."""
    folder = tmp_path_factory.mktemp("teachers")
    made = bert(folder / "bert")
    for name in ("body", "decoder"):
        shutil.copytree(folder / "bert", folder / name)
    made.bert.save_pretrained(folder / "body")
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 8}
    llama = LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=64, bos_token_id=2, eos_token_id=3, **sizes)
    LlamaForCausalLM(llama).save_pretrained(folder / "decoder")
    tokenizer = AutoTokenizer.from_pretrained(folder / "decoder")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    tokenizer.save_pretrained(folder / "decoder")
    return folder


TALKS = [[{"role": "user", "content": text}, {"role": "assistant", "content": f"w{k % 40}"}]
         for k, text in enumerate(TEXTS)]  # fmt: skip
SECOND = [*TEXTS[1:], TEXTS[0]]
KINDS: dict[str, tuple[str, dict[str, list[Any]], dict[str, Any]]] = {
    "classes": ("bert", {"text": TEXTS, "label": [k % 2 for k in range(60)]}, {}),
    "pairs": ("bert", {"a": TEXTS, "b": SECOND, "label": [k % 2 for k in range(60)]}, {}),
    "several": ("body", {"text": TEXTS, "labels": [["x"], ["x", "y"]] * 30}, {}),
    "numbers": ("body", {"text": TEXTS, "label": [k / 7 for k in range(60)]}, {}),
    "tags": ("body", {"tokens": [t.split() for t in TEXTS], "tags": [["O", "B-X"]] * 60}, {}),
    "similarity": ("body", {"a": TEXTS, "b": SECOND, "label": [k / 60 for k in range(60)]}, {"task": "similarity"}),
    "text": ("decoder", {"text": TEXTS}, {"task": "causal-lm"}),
    "talk": ("decoder", {"messages": TALKS}, {"task": "causal-lm"}),
}


OFTEN = ("classes", "similarity", "talk")


@pytest.mark.parametrize("kind", [k if k in OFTEN else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_the_code_of_a_card_asks_its_student(
    kind: str, tmp_path: Path, teachers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, columns, data = KINDS[kind]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    quick = {"max_steps": 1, "use_cpu": True, "per_device_train_batch_size": 8}
    config = {
        "data": {"name": str(tmp_path / "data.jsonl"), "max_length": 16, **data}, "student": {"layers": 1},
        "teacher": {"model": str(teachers / teacher), "finetune": kind in ("several", "numbers", "tags"),
                    "training": quick},
        "objective": {"name": "embedding" if kind == "similarity" else "logits"},
        "training": quick, "output": str(tmp_path / "out"),
    }  # fmt: skip
    run(fill(DistillConfig, config, "config"))
    said = used(tmp_path / "out" / "student", monkeypatch)
    if kind in ("classes", "pairs", "several"):
        (one,) = predict(tmp_path / "out", [{"a": "A text", "b": "and another", "text": "A text"}], scores=True)
        assert {some["label"]: some["score"] for some in said["answers"]} == pytest.approx(one["scores"], abs=1e-6)
    elif kind == "numbers":
        (one,) = predict(tmp_path / "out", ["A text"])
        assert said["answers"][0]["score"] == pytest.approx(one["prediction"], abs=1e-6)
    elif kind == "similarity":
        (one,) = predict(tmp_path / "out", [{"a": "A sentence.", "b": "Another one."}])
        cosine = torch.cosine_similarity(*said["embeddings"], dim=0)
        assert float(cosine) == pytest.approx(one["similarity"], abs=1e-6)
    elif kind == "tags":
        (one,) = predict(tmp_path / "out", ["Words of a sentence"])
        tags = [tag for tag in one["prediction"] if tag != "O"]
        assert [found["entity"] for found in said["answers"]] == tags
    else:
        assert said["answers"][0]["generated_text"]


def used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that the code of a card leaves when it runs in the card's folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names
