"""The student: blocks of its teacher, another model, or one built from a configuration."""

from __future__ import annotations

from typing import Any

from torch import nn

from opdf.data import Task
from opdf.distill import keep_layers
from opdf.job.config import StudentConfig
from opdf.job.errors import UserError
from opdf.job.models import DECIDED, check_fields, from_config, load_model


def check_student(options: StudentConfig) -> None:
    """Refuse a student that is not said once.

    Raises:
        UserError: none of layers, model and config is given, or two that do not go together.
    """
    given = [k for k, v in vars(options).items() if v is not None]
    if len(given) != 1 and given != ["layers", "model"]:
        raise UserError(
            f"student has {given or 'nothing'}; give exactly one of layers, model, config, or layers and model"
        )


def build_student(options: StudentConfig, teacher: nn.Module, task: Task) -> Any:
    """A new student; with a teacher on the meta device and blocks of it, one on the meta device."""
    if options.layers is not None:
        return keep_layers(load_model(options.model, task)[0] if options.model else teacher, options.layers)
    if options.model is not None:
        return load_model(options.model, task)[0]
    theirs = teacher.config.to_dict()  # type: ignore[union-attr,operator]
    fields = theirs | (options.config or {})
    check_fields("student.config", fields["model_type"], options.config or {})
    known = {k: v for k, v in fields.items() if k not in DECIDED and not k.startswith("_")}
    return from_config(known, task)
