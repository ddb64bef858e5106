"""What it saves to ask a teacher about every row before the training, and not in every step."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification

from benchmarks.measure import alternate, write
from benchmarks.methods import TEXT
from opdf.distill import BeforeTraining, LogitsDistillation, keep_layers
from opdf.job import Job, prepare_data, quiet, ready_teacher

STEPS, BATCH = 20, 32
HALF_WIDTH = {"hidden_size": 192, "intermediate_size": 768}


def main(repeats: int = 7) -> None:
    """MiniLM's students of half the blocks and of half the width."""
    with tempfile.TemporaryDirectory() as scratch, quiet():
        data = replace(TEXT.data, train_limit=STEPS * BATCH)
        config = replace(TEXT, data=data, teacher=replace(TEXT.teacher, training={"max_steps": 1}), output=scratch)
        prepared = prepare_data(config.data, config.teacher)
        teacher = ready_teacher(Job(config), prepared).eval()
        changed = type(teacher.config)(**teacher.config.to_dict() | HALF_WIDTH)
        students = {
            "half the blocks": keep_layers(teacher, 3),
            "half the width": AutoModelForSequenceClassification.from_config(changed).to(teacher.device),
        }
        rows = [{"student": name} | _measured(one, teacher, prepared, repeats) for name, one in students.items()]
    write(
        "ahead", "A teacher that answers before the training", rows,
        f"Seconds for {STEPS * BATCH} reviews of up to 32 tokens, {BATCH} a step, forward and backward; MiniLM of 6 "
        "blocks as the teacher. N epochs: asking and N epochs with answers at hand, over N epochs with a live teacher.",
    )  # fmt: skip


def _measured(student: Any, teacher: Any, prepared: Any, repeats: int) -> dict[str, Any]:
    method = LogitsDistillation()

    def ask() -> Any:
        with tempfile.TemporaryDirectory() as empty:
            return method.prepare_data(BeforeTraining(prepared, teacher, Path(empty), shared=True))

    def epoch(rows: Any, asked: Any) -> None:
        for batch in DataLoader(rows, batch_size=BATCH, collate_fn=prepared.collator):
            batch = {name: value.to(student.device) for name, value in batch.items()}
            method.losses(student, asked, batch, batch["labels"].new_tensor(BATCH)).total.backward()
            student.zero_grad()

    student.train()
    told = ask()
    times = alternate(
        {
            "asking": ask,
            "live teacher": lambda: epoch(prepared.data["train"], teacher),
            "answers at hand": lambda: epoch(told, None),
        },
        repeats,
    )
    asking, live, at_hand = (timing.median for timing in times.values())
    return {**times, **{f"{n} epochs": (asking + n * at_hand) / (n * live) for n in (2, 3, 10)}}
