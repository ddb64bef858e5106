"""The GPU benchmark on the CPU with a tiny BERT: every line but those that ask CUDA how much memory it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig

import opdf
from benchmarks import contenders, gpu, measure
from opdf.mpo import contract

PRECISIONS = ["float32", "tf32", "bf16"]


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tables go; the model "tiny" is known, and at their peaks plain takes 7,000 bytes, ours 27,000 to 9,000."""
    tiny = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=2
    )
    monkeypatch.setitem(contenders.MODELS, "tiny", tiny)
    monkeypatch.setitem(contenders.TEACHER_LAYERS, "tiny", 2)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    befores, peaks = iter([100, 200, 300, 400]), iter([7_100, 27_200, 17_300, 9_400])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(befores))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: next(peaks))
    return tmp_path


def rows(results: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((results / f"gpu-{name}.json").read_text())["rows"]
    return found


def test_all_of_it(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def ours(*given: Any) -> contenders.Step:
        asked.append(given[-1])
        return contenders.ours(*given)

    monkeypatch.setattr(gpu, "ours", ours)

    gpu.main("tiny", examples=2, tokens=4, repeats=1, size=16)

    overparam = opdf.overparameterize(contenders.student("tiny"), opdf.OverParamConfig(ones=3))
    chains = [overparam.cores(target) for target in overparam.matrices]
    with FlopCounterMode(display=False) as counted:
        for chain in chains:
            contract(chain)

    steps = rows(results, "step")
    assert [(r["accumulation"], r["products in"]) for r in steps] == [(k, p) for k in (1, 8) for p in PRECISIONS]
    for row in steps:
        mine, base = row["opdf"]["median"], row["plain"]["median"]
        assert row["floor s"] * row["TFLOP/s"] * 1e12 == pytest.approx(3 * counted.get_total_flops())
        assert row["opdf / plain"] == pytest.approx(mine / base)
        assert row["overhead / floor"] == pytest.approx((mine - base) / row["floor s"])
    assert [row["target"] for row in steps] == ["at most 1.25"] * 3 + ["at most 1.07"] * 3

    assert asked == 2 * PRECISIONS  # for time and for memory

    (row,) = rows(results, "decomposition")
    assert (row["matrices"], row["opdf"]["repeats"]) == (6, 1)

    found = rows(results, "memory")
    moments = 3 * 4 * sum(core.numel() for chain in chains for core in chain)
    assert [row["products in"] for row in found] == PRECISIONS
    assert [row["(opdf - plain) / cores and moments"] for row in found] == [
        pytest.approx(more / moments) for more in (20_000, 10_000, 2_000)
    ]
    assert "2x4 tokens" in (results / "gpu-memory.md").read_text()


def test_what_was_measured_before_a_run_was_cut_off_stays(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", iter([7_100, 27_100]).__next__)

    with pytest.raises(StopIteration):
        gpu.main("tiny", examples=2, tokens=4, repeats=1, size=16)

    assert [len(rows(results, name)) for name in ("step", "decomposition", "memory")] == [6, 1, 1]


def test_passes_are_in_bfloat16_only_where_that_is_asked(results: Path) -> None:
    seen: list[torch.dtype] = []

    def forward(ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = contenders.student("tiny")(input_ids=ids).logits
        seen.append(logits.dtype)
        return logits

    contenders.batch("tiny", 2, 4, autocast=True).loss(forward)
    contenders.batch("tiny", 2, 4).loss(forward)

    assert seen == [torch.bfloat16, torch.float32]


def test_ours_steps_in_the_precision_asked_for(results: Path) -> None:
    weights = []
    for precision in ("float32", "bf16"):
        model = contenders.student("tiny").eval()
        contenders.ours(model, contenders.batch("tiny", 2, 4), 3, precision)(1)
        weights.append(model.bert.encoder.layer[0].output.dense.weight)

    # Each of the products rounds by up to 2^-9; the step itself is 1e-5.
    assert 1e-4 < torch.dist(*weights) / weights[0].norm() < 1e-2
