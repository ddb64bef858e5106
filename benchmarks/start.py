"""Students of several widths, fitted to their teacher by `shrink` or untrained, before and after a distillation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from torch.utils.data import DataLoader
from transformers import ViTForImageClassification, set_seed

from benchmarks.measure import write
from opdf.data import Prepared
from opdf.distill import DistillationArguments, DistillationTrainer, shrink
from opdf.job import read_config
from opdf.job.job import Job
from opdf.job.prepared import prepare_data
from opdf.job.progress import quiet
from opdf.job.scoring import evaluator
from opdf.job.teacher import ready_teacher

RECIPE = Path(__file__).parents[1] / "recipes" / "images-narrow-student.yaml"
WIDTHS = (48, 24, 12)
SEEDS = (0, 1)
STEPS = 100
RATES = {"started": 1e-3, "untrained": 2e-3}
"""Of the distillation. An untrained student wants the higher one."""
EXAMPLES = 512
JUDGED_BY = 2000
"""Test images."""


def main() -> None:
    found = [row for seed in SEEDS for row in students(seed)]
    names = [name for name in found[0] if name not in ("width", "parameters")]
    rows = []
    for width in dict.fromkeys(row["width"] for row in found):
        some = [row for row in found if row["width"] == width]
        means = {name: fmean(row[name] for row in some) for name in names if some[0][name] is not None}
        rows.append({"width": width, "parameters": some[0]["parameters"], **dict.fromkeys(names, ""), **means})
    notes = (
        f"Accuracy in percent on {JUDGED_BY} test images, mean of {len(SEEDS)} seeds. ViT of 4 blocks and width 96, "
        f"Fashion-MNIST with 2,000 training images; started from {EXAMPLES} of them; distilled for {STEPS} steps of 32."
    )
    write("start", "Students that start from their teacher", rows, notes)


def students(seed: int) -> Iterator[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as scratch, quiet():
        config = replace(read_config(str(RECIPE)), seed=seed, output=scratch)
        prepared = prepare_data(replace(config.data, seed=seed), config.teacher)
        teacher = ready_teacher(Job(config), prepared)
        kinds = ("started, not trained", "started, distilled", "untrained, distilled")
        score = accuracy(teacher, prepared)
        yield {"width": 96, "parameters": teacher.num_parameters(), "teacher": score, **dict.fromkeys(kinds)}
        images = prepared.data["train"].select(range(EXAMPLES))
        batches = DataLoader(images, batch_size=64, collate_fn=prepared.collator)
        for width in WIDTHS:
            started = shrink(teacher, batches, hidden_size=width, intermediate_size=4 * width)
            set_seed(seed)
            models = {"started": started, "untrained": ViTForImageClassification(started.config)}
            row = {"width": width, "parameters": started.num_parameters(), "teacher": None}
            row["started, not trained"] = accuracy(started, prepared)
            for start, model in models.items():
                distill(model, teacher, prepared, scratch, RATES[start], seed)
                row[f"{start}, distilled"] = accuracy(model, prepared)
            yield row


def accuracy(model: Any, prepared: Prepared) -> float:
    return 100 * evaluator(model, prepared).evaluate(prepared.data["test"].select(range(JUDGED_BY)))["eval_accuracy"]


def distill(student: Any, teacher: Any, prepared: Prepared, folder: str, rate: float, seed: int) -> None:
    arguments = DistillationArguments(
        f"{folder}/student", max_steps=STEPS, learning_rate=rate, per_device_train_batch_size=32, seed=seed,
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    DistillationTrainer(
        student, arguments, teacher=teacher, train_dataset=prepared.data["train"], data_collator=prepared.collator
    ).train()
