"""Rows to model inputs: tokens with dynamic padding, or pixel values."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import torch
import transformers
from datasets import Array3D, Dataset, DatasetDict, Image
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding, default_data_collator

from opdf.data.augment import as_rgb
from opdf.data.language import encode_language, is_conversation, packed, padding, right_padded
from opdf.data.metrics import IGNORED
from opdf.data.task import Task
from opdf.data.values import values

Collator = Callable[[list[Any]], dict[str, Any]]

BATCH = 256
"""Rows that are encoded together."""

CODE = b"".join(Path(__file__).with_name(f"{name}.py").read_bytes() for name in ("encode", "language", "augment"))
ENCODED_BY = f"{hashlib.sha256(CODE).hexdigest()[:8]} {transformers.__version__}"
"""The version of what encodes rows. datasets keeps encoded rows, and would not see that another one makes others."""


def encode(
    data: DatasetDict,
    task: Task,
    processor: Any,
    *,
    max_length: int = 128,
    pack: bool = True,
    answers_only: bool = False,
    where: str = "",
) -> tuple[DatasetDict, Collator]:
    """A dataset as the Trainer takes it, and the collator that makes batches of it.

    Args:
        data, task: from `load_data`.
        processor: a tokenizer, or an image processor for image tasks.
        max_length: of a text (or pair), or of a block of packed texts, in tokens.
        pack: of a language model's texts, put as many as fit into one example.
        answers_only: learn only the answers of a conversation or pair.
        where: what stands before the names of options in messages.

    Raises:
        ValueError: `max_length` leaves no token of the text, a row cannot be read (the message names it), or the
            tokenizer cannot do what the task needs.
    """
    _check_options(data, task, processor, max_length, answers_only, where)
    cut = None if task.kind == "causal-lm" and pack else max_length
    given = {"task": task, "processor": processor, "max_length": cut, "answers_only": answers_only}
    # datasets would keep the type of a column that is already called "labels".
    names = {column: f"raw {column}" for column in task.columns}
    try:
        # A function of a module: datasets would take a lambda apart at every call to see whether its code has changed.
        encoded = data.select_columns(list(names)).rename_columns(names).map(
            _renamed, fn_kwargs={"by": ENCODED_BY, "names": names} | given, batched=True, batch_size=BATCH,
            remove_columns=list(names.values()), desc="encoding",
        )  # fmt: skip
    except Exception as error:
        problem = _unreadable_row(data, task, partial(encode_rows, **given))
        if problem is None:
            raise
        raise ValueError(problem) from error
    if task.is_image:
        return _as_arrays(encoded).with_format("torch"), default_data_collator
    if task.kind == "causal-lm":
        if pack:
            encoded = encoded.map(packed, fn_kwargs={"size": max_length}, batched=True, desc="packing")
        _check_predicted(encoded, max_length, where)
        # On the left, a text's first token would be predicted of padding, too.
        return encoded, TokenCollator(right_padded(padding(processor), marked=False))
    if task.kind == "token-classification":
        return encoded, TokenCollator(right_padded(processor, marked=False))
    return encoded, TextCollator(right_padded(processor))


def _renamed(rows: Mapping[str, Any], *, by: str, names: Mapping[str, str], **given: Any) -> dict[str, Any]:
    """What `encode_rows` makes of rows whose columns have other names; `by` has to be there for datasets alone."""
    return encode_rows({column: rows[name] for column, name in names.items()}, **given)


def _as_arrays(encoded: DatasetDict) -> DatasetDict:
    """The pixels as arrays of one shape. A batch of nested lists takes seven times as long to read."""
    shape = np.shape(encoded["train"][0]["pixel_values"])
    for rows in encoded.values():
        _check_sizes(rows, shape)
    return encoded.cast_column("pixel_values", Array3D(shape, "float32"))


def _check_sizes(rows: Dataset, shape: tuple[int, ...]) -> None:
    """Refuse pixels of another shape: as many of them would be put into this one, line after line."""
    stored = rows.select_columns("pixel_values").with_format("arrow")
    for start in range(0, len(rows), BATCH):
        inner = stored[start : start + BATCH]["pixel_values"]
        for size in shape:
            if pc.any(pc.not_equal(pc.list_value_length(inner), size)).as_py():
                shapes = (np.shape(rows[k]["pixel_values"]) for k in range(start, len(rows)))
                raise ValueError(_several_sizes(shape, next(other for other in shapes if other != shape)))
            inner = pc.list_flatten(inner)


def _check_options(
    data: DatasetDict, task: Task, processor: Any, max_length: int, answers_only: bool, where: str
) -> None:
    if task.kind == "token-classification" and task.label is None:
        raise ValueError(
            f"{where}label is null and the task is token-classification, which needs tags that say where words begin; "
            f"name their column in {where}label"
        )
    if answers_only and task.kind != "causal-lm":
        raise ValueError(f"{where}answers_only is true and the task is {task.kind}; it is for causal-lm: leave it out")
    if task.is_image:
        return
    if task.kind != "causal-lm" and processor.pad_token is None:
        raise ValueError(
            "the tokenizer has no token for padding, and texts of one batch differ in length; give it one that it has "
            "(tokenizer.pad_token = tokenizer.eos_token), and its number to the model (model.config.pad_token_id = "
            "tokenizer.pad_token_id)"
        )
    special = processor.num_special_tokens_to_add(pair=len(task.inputs) > 1)
    if max_length < special + len(task.inputs):
        raise ValueError(
            f"{where}max_length is {max_length}; {special} tokens go to the tokenizer's own marks, "
            f"so it must be at least {special + len(task.inputs)}"
        )
    if (task.kind == "token-classification" or answers_only) and not processor.is_fast:
        raise ValueError(
            f"{type(processor).__name__} does not say which token is of which word; give a model with a fast tokenizer"
        )
    if task.kind == "causal-lm":
        chat = is_conversation(data["train"][0][task.inputs[0]])
        if chat and processor.chat_template is None:
            raise ValueError(
                f"{task.inputs[0]!r} holds conversations and the tokenizer has no chat template; give a model that has "
                f"one, or set {where}inputs to a text column"
            )
        if answers_only and not chat and len(task.inputs) < 2:
            raise ValueError(
                f"{where}answers_only is true and texts have no answers; set {where}inputs to a column of prompts and "
                "one of answers, or to one of messages"
            )


def _check_predicted(encoded: DatasetDict, max_length: int, where: str) -> None:
    """Refuse a split in which no token is left to learn or to score. The first of a row has nothing before it."""
    for part, rows in encoded.items():
        labels = pc.list_slice(values(rows, "labels"), 1)
        if not pc.any(pc.not_equal(pc.list_flatten(labels), IGNORED)).as_py():
            raise ValueError(
                f"no token is left to predict in the {part} split, where texts are cut at {max_length} tokens and the "
                f"first of each is not predicted; raise {where}max_length, or set {where}pack to true"
            )


def count_tokens(rows: Dataset) -> int:
    """Tokens of some encoded texts together."""
    return int(pc.sum(pc.list_value_length(values(rows, "input_ids"))).as_py())


def _length(rows: list[Any]) -> dict[str, Any]:
    """How far a batch is padded: to its longest text, and to one token where none has any.

    Models take no batch without tokens. An empty text beside others is of padding alone, too.
    """
    return {} if any(len(row["input_ids"]) for row in rows) else {"padding": "max_length", "max_length": 1}


class TextCollator:
    """Batches of encoded texts with a label each, or none.

    Args:
        tokenizer: that pads.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: list[Any]) -> Any:
        return DataCollatorWithPadding(self.tokenizer, **_length(rows))(rows)


class TokenCollator:
    """Batches of encoded texts. Labels are padded with -100, and what else goes by token (a teacher's words) with 0.

    Args:
        tokenizer: that pads.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        beside = [name for name, value in rows[0].items() if isinstance(value, torch.Tensor) and value.dim() > 1]
        collate = DataCollatorForTokenClassification(self.tokenizer, **_length(rows))
        batch = dict(collate([{k: v for k, v in row.items() if k not in beside} for row in rows]))
        for name in beside:
            batch[name] = torch.nn.utils.rnn.pad_sequence(
                [row[name] for row in rows], batch_first=True, padding_side=self.tokenizer.padding_side
            )
        return batch


def longest_text(rows: Dataset) -> int:
    """Tokens of the longest of some encoded texts."""
    return int(pc.max(pc.list_value_length(values(rows, "input_ids"))).as_py())


def encode_rows(
    rows: Mapping[str, Any], task: Task, processor: Any, *, max_length: int | None = 128, answers_only: bool = False
) -> dict[str, Any]:
    """Columns of raw rows to columns of model inputs and, where there are labels, "labels".

    A pair of a similarity task becomes two rows, one after the other, without a label. None cuts nothing off.
    """
    if task.kind == "causal-lm":
        return encode_language([rows[c] for c in task.inputs], processor, max_length, answers_only=answers_only)
    if task.kind == "token-classification":
        return _encode_tags(rows, task, processor, max_length)
    cut = {"truncation": max_length is not None, "max_length": max_length, "verbose": max_length is not None}
    if task.kind == "similarity":
        texts = [text for pair in zip(*(rows[c] for c in task.inputs), strict=True) for text in pair]
        return dict(processor(texts, **cut))
    if task.is_image:
        images = [as_rgb(image) for image in rows[task.inputs[0]]]
        encoded = {"pixel_values": _pixels(images, processor)}
    else:
        encoded = dict(processor(*(rows[c] for c in task.inputs), **cut))
    if task.label is None:
        return encoded
    target = torch.long if task.has_classes else torch.float
    return encoded | {"labels": torch.tensor(rows[task.label], dtype=target).tolist()}


def _pixels(images: list[Any], processor: Any) -> Any:
    try:
        return processor(images, return_tensors="np")["pixel_values"]
    except ValueError as error:
        shapes = list(dict.fromkeys(np.shape(one) for one in processor(images)["pixel_values"]))
        if len(shapes) < 2:
            raise
        raise ValueError(_several_sizes(*shapes[:2])) from error


def _several_sizes(one: tuple[int, ...], other: tuple[int, ...]) -> str:
    return (
        f"the image processor makes arrays of several sizes, such as {list(one)} and {list(other)}, and a model is "
        "given one; set do_resize to true, and size to a height and a width, in its preprocessor_config.json"
    )


def _encode_tags(rows: Mapping[str, Any], task: Task, processor: Any, max_length: int | None) -> dict[str, Any]:
    """Words as tokens; the first token of a word has its tag, and others are not scored."""
    assert task.label is not None
    cut = {"truncation": max_length is not None, "max_length": max_length}
    encoded = processor(rows[task.inputs[0]], is_split_into_words=True, **cut)
    labels = []
    for k, tags in enumerate(rows[task.label]):
        words = pairwise([None, *encoded.word_ids(k)])
        labels.append([IGNORED if word is None or word == before else tags[word] for before, word in words])
    return dict(encoded) | {"labels": labels}


def _unreadable_row(data: DatasetDict, task: Task, encoded: Callable[[Mapping[str, Any]], Any]) -> str | None:
    """The first row that cannot be encoded by itself, with its error; batches hide which row it was."""
    for part, rows in data.items():
        for k in range(len(rows)):
            try:
                encoded(rows[k : k + 1])
            except Exception as error:
                return f"{_as_stored(rows, k, task)} of the {part} split cannot be read: {error}"
    return None


def _as_stored(rows: Dataset, k: int, task: Task) -> str:
    if task.is_image:
        stored = rows.cast_column(task.inputs[0], Image(decode=False))[k][task.inputs[0]]
        return str(stored["path"] or f"{len(stored['bytes'])} bytes without a file name")
    return f"the row { ({column: rows[k][column] for column in task.columns})!r}"[:200]
