"""The teacher: found by its name, apart from its student, and frozen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto import modeling_auto as auto

from opdf.data import loading
from opdf.distill.ensemble import Ensemble
from opdf.distill.models import classes_in

LOADERS: tuple[tuple[Any, Any], ...] = (
    (auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, AutoModelForSequenceClassification),
    (auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, AutoModelForImageClassification),
    (auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, AutoModelForTokenClassification),
    (auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM),
    (auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, AutoModelForMaskedLM),
    (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, AutoModelForSeq2SeqLM),
    (auto.MODEL_MAPPING_NAMES, AutoModel),
)
"""Loaders of a teacher of the student's kind, by the classes that they make."""

CLASSIFIERS = [names for names, _ in LOADERS[:3]]
"""The classes with a head for classes or a number: the first of these loaders'."""


def load_teacher(name: str | Path, student: nn.Module, *, trained: bool = True) -> Any:
    """A teacher of the student's kind (a classifier for a classifier), in float32.

    Args:
        name: "minilm", the embedded all-MiniLM-L6-v2; a folder; or a hub name.
        student: any model of transformers.
        trained: whether the teacher must have been trained for the task, head and all.

    Raises:
        TypeError: the student is no model of transformers, whose kind is known.
        ValueError: there is no such model, or it has no head for the task or one for another.
        FileNotFoundError, ConnectionError: its folder does not exist, or the embedded model cannot be fetched.
    """
    kind = type(student).__name__
    loader = next((loader for names, loader in LOADERS if kind in classes_in(names)), None)
    if loader is None:
        raise TypeError(
            f"teacher is {str(name)!r} and the student a {kind}, which transformers cannot load; pass a model"
        )
    with loading(str(name)) as folder, torch.device("cpu"):
        teacher, info = loader.from_pretrained(
            folder, use_safetensors=True, trust_remote_code=False, output_loading_info=True, dtype=torch.float32
        )
    saved = next(iter(teacher.config.architectures or ()), type(teacher).__name__)
    if trained and saved != type(teacher).__name__ and any(saved in classes_in(names) for names in CLASSIFIERS):
        # Its head can have the names of the student's all the same: of words and of whole texts, as ModernBERT's.
        raise ValueError(
            f"teacher {str(name)!r} was saved as a {saved} and is not trained for a {kind}'s task; give one that is"
        )
    if trained and info["missing_keys"]:
        raise ValueError(
            f"teacher {str(name)!r} is not trained for a {kind}'s task ({sorted(info['missing_keys'])[0]} is missing); "
            "fine-tune it first, or give one that is"
        )
    return teacher


def find_teacher(given: Any, student: nn.Module, *, trained: bool = True) -> nn.Module | None:
    """The teacher that a user gave: a model, the name of one (`load_teacher`), a list of these, or None.

    Raises:
        TypeError: it is none of these.
        ValueError, FileNotFoundError, ConnectionError: a name's, see `load_teacher`; or the list is empty.
    """
    if isinstance(given, Sequence) and not isinstance(given, str):
        return Ensemble([_found(one, student, trained) for one in given])
    return None if given is None else _found(given, student, trained)


def _found(given: Any, student: nn.Module, trained: bool) -> nn.Module:
    if isinstance(given, str | Path):
        loaded: nn.Module = load_teacher(given, student, trained=trained)
        return loaded
    if not isinstance(given, nn.Module):
        raise TypeError(f"teacher is a {type(given).__name__}; give a model, its name, or a list of these")
    return given


def check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse a student that shares something with its teacher, which is frozen and stays as it is.

    Raises:
        ValueError: a module, a weight that is trained or a floating-point buffer is the teacher's too.
    """
    remedy = "give the student a copy (copy.deepcopy; keep_layers copies)"
    if student is teacher:
        raise ValueError("teacher and student are the same object; make the student with keep_layers or a copy")
    theirs = {id(module) for module in teacher.modules()}
    for name, module in student.named_modules():
        if id(module) in theirs:
            raise ValueError(f"the student's {name or 'model'} is a module of the teacher, which is frozen; {remedy}")
    memory = {_memory(t) for t in (*teacher.parameters(), *teacher.buffers())}
    trained = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    written = [(name, b) for name, b in student.named_buffers() if b.is_floating_point()]
    for name, tensor in (*trained, *written):
        if not tensor.is_meta and tensor.numel() and _memory(tensor) in memory:
            raise ValueError(f"the student's {name} shares its memory with the teacher, which is frozen; {remedy}")


def check_frozen(teacher: nn.Module) -> None:
    """Refuse a teacher in training mode, which would make its targets random.

    Raises:
        RuntimeError: it, or a module of it, is.
    """
    name = next((name for name, module in teacher.named_modules() if module.training), None)
    if name is not None:
        raise RuntimeError(
            f"the teacher{name and f' module {name}'} is in training mode; something called train() on it. "
            "Keep it in eval mode"
        )


def _memory(tensor: Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()
