"""A run: data, teacher, student, training, scores and output."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from opdf.data import LOWER_IS_BETTER, Prepared
from opdf.distill import DistillationTrainer, find_report, members
from opdf.job.arguments import renewed
from opdf.job.card import write_card
from opdf.job.checks import check_fit, check_task
from opdf.job.config import DistillConfig
from opdf.job.cost import parameters_of
from opdf.job.errors import UserError
from opdf.job.job import Job, located
from opdf.job.options import write_yaml
from opdf.job.output import CONFIG, METRICS, STUDENT, check_free, claimed, read_metrics, save, write_json
from opdf.job.overview import Overview, overview
from opdf.job.prepared import prepare_data
from opdf.job.processes import is_main, on_main, tell
from opdf.job.progress import counting, quiet, show
from opdf.job.publish import check_publish, publish
from opdf.job.resume import (
    Begun,
    check_same_configuration,
    check_same_files,
    check_same_rows,
    is_finished,
    named_models,
    versions,
)
from opdf.job.scoring import evaluator, judged, scores
from opdf.job.student import build_student, plan_start, started_student
from opdf.job.teacher import load_teacher, train_teacher
from opdf.job.training import train
from opdf.overparam import OverParameterization


def run(config: DistillConfig, *, command: str | None = None) -> dict[str, Any]:
    """Distill as a configuration says, as `opdf distill` does.

        metrics = run(DistillConfig(student=StudentConfig(layers=2), output="runs/mine"))

    Progress is shown on stderr if that is a terminal. The output folder gets the student, metrics.json, config.yaml
    and train.log.

    Args:
        config: what is asked for.
        command: for the model card, which names it as what made the student; None names none.

    Returns:
        What metrics.json holds: scores of teacher and student, numbers of parameters, seconds, steps, versions.

    Raises:
        UserError, ValueError, TypeError, FileNotFoundError, FileExistsError, PermissionError: the user has to put
            something right first; nothing has been written.
        TrainingDiverged: the loss or its gradient is no longer a finite number.
        StorageError: the disk is full.
        Stopped: SIGINT or SIGTERM came; a checkpoint is saved, and the same configuration with `resume` goes on.
    """
    with quiet():
        job = Job(config)
        check_place(job)
        if config.resume and is_finished(job):
            metrics = read_metrics(job.folder)
            tell(f"{job.folder} is finished; nothing was changed")
            _publish(job)
            return metrics
        ready = get_ready(job)
        _say(job, str(ready.overview))
        with claimed(job.folder, overwrite=config.overwrite, resume=config.resume):
            metrics = _run(job, ready.prepared, ready.teacher, command)
        _publish(job)
        return metrics


def _say(job: Job, text: str) -> None:
    """Print from one process, beside the JSON where that is asked for."""
    if is_main():
        print(text, file=sys.stderr if job.config.json else None, flush=True)


def _publish(job: Job) -> None:
    """Put a finished student on the hub, if that is asked."""
    if (name := job.config.push_to_hub) is not None:
        on_main(lambda: tell(f"the student is published as {publish(job.folder / STUDENT, name)}"))


@dataclass(frozen=True)
class Ready:
    """Data and models of a job that was found to fit; nothing has been written.

    Attributes:
        prepared: the data.
        teacher: as it was loaded or built.
        overview: what the run is about to do.
    """

    prepared: Prepared
    teacher: Any
    overview: Overview


def check_place(job: Job) -> None:
    """Refuse an output folder that is not free, or that holds another run than the one that is to go on.

    Raises:
        UserError, FileNotFoundError, FileExistsError, PermissionError: as `run`.
    """
    check_free(job.folder, overwrite=job.config.overwrite, resume=job.config.resume)
    if job.config.overwrite and not job.config.resume:
        check_apart(job)
    if (name := job.config.push_to_hub) is not None:
        on_main(lambda: check_publish(name))
    if job.config.resume:
        check_same_configuration(job)


def check_apart(job: Job) -> None:
    """Refuse to empty a folder that something is read from, the teacher of an earlier run in it, say.

    Raises:
        UserError: data, a model or a store lies in it.
    """
    config = located(job.config)
    named = {f"data.{part}": getattr(config.data, part) for part in ("name", "validation", "test")}
    named |= named_models(config) | {"objective.options.store": config.objective.options.get("store")}
    for option, name in named.items():
        place = Path(name) if isinstance(name, str) and name else None
        if place is not None and place.exists() and place.resolve().is_relative_to(job.folder.resolve()):
            raise UserError(
                f"{option} {place} is in {job.folder}, which overwrite empties; move it, or name another folder"
            )


def get_ready(job: Job) -> Ready:
    """Load data and teacher, and refuse what cannot be done.

    Raises:
        UserError, ValueError, FileNotFoundError: as `run`.
    """
    config = job.config
    if config.resume:
        check_same_files(job)
    prepared = prepare_data(config.data, config.teacher)
    check_task(job, prepared.task)
    if config.resume:
        check_same_rows(job, prepared.raw)
    teacher = load_teacher(job, prepared.task)
    prepared = prepared.named_by(teacher)
    fit = check_fit(job, prepared, teacher)
    return Ready(prepared, teacher, overview(job, prepared, fit))


def preview(config: DistillConfig) -> Overview:
    """What `run` would print first; nothing is written.

    Raises:
        UserError, ValueError, FileNotFoundError, FileExistsError, PermissionError: as `run`.
    """
    with quiet():
        job = Job(config)
        check_place(job)
        return get_ready(job).overview


def _run(job: Job, prepared: Prepared, teacher: Any, command: str | None) -> dict[str, Any]:
    """The part of a run that writes, into a folder of its own."""
    if is_main():
        (job.folder / METRICS).unlink(missing_ok=True)  # of a run that goes on with more steps
        write_yaml(located(job.config), job.folder / CONFIG)
        begun = Begun.of(job, prepared.raw)
        begun.write(job.folder)
    train_teacher(job, prepared, teacher)
    if is_main():
        begun = begun.with_teacher(job)
        begun.write(job.folder)
    prepared = judged(prepared, teacher)
    teacher_scores = scores(evaluator(teacher, prepared, job.training.per_device_eval_batch_size), prepared)
    said = partial(_say, job)
    metrics = train_student(job, prepared, teacher, "distilling", say=said, last=True) | {"teacher": teacher_scores}
    if is_main():
        write_card(job.config, metrics, prepared, command, job.folder / STUDENT)
        begun.with_student(job.folder).write(job.folder)
        write_json(metrics, job.folder / METRICS)
        _tell_what_training_cost(metrics)
    return metrics


def _tell_what_training_cost(metrics: dict[str, Any]) -> None:
    """Say so if a student ended below its start: rates that suit untrained students spoil one that began well."""
    name = metrics["metric"]
    before, after = (metrics[part]["validation"][name] for part in ("student before training", "student"))
    if after > before if name in LOWER_IS_BETTER else after < before:
        tell(
            f"note: training took the student's {name} on validation from {before:.4f} to {after:.4f}; lower "
            "training.learning_rate, or train longer"
        )


def train_student(
    job: Job,
    prepared: Prepared,
    teacher: Any,
    title: str,
    *,
    say: Callable[[str], None] = lambda text: None,
    last: bool = False,
) -> dict[str, Any]:
    """Distill one student, save it in the job's folder, and return its metrics.

    Args:
        job, prepared, teacher: of the run.
        title: stands before the bar.
        say: told how the student starts.
        last: whether no other student follows; the teacher's weights are let go then, or leave the device, if no step
            reads them.
    """
    student = new_student(job, prepared, teacher)
    if (report := find_report(student)) is not None:
        say(f"the student starts with these shares of the variance of its teacher's states:\n{report}")
    with torch.random.fork_rng():
        untrained = scores(evaluator(student, prepared, job.training.per_device_eval_batch_size), prepared)
    trainer = trainer_of(student, job, prepared, teacher, title)
    if last and job.objective.asks_ahead(job.before_training(prepared, teacher)):
        teacher.to("meta" if trainer.teacher is None else "cpu")  # a checkpoint records a digest of its weights
    architecture = type(trainer.model).__name__  # which FSDP2 changes
    seconds = train(trainer, "the student", resume=job.config.resume)
    weights = trainer.accelerator.get_state_dict(trainer.model) if trainer.is_fsdp_enabled else None  # by all together
    if is_main():
        save(trainer.model, prepared.processor, job.folder / STUDENT, weights)
        if trainer.method.trains_teacher:
            save(teacher, prepared.processor, job.folder / "trained-teacher")
    ratios = [entry["constraint_grad_ratio"] for entry in trainer.state.log_history if "constraint_grad_ratio" in entry]
    return {
        "class": architecture,
        "task": prepared.task.kind,
        "inputs": list(prepared.task.inputs),
        "metric": prepared.task.metric,
        "student before training": untrained,
        "student": scores(trainer, prepared),
        **parameters(trainer),
        "shapes": shapes(trainer.overparameterization) if trainer.overparameterization else [],
        "constraint_grad_ratio": max(ratios, default=None),
        "train_seconds": round(seconds, 1),
        "steps": trainer.state.global_step,
        "seed": job.config.seed,
        "versions": versions(),
    }


def student_trainer(job: Job, prepared: Prepared, teacher: Any, title: str) -> DistillationTrainer:
    """A new student with all that trains it; its log goes to the job's folder."""
    return trainer_of(new_student(job, prepared, teacher), job, prepared, teacher, title)


def new_student(job: Job, prepared: Prepared, teacher: Any) -> Any:
    """A student before any training."""
    set_seed(job.config.seed)
    options, teacher = job.config.student, members(teacher)[0]
    start = plan_start(options, teacher, prepared)
    if start.sizes is None:
        return build_student(options, teacher, prepared.task)
    return started_student(options, start, teacher, prepared)


def trainer_of(student: Any, job: Job, prepared: Prepared, teacher: Any, title: str) -> DistillationTrainer:
    """All that trains a student; its log goes to the job's folder."""
    trainer = DistillationTrainer(
        student,
        renewed(job.training, prepared.task),
        teacher=teacher if job.objective.needs_teacher or job.config.constraint is not None else None,
        objective=job.objective,
        overparam=job.config.overparam,
        constraint=job.config.constraint,
        train_dataset=training_rows(job, prepared, teacher),
        eval_dataset=prepared.data["validation"],
        **prepared.for_trainer(),
    )
    report = find_report(student)
    kept = {"kept": {f"{b.tower}.{b.block}": b.kept for b in report.blocks}} if report else None
    show(trainer, title, job.folder / "train.log", kept)
    return trainer


def training_rows(job: Job, prepared: Prepared, teacher: Any) -> Any:
    """The training rows with the teacher's outputs that the objective needs, which jobs of one teacher share."""
    if job.config.constraint is not None and job.objective.decisions_only:
        tell("note: the constraint loss reads the teacher's weights, which a black box would not show")
    with counting("asking the teacher") as progress:
        return job.objective.prepare_data(job.before_training(prepared, teacher, progress))


def parameters(trainer: DistillationTrainer) -> dict[str, int]:
    """Parameters of the student, while it trains and at inference."""
    over = trainer.overparameterization
    inference = parameters_of(trainer.model)
    return {"train_params": over.train_params if over else inference, "inference_params": inference}


def shapes(over: OverParameterization) -> list[dict[str, Any]]:
    """How many matrices of which size were trained in which shape."""
    counts = Counter(matrix.shape for matrix in over.matrices)
    return [
        {"matrices": count, "rows": s.rows, "cols": s.cols, "shape": str(s), "scale": round(s.scale, 3)}
        for s, count in counts.items()
    ]
