"""The teacher: loaded or built, and fine-tuned if that is asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import set_seed

from opdf.data import Prepared, Task
from opdf.distill import DistillationTrainer, Ensemble, LogitsDistillation
from opdf.job.arguments import renewed
from opdf.job.errors import UserError
from opdf.job.job import Job
from opdf.job.models import check_fields, from_config, load_model
from opdf.job.options import load_yaml, write_yaml
from opdf.job.output import save
from opdf.job.processes import is_main
from opdf.job.progress import show
from opdf.job.resume import check_stored_teacher, teacher_made_of
from opdf.job.training import train

MADE = "teacher.yaml"
"""What a fine-tuned teacher beside its stored outputs was made of."""


def load_teacher(job: Job, task: Task) -> Any:
    """The teacher as it is before any training of this job.

    Raises:
        UserError: it cannot be loaded, or has no head for the task and is not to be fine-tuned; or the one beside its
            stored outputs is another.
    """
    options = job.config.teacher
    if options.models is not None:
        return Ensemble([_trained(name, task) for name in options.models], options.weights)
    kept = kept_teacher(job)
    set_seed(job.config.seed)
    if kept is not None and kept.parent == job.objective.cache and (made := kept.parent / MADE).is_file():
        check_stored_teacher(job, load_yaml(made.read_text(encoding="utf-8")))
    if kept is not None:
        return load_model(str(kept), task)[0]
    if options.config is not None:
        check_fields("teacher.config", options.config.get("model_type"), options.config)
        teacher, missing = from_config(options.config, task), ["all weights"]
    elif options.model == "minilm" and task.is_image:
        raise UserError(
            "teacher.model is minilm, which reads texts, and the data are images; name a model of images, or give "
            "teacher.config"
        )
    elif options.model is not None:
        trained_here = options.finetune or job.objective.trains_teacher
        teacher, missing = load_model(options.model, task, new_head=trained_here)
    else:
        raise UserError("teacher has neither model nor config; give one")
    if missing and not options.finetune and not job.objective.trains_teacher:
        name = options.model if options.config is None else "config"
        raise UserError(
            f"teacher {name} is not trained for this task (missing: {missing[0]}); set teacher.finetune: true, or give "
            "a fine-tuned teacher"
        )
    return teacher


def _trained(name: str, task: Task) -> Any:
    model, missing = load_model(name, task)
    if missing:
        raise UserError(f"teacher {name} is not trained for this task (missing: {missing[0]}); give a fine-tuned one")
    return model


def ready_teacher(job: Job, prepared: Prepared) -> Any:
    """The teacher, fine-tuned if that is asked."""
    teacher = load_teacher(job, prepared.task)
    train_teacher(job, prepared, teacher)
    return teacher


def train_teacher(job: Job, prepared: Prepared, teacher: Any) -> None:
    """Fine-tune a loaded teacher, if that is asked and not done yet. It ends on the device of the run."""
    if job.config.teacher.finetune and kept_teacher(job) is None:
        checkpoints = Path(job.teacher_training.output_dir)
        begun = checkpoints.is_dir()
        trainer = DistillationTrainer(
            teacher, renewed(job.teacher_training, prepared.task), objective=labels_alone(prepared),
            train_dataset=prepared.training_rows(), eval_dataset=prepared.data["validation"], **prepared.for_trainer(),
        )  # fmt: skip
        show(trainer, "fine-tuning the teacher", job.teachers / "teacher.log")
        train(trainer, "the teacher", resume=begun)
        if is_main():
            if job.teachers == job.objective.cache:
                write_yaml(teacher_made_of(job), job.teachers / MADE)
            save(teacher, prepared.processor, job.teachers / "teacher")
            shutil.rmtree(checkpoints, ignore_errors=True)
    teacher.to(job.training.device)


def labels_alone(prepared: Prepared) -> LogitsDistillation:
    """What a teacher is fine-tuned by."""
    return LogitsDistillation(alpha=0, class_weights=prepared.class_weights)


def kept_teacher(job: Job) -> Path | None:
    """The folder of the teacher that an earlier part of this run fine-tuned, or the one beside its stored outputs."""
    folder, wanted = job.teachers / "teacher", job.config.resume or job.shares_teacher
    cache = job.objective.cache
    if cache is not None and (cache / "teacher").is_dir():
        folder, wanted = cache / "teacher", True
    return folder if wanted and (folder / "config.json").is_file() else None
