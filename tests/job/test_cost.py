"""The planned cost of over-parameterization."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from families import build
from opdf.distill import keep_layers
from opdf.job import OverParamConfig
from opdf.job.cost import plan_model
from opdf.overparam import overparameterize


def planned(family: str, layers: int, folder: Path) -> dict[str, Any]:
    build(family).save_pretrained(folder)
    return plan_model(str(folder), OverParamConfig(ones=1), layers=layers, batch=2, tokens=8, accumulation=1)


def test_a_student_has_the_blocks_that_a_run_keeps(tmp_path: Path) -> None:
    student = planned("t5", 1, tmp_path)["models"][1]
    kept = keep_layers(build("t5").base_model, 1)  # of encoder and decoder
    assert student["params"] == sum(p.numel() for p in kept.parameters())


@pytest.mark.parametrize(("family", "excluded"), [("roberta", "roberta.*.0.*"), ("llama", "lm_head")])
def test_a_saved_model_is_planned_as_a_run_trains_it(family: str, excluded: str, tmp_path: Path) -> None:
    """With its head, which patterns can name, and without a pooler where its class has none; its size has no head."""
    model, asked = build(family), OverParamConfig(ones=1, targets="all-linear", exclude=[excluded])
    model.save_pretrained(tmp_path)
    report = plan_model(str(tmp_path), asked, layers=None, batch=2, tokens=8, accumulation=1)
    trained = overparameterize(model, asked)
    assert report["train_params"] == trained.train_params
    assert [(m["name"], m["shape"]) for m in report["matrices"]] == [(m.name, str(m.shape)) for m in trained.matrices]
    assert report["models"][0]["params"] == sum(p.numel() for p in model.base_model.parameters())


@pytest.mark.parametrize(
    ("family", "layers", "message"),
    [("bert", 3, "layers is 3; the teacher has 2 blocks"), ("swin", 1, "SwinForImageClassification has 2 lists")],
)
def test_a_student_that_no_run_can_make_is_not_planned(family: str, layers: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        planned(family, layers, tmp_path)


@pytest.mark.slow
def test_the_totals_are_those_of_the_matrices() -> None:
    report = plan_model("minilm", OverParamConfig(), layers=None, batch=32, tokens=128, accumulation=1)
    assert len(report["matrices"]) == 36
    assert report["train_params"] - report["inference_params"] == sum(
        m["params"] - m["rows"] * m["cols"] for m in report["matrices"]
    )
    assert not report["with_teacher"]
    seconds = sum(m["extra_seconds_per_step"] for m in report["matrices"])
    assert seconds == pytest.approx(report["extra_seconds_per_step"])
    assert all(m["extra_megabytes"] == pytest.approx(12e-6 * m["params"]) for m in report["matrices"])


@pytest.mark.parametrize(("ones", "accumulation", "measured"), [
    (3, 1, 1.96), (8, 16, 1.12), (1, 1, 1.59), (8, 1, 3.00), (3, 4, 1.27),
])  # fmt: skip
@pytest.mark.slow
def test_the_planned_cost_of_a_step_is_near_the_measured_one(ones: int, accumulation: int, measured: float) -> None:
    """That of benchmarks/results/step.md: three blocks of MiniLM, which is the teacher."""
    report = plan_model("minilm", OverParamConfig(ones=ones), layers=3, batch=16, tokens=32, accumulation=accumulation)
    assert report["with_teacher"]
    assert report["expected_step_ratio"] == pytest.approx(measured, rel=0.2)
