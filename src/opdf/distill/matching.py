"""Whether a student and its teacher go together: what their outputs mean, and which tokens they look for."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, MODEL_MAPPING_NAMES

from opdf.distill.models import (
    SEVERAL,
    classes_in,
    config_of,
    has_no_head,
    is_language_model,
    names_of_labels,
    unwrapped,
    without_adapters,
)

HEADLESS = classes_in(MODEL_MAPPING_NAMES)
"""Classes of transformers that end in hidden states."""

ANSWERERS = frozenset(MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES.values())
"""Classes of transformers that find an answer in a text, by logits of its start and of its end."""

DETECTORS = frozenset({"ElectraForPreTraining", "FunnelForPreTraining"})
"""Classes of transformers that say of every token, by one number, whether it is the text's own."""

MARKS = ("pad_token_id", "decoder_start_token_id")
"""Tokens that models of transformers look for in their inputs, or put into them."""


def settle_kind(student: nn.Module, teacher: nn.Module) -> None:
    """Give a student whose configuration leaves open what its outputs mean the meaning of its teacher's.

    Without labels nothing else tells, and of several numbers labels tell the wrong thing, see `kind_of`. Pipelines of
    transformers read it of a saved student.
    """
    ours, theirs = config_of(student), config_of(teacher)
    known = getattr(theirs, "problem_type", None)
    if known is not None and not has_no_head(student) and getattr(ours, "problem_type", known) is None:
        ours.problem_type = known


def check_has_logits(who: str, model: nn.Module) -> None:
    """Refuse a model whose outputs have no field `logits`, or one of a number a token: no classes, though they look so.

    Raises:
        ValueError: it finds answers in a text, or tells tokens that were put in.
    """
    name = type(without_adapters(unwrapped(model))).__name__
    if name in ANSWERERS:
        raise ValueError(
            f"the {who} is a {name}, which answers with start_logits and end_logits, and the methods here learn from "
            "logits; write an Objective that compares both (docs/own-model.md has one)"
        )
    if name in DETECTORS:
        raise ValueError(
            f"the {who} is a {name}, whose logits are one number a token, and the methods here learn from classes; "
            "write an Objective that compares these numbers, or load it with a head for the task (AutoModelFor...)"
        )


def check_same_outputs(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student and a teacher whose outputs do not mean the same.

    Raises:
        ValueError: different numbers of labels, label names, kinds of labels, vocabularies, or special tokens that
            models look for in their inputs; or outputs without `logits`.
    """
    for who, model in (("student", student), ("teacher", teacher)):
        check_has_logits(who, model)
        if type(model).__name__ in HEADLESS:
            raise ValueError(
                f"the {who} is a {type(model).__name__}, which ends in hidden states; load it with a head for the task "
                "(AutoModelFor...), or use EmbeddingDistillation"
            )
    ours, theirs = config_of(student), config_of(teacher)
    if ours is None or theirs is None:
        return
    check_same_marks(student, teacher)
    if is_language_model(student):
        mine, other = vocabulary(ours), vocabulary(theirs)
        if mine != other:
            raise ValueError(
                f"the student's vocabulary has {mine} tokens and the teacher's {other}; "
                "token-level distillation needs the same tokenizer"
            )
        return
    if ours.num_labels != theirs.num_labels:
        raise ValueError(
            f"the student has {ours.num_labels} labels and the teacher {theirs.num_labels}; "
            "make both for the same task (num_labels=...)"
        )
    problems = [c.problem_type for c in (ours, theirs)]
    if None not in problems and problems[0] != problems[1]:
        raise ValueError(f"the student's problem_type is {problems[0]!r} and the teacher's {problems[1]!r}; set one")
    names = [names_of_labels(model) for model in (student, teacher)]
    is_number = ours.num_labels == 1 and SEVERAL not in problems  # whose name says nothing about the order
    if None not in names and names[0] != names[1] and not is_number:
        raise ValueError(f"the student's labels are {names[0]}, the teacher's {names[1]}; give both in the same order")


def vocabulary(config: Any) -> int:
    """How many tokens a language model writes. A model of two has that of the one that writes."""
    writes = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return int(writes.vocab_size)


def check_same_marks(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student and a teacher that look for different special tokens in their inputs.

    Raises:
        ValueError: they do.
    """
    ours, theirs = config_of(student), config_of(teacher)
    ends = ("eos_token_id",) if getattr(ours, "is_encoder_decoder", False) and not is_language_model(student) else ()
    for name in (*MARKS, *ends):
        mine, other = getattr(ours, name, None), getattr(theirs, name, None)
        if mine is not None and other is not None and mine != other:
            raise ValueError(
                f"the student's {name} is {mine} and the teacher's {other}: one of them would read the same tokens "
                "otherwise (decoders classify at the last token that is no padding, BART at the end token); give both "
                "the tokenizer's"
            )
