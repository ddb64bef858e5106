"""Where should a small language model start? `python studies/language.py [FOLDER] [--tasks ...] [--seeds ...]`

Teachers are LLaMAs that learn one of two sets of texts from nothing: 24,000 glosses of WordNet, or Reuters' news.
Their students have half the width, a quarter of it, or half the blocks. They start from their teacher (`shrink`),
untrained, or as its blocks, and train for a tenth of its steps by plain distillation. Rates are chosen on validation;
the test split chooses nothing.

FOLDER (runs/studies/language) keeps texts, teachers and results. What is there already is not made again, so that
tasks and seeds can run side by side. Texts come from `python studies/data.py`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from tabulate import tabulate
from transformers import AutoTokenizer

from opdf.data import minilm
from opdf.files import replacing, replacing_folder
from opdf.job.config import DistillConfig
from opdf.job.job import Job
from opdf.job.options import fill, merged
from opdf.job.prepared import prepare_data
from opdf.job.run import train_student
from opdf.job.scoring import evaluator, scores
from opdf.job.teacher import ready_teacher

TASKS = {"glosses": "supersenses.csv", "news": "r8-train.csv"}
ROWS, SEEDS = 24_000, (0, 1, 2)
RATES = {
    "untrained": (1.5e-3, 4.5e-3, 1.35e-2),
    "shrink": (5e-4, 1.5e-3, 4.5e-3),
    "copied blocks": (5e-4, 1.5e-3, 4.5e-3),
}
"""What begins with nothing wants higher rates."""
TEACHER = {
    "model_type": "llama", "vocab_size": 4096, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 384, "max_position_embeddings": 64, "tie_word_embeddings": True, "pad_token_id": 0,
}  # fmt: skip
COMMON: dict[str, Any] = {
    "data": {"task": "causal-lm", "inputs": "text", "max_length": 64},
    "teacher": {"config": TEACHER, "finetune": True, "training": {"num_train_epochs": 3, "learning_rate": 3e-3}},
    "objective": {"options": {"temperature": 1.0, "alpha": 0.5}},
    "training": {"num_train_epochs": 0.3},
}
SIZES: dict[str, dict[str, int]] = {
    "half width": {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 192},
    "quarter width": {"hidden_size": 32, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 96},
    "half depth": {"num_hidden_layers": 2},
}
STUDENTS: dict[tuple[str, str], dict[str, Any]] = {
    (size, start): {"config": config, "start": name}
    for size, config in SIZES.items()
    for start, name in (("shrink", "teacher"), ("untrained", "random"))
} | {("half depth", "copied blocks"): {"layers": 2, "start": "copy"}}

Found = dict[tuple[str, str, float], dict[str, Any]]
"""What metrics.json would hold of every student of a teacher, by size, start and rate."""


def texts(folder: Path, task: str) -> tuple[Path, Path]:
    """A task's texts, and a tokenizer that is made like MiniLM's of them."""
    table, place = folder / f"{task}.csv", folder / f"{task} tokenizer"
    if not place.is_dir():
        rows = pd.read_csv(Path(__file__).parent / "data" / TASKS[task])[["text"]]
        chosen = rows.sample(min(ROWS, len(rows)), random_state=0)
        with replacing(table) as scratch:
            chosen.to_csv(scratch, index=False)
        theirs = AutoTokenizer.from_pretrained(minilm())
        with replacing_folder(place) as scratch:
            theirs.train_new_from_iterator(chosen["text"], TEACHER["vocab_size"]).save_pretrained(scratch)
    return table, place


def runs(folder: Path, task: str, seed: int) -> Found:
    """All students of a teacher, and its own scores."""
    (table, tokenizer), place, found = texts(folder, task), folder / f"{task}, seed {seed}", Found()
    ready: Any = None
    for (size, start), student in STUDENTS.items():
        for rate in RATES[start]:
            file = place / f"{size}, {start}, {rate}.json"
            if not file.is_file():
                given = {
                    "data": {"name": str(table), "seed": seed}, "teacher": {"model": str(tokenizer)}, "seed": seed,
                    "student": student, "training": {"learning_rate": rate}, "output": str(place / "run"),
                }  # fmt: skip
                place.mkdir(parents=True, exist_ok=True)
                job = Job(fill(DistillConfig, merged(COMMON, given), "language.py"), teachers=place)
                if ready is None:
                    prepared = prepare_data(job.config.data, job.config.teacher)
                    teacher = ready_teacher(job, prepared)
                    ready = prepared, teacher, scores(evaluator(teacher, prepared), prepared)
                prepared, teacher, its_scores = ready
                metrics = train_student(job, prepared, teacher, file.stem) | {"teacher": its_scores}
                with replacing(file) as scratch:
                    scratch.write_text(json.dumps(metrics))
            found[size, start, rate] = json.loads(file.read_text())
    return found


def row(task: str, size: str, found: list[Found]) -> dict[str, str]:
    """Perplexities on the test split, means over seeds: each way to start at the rate that is best on validation."""

    def mean(who: str, part: str, key: tuple[str, str, float]) -> float:
        return fmean(of_seed[key][who][part]["perplexity"] for of_seed in found)

    told = {"": f"{task}, {size}"}
    for start in (start for of_size, start in STUDENTS if of_size == size):
        keys = [(size, start, rate) for rate in RATES[start]]
        best = min(keys, key=lambda key: mean("student", "validation", key))
        told["teacher"] = f"{mean('teacher', 'test', best):.1f}"
        if start == "shrink":  # the others begin at chance, or beyond it
            told["shrink, before"] = f"{mean('student before training', 'test', best):.1f}"
        after = [of_seed[best]["student"]["test"]["perplexity"] for of_seed in found]
        told[start] = f"{fmean(after):.1f}, {min(after):.1f} to {max(after):.1f} ({best[-1]:g})"
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="runs/studies/language", type=Path)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    found = {task: [runs(asked.folder, task, seed) for seed in asked.seeds] for task in asked.tasks}
    print("perplexity on the test split; after training its mean, the range of the seeds and the rate")
    print(
        tabulate(
            [row(t, size, f) for t, f in found.items() for size in SIZES],
            "keys",
            "github",
            missingval="",
            disable_numparse=True,
        )
    )


if __name__ == "__main__":
    main()
