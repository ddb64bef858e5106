"""A student's epoch from stored teacher outputs against the same epoch with a live teacher, and the store's size."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from transformers import default_data_collator, set_seed

from benchmarks.measure import alternate, write
from benchmarks.methods import IMAGES
from opdf.distill import BeforeTraining, LogitsDistillation, SparseLogitsDistillation, keep_layers
from opdf.job import Job, prepare_data, quiet, ready_teacher

STEPS, BATCH = 20, 32
PLAIN = ("pixel_values", "labels")
"""What a batch has without the stored outputs."""


def main(repeats: int = 7) -> None:
    with tempfile.TemporaryDirectory() as scratch, quiet():
        config = replace(IMAGES, data=replace(IMAGES.data, train_limit=STEPS * BATCH), seed=0, output=scratch)
        prepared = prepare_data(config.data, config.teacher)
        teacher = ready_teacher(Job(config), prepared)
        objective = SparseLogitsDistillation(store=f"{scratch}/store", top_k=5, noise=True)
        store = objective.write_cache(prepared, teacher)
        data = objective.prepare_data(BeforeTraining(prepared, teacher, Path(scratch)))
        set_seed(0)
        student = keep_layers(teacher, 2).train()
        teacher.eval()  # fine-tuning left it in training mode

        def epoch(method: Any, teacher_: Any) -> None:
            for batch in DataLoader(data, batch_size=BATCH, collate_fn=default_data_collator):
                batch = {k: v.to(student.device) for k, v in batch.items() if teacher_ is None or k in PLAIN}
                method.losses(student, teacher_, batch, batch["labels"].new_tensor(BATCH)).total.backward()
                student.zero_grad()

        live = LogitsDistillation(1.0, 1.0)
        times = alternate(
            {"live teacher": lambda: epoch(live, teacher), "stored": lambda: epoch(objective, None)}, repeats
        )
        per_entry = store.nbytes / (store.info.rows * store.info.epochs)
        row = {
            **times, "stored / live": times["stored"].median / times["live teacher"].median, "top K": objective.top_k,
            "bytes an image and epoch": per_entry, "GB per million": per_entry / 1e3,
        }  # fmt: skip
        notes = (
            f"{STEPS} steps of {BATCH} noisy Fashion-MNIST images; ViT of 6 blocks as the teacher, 2 as the student."
        )
        write("stored", "Stored teacher outputs against a live teacher", [row], notes)
