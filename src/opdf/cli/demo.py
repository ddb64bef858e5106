"""`opdf demo`: a teacher fine-tuned on embedded data, and the same student distilled plain, with SVD and with OPDF."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from opdf.cli.options import at_least_one, parse
from opdf.files import replacing
from opdf.job.config import DataConfig, DistillConfig, StudentConfig, TeacherConfig
from opdf.job.errors import UserError
from opdf.job.options import write_yaml
from opdf.overparam import Constraint, OverParamConfig

DESCRIPTION = """Fine-tune a teacher on embedded data, then distill the same student four ways: plain (KD), with two
cores per matrix (SVD), with five (MPO), and with five and the constraint loss (OPDF). Same data, seed,
steps and learning rate. Prints a comparison and leaves the students on disk. Minutes on two CPU cores."""

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


@dataclass
class DemoConfig:
    """Options.

    Args:
        task: text (MiniLM on movie sentiment; the student starts as three of its teacher's blocks) or images (a ViT on
            Fashion-MNIST; the student is half as wide as its teacher and starts untrained).
        output: folder for the teacher, the students and the results, to which -text or -images is added.
        overwrite: replace an earlier demo's folder.
        data: another embedded dataset of the same kind.
        train_limit: training examples.
        seed: of initialisation and data order.
    """

    task: str = "text"
    output: str = "runs/demo"
    overwrite: bool = True
    data: str | None = None
    train_limit: int | None = None
    seed: int = 0


def main(argv: list[str]) -> None:
    options = parse(argv, DemoConfig, "opdf demo", DESCRIPTION)
    if options.task not in TASKS:
        raise UserError(f"task is {options.task!r}; expected one of {', '.join(TASKS)}")
    at_least_one(options, "train_limit")
    from opdf.job.progress import quiet

    with quiet():
        compare(options)


def compare(options: DemoConfig) -> None:
    """Train the teacher and every variant of the student, and print the comparison."""
    from opdf.job.job import Job
    from opdf.job.models import load_model
    from opdf.job.output import claim, free, write_json
    from opdf.job.prepared import prepare_data
    from opdf.job.run import train_student
    from opdf.job.scoring import answers, evaluator, scores
    from opdf.job.teacher import ready_teacher

    start = time.perf_counter()
    config = _configured(options)
    output = Path(f"{options.output}-{options.task}")
    free(output, overwrite=options.overwrite, resume=False, marker=MARKER)
    prepared = prepare_data(config.data, config.teacher)
    kind = "image-classification" if options.task == "images" else "classification"
    if prepared.task.kind != kind:
        raise UserError(f"data {config.data.name} is for {prepared.task.kind}; task {options.task} shows {kind}")
    claim(output, overwrite=options.overwrite, resume=False, marker=MARKER)
    write_yaml(options, output / MARKER)
    rows = len(prepared.data["train"]), len(prepared.data["test"])
    print(f"{config.data.name}: {rows[0]} training and {rows[1]} test examples. Students go to {output}/", flush=True)
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
    verdict = judge(*(answers(student, prepared, "test") == labels for student in compared)) + about
    seconds = time.perf_counter() - start
    write_json({"results": results, "verdict": verdict, "seconds": seconds}, output / "results.json")
    table = markdown(results, prepared.task.metric)
    with replacing(output / "results.md") as scratch:
        scratch.write_text(f"{table}\n\n{verdict}\n")
    print(f"\n{table}\n\n{verdict}\n\nThe whole demo took {seconds:.0f} s. Results: {output}/results.md")


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


def _configured(options: DemoConfig) -> DistillConfig:
    config = TASKS[options.task]
    data = replace(
        config.data,
        name=options.data or config.data.name,
        train_limit=config.data.train_limit if options.train_limit is None else options.train_limit,
        seed=options.seed,
    )
    return replace(config, data=data, seed=options.seed)


def _count(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())
