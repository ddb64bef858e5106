"""The Python of the README and of the pages in docs/ runs as it stands, and their links lead somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: Any) -> Iterator[None]:
    """Examples write files, and accelerate keeps one process-wide state."""
    monkeypatch.chdir(tmp_path)
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def run(page: str, **names: Any) -> dict[str, Any]:
    """The names that a page ends with when its blocks run in order, as a reader would run them."""
    for block in blocks(ROOT / page):
        exec(compile(block, page, "exec"), names)
    return names


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def test_every_page_with_python_is_tested() -> None:
    pages = {str(page.relative_to(ROOT)) for page in PAGES if blocks(page)}
    assert pages == set(re.findall(r'run\("([^"]+)"', Path(__file__).read_text()))


def small() -> dict[str, Any]:
    """A teacher, inputs that it understands, and data."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "intermediate_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4}
    teacher = BertForSequenceClassification(BertConfig(vocab_size=50, **sizes))
    rows = [{"input_ids": [1 + i, 2, 3], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(8)]
    batches = [{"input_ids": torch.randint(50, (64, 16))}]
    return {"teacher": teacher, "batches": batches, "data": Dataset.from_list(rows)}


def test_home() -> None:
    run("docs/index.md", **small())
    config = AutoModelForSequenceClassification.from_pretrained("student").config
    assert (config.num_hidden_layers, config.hidden_size) == (3, 192)


def test_readme() -> None:
    run("README.md", **small())
    config = AutoModelForSequenceClassification.from_pretrained("student").config
    assert (config.num_hidden_layers, config.hidden_size) == (3, 192)


def test_a_job() -> None:
    metrics = run("docs/api/job.md")["metrics"]
    assert metrics["steps"] == 20
    assert Path("runs/digits/student/model.safetensors").is_file()


def test_method() -> None:
    run("docs/method.md")


def test_methods() -> None:
    seen = run("docs/methods.md")
    assert seen["targets"].argmax(-1).tolist() == [1, 0]


def test_choose_scale() -> None:
    run("docs/choose-scale.md")


def test_own_model() -> None:
    seen = run("docs/own-model.md")
    assert seen["trainer"].state.log_history[-2]["distance_loss"] > 0
    assert len(torch.load("student.pt", weights_only=True)) == len(seen["student"].state_dict())


def test_shrink() -> None:
    seen = run("docs/shrink.md")
    assert seen["student"].num_parameters() < seen["teacher"].num_parameters() / 13
    assert seen["accuracies"]["teacher"] > 0.7
    assert min(seen["accuracies"].values()) > seen["accuracies"]["teacher"] - 0.05


def test_tutorial_on_text() -> None:
    seen = run("docs/tutorial-text.md")
    assert seen["reloaded"].config.num_hidden_layers == 3
    assert seen["reloaded"].num_parameters() < seen["teacher"].num_parameters()
    assert seen["log"]["distillation_loss"] > 0


@pytest.mark.slow
def test_tutorial_on_images() -> None:
    seen = run("docs/tutorial-images.md")
    assert seen["teacher_accuracy"] > 0.5
    assert seen["accuracy"] > 0.3
    assert seen["logs"][-1]["constraint_loss"] < seen["logs"][0]["constraint_loss"]
    assert len(seen["last_block"].matrices) == 6


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!http|#)([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), target
