"""A comparison that anyone can run: one student distilled four ways from one teacher, on embedded data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from opdf.data import Prepared
from opdf.files import replacing
from opdf.job.config import DataConfig, DistillConfig, StudentConfig, TeacherConfig
from opdf.job.errors import UserError
from opdf.job.job import Job
from opdf.job.models import load_model
from opdf.job.options import write_yaml
from opdf.job.output import check_free, claimed, write_json
from opdf.job.prepared import prepare_data
from opdf.job.progress import quiet
from opdf.job.run import train_student
from opdf.job.scoring import answers, evaluator, scores
from opdf.job.teacher import ready_teacher
from opdf.overparam import Constraint, OverParamConfig

# The same for every variant. The first is chosen for its length; the second is a setting of studies/narrow.yaml, where
# OPDF is ahead after as many steps, with the rate that was chosen on validation for plain distillation.
TEXT = DistillConfig(
    data=DataConfig(name="movie-sentiment", train_limit=1600, max_length=48),
    teacher=TeacherConfig(
        model="minilm",
        finetune=True,
        training={"num_train_epochs": 1, "learning_rate": 2e-4, "train_sampling_strategy": "group_by_length"},
    ),
    student=StudentConfig(layers=3),
    training={"num_train_epochs": 1, "learning_rate": 1e-4, "train_sampling_strategy": "group_by_length"},
)
IMAGES = DistillConfig(
    data=DataConfig(name="fashion-mnist", train_limit=2000),
    teacher=TeacherConfig(
        model=None,
        config={
            "model_type": "vit", "image_size": 28, "patch_size": 7, "hidden_size": 96, "num_hidden_layers": 4,
            "num_attention_heads": 4, "intermediate_size": 384,
        },
        finetune=True,
        training={"num_train_epochs": 10, "learning_rate": 1e-3},
    ),
    student=StudentConfig(config={"hidden_size": 48, "num_hidden_layers": 4, "intermediate_size": 192}),
    training={"num_train_epochs": 5, "learning_rate": 1e-3},
)  # fmt: skip
TASKS = {"text": TEXT, "images": IMAGES}
MARKER = "demo.yaml"

VARIANTS: dict[str, dict[str, Any]] = {
    "KD": {},
    "KD + SVD": {"overparam": OverParamConfig(ones=0)},
    "KD + MPO": {"overparam": OverParamConfig(ones=3)},
    "KD + OPDF": {"overparam": OverParamConfig(ones=3), "constraint": Constraint()},
}


def compare(
    task: str,
    output: Path,
    *,
    data: str | None = None,
    train_limit: int | None = None,
    seed: int = 0,
    overwrite: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Train the teacher and every variant of the student; leave them, results.json and results.md in a folder.

    Args:
        task: text or images.
        output: the folder.
        data: another embedded dataset of the same kind.
        train_limit: training examples.
        seed: of initialisation and data order.
        overwrite: replace an earlier demo's folder.
        say: told what there is to read, a paragraph at a time.

    Raises:
        UserError: there is no such task, or the data are for another.
        FileExistsError: the folder holds something that is not a demo, or a demo that is not to be replaced.
    """
    if task not in TASKS:
        raise UserError(f"task is {task!r}; expected one of {', '.join(TASKS)}")
    start, config = time.perf_counter(), TASKS[task]
    data, train_limit = data or config.data.name, train_limit or config.data.train_limit
    config = replace(config, data=replace(config.data, name=data, train_limit=train_limit, seed=seed), seed=seed)
    with quiet():
        check_free(output, overwrite=overwrite, resume=False, marker=MARKER)
        prepared = prepare_data(config.data, config.teacher)
        kind = "image-classification" if task == "images" else "classification"
        if prepared.task.kind != kind:
            raise UserError(f"data {data} is for {prepared.task.kind}; task {task} shows {kind}")
        with claimed(output, overwrite=overwrite, resume=False, marker=MARKER):
            write_yaml(config, output / MARKER)
            rows = len(prepared.data["train"]), len(prepared.data["test"])
            say(f"{data}: {rows[0]} training and {rows[1]} test examples. Students go to {output}/")
            results, verdict = _compared(config, prepared, output)
            seconds = time.perf_counter() - start
            write_json({"results": results, "verdict": verdict, "seconds": seconds}, output / "results.json")
            table = markdown(results, prepared.task.metric)
            with replacing(output / "results.md") as scratch:
                scratch.write_text(f"{table}\n\n{verdict}\n")
            say(f"\n{table}\n\n{verdict}\n")
            say(f"The whole demo took {seconds:.0f} s. Results: {output}/results.md")


def _compared(config: DistillConfig, prepared: Prepared, output: Path) -> tuple[dict[str, Any], str]:
    """What metrics.json holds for every variant, and whether OPDF gained."""
    teacher = ready_teacher(Job(replace(config, output=str(output))), prepared)
    teacher_scores = scores(evaluator(teacher, prepared), prepared)
    results: dict[str, Any] = {"teacher": {"student": teacher_scores, "inference_params": _count(teacher)}}
    folders = {name: output / name.lower().replace(" + ", "-") for name in VARIANTS}
    for name, changes in VARIANTS.items():
        folders[name].mkdir()
        variant = Job(replace(config, output=str(folders[name]), **changes))
        results[name] = train_student(variant, prepared, teacher, name)
    about = _about_constraint(results["KD + OPDF"]) if config.student.layers else ""
    labels = prepared.data["test"].with_format("numpy")[:]["labels"]
    compared = (load_model(str(folders[name] / "student"), prepared.task)[0] for name in ("KD + OPDF", "KD"))
    return results, judge(*(answers(student, prepared, "test") == labels for student in compared)) + about


def judge(ours: Any, plain: Any) -> str:
    """Whether OPDF gained on plain KD, as far as one seed can tell, from which test examples each got right."""
    differences = 100.0 * (ours.astype(float) - plain)
    gain, error = differences.mean(), differences.std() / math.sqrt(len(differences))
    facts = f"{gain:+.2f} points of accuracy on {len(differences)} test examples, standard error {error:.2f}"
    if abs(gain) < 2 * error:
        return f"Did OPDF gain on plain KD here? No difference found: {facts}, one seed."
    ahead = "OPDF" if gain > 0 else "KD"
    return (
        f"Did OPDF gain on plain KD here? With this seed {ahead}'s student is ahead: {facts}. Other seeds can differ "
        "by more than that: opdf sweep compares over several."
    )


def _about_constraint(result: dict[str, Any]) -> str:
    """Why the constraint loss did nothing, where it did nothing."""
    ratio = result.get("constraint_grad_ratio")
    if ratio is None or ratio > 0.01:
        return ""
    return (
        f" The constraint loss had {ratio:.0e} of the distillation loss's gradient: this student starts as the "
        "teacher's own blocks, which is what the constraint asks for."
    )


def markdown(results: dict[str, Any], metric: str) -> str:
    """The comparison as a table that reads well as it stands."""
    columns = ("", f"validation {metric}", f"test {metric}", "parameters training", "at inference", "seconds")
    rows = []
    for name, result in results.items():
        scores = [f"{100 * result['student'][part][metric]:.2f}" for part in ("validation", "test")]
        training = f"{result['train_params']:,}" if "train_params" in result else ""
        taken = f"{result['train_seconds']:.0f}" if "train_seconds" in result else ""
        rows.append((name, *scores, training, f"{result['inference_params']:,}", taken))
    align = ("left", *["right"] * (len(columns) - 1))
    return tabulate(rows, columns, tablefmt="github", disable_numparse=True, colalign=align)


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())
