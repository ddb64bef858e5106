"""Students of half the width and neurons, from `shrink` or pruned by Torch-Pruning, before and after a short training.

All are trained alike, by plain distillation from the teachers of the benchmark shrink, with three seeds. Each start has
the rate that is best on validation; the test split chooses nothing. It takes half an hour on one core.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Collection, Iterator
from statistics import fmean
from typing import Any

from transformers import Trainer, TrainingArguments

from benchmarks import shrink
from benchmarks.measure import write
from opdf.distill import DistillationArguments, DistillationTrainer

STEPS, BATCH = 100, 32
SEEDS = (0, 1, 2)
STARTS = ("shrink", *shrink.LIBRARY)
SIZES = {
    "images": {"hidden_size": 48, "intermediate_size": 192},
    "text": {"hidden_size": 192, "intermediate_size": 768},
}
RATES = {"images": (1.5e-4, 5e-4, 1.5e-3, 4e-3), "text": (3e-5, 1e-4, 3e-4, 1e-3)}


def answered(task: shrink.Task, folder: str) -> Any:
    """The training rows with the teacher's logits, so that no step needs it."""
    arguments = TrainingArguments(folder, per_device_eval_batch_size=128, report_to="none")
    rows = task.rows["train"]
    logits = Trainer(task.teacher, arguments, data_collator=task.collate).predict(rows).predictions
    return rows.add_column("teacher_logits", list(logits))


def measure(task: str, ways: Collection[str] = STARTS, seeds: Collection[int] = SEEDS) -> Iterator[dict[str, Any]]:
    """One row a start: accuracies in percent."""
    given = shrink.TASKS[task]()
    calibration, splits = given.calibration(shrink.EXAMPLES), {s: given.held_out(s) for s in ("validation", "test")}
    whole = shrink.accuracy(given.teacher.eval(), splits["test"])
    with tempfile.TemporaryDirectory() as folder:
        rows = answered(given, folder)
        for way in ways:
            start = shrink.WAYS[way](given.teacher, calibration, SIZES[task])
            found: dict[float, list[dict[str, float]]] = {}
            for rate in RATES[task]:
                for seed in seeds:
                    student = trained(copy.deepcopy(start), given, rows, rate, seed, folder)
                    scores = {split: shrink.accuracy(student, batches) for split, batches in splits.items()}
                    found.setdefault(rate, []).append(scores)
            rate = max(found, key=lambda rate: fmean(scores["validation"] for scores in found[rate]))
            tests = [scores["test"] for scores in found[rate]]
            yield {
                "task": task, "start": way, "teacher": whole, "before": shrink.accuracy(start, splits["test"]),
                "after": fmean(tests), "lowest": min(tests), "highest": max(tests), "rate": rate,
            }  # fmt: skip


def trained(student: Any, task: shrink.Task, rows: Any, rate: float, seed: int, folder: str) -> Any:
    arguments = DistillationArguments(
        folder, max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=rate, warmup_steps=0.1, seed=seed,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    DistillationTrainer(
        student, arguments, teacher=task.teacher, train_dataset=rows, data_collator=task.collate
    ).train()
    return student.eval()


def main() -> None:
    rows: list[dict[str, Any]] = []
    for task in SIZES:
        for row in measure(task):
            rows.append(row)
            write(
                "pruned",
                "Students of half the width and neurons before and after a short training",
                rows,
                f"Test accuracy in percent. Before: untrained, made with {shrink.EXAMPLES} unlabelled examples. After: "
                f"the mean, the lowest and the highest of {len(SEEDS)} seeds after {STEPS} steps of {BATCH} rows, at "
                "the best of four rates on validation.",
            )


if __name__ == "__main__":
    main()
