"""What a model says to a few rows, by the kind of its task."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from opdf.data import Row, Task, TextCollator, as_rgb, encode_language, encode_rows, without_nulls, words_of
from opdf.distill import mean_pooled
from opdf.job.models import places, reading_images
from opdf.job.processes import tell


@dataclass(frozen=True)
class Asked:
    """How a model is asked, see `predict`."""

    model: Any
    processor: Any
    task: Task
    scores: bool
    new_tokens: int
    max_length: int


def is_stored(value: Any) -> bool:
    """Whether a value is an image as parquet files of datasets have it: the bytes of its file, or its path."""
    if not (isinstance(value, Mapping) and value.keys() == {"bytes", "path"} and any(value.values())):
        return False
    return isinstance(value["bytes"] or b"", bytes) and isinstance(value["path"] or "", str)


def name_of(image: Any) -> str:
    """Of an image or its file; empty for one that was made in memory."""
    if isinstance(image, Mapping):
        return str(image["path"] or "")
    return str(getattr(image, "filename", "")) if isinstance(image, Image.Image) else str(image)


def _outputs(rows: Sequence[Row], asked: Asked) -> tuple[Any, Mapping[str, Tensor]]:
    """A model's outputs for a batch of rows, and its inputs."""
    task = asked.task
    columns = {name: [row.values[name] for row in rows] for name in task.inputs}
    if task.is_image:
        columns[task.inputs[0]] = [_opened(row, task.inputs[0]) for row in rows]
        pixels = np.asarray(encode_rows(columns, task, asked.processor)["pixel_values"])
        batch = {"pixel_values": torch.from_numpy(pixels).to(asked.model.device)}
        with reading_images("the model", pixels.shape[1:]):
            return asked.model(**batch), batch
    encoded = encode_rows(columns, task, asked.processor, max_length=asked.max_length)
    if _cuts(columns, encoded, asked):
        note_shortened(asked.max_length)
    batch = _batch(encoded, asked)
    return asked.model(**batch), batch


def _cuts(columns: Mapping[str, Sequence[Any]], encoded: Mapping[str, Any], asked: Asked) -> bool:
    """Whether some of these texts have more tokens than the model reads. Only those that fill its places are asked."""
    full = [k for k, ids in enumerate(encoded["input_ids"]) if len(ids) >= asked.max_length]
    if not full:
        return False
    filling = {name: [values[k] for k in full] for name, values in columns.items()}
    whole = encode_rows(filling, asked.task, asked.processor, max_length=None)
    return any(len(ids) > asked.max_length for ids in whole["input_ids"])


@cache
def note_shortened(max_length: int) -> None:
    """Say once that texts are read in part."""
    tell(f"note: some texts have more than {max_length} tokens, of which the model reads the first (see max_length)")


def _batch(encoded: Mapping[str, Any], asked: Asked) -> dict[str, Tensor]:
    """Encoded texts, by column, as the model is given them."""
    rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    return dict(TextCollator(asked.processor)(rows).to(asked.model.device))


def _opened(row: Row, column: str) -> Any:
    value = row.values[column]
    try:
        if isinstance(value, Image.Image):
            return _upright(value)
        with Image.open(_file_of(value)) as image:
            return _upright(image)
    except FileNotFoundError as error:
        raise ValueError(
            f"{row.where}: there is no image {name_of(value)}; relative names are looked for in {Path.cwd()}"
        ) from error
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{row.where}: the image {name_of(value)} cannot be read: {error}") from error


def _file_of(value: Any) -> Any:
    if not is_stored(value):
        return value
    return io.BytesIO(value["bytes"]) if value["bytes"] else value["path"]


def _upright(image: Any) -> Any:
    """In three colours, turned as datasets turns those of a training set."""
    return as_rgb(ImageOps.exif_transpose(image))


def _classes(rows: Sequence[Row], asked: Asked) -> list[dict[str, Any]]:
    names = asked.task.labels
    found = []
    for chances in _outputs(rows, asked)[0].logits.float().softmax(-1).tolist():
        best = max(range(len(names)), key=chances.__getitem__)
        found.append({"prediction": names[best], "score": _rounded(chances[best]), **_every(chances, asked)})
    return found


def _several(rows: Sequence[Row], asked: Asked) -> list[dict[str, Any]]:
    names = asked.task.labels
    found = []
    for chances in _outputs(rows, asked)[0].logits.float().sigmoid().tolist():
        said = [k for k, chance in enumerate(chances) if chance > 0.5]
        found.append({
            "prediction": [names[k] for k in said], "score": [_rounded(chances[k]) for k in said],
            **_every(chances, asked),
        })  # fmt: skip
    return found


def _every(chances: Sequence[float], asked: Asked) -> dict[str, Any]:
    if not asked.scores:
        return {}
    return {"scores": {name: _rounded(chance) for name, chance in zip(asked.task.labels, chances, strict=True)}}


def _numbers(rows: Sequence[Row], asked: Asked) -> list[dict[str, Any]]:
    values = _outputs(rows, asked)[0].logits.float().reshape(len(rows), -1)
    return [
        {"prediction": _rounded(row[0]) if len(row) == 1 else [_rounded(v) for v in row]} for row in values.tolist()
    ]


def _tags(rows: Sequence[Row], asked: Asked) -> list[dict[str, Any]]:
    """The prediction for a word is that for its first token."""
    column = asked.task.inputs[0]
    words = [value if isinstance(value := row.values[column], list) else words_of(value) for row in rows]
    encoded = asked.processor(
        [some or [""] for some in words], is_split_into_words=True, truncation=True, max_length=asked.max_length
    )
    best = asked.model(**_batch(encoded, asked)).logits.float().softmax(-1).max(-1)
    found = []
    for k, some in enumerate(words):
        tags: list[str | None] = [None] * len(some)
        scores: list[float | None] = [None] * len(some)
        for token, word in reversed(list(enumerate(encoded.word_ids(k)))):  # so that the first one stays
            if word is not None and word < len(some):
                tags[word] = asked.task.labels[int(best.indices[k, token])]
                scores[word] = _rounded(float(best.values[k, token]))
        found.append({"prediction": tags, "score": scores})
    return found


def _embeddings(rows: Sequence[Row], asked: Asked) -> list[dict[str, Any]]:
    single = Task("classification", ("text",), None)  # the texts of a pair are read apart, one after the other
    texts = [Row(row.where, {"text": row.values[column]}) for row in rows for column in asked.task.inputs]
    outputs, batch = _outputs(texts, replace(asked, task=single))
    vectors = mean_pooled(outputs.last_hidden_state, batch.get("attention_mask")).float().cpu()
    if len(asked.task.inputs) == 2:
        return [{"similarity": _rounded(v)} for v in F.cosine_similarity(vectors[::2], vectors[1::2]).tolist()]
    return [{"embedding": [_rounded(v) for v in vector]} for vector in vectors.tolist()]


def _language(rows: Sequence[Row], asked: Asked) -> list[dict[str, Any]]:
    talk = next((row for row in rows if isinstance(row.values[asked.task.inputs[0]], list)), None)
    if talk is not None and asked.processor.chat_template is None:
        raise ValueError(f"{talk.where} is a conversation and the tokenizer has no chat template; give texts")
    # Perplexities one after the other: a vocabulary of logits a token is large.
    found = [{"perplexity": _rounded(_perplexity(row, asked))} for row in rows]
    if not asked.new_tokens:
        return found
    prompts, blanks = zip(*(_prompt(row, asked) for row in rows), strict=True)
    said = [text.removeprefix(blank) for text, blank in zip(_continued(prompts, asked), blanks, strict=True)]
    return [{"prediction": text, **other} for text, other in zip(said, found, strict=True)]


def _perplexity(row: Row, asked: Asked) -> float | None:
    """exp of the mean loss a token of a row, its end included; None for a row of a single token."""
    columns = [[row.values[name]] for name in asked.task.inputs]
    encoded = encode_language(columns, asked.processor, places(asked.model), answers_only=False)
    ids = torch.tensor(encoded["input_ids"], dtype=torch.long, device=asked.model.device)
    if ids.shape[1] < 2:
        return None
    losses, _ = asked.task.kept_outputs(asked.model(input_ids=ids).logits, ids)
    return float(losses.double().mean().exp())


def _prompt(row: Row, asked: Asked) -> tuple[list[int], str]:
    """The tokens to continue, and blanks behind them that belong to the next one."""
    tokenizer, value = asked.processor, row.values[asked.task.inputs[0]]
    if isinstance(value, list):
        turns = [without_nulls(turn) for turn in (value[:-1] if value[-1]["role"] == "assistant" else value)]
        if not turns:
            raise ValueError(
                f"{row.where} is an answer alone, and what it answers is continued; put that before it, or ask for no "
                "new_tokens"
            )
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids, blank = _before_more(text, tokenizer, add_special_tokens=False)
    else:
        ids, blank = _before_more(value, tokenizer)
        ends = {tokenizer.eos_token_id, tokenizer.sep_token_id}
        while len(ids) > 1 and ids[-1] in ends:  # some tokenizers put an end behind every text
            ids = ids[:-1]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not ids and start is None:
        raise ValueError(f"{row.where} is empty, and the tokenizer has no token to begin with; give a text")
    ids, most = list(ids or [start]), places(asked.model)
    if most is None:
        return ids, blank
    if len(ids) > most - asked.new_tokens:
        note_cut(most, asked.new_tokens)
    return ids[asked.new_tokens - most :], blank


def _before_more(text: str, tokenizer: Any, **options: Any) -> tuple[list[int], str]:
    """A text's tokens as they are before a word, and the blanks at its end that are in one token with that word.

    Training puts prompt and answer together first. By itself, a blank at the end is a token that it has hardly seen.
    """
    if text[-1:].isspace() and tokenizer.is_fast:
        more = tokenizer(f"{text}a", return_offsets_mapping=True, verbose=False, **options)
        for place, (first, last) in enumerate(more["offset_mapping"]):
            if first < len(text) < last and text[first:].isspace():
                return list(more["input_ids"][:place]), text[first:]
    return list(tokenizer(text, verbose=False, **options)["input_ids"]), ""


@cache
def note_cut(places: int, new_tokens: int) -> None:
    """Say once that texts are continued from their ends alone."""
    tell(
        f"note: the model has places for {places} tokens and new_tokens is {new_tokens}; of a longer text it reads the "
        f"last {places - new_tokens}"
    )


def _continued(prompts: Sequence[list[int]], asked: Asked) -> list[str]:
    """What a language model says next, by the likeliest token at every place."""
    tokenizer, longest = asked.processor, max(map(len, prompts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=asked.model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=asked.model.device)
    said = asked.model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=asked.new_tokens, do_sample=False, num_beams=1,
        pad_token_id=pad,
    )  # fmt: skip
    return [str(text) for text in tokenizer.batch_decode(said[:, longest:], skip_special_tokens=True)]


def _rounded(value: float | None) -> float | None:
    """A float32 in as many digits as it has."""
    return None if value is None else float(f"{value:.7g}")


ANSWERS: dict[str, Callable[[Sequence[Row], Asked], list[dict[str, Any]]]] = {
    "classification": _classes,
    "image-classification": _classes,
    "multi-label": _several,
    "regression": _numbers,
    "token-classification": _tags,
    "similarity": _embeddings,
    "causal-lm": _language,
}
