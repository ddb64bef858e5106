"""The student: smaller than its teacher and started from it, some of its blocks, another model, or untrained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from opdf.data import Prepared, Task
from opdf.distill import blank_student, depth_fields, fields_of_fewer, generate_alike, keep_layers, shrink
from opdf.job.config import StudentConfig
from opdf.job.errors import UserError
from opdf.job.models import DECIDED, check_fields, from_config, load_model
from opdf.job.progress import loud

STARTS = ("teacher", "copy", "random")
GIVEN = (["layers"], ["model"], ["config"], ["layers", "model"], ["layers", "config"])
BATCH = 32
"""Calibration examples that go through the teacher at a time."""


def check_student(options: StudentConfig) -> None:
    """Refuse a student that is described in no way or in two.

    Raises:
        UserError: none of layers, model and config is given, or two that do not go together; or it cannot start so.
    """
    given = [name for name in ("layers", "model", "config") if getattr(options, name) is not None]
    if given not in GIVEN:
        raise UserError(
            f"student has {given or 'nothing'}; give one of layers, model and config, or layers with one of the others"
        )
    if options.start not in (None, *STARTS):
        raise UserError(f"student.start is {options.start!r}; expected one of {', '.join(STARTS)}")
    if options.calibration < 1:
        raise UserError(f"student.calibration is {options.calibration}; it must be at least 1")
    if options.start is not None and options.model is not None:
        raise UserError("student.start is for students of the teacher's kind; leave it out beside student.model")
    if options.start == "random" and options.config is None:
        raise UserError("student.start is 'random' and kept blocks are not; give student.config instead of layers")
    if options.start == "copy" and options.config is not None:
        raise UserError("student.start is 'copy' and blocks of other sizes cannot be copied; leave student.config out")
    if isinstance(options.layers, list) and (options.config is not None or options.start == "teacher"):
        raise UserError("student.layers is a list; a student that is fitted to its teacher takes a number of blocks")


@dataclass(frozen=True)
class Start:
    """How a student is made.

    Attributes:
        sizes: of a student that is fitted to its teacher; None for others.
        blank: that student, on the meta device.
        why_not: why a student is not fitted although no other start was asked for; empty for others.
    """

    sizes: dict[str, float] | None = None
    blank: Any = None
    why_not: str = ""


def plan_start(options: StudentConfig, teacher: Any, prepared: Prepared | None = None) -> Start:
    """Decide whether a student is fitted to its teacher, before any work.

    Args:
        options: of the student.
        teacher: with its weights; trained or not.
        prepared: the data that it would be fitted on; None leaves open whether they suffice.

    Raises:
        UserError: it is to be fitted, and cannot be.
    """
    copied = options.start == "copy" or isinstance(options.layers, list)
    if options.model is not None or copied or options.start == "random":
        return Start()
    try:
        sizes = _sizes(options, teacher)
        return Start(sizes, blank_student(teacher, calibration(options, prepared) if prepared else (), **sizes))
    except (TypeError, ValueError) as error:
        both = options.layers is not None and options.config is not None  # nothing else makes such a student
        if options.start == "teacher" or both:
            raise UserError(f"the student cannot start from its teacher: {error}") from error
        return Start(why_not=str(error))


def _sizes(options: StudentConfig, teacher: Any) -> dict[str, Any]:
    """The fields of the teacher's configuration that the student has otherwise.

    Raises:
        TypeError, ValueError: the depth is asked for and has no field that is known, or stands there twice.
    """
    given = options.config or {}
    if not isinstance(options.layers, int):
        return given
    depth = dict.fromkeys(depth_fields(teacher), options.layers)
    for name in given:
        if teacher.config.attribute_map.get(name, name) in depth:
            raise ValueError(f"student.layers is {options.layers} and student.config has {name} as well; give one")
    return depth | given


def calibration(options: StudentConfig, prepared: Prepared) -> list[dict[str, Any]]:
    """Batches of training examples, evenly spread over the split."""
    rows = prepared.data["train"]
    chosen = np.unique(np.linspace(0, len(rows) - 1, num=min(options.calibration, len(rows)), dtype=int)).tolist()
    return [prepared.collator([rows[k] for k in chosen[i : i + BATCH]]) for i in range(0, len(chosen), BATCH)]


def started_student(options: StudentConfig, start: Start, teacher: Any, prepared: Prepared) -> Any:
    """A student that is fitted to its teacher."""
    with loud():
        return shrink(teacher, calibration(options, prepared), **(start.sizes or {}))


def build_student(options: StudentConfig, teacher: nn.Module, task: Task) -> Any:
    """A student that is not fitted; one on the meta device if its blocks are those of a teacher there."""
    if options.layers is not None and options.config is None:
        whole = load_model(options.model, task, new_head=True)[0] if options.model else teacher
        return keep_layers(whole, options.layers)
    if options.model is not None:
        return load_model(options.model, task, new_head=True)[0]
    try:
        sizes = _sizes(options, teacher)
    except (TypeError, ValueError) as error:
        raise UserError(f"the student's blocks cannot be counted: {error}") from error
    fields = fields_of_fewer(teacher.config, sizes) | sizes
    check_fields("student.config", fields["model_type"], options.config or {})
    known = {k: v for k, v in fields.items() if k not in DECIDED and not k.startswith("_")}
    student = from_config(known, task)
    generate_alike(student, teacher)
    return student
