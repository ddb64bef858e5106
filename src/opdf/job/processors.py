"""The tokenizer or image processor that prepares the data for teacher and student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from transformers import CONFIG_MAPPING, AutoImageProcessor, AutoTokenizer

from opdf.data import Task, loading, padding, right_padded
from opdf.job.config import TeacherConfig
from opdf.job.errors import UserError

NO_SIZE = 28
"""Pixels of both sides of the images for a model whose configuration names no size (ResNet)."""


def load_processor(teacher: TeacherConfig, task: Task) -> Any:
    """The tokenizer or image processor that goes with the teacher, and so with the student."""
    name = teacher.models[0] if teacher.models else teacher.model
    if task.is_image and name in (None, "minilm"):
        size = image_size(teacher.config or {})
        height, width = size if isinstance(size, list | tuple) else (size, size)
        mean = std = [0.5] * 3
        return transformers.ViTImageProcessorPil(
            size={"height": height, "width": width}, image_mean=mean, image_std=std
        )
    if name is None:
        raise UserError("teacher.config needs a tokenizer as well; give teacher.model for text")
    if task.is_image:
        with loading(name, processor=True) as folder:
            return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    tokenizer = load_tokenizer(name)
    if task.kind == "token-classification" and getattr(tokenizer, "add_prefix_space", None) is False:
        # These tokenizers were trained on words with a space before them, and words come without it.
        tokenizer = load_tokenizer(name, add_prefix_space=True)
    if task.kind == "causal-lm":
        return tokenizer  # its texts are packed, and to continue them it may have to pad on the left
    return right_padded(padding(tokenizer), marked=task.kind != "token-classification")


def image_size(fields: Mapping[str, Any]) -> Any:
    """The sides of the images that a model of a configuration is made for; `NO_SIZE` where its family has no field."""
    kind = fields.get("model_type")
    family = CONFIG_MAPPING[kind]() if kind in CONFIG_MAPPING else None  # others are refused later
    return fields.get("image_size", getattr(family, "image_size", None) or NO_SIZE)


def load_tokenizer(model: str, **options: Any) -> Any:
    with loading(model, processor=True) as folder:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # transformers makes up one where there is none
        raise UserError(f"{model} has no tokenizer; save the model's beside it")
    return tokenizer


def settle_padding(name: str, model: Any) -> None:
    """Let a decoder know what pads its texts: it classifies at the last token that is no padding.

    Many have no token for that; their tokenizers then pad with the end of text.
    """
    if model.main_input_name == "input_ids" and getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = padding(load_tokenizer(name)).pad_token_id
