"""A comparison that anyone can run, on embedded data: students of half their teacher's size, by width and by depth."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from opdf.data import Prepared
from opdf.files import replacing
from opdf.job.config import DataConfig, DistillConfig, StudentConfig, TeacherConfig
from opdf.job.cost import parameters_of
from opdf.job.errors import UserError
from opdf.job.job import Job
from opdf.job.latency import BATCH, latencies, split_inputs
from opdf.job.models import load_model
from opdf.job.options import plain, read_config, write_yaml
from opdf.job.output import METRICS, STUDENT, check_free, claimed, write_json
from opdf.job.prepared import prepare_data
from opdf.job.progress import quiet
from opdf.job.run import train_student
from opdf.job.scoring import answers, evaluator, scores
from opdf.job.teacher import ready_teacher
from opdf.overparam import Constraint, OverParamConfig

# The students are half as wide as their teachers; one has half of the blocks instead. The rest is the same for all.
TEXT = DistillConfig(
    data=DataConfig(name="movie-sentiment", train_limit=1600, max_length=48),
    teacher=TeacherConfig(
        model="minilm",
        finetune=True,
        training={"num_train_epochs": 1, "learning_rate": 2e-4, "train_sampling_strategy": "group_by_length"},
    ),
    student=StudentConfig(config={"hidden_size": 192, "intermediate_size": 768}),
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
MARKER, RESULTS = "demo.yaml", "results.json"

PLAIN, OPDF, BLOCKS = "half width, KD", "half width, OPDF", "half the blocks, KD"
BEFORE = "half width, not trained"


def variants(depth: int) -> dict[str, dict[str, Any]]:
    """What differs from `TASKS` for each student of a teacher with so many blocks."""
    return {
        PLAIN: {},
        OPDF: {"overparam": OverParamConfig(ones=3), "constraint": Constraint()},
        BLOCKS: {"student": StudentConfig(layers=depth // 2)},
    }


def demo(
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

    A demo that was stopped goes on if it is called with the same arguments.

    Args:
        task: text or images.
        output: the folder.
        data: another embedded dataset of the same kind.
        train_limit: training examples.
        seed: of initialisation and data order.
        overwrite: replace an earlier demo's folder, if that is finished or of another configuration.
        say: called with each paragraph of text.

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
        goes_on = is_unfinished(config, output)
        check_free(output, overwrite=overwrite, resume=goes_on, marker=MARKER)
        prepared = prepare_data(config.data, config.teacher)
        kind = "image-classification" if task == "images" else "classification"
        if prepared.task.kind != kind:
            raise UserError(f"data {data} is for {prepared.task.kind}; task {task} shows {kind}")
        with claimed(output, overwrite=overwrite, resume=goes_on, marker=MARKER):
            write_yaml(config, output / MARKER)
            rows = len(prepared.data["train"]), len(prepared.data["test"])
            begun = ". One that was stopped goes on" if goes_on else ""
            say(f"{data}: {rows[0]} training and {rows[1]} test examples. Students go to {output}/{begun}")
            results, verdict = _compared(replace(config, output=str(output), resume=goes_on), prepared, say)
            seconds = time.perf_counter() - start
            write_json({"results": results, "verdict": verdict, "seconds": seconds}, output / RESULTS)
            table = markdown(results, prepared.task.metric)
            with replacing(output / "results.md") as scratch:
                scratch.write_text(f"{table}\n\n{verdict}\n")
            say(f"\n{table}\n\n{verdict}\n")
            say(
                f"{'What was left' if goes_on else 'The whole demo'} took {seconds:.0f} s. Results: {output}/results.md"
            )


def is_unfinished(config: DistillConfig, folder: Path) -> bool:
    """Whether a folder holds a demo of this configuration that was stopped."""
    if not (folder / MARKER).is_file() or (folder / RESULTS).is_file():
        return False
    with suppress(ValueError):  # an empty file, say
        return bool(plain(read_config(str(folder / MARKER))) == plain(config))
    return False


def _compared(config: DistillConfig, prepared: Prepared, say: Callable[[str], None]) -> tuple[dict[str, Any], str]:
    """What metrics.json holds for every variant, with latencies, and whether OPDF gained."""
    teacher = ready_teacher(Job(config), prepared)
    results: dict[str, Any] = {"teacher": {"student": scores(evaluator(teacher, prepared), prepared)}}
    models = {"teacher": teacher}
    say(_said("teacher", results["teacher"], prepared.task.metric))
    for name, changes in variants(teacher.config.num_hidden_layers).items():
        folder = Path(config.output) / name.replace(", ", "-").replace(" ", "-").lower()
        results[name] = _student(replace(config, **changes), folder, prepared, teacher, name)
        models[name] = load_model(str(folder / STUDENT), prepared.task)[0].to(teacher.device)
        if name == PLAIN:
            results = {"teacher": results["teacher"], BEFORE: {"student": results[name]["student before training"]},
                       PLAIN: results[name]}  # fmt: skip
            models[BEFORE] = models[PLAIN]
            say(_said(BEFORE, results[BEFORE], prepared.task.metric))
        say(_said(name, results[name], prepared.task.metric))
    times = latencies([(model, split_inputs(prepared)) for model in models.values()], BATCH)
    for (name, model), (one, batch) in zip(models.items(), times, strict=True):
        results[name] |= {"inference_params": parameters_of(model), "seconds_for_1": one, f"seconds_for_{BATCH}": batch}
    labels = prepared.data["test"].with_format("numpy")[:]["labels"]
    right = [answers(models[name], prepared, "test") == labels for name in (OPDF, PLAIN)]
    return results, judge(*right)


def _student(config: DistillConfig, folder: Path, prepared: Prepared, teacher: Any, name: str) -> dict[str, Any]:
    """What metrics.json holds for a student; it is trained first if need be."""
    if not (folder / METRICS).is_file():
        folder.mkdir(exist_ok=True)
        resume = (folder / "checkpoints").is_dir()
        job = Job(replace(config, output=str(folder), resume=resume))
        write_json(train_student(job, prepared, teacher, name), folder / METRICS)
    return dict(json.loads((folder / METRICS).read_text()))


def _said(name: str, result: dict[str, Any], metric: str) -> str:
    """A student's row, shown when it is done."""
    validation, test = (100 * result["student"][part][metric] for part in ("validation", "test"))
    row = f"{name}: {metric} {validation:.1f} on validation, {test:.1f} on test"
    if "train_seconds" in result:
        row += f"; {result['inference_params']:,} parameters, {result['train_seconds']:.0f} s trained"
    return row


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


def markdown(results: dict[str, Any], metric: str) -> str:
    """The comparison as a Markdown table."""
    columns = ("", "validation", f"test {metric}", "parameters", "ms for 1", f"ms for {BATCH}", "s trained")
    rows = []
    for name, result in results.items():
        shown = [f"{100 * result['student'][part][metric]:.1f}" for part in ("validation", "test")]
        times = [f"{1000 * result[f'seconds_for_{count}']:.1f}" for count in (1, BATCH)]
        taken = f"{result['train_seconds']:.0f}" if "train_seconds" in result else ""
        rows.append((name, *shown, f"{result['inference_params']:,}", *times, taken))
    align = ("left", *["right"] * (len(columns) - 1))
    return tabulate(rows, columns, tablefmt="github", disable_numparse=True, colalign=align)
