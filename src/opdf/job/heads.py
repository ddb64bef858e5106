"""The head that a task needs of a model, and whether a saved model's is for the same classes."""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from opdf.data import Task, plain_name
from opdf.distill import label_names
from opdf.job.errors import UserError
from opdf.job.processes import tell

NAMED = 4
"""Classes that a message names one by one."""

CLASSES = {
    "similarity": AutoModel,
    "image-classification": AutoModelForImageClassification,
    "token-classification": AutoModelForTokenClassification,
    "causal-lm": AutoModelForCausalLM,
}
"""Loaders by task; the other tasks are for a text or a pair."""

SEQUENCES = "ForSequenceClassification"
HEADS = {"image-classification": "ForImageClassification", "token-classification": "ForTokenClassification"}
"""Endings of the classes that models with a head are saved from, by task; the other tasks' is `SEQUENCES`."""


def auto_class(task: Task) -> Any:
    """The class that loads a model for a task."""
    return CLASSES.get(task.kind, AutoModelForSequenceClassification)


def saved_class(config: Any) -> Any:
    """The loader of a saved model with its head, if it has one that a run trains; else of one without a head."""
    saved = {str(architecture) for architecture in config.architectures or ()}
    for auto in (AutoModelForSequenceClassification, *CLASSES.values()):
        known = auto._model_mapping.get(type(config), ())
        if saved & {cls.__name__ for cls in (known if isinstance(known, tuple) else (known,))}:
            return auto
    return AutoModel


def head_of(task: Task) -> dict[str, Any]:
    """Configuration of the head that a task needs; nothing where the model has it, or knows the classes."""
    if task.kind == "regression":
        return {"num_labels": 1, "problem_type": problem_type(task)}
    if not task.labels:
        return {}
    names = dict(enumerate(task.labels))
    head = {"id2label": names, "label2id": {v: k for k, v in names.items()}}
    return head if task.kind == "token-classification" else head | {"problem_type": problem_type(task)}


def problem_type(task: Task) -> str:
    """What transformers calls a task of classes of whole rows, or a regression."""
    if task.kind == "regression":
        return "regression"
    return "multi_label_classification" if task.kind == "multi-label" else "single_label_classification"


def has_head(config: Any, task: Task) -> bool:
    """Whether a model was saved with a head for classes or a number, and the task needs one."""
    kinds = (SEQUENCES, *HEADS.values())
    headed = any(str(architecture).endswith(kinds) for architecture in config.architectures or ())
    return headed and task.kind not in ("similarity", "causal-lm")


def has_other_head(config: Any, task: Task) -> bool:
    """Whether a model's head has another number of outputs than the data need."""
    known = bool(task.labels) or task.kind == "regression"
    return known and has_head(config, task) and len(config.id2label) != task.num_labels


@cache
def note_head(model: str, theirs: int, ours: int) -> None:
    """Say once that a model gets a new head."""
    tell(f"note: the head of {model} has {theirs} outputs and the data need {ours}; a new one is trained in its place")


def check_head(name: str, config: Any, task: Task, *, trained: bool) -> None:
    """Refuse a model whose head is for another kind of task, for other classes, or for the same in another order.

    A head that will be trained may have classes of which some are the data's, under other numbers.
    """
    if not has_head(config, task):
        return
    theirs = label_names(config)
    if not trained:
        _check_class(name, config, task)
    _check_kind(name, config, task, len(theirs))
    if not task.labels and task.kind != "regression":
        return  # the model says which classes there are
    if len(theirs) != task.num_labels:
        raise UserError(_other_number(name, theirs, task))
    if task.labels:
        _check_order(name, theirs, task.labels, trained=trained)


def _check_class(name: str, config: Any, task: Task) -> None:
    """Refuse a head for words where one for whole texts is needed, and the other way: their weights can have one name.

    ModernBERT's have. A class of the one would be loaded from weights of the other, and answer at random.
    """
    saved, wanted = [str(architecture) for architecture in config.architectures], HEADS.get(task.kind, SEQUENCES)
    if not any(architecture.endswith(wanted) for architecture in saved):
        raise UserError(
            f"model {name!r} was saved as a {saved[0]} and the task is {task.kind}; give a model of the same task (a "
            "teacher gets a new head with teacher.finetune: true), or another data.task"
        )


def _check_kind(name: str, config: Any, task: Task, outputs: int) -> None:
    if task.kind != "token-classification" and config.problem_type not in (None, problem_type(task)):
        raise UserError(
            f"model {name!r} was trained for {config.problem_type} and the task is {task.kind}; give a model of the "
            "same task, or another data.task"
        )
    if outputs == 1 and task.has_classes and not task.labels:
        raise UserError(
            f"model {name!r} has a head of one output, as for a regression, and the task is {task.kind}; give a "
            "model of the same task, or another data.task"
        )


def _other_number(model: str, theirs: list[str], task: Task) -> str:
    """The message about a head that has another number of outputs than the data need."""
    data = "is a regression"
    remedy = "give a model of the same classes (a teacher gets a new head with teacher.finetune: true)"
    if task.labels:
        data = f"has {len(task.labels)} classes: {', '.join(task.labels[:NAMED])}"
        if {*theirs} < {*task.labels}:
            added = [repr(label) for label in task.labels if label not in theirs]
            data += f", {', '.join(added[:NAMED])} beside the model's"
            remedy = f"correct these if they are misspelt, in a file of test rows say, or {remedy}"
        if set(map(plain_name, task.labels)) < set(map(plain_name, theirs)):
            remedy = f"name also the classes that no row has, by data.labels {theirs}"
    head = f"a head of {len(theirs)} outputs ({', '.join(theirs[:NAMED])})"
    return f"model {model!r} has {head}; the data {data}; {remedy}"


def _check_order(model: str, theirs: list[str], labels: tuple[str, ...], *, trained: bool) -> None:
    """Refuse classes that are the data's under other numbers; say so where names differ and numbers alone decide."""
    ours, found = list(map(plain_name, labels)), list(map(plain_name, theirs))
    if ours == found:
        return
    both = f"model {model!r} has the classes {', '.join(theirs)} and the data {', '.join(labels)}"
    if sorted(ours) == sorted(found):
        order = [labels[ours.index(label)] for label in found]
        raise UserError(f"{both}: give both the same order, by data.labels {order}")
    moved = next((label for label in found if label in ours and ours.index(label) != found.index(label)), None)
    if moved is not None and not trained:
        raise UserError(
            f"{both}, and {theirs[found.index(moved)]!r} is number {found.index(moved)} of the one and "
            f"{ours.index(moved)} of the other; name in data.labels what each of the model's is in the data, in the "
            "model's order"
        )
    nameless = all(label.startswith("LABEL_") for label in theirs)
    if not (nameless and ours == [str(k) for k in range(len(ours))]):
        _note_names(model, tuple(theirs), labels)


@cache
def _note_names(model: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> None:
    """Say once that classes of a model and of the data are taken for the same by their numbers alone."""
    pairs = [f"{a} for {b}" for a, b in zip(theirs, ours, strict=True)]
    more = f" and {len(pairs) - NAMED} more" if len(pairs) > NAMED else ""
    tell(
        f"note: the classes of {model} have other names than the data's, and are taken by their numbers: "
        f"{', '.join(pairs[:NAMED])}{more}; to keep the model's names, or for another order, set data.labels"
    )
