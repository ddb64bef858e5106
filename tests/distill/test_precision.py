"""Half precision on processors that have no instructions for it."""

from __future__ import annotations

import re
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distill.small import arguments, bert, sentences

from opdf.distill import DistillationTrainer, precision, shrink
from opdf.distill.precision import product_rate


def cpu_of(monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float) -> None:
    """A CPU that multiplies at these rates."""
    found = {torch.float32: float32, torch.bfloat16: bfloat16}
    monkeypatch.setattr(precision, "product_rate", lambda device, dtype: found[dtype])


@pytest.mark.parametrize(("training", "options", "said"), [
    ({"bf16": True}, {}, "leave bf16 out"),
    ({}, {"overparam": {"ones": 1, "precision": "bf16"}}, "leave precision out of overparam"),
    ({}, {"teacher": bert().bfloat16()}, "which the teacher's weights have; give teacher.float()"),
])  # fmt: skip
def test_a_cpu_without_bf16_is_told_of_before_the_training(
    training: dict[str, Any], options: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_of(monkeypatch, float32=60e9, bfloat16=1.2e9)
    told = f"matrix products in torch.bfloat16 take 50 times as long on this CPU as in float32; {said}"
    with pytest.warns(UserWarning, match=re.escape(told)) as warned:
        trainer(tmp_path, training, **options)
    assert __file__ in [warning.filename for warning in warned]


def test_a_teacher_that_is_shrunk_is_told_of_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu_of(monkeypatch, float32=60e9, bfloat16=1.2e9)
    with pytest.warns(
        UserWarning, match=r"50 times as long.* the teacher's weights have; give teacher.float\(\)"
    ) as told:
        shrink(bert().bfloat16(), [{"input_ids": torch.randint(1, 50, (32, 8))}], num_hidden_layers=2)
    assert told[0].filename == __file__


@pytest.mark.parametrize(("bf16", "rate"), [(False, 1e9), (True, 60e9), (True, 300e9)])
def test_nothing_is_said_where_half_precision_costs_nothing(
    bf16: bool, rate: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_of(monkeypatch, float32=60e9, bfloat16=rate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer(tmp_path, {"bf16": bf16})


def trainer(folder: Path, training: dict[str, Any], **options: Any) -> DistillationTrainer:
    teacher = options.pop("teacher", None) or bert()
    return DistillationTrainer(
        bert(2), arguments(folder, **training), teacher=teacher, train_dataset=sentences(), **options
    )


def test_the_rate_is_that_of_products_here() -> None:
    """Two sizes of one machine agree to an order of magnitude, and a second call measures nothing."""
    a = torch.randn(512, 512)
    a @ a
    seconds = min(_seconds(a) for _ in range(5))
    drawn = torch.get_rng_state()
    product_rate.cache_clear()
    rate = product_rate("cpu", torch.float32)
    assert torch.equal(torch.get_rng_state(), drawn)  # a training's random numbers are not taken
    assert rate / 10 < 2 * 512**3 / seconds < 10 * rate
    assert product_rate("cpu", torch.float32) == rate


def _seconds(a: torch.Tensor) -> float:
    start = time.perf_counter()
    a @ a
    return time.perf_counter() - start
