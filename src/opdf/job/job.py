"""What a configuration names, built once; later steps take these objects."""

from __future__ import annotations

import inspect
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from opdf import data as datasets
from opdf.data import Prepared
from opdf.distill import METHODS, BeforeTraining, DistillationArguments, Objective, check_weights
from opdf.job.arguments import TRAINING, check_packages, training_arguments
from opdf.job.config import DataConfig, DistillConfig, TeacherConfig
from opdf.job.errors import UserError
from opdf.job.options import fill, plain, typed
from opdf.job.student import check_student
from opdf.mpo import Progress


class Job:
    """What a distillation is made of, before anything is loaded.

    Attributes:
        config: what was asked for, with the defaults of the Trainer's and the objective's options written out.
        folder: the output folder.
        teachers: the folder that keeps a fine-tuned teacher, with its log and checkpoints.
        objective: what the student learns; the one that is trained with.
        training: the Trainer's arguments for the student.
        teacher_training: those for fine-tuning the teacher.

    Args:
        config: what is asked for.
        teachers: the folder for jobs that share a teacher; by default the output folder.

    Raises:
        UserError: an option is unknown or has a wrong value.
        TypeError: it is no `DistillConfig`.
    """

    def __init__(self, config: DistillConfig, *, teachers: Path | None = None) -> None:
        if not isinstance(config, DistillConfig):
            raise TypeError(f"config is a {type(config).__name__}; give a DistillConfig, such as read_config returns")
        if not config.output:
            raise UserError("output is empty; name a folder")
        self.config = config = resolved(config)
        self.folder = Path(config.output)
        self.teachers = teachers or self.folder
        self.objective = build_objective(config)
        self.training = training_arguments(config.training, self.folder / "checkpoints", config.seed)
        self.teacher_training = training_arguments(
            config.teacher.training, self.teachers / "teacher-checkpoints", config.seed, "teacher.training"
        )
        check_packages(self.training, "training")
        check_packages(self.teacher_training, "teacher.training")
        check_student(config.student)
        check_teachers(config.teacher)

    @property
    def shares_teacher(self) -> bool:
        """Whether other jobs have the same teacher and data."""
        return self.teachers != self.folder

    def before_training(self, data: Prepared, teacher: Any, progress: Progress | None = None) -> BeforeTraining:
        """What the objective is told before the student's training."""
        return BeforeTraining(data, teacher, self.teachers, self.training, self.shares_teacher, progress)


def resolved(config: DistillConfig) -> DistillConfig:
    """The configuration with its types checked, and the Trainer's and the objective's defaults written out.

    Raises:
        UserError: an option is unknown or has the wrong type.
    """
    config = fill(DistillConfig, plain(config), "the configuration")
    name = config.objective.name
    if name not in METHODS:
        raise UserError(f"objective.name is {name!r}; expected one of {', '.join(METHODS)}")
    arguments = inspect.signature(METHODS[name]).parameters.items()
    defaults = {key: a.default for key, a in arguments if a.default is not a.empty}
    options = defaults | typed(METHODS[name], config.objective.options, f"objective {name}")

    def training(given: dict[str, Any], where: str) -> dict[str, Any]:
        return TRAINING | typed(DistillationArguments, given, where)

    teacher = config.teacher
    if teacher.models:  # tokenizer and student are made from the first
        teacher = replace(teacher, model=teacher.models[0]) if teacher.model in (None, "minilm") else teacher
    return replace(
        config,
        objective=replace(config.objective, options=options),
        teacher=replace(teacher, training=training(config.teacher.training, "teacher.training")),
        training=training(config.training, "training"),
    )


def check_teachers(options: TeacherConfig) -> None:
    """Refuse several teachers that are not said once, or are still to be trained.

    Raises:
        UserError, ValueError: one of these.
    """
    if options.models is None:
        if options.weights is not None:
            raise UserError("teacher.weights is for teacher.models; give these, or leave it out")
        return
    check_weights(options.weights or [1.0] * len(options.models), len(options.models), "teacher.")
    if options.config is not None or options.model not in (None, "minilm", options.models[0]):
        raise UserError("teacher has models and model or config; give one of them")
    if options.finetune:
        raise UserError(
            "teacher.finetune is true and teacher.models are taken as they are; fine-tune each in a run of its own and "
            "name its folder RUN/teacher"
        )


def located(config: DistillConfig) -> DistillConfig:
    """The configuration with absolute paths in place of relative ones."""
    objective = config.objective
    if store := objective.options.get("store"):
        objective = replace(objective, options=objective.options | {"store": os.path.abspath(store)})
    return replace(
        config,
        data=located_data(config.data),
        teacher=replace(
            config.teacher,
            model=_located_model(config.teacher.model),
            models=config.teacher.models and [str(_located_model(name)) for name in config.teacher.models],
        ),
        student=replace(config.student, model=_located_model(config.student.model)),
        objective=objective,
    )


def located_data(data: DataConfig) -> DataConfig:
    """The same of data."""
    validation, test = (datasets.located(v) if isinstance(v, str) else v for v in (data.validation, data.test))
    return replace(data, name=datasets.located(data.name), validation=validation, test=test)


def _located_model(name: str | None) -> str | None:
    return os.path.abspath(name) if name and name != "minilm" and Path(name).exists() else name


def build_objective(config: DistillConfig) -> Objective:
    options = config.objective
    built: Objective = fill(METHODS[options.name], options.options, f"objective {options.name}")
    return built
