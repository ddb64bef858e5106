"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def names() -> dict[str, Any]:
    """What the examples take for granted: a fine-tuned teacher, a student, encoded data."""
    torch.manual_seed(0)
    teacher = BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=32)
    )
    rows = [{"input_ids": [1 + i, 2, 3], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(8)]
    student = BertForSequenceClassification(teacher.config)
    return {"teacher": teacher, "student": student, "data": Dataset.from_list(rows)}


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 2


@pytest.mark.parametrize("example", EXAMPLES)
def test_example(example: str, names: dict[str, Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), names)
    if "save_pretrained" in example:
        student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
        assert student.config.num_hidden_layers == 3


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
