"""The examples run as they stand, for a few steps, and do what they say."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import BertForSequenceClassification

FOLDER = Path(__file__).parents[2] / "examples"
NEEDED = {"lightning_fit": "lightning", "trl_sft": "trl", "peft_lora": "peft"}


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch: Any) -> Iterator[None]:
    """accelerate keeps one process-wide state, precision included."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def run(name: str, monkeypatch: Any, *argv: Any) -> dict[str, Any]:
    """The names that an example ends with."""
    if name in NEEDED:
        pytest.importorskip(NEEDED[name])
    monkeypatch.setattr(sys, "argv", [name, *map(str, argv)])
    return runpy.run_path(str(FOLDER / f"{name}.py"))


def test_every_example_is_tested() -> None:
    names = {path.stem for path in FOLDER.glob("*.py")}
    assert names == set(re.findall(r'run\("(\w+)"', Path(__file__).read_text()))


def has_cores(optimizer: Any) -> bool:
    return any("core0" in state for state in optimizer.state.values())


@pytest.mark.slow
def test_plain_pytorch(monkeypatch: Any) -> None:
    assert sum(1 for line in (FOLDER / "plain_pytorch.py").read_text().splitlines() if line) <= 30
    seen = run("plain_pytorch", monkeypatch, 8)
    assert sum(seen["losses"][-2:]) < 0.8 * sum(seen["losses"][:2])
    assert seen["overparam"].constraint_logs["constraint_grad_ratio"] > 0


def test_lightning(monkeypatch: Any) -> None:
    seen = run("lightning_fit", monkeypatch, 6)
    saved = seen["saved"]
    assert saved["global_step"] == 6
    assert not [name for name in saved["state_dict"] if "teacher" in name]
    cores = [state for state in saved["optimizer_states"][0]["state"].values() if "core0" in str(state)]
    assert len(cores) == 2 * 6
    assert seen["trainer"].callback_metrics["distillation"] > 0


@pytest.mark.slow
def test_accelerate(monkeypatch: Any) -> None:
    seen = run("accelerate_loop", monkeypatch, 6)
    assert len(seen["losses"]) == 12
    assert has_cores(seen["optimizer"].optimizer)
    assert sum(seen["losses"][-4:]) < 0.8 * sum(seen["losses"][:4])


@pytest.mark.slow
def test_trl(monkeypatch: Any) -> None:
    seen = run("trl_sft", monkeypatch, 6)
    assert sum(seen["losses"][-2:]) < sum(seen["losses"][:2])
    assert seen["student"].config.num_hidden_layers == 2
    assert has_cores(seen["optimizer"])


@pytest.mark.slow
def test_lora_is_merged_into_the_plain_model(monkeypatch: Any) -> None:
    seen = run("peft_lora", monkeypatch, 8)
    merged, batch = seen["merged"], seen["batch"]
    assert seen["difference"] < 1e-5
    assert type(merged) is BertForSequenceClassification
    original = BertForSequenceClassification(merged.config)
    assert merged.state_dict().keys() == original.state_dict().keys()
    with torch.no_grad():
        # Both matrices of every adapter have moved: the product is in the merged weight.
        base = BertForSequenceClassification.from_pretrained(seen["minilm"](), num_labels=2)
        for ours, theirs in zip(merged.bert.encoder.layer, base.bert.encoder.layer, strict=True):
            for role in ("query", "value"):
                change = getattr(ours.attention.self, role).weight - getattr(theirs.attention.self, role).weight
                assert 1 <= torch.linalg.matrix_rank(change, rtol=1e-3) <= 8
            assert torch.equal(ours.attention.self.key.weight, theirs.attention.self.key.weight)
        assert merged(**batch).logits.isfinite().all()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.slow
def test_compiled_and_checkpointed_students_train_alike(backend: str, monkeypatch: Any) -> None:
    weights = run("compiled", monkeypatch, 4, backend)["weights"]
    assert torch.equal(weights["checkpointed"], weights["plain"])
    moved = (weights["plain"] - run("compiled", monkeypatch, 0, backend)["weights"]["plain"]).norm()
    assert (weights["compiled"] - weights["plain"]).norm() < 0.02 * moved
