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
from opdf.distill import LogitsDistillation, SparseLogitsDistillation, keep_layers
from opdf.job.config import ObjectiveConfig
from opdf.job.job import Job
from opdf.job.prepared import prepare_data
from opdf.job.progress import quiet
from opdf.job.targets import training_rows, write_store
from opdf.job.teacher import ready_teacher

STEPS, BATCH = 20, 32


def main(repeats: int = 7) -> None:
    with tempfile.TemporaryDirectory() as scratch, quiet():
        options = {"store": f"{scratch}/store", "top_k": 5, "noise": True}
        config = replace(IMAGES, data=replace(IMAGES.data, train_limit=STEPS * BATCH), seed=0, output=scratch,
                         objective=ObjectiveConfig("sparse-logits", options))  # fmt: skip
        job, prepared = Job(config), prepare_data(config.data, config.teacher)
        teacher, objective = ready_teacher(job, prepared), job.objective
        assert isinstance(objective, SparseLogitsDistillation)
        store = write_store(objective, config, prepared, teacher)
        data = training_rows(objective, config, prepared, teacher, Path(scratch))
        set_seed(0)
        student = keep_layers(teacher, 2).train()
        teacher.eval()  # fine-tuning left it in training mode

        def epoch(method: Any, teacher_: Any) -> None:
            for batch in DataLoader(data, batch_size=BATCH, collate_fn=default_data_collator):
                batch = {key: value.to(student.device) for key, value in batch.items()}
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
