"""Checks that data, models and options fit together, before any work starts."""

from __future__ import annotations

import copy
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from opdf.data import Prepared, Task, encode_rows, longest_text
from opdf.distill import (
    METHODS,
    DistillationArguments,
    DistillationTrainer,
    LogitsDistillation,
    like,
    members,
    plan_student,
)
from opdf.job.arguments import optimizer_name
from opdf.job.config import TeacherConfig
from opdf.job.errors import UserError
from opdf.job.job import Job
from opdf.job.models import check_tokens, places, reading_images
from opdf.job.options import suggest
from opdf.job.processors import load_processor, load_tokenizer
from opdf.job.student import Start, build_student, plan_start
from opdf.overparam import OverParameterization

COMPARED = 16
"""Training rows that teachers are compared on."""


def check_task(job: Job, task: Task) -> None:
    """Refuse an objective that is for other tasks, or a metric that this one does not have.

    Raises:
        UserError: one of these.
    """
    name, data = job.config.objective.name, job.config.data.name
    if task.kind not in job.objective.tasks:
        others = ", ".join(other for other, method in METHODS.items() if task.kind in method.tasks)
        raise UserError(
            f"objective.name is {name!r} and the task of {data} is {task.kind!r}; as it is set, the objective is for "
            f"{' or '.join(job.objective.tasks)}. For this task there are {others}"
        )
    if task.kind == "similarity" and job.config.teacher.finetune:
        raise UserError("teacher.finetune is true and similarity data has no labels for it; give a trained teacher")
    if task.is_unlabelled:
        if job.config.teacher.finetune:
            raise UserError(f"teacher.finetune is true and {data} has no labels for it; give a trained teacher")
        if job.objective.needs_labels:
            remedy = "" if name == "logits" else " where it has that option, or use logits"
            raise UserError(
                f"objective {name} learns from labels, and {data} has none; set objective.options.alpha to 1{remedy}"
            )
    if job.config.data.class_weights is not None:
        check_weights(job)
    if job.config.data.augment and job.objective.needs_whole_rows:
        own = "; it has noise of its own, objective.options.noise" if name == "sparse-logits" else ""
        raise UserError(
            f"data.augment is true and objective {name} asks for all training rows ahead{own}: leave it out"
        )
    check_metrics(job, task)


def check_weights(job: Job) -> None:
    """Refuse weights of classes that nothing would be learned by.

    Raises:
        UserError: the objective knows none, uses no labels, or has weights of its own.
    """
    options, objective = job.config.objective, job.objective
    if not isinstance(objective, LogitsDistillation):
        raise UserError(f"data.class_weights is for objective.name logits, and it is {options.name!r}; leave it out")
    if objective.class_weights is not None:
        raise UserError("data.class_weights and objective.options.class_weights say the same; give one of them")
    if objective.alpha == 1 and not job.config.teacher.finetune:
        raise UserError(
            "data.class_weights is about labels, which objective.options.alpha 1 does not use; leave it out, or "
            "lower alpha"
        )


def check_metrics(job: Job, task: Task) -> None:
    """Refuse to choose checkpoints, or lower the rate, by a metric that evaluation while training does not give.

    Raises:
        UserError: one of these.
    """
    known = [] if task.compute_metrics() is None else ["loss", *task.metric_names]
    for arguments, where in ((job.training, "training"), (job.teacher_training, "teacher.training")):
        given = arguments.metric_for_best_model  # other options can ask for the loss
        name = (given or "").removeprefix("eval_")
        if given is not None and name not in known:
            remedy = suggest(name, known) if known else f"; a {task.kind} has none, leave out what asks for it"
            raise UserError(f"{where}.metric_for_best_model is {given!r}, which evaluation does not give{remedy}")


@dataclass(frozen=True)
class Fit:
    """Models that fit together, without values.

    Attributes:
        teacher, student: on the meta device.
        start: how the student is made.
        over: the student's over-parameterization; None where it trains as it is.
    """

    teacher: Any
    student: Any
    start: Start
    over: OverParameterization | None


def check_models(job: Job, task: Task, teacher: Any, prepared: Prepared | None = None) -> Fit:
    """Plan the training with models that hold no values.

    Args:
        job: what is asked for.
        task: of the data.
        teacher: with its weights; trained or not.
        prepared: the data; None leaves open whether a student can be fitted on them.

    Raises:
        ValueError: student, teacher, objective, over-parameterization and constraint do not fit together.
    """
    first = members(teacher)[0]
    config, start = job.config, plan_start(job.config.student, first, prepared)
    with torch.device("meta"):
        stand_in = like(teacher)
        student = start.blank or _built(job, start, members(stand_in)[0], task)
    objective = copy.deepcopy(job.objective)  # it remembers sizes of the models that it is prepared for
    over = plan_student(student, stand_in, objective, config.overparam, config.constraint, job.training)
    check_optimizer(job.training, student, over, "training")
    if config.teacher.finetune:
        plan_student(stand_in, None, LogitsDistillation(alpha=0), None, None, job.teacher_training)
        check_optimizer(job.teacher_training, stand_in, None, "teacher.training")
    return Fit(stand_in, student, start, over)


def _built(job: Job, start: Start, teacher: Any, task: Task) -> Any:
    """A student that is not fitted; where none can be built, why it is not fitted tells more than transformers does."""
    try:
        return build_student(job.config.student, teacher, task).to("meta")
    except UserError as error:
        if not start.why_not:
            raise
        raise UserError(f"{error}; nor can the student start from its teacher: {start.why_not}") from error


def check_optimizer(
    arguments: DistillationArguments, model: Any, over: OverParameterization | None, where: str
) -> None:
    """Make the optimizer of a training, on parameters without values.

    Raises:
        UserError: it cannot be made for this model, or cannot step its cores.
    """
    name = optimizer_name(arguments)
    if name == "muon":
        return  # plan_student has checked it
    try:
        cls, options = DistillationTrainer.get_optimizer_cls_and_kwargs(arguments, model)
        if over is not None:
            over.optimizer(cls, [p for p in model.parameters() if p.requires_grad], **options)
        elif not options.keys() & {"params", "model", "optimizer_dict"}:  # else the Trainer makes groups of its own
            cls(list(model.parameters()), **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{where}.optim is {name!r}: {error}") from error


def check_fit(job: Job, prepared: Prepared, teacher: Any) -> Fit:
    """Refuse models that do not fit together, or not with the objective or the data.

    Raises:
        ValueError: one of these.
    """
    fit = check_models(job, prepared.task, teacher, prepared)
    job.objective.check_data(prepared, teacher)
    check_read_alike(job, prepared, teacher)
    check_inputs("the student", fit.student, prepared)
    if job.config.student.model and not prepared.task.is_image:
        check_same_tokens("student.model", job.config.student.model, prepared)
    return fit


def check_read_alike(job: Job, prepared: Prepared, teacher: Any) -> None:
    """Refuse teachers that are too small for the texts, or that are given what the first one reads and read otherwise.

    Raises:
        UserError: one of these.
    """
    for one in members(teacher):
        check_inputs("the teacher", one, prepared)
    first, *others = job.config.teacher.models or [""]
    for name in others:
        if not prepared.task.is_image:
            check_same_tokens("teacher.models", name, prepared)
        other = load_processor(TeacherConfig(model=name), prepared.task)
        rows = prepared.raw["train"][:COMPARED]
        ours, theirs = (
            encode_rows(rows, prepared.task, processor, max_length=prepared.max_length)
            for processor in (prepared.processor, other)
        )
        what = "pixel_values" if prepared.task.is_image else "input_ids"
        if not all(np.array_equal(a, b) for a, b in zip(ours[what], theirs[what], strict=True)):
            raise UserError(
                f"teacher.models {name} makes other {what} of the data than {first}, whose it would get; give teachers "
                "that read alike"
            )


def check_inputs(who: str, model: Any, prepared: Prepared) -> None:
    """Refuse a model that is too small for the encoded texts, or made for images of another size.

    Raises:
        UserError: it has fewer tokens than the tokenizer, or fewer positions than the longest text; or cannot read the
            images.
    """
    if prepared.task.is_image:
        shape = np.shape(prepared.data["train"][0]["pixel_values"])
        # Not by the size in its configuration, which many models do not insist on. Some look at values, and have none.
        with reading_images(who, shape), suppress(RuntimeError), torch.no_grad(), torch.device("meta"):
            like(model)(pixel_values=torch.empty(1, *shape))
        return
    check_tokens(who, model, prepared.processor)
    positions = places(model)
    longest = max(longest_text(rows) for rows in prepared.data.values())
    if positions is not None and longest > positions:
        raise UserError(f"{who} reads {positions} tokens and the longest text has {longest}; lower data.max_length")


def check_same_tokens(who: str, name: str, prepared: Prepared) -> None:
    """Refuse a pretrained model with another tokenizer: it would get the teacher's tokens and read other words."""
    if load_tokenizer(name).get_vocab() != prepared.processor.get_vocab():
        raise UserError(
            f"{who} {name} has another vocabulary than the teacher, whose tokens it would get; "
            "give one with the teacher's tokenizer"
        )
