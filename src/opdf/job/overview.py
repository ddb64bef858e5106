"""What a run is about to do, in lines that a user can check before it starts."""

from __future__ import annotations

import copy
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, TrainingArguments

from opdf.data import Prepared, describe
from opdf.distill import SLOWER, StoreInfo, examples_per_step, half_precision, planned_steps, slowdown
from opdf.job.arguments import TRAINING, optimizer_name
from opdf.job.card import teacher_of
from opdf.job.checks import Fit
from opdf.job.cost import StepCost, megabytes, parameters_of, step_cost
from opdf.job.job import Job
from opdf.job.latency import BATCH, planned_latencies, split_inputs
from opdf.job.progress import duration
from opdf.job.student import Start

INDENT = 14
"""Columns that the words before the sentences take."""


@dataclass(frozen=True)
class Overview:
    """The block that a run prints first; `str` gives it.

    Attributes:
        lines: pairs of a word and a sentence.
        cost: of an optimizer step; None if it cannot be counted.
    """

    lines: tuple[tuple[str, str], ...]
    cost: StepCost | None

    def __str__(self) -> str:
        width = max(60, min(120, shutil.get_terminal_size().columns)) - INDENT
        wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
        return "\n".join(
            f"{what:<{INDENT}}" + f"\n{'':<{INDENT}}".join(wrapper.wrap(text)) for what, text in self.lines
        )


def overview(job: Job, prepared: Prepared, fit: Fit) -> Overview:
    """Data, models, over-parameterization, steps and cost of a job that was found to fit."""
    cost, info = step_cost(job, prepared, fit), job.objective.store_info(prepared, fit.teacher)
    lines = (
        *_data(job, prepared),
        *_models(job, prepared, fit, info),
        *_training(job, prepared, cost),
        *_latency(job, prepared, fit),
    )
    return Overview((*lines, ("output", str(job.folder))), cost)


def _data(job: Job, prepared: Prepared) -> Iterator[tuple[str, str]]:
    yield from describe(prepared, job.config.data.name, where="data.").lines()
    if prepared.task.is_image:
        yield "images", _size_of_images(job, prepared)
    if prepared.noise is not None:
        yield "augment", "training images are cropped, flipped, coloured and erased anew in every epoch"
    if prepared.class_weights is not None:
        named = zip(prepared.task.labels, prepared.class_weights, strict=True)
        yield "weights", ", ".join(f"{name} {weight:.3g}" for name, weight in named)


def _size_of_images(job: Job, prepared: Prepared) -> str:
    """What the models see of an image, and how to change it where the teacher's configuration cannot."""
    height, width = np.shape(prepared.data["train"][0]["pixel_values"])[-2:]
    said, teacher = f"the models see {height} x {width} pixels", job.config.teacher
    if teacher.config is None or teacher.model not in (None, "minilm"):
        return said
    kind = teacher.config["model_type"]
    if any(hasattr(CONFIG_MAPPING[kind](), name) for name in ("image_size", "vision_config")):
        return said
    return (
        f"{said}; the configuration of a {kind} has no image_size: for another size save an image processor, and name "
        "its folder as teacher.model beside teacher.config"
    )


def stored_size(info: StoreInfo | None) -> str:
    """What a store of the teacher's outputs takes on the disk."""
    assert info is not None
    what = f"{info.tokens:,} tokens of {info.rows:,} texts" if info.tokens else f"{info.rows:,} examples"
    of = f"{info.top_k} of {info.classes:,} probabilities" if info.top_k else f"{info.classes:,} logits"
    epochs = f", {info.epochs} epochs" if info.epochs > 1 else ""
    return f"teacher's outputs for {what}{epochs}, {of} each: {info.nbytes / 1e6:,.1f} MB on the disk"


def _models(job: Job, prepared: Prepared, fit: Fit, info: StoreInfo | None) -> Iterator[tuple[str, str]]:
    config = job.config
    yield "teacher", f"{teacher_of(config)}; {size_of(fit.teacher)}"
    if config.teacher.training != TRAINING and not config.teacher.finetune:
        yield "warning", "the teacher is taken as it is; teacher.training is for teacher.finetune: true"
    yield "student", f"{student_of(job, fit.start)}; {size_of(fit.student)}"
    if parameters_of(fit.student) > parameters_of(fit.teacher):
        yield "note", "the student is larger than its teacher; if that is not meant, give them the other way round"
    if fit.start.why_not:
        made = "copied, not fitted" if config.student.layers is not None else "untrained"
        yield "warning", f"the student is {made}, since it cannot start from its teacher: {fit.start.why_not}"
    options = ", ".join(f"{key} {value}" for key, value in config.objective.options.items() if value not in (None, ""))
    ahead = job.objective.asks_ahead(job.before_training(prepared, fit.teacher))
    asked = "; the teacher is asked before the training, not in its steps" if ahead else ""
    yield "objective", f"{config.objective.name}{f': {options}' if options else ''}{asked}"
    if info is not None:
        yield "store", stored_size(info)
    if fit.over is None or config.overparam is None:
        yield "overparam", "off; the student trains as it is"
        return
    over, kind = fit.over, "SVD" if config.overparam.ones == 0 else "MPO"
    yield (
        "overparam",
        f"on, {kind}: {len(over.matrices)} matrices; {over.train_params:,} parameters while training, "
        f"{over.train_params / over.inference_params:.2f} times the student's",
    )
    constraint = config.constraint
    yield "constraint", f"on, weight {constraint.weight:g}, layers {constraint.layer_map}" if constraint else "off"


def _training(job: Job, prepared: Prepared, cost: StepCost | None) -> Iterator[tuple[str, str]]:
    arguments = job.training
    rows = len(copy.deepcopy(job.objective).training_data(prepared.data["train"]))  # some methods hold some out
    steps, examples = planned_steps(arguments, rows), min(rows, examples_per_step(arguments))
    yield (
        "training",
        f"{steps:,} step{'' if steps == 1 else 's'} of {examples:,} examples, {optimizer_name(arguments)}, learning "
        f"rate {arguments.learning_rate:g}, {precision_of(arguments)}",
    )
    if cost is not None:
        ratio = f", {cost.ratio:.2f} times plain distillation's" if cost.extra else ""
        memory = f" and {cost.megabytes:,.0f} MB more for cores and moments" if cost.extra else ""
        yield (
            "cost",
            f"{(cost.plain + cost.extra) / 1e9:,.1f} GFLOP a step{ratio}{memory}; at the {cost.rate / 1e9:,.3g} "
            f"GFLOP/s of this machine's matrix products at least {duration(cost.seconds(steps))}",
        )


def precision_of(arguments: TrainingArguments) -> str:
    """Precision and device of a training, and what would be faster."""
    precision = {None: "float32", torch.bfloat16: "bf16", torch.float16: "fp16"}[half_precision(arguments)]
    said = f"{precision}, on {arguments.device}"
    if precision == "float32" and arguments.device.type == "cuda" and torch.cuda.is_bf16_supported(False):
        return f"{said}, which computes faster with training.bf16: true"
    times = slowdown(arguments.device, half_precision(arguments))
    if times >= SLOWER:
        return f"{said}, whose matrix products take {times:.3g} times as long in it as in float32"
    return said


def _latency(job: Job, prepared: Prepared, fit: Fit) -> Iterator[tuple[str, str]]:
    models = fit.teacher, fit.student
    found = planned_latencies(models, split_inputs(prepared), job.training.device, BATCH)
    if found is not None:
        said = (f"{who} {1000 * one:.1f} ms for 1 example and {1000 * many:.1f} for {BATCH}"
                for who, (one, many) in zip(("teacher", "student"), found, strict=True))  # fmt: skip
        yield "latency", f"{', '.join(said)}, measured here"


def student_of(job: Job, start: Start) -> str:
    """How the student is made."""
    options = job.config.student
    if start.sizes is not None:
        sizes = ", ".join(f"{name} {value}" for name, value in start.sizes.items())
        return f"starts from the teacher, fitted on up to {options.calibration} training examples ({sizes})"
    if options.layers is not None and options.config is None:
        blocks = f"{options.layers} blocks" if isinstance(options.layers, int) else f"blocks {options.layers}"
        return f"{blocks} of {options.model or 'the teacher'}, copied"
    return options.model or "built from its configuration, untrained"


def size_of(model: Any) -> str:
    """A model's class, parameters and megabytes."""
    return f"{type(model).__name__} of {parameters_of(model):,} parameters, {megabytes(model):,.1f} MB"
