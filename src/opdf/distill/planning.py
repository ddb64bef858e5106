"""What is made of student, teacher and objective before any step, without a trainer."""

from __future__ import annotations

import copy
import warnings

from torch import nn
from transformers import TrainingArguments

from opdf.distill.arguments import MUON
from opdf.distill.ensemble import Ensemble, members
from opdf.distill.matching import settle_kind
from opdf.distill.methods import METHODS, name_of
from opdf.distill.models import names_of_labels
from opdf.distill.muon import check_muon
from opdf.distill.objective import Objective
from opdf.distill.shrink import find_report, has_moved
from opdf.distill.teachers import check_apart
from opdf.overparam import Constraint, OverParamConfig, OverParameterization, overparameterize


def plan_student(
    student: nn.Module,
    teacher: nn.Module | None,
    objective: Objective,
    overparam: OverParamConfig | None,
    constraint: Constraint | None,
    args: TrainingArguments,
) -> OverParameterization | None:
    """Prepare an objective and the over-parameterization of its student; also with models on the meta device.

    Raises:
        ValueError: student, teacher, objective, constraint and the trainer's arguments do not fit together.
        TypeError: a weight to over-parameterize is quantized.
    """
    if teacher is not None:
        check_apart(student, teacher)
        settle_kind(student, teacher)
    if isinstance(teacher, Ensemble):
        _check_several(teacher, objective, constraint)
    if constraint is not None and (overparam is None or teacher is None):
        raise ValueError("constraint needs overparam and a teacher; give both, or leave constraint out")
    objective.prepare(student, teacher)
    objective.check_arguments(args)
    if args.optim == MUON:
        check_muon(args, student, overparam)
    if overparam is None:
        return None
    planned = overparameterize(student, overparam)
    if constraint is not None:
        assert teacher is not None
        planned.align(_partner(student, teacher, constraint), constraint)
    return planned


def _check_several(teachers: Ensemble, objective: Objective, constraint: Constraint | None) -> None:
    """Refuse several teachers where one is needed, or whose outputs do not mean the same.

    Raises:
        ValueError: the method, or the constraint loss, reads more than a teacher's outputs; or their labels differ.
    """
    named = [names for one in members(teachers) if (names := names_of_labels(one)) is not None]
    for names in named:
        if names != named[0]:
            raise ValueError(
                f"the labels of the teachers are {named[0]} and {names}; give teachers with the same in one order"
            )
    if not objective.several_teachers:
        known = ", ".join(name for name, method in METHODS.items() if method.several_teachers)
        raise ValueError(
            f"the objective {name_of(objective)} reads one teacher from within and there are several; take one of "
            f"{known}, or give one teacher"
        )
    if constraint is not None:
        raise ValueError("constraint pulls the student to one teacher's weights and there are several; leave it out")


def _partner(student: nn.Module, teacher: nn.Module, constraint: Constraint) -> nn.Module:
    """The model that the constraint loss pulls a student to: its teacher, in the student's coordinates.

    A student that `shrink` has fitted has coordinates of its own. In these, the teacher is the student before training.
    """
    if find_report(student) is None:
        return teacher
    if not isinstance(constraint.layer_map, str):
        raise ValueError(
            f"constraint.layer_map is {dict(constraint.layer_map)}, and a student that is fitted to its teacher "
            "follows its own start block by block; leave it out, or copy the teacher's blocks (keep_layers; in a run, "
            "student.start: copy)"
        )
    if has_moved(student):
        warnings.warn(
            "the student was changed since shrink made it, and constraint pulls it to where it is now, not to its "
            "teacher; make it anew with shrink, or leave constraint out",
            stacklevel=5,
        )
    return copy.deepcopy(student).requires_grad_(False)
