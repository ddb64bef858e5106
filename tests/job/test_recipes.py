"""The recipes: their options are known, and those on embedded data fit together."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from opdf.data import load_data
from opdf.job import DistillConfig, read_config
from opdf.job.checks import check_models, check_task
from opdf.job.job import Job
from opdf.job.models import from_config, load_model
from opdf.overparam import overparameterize

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


def on_a_cpu(recipe: Path) -> DistillConfig:
    config = read_config(str(recipe))
    cpu = {"bf16": False, "use_cpu": True}
    config.training |= cpu
    config.teacher.training |= cpu
    return config


@cache
def data(name: str, **options: Any) -> Any:
    return load_data(name, **options)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(recipe: Path) -> None:
    Job(on_a_cpu(recipe))


@pytest.mark.parametrize("recipe", [p for p in RECIPES if p.parent.name == "glue"], ids=lambda path: path.stem)
def test_glue_recipes_train_the_papers_parameters(recipe: Path) -> None:
    """Base parameters and those of every 1x1 site: OPDF's tables 1 and S3, in millions, without the head."""
    config = read_config(str(recipe))
    blocks = 4 if config.student.layers == [0, 1, 2, 3] else 6
    with torch.device("meta"):
        student = BertModel(BertConfig(num_hidden_layers=blocks))
    assert config.overparam is not None
    trained = overparameterize(student, config.overparam).train_params / 1e6
    start, each = {4: (68.7, 15.9), 6: (90.8, 23.9)}[blocks]
    assert trained == pytest.approx(start + each * (config.overparam.ones or 0), rel=2e-3)


@pytest.mark.parametrize("recipe", [p for p in RECIPES if p.stem.startswith(("text", "images"))], ids=lambda p: p.stem)
def test_recipes_on_embedded_data_fit_together(recipe: Path) -> None:
    job = Job(on_a_cpu(recipe))
    task = data(job.config.data.name)[1]
    check_task(job, task)
    teacher = job.config.teacher
    model = from_config(teacher.config, task) if teacher.config else load_model("minilm", task)[0]
    over = check_models(job, task, model).over
    assert over is not None
    entries = sum(matrix.rows * matrix.cols for matrix in over.matrices)
    assert over.train_params - over.inference_params > 0.5 * entries
