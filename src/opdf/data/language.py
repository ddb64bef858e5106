"""Texts and conversations for a language model: tokens, labels for those that are learned, and blocks."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from opdf.data.metrics import IGNORED

Span = tuple[int, int]
"""Beginning and end of an answer, in characters of the text."""


def encode_language(
    columns: Sequence[Sequence[Any]], tokenizer: Any, max_length: int | None, *, answers_only: bool
) -> dict[str, Any]:
    """`input_ids`, `attention_mask` and `labels` of texts, of prompts with their answers, or of conversations.

    A text ends with the tokenizer's end of text, if it has one. Labels are the tokens themselves; those that
    `answers_only` leaves out are -100.

    Args:
        columns: texts; prompts and answers, which are put together as they are; or lists of messages.
        tokenizer: with a chat template, if there are messages.
        max_length: tokens to cut at; None cuts nothing.
        answers_only: learn the answers alone.

    Raises:
        ValueError: the tokenizer's template does not show where the answers are.
    """
    chat = is_conversation(columns[0][0])
    if chat:
        rendered = [_conversation(messages, tokenizer, answers_only) for messages in columns[0]]
    else:
        rendered = [("".join(row), [(len(row[0]), len("".join(row)))]) for row in zip(*columns, strict=True)]
    texts = [text for text, _ in rendered]
    tokens = tokenizer(texts, add_special_tokens=not chat, return_offsets_mapping=answers_only, verbose=False)
    found: dict[str, Any] = {"input_ids": [], "attention_mask": [], "labels": []}
    for k, (text, answers) in enumerate(rendered):
        ids = list(tokens["input_ids"][k])
        places = list(tokens["offset_mapping"][k]) if answers_only else []
        if not chat:
            _end(ids, places, len(text), tokenizer)
        labels = (
            [t if _inside(p, answers, text) else IGNORED for t, p in zip(ids, places, strict=True)] if places else ids
        )
        for name, row in (("input_ids", ids), ("attention_mask", [1] * len(ids)), ("labels", labels)):
            found[name].append(row[:max_length])
    return found


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, not a text."""
    return not isinstance(value, str)


def without_nulls(value: Any) -> Any:
    """A message without what is null in it: a table gives each message, and each tool call, the keys of all others."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _end(ids: list[int], places: list[Span], length: int, tokenizer: Any) -> None:
    """Add the end of text to tokens that do not end with one; its place is the end of the text."""
    ends = (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id)  # an unknown word is special too
    if not ids or ids[-1] not in ends:
        if tokenizer.eos_token_id is None:
            return
        ids.append(tokenizer.eos_token_id)
        if places:
            places.append((0, 0))
    if places:
        places[-1] = (length - 1, length)


def _inside(place: Span, answers: Sequence[Span], text: str) -> bool:
    """Whether a token is of an answer: it begins there, or with blanks before it, or else that word would be lost."""
    first, last = place
    return last > 0 and any(
        start <= first < end or (first < start < last and text[first:start].isspace()) for start, end in answers
    )


def _conversation(messages: Sequence[Mapping[str, Any]], tokenizer: Any, answers_only: bool) -> tuple[str, list[Span]]:
    """A conversation by the tokenizer's template, and where the answers are in it: what follows each prompt for one."""
    turns = [without_nulls(message) for message in messages]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False)
    answers = []
    for k, turn in enumerate(turns if answers_only else []):
        if turn["role"] != "assistant":
            continue
        if not k:
            raise ValueError(
                "it begins with an answer, and what stands before an answer shows where it begins; put a prompt before "
                "it, or learn whole conversations"
            )
        before = tokenizer.apply_chat_template(turns[:k], tokenize=False, add_generation_prompt=True)
        after = tokenizer.apply_chat_template(turns[: k + 1], tokenize=False)
        if not (text.startswith(before) and text.startswith(after)):
            raise ValueError(
                "the tokenizer's chat template writes earlier messages in another way when later ones follow, so it "
                "cannot be told where the answers are; learn whole conversations, or give one answer a conversation"
            )
        answers.append((len(before), len(after)))
    return text, answers


def packed(rows: Mapping[str, list[list[int]]], size: int) -> dict[str, list[list[int]]]:
    """Rows joined and cut into blocks of `size` tokens; the last block may be shorter."""
    found = {}
    for name, column in rows.items():
        tokens = list(chain.from_iterable(column))
        found[name] = [tokens[start : start + size] for start in range(0, len(tokens), size)]
    return found


def padding(tokenizer: Any) -> Any:
    """The tokenizer, or a copy that pads with the end of text if it has no token for that; padding is masked.

    Raises:
        ValueError: it has neither of them, nor one for unknown words.
    """
    if tokenizer.pad_token is not None:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} has no token for padding and none for the end of a text; set "
            "its pad_token and save it again"
        )
    return tokenizer


def right_padded(tokenizer: Any, *, marked: bool = True) -> Any:
    """The tokenizer, or a copy that pads on the right.

    On the left, places that count from the beginning of a row (GPT-2's) would depend on the longest text of a batch,
    and answers with them. A tokenizer that puts its mark for classes behind a text keeps its side: XLNet looks for the
    mark at the last place.

    Args:
        tokenizer: that pads.
        marked: whether that mark is looked for. A model with answers for every token needs none.
    """
    ends_with_mark = marked and tokenizer("a")["input_ids"][-1:] == [tokenizer.cls_token_id]
    if tokenizer.padding_side == "right" or ends_with_mark:
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.padding_side = "right"
    return tokenizer
