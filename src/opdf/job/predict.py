"""Predictions of a saved model for the rows of a file or a pipe."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from opdf.data import (
    ROW_FORMATS,
    Row,
    Task,
    TextCollator,
    as_rgb,
    encode_language,
    encode_rows,
    padding,
    parse_rows,
    read_rows,
)
from opdf.distill import has_no_head, mean_pooled
from opdf.job.config import TeacherConfig
from opdf.job.errors import UserError
from opdf.job.models import load_processor, load_saved, places, reading_images, settle_padding
from opdf.job.options import read_config
from opdf.job.output import CONFIG
from opdf.job.processes import tell
from opdf.job.saved import Saved, find_saved
from opdf.mpo import Progress

KINDS = {
    "ForImageClassification": "image-classification",
    "ForTokenClassification": "token-classification",
    "ForCausalLM": "causal-lm",
    "LMHeadModel": "causal-lm",
}
"""Endings of the names of transformers' classes, and the tasks that they are for."""

USUAL = {
    "image-classification": ("image", "file_name", "file"),
    "token-classification": ("tokens", "words", "text"),
    "causal-lm": ("messages", "conversations", "text"),
}
"""Columns that a model reads if nobody names them, by task; other tasks read `text`."""

ADDED = {
    "regression": ("prediction",),
    "similarity": ("embedding", "similarity"),
    "causal-lm": ("prediction", "perplexity"),
}
"""Names of the columns that are added, by task; other tasks have `prediction`, `score` and `scores`."""

MOST_TOKENS = 512
"""Tokens of a text, if neither run nor tokenizer nor model says how many."""


@dataclass(frozen=True)
class Asked:
    """How a model is asked, see `predict`."""

    model: Any
    processor: Any
    task: Task
    scores: bool
    new_tokens: int
    max_length: int


def predict(
    name: str | Path,
    rows: str | Path | IO[bytes] | Iterable[Any],
    *,
    form: str | None = None,
    inputs: str | Sequence[str] | None = None,
    scores: bool = False,
    new_tokens: int = 50,
    max_length: int | None = None,
    batch: int = 32,
    progress: Progress | None = None,
) -> Iterator[dict[str, Any]]:
    """Predictions of a saved model for some rows, one after the other.

        for answer in predict("runs/mine", ["A fine film.", "Dull."]):
            print(answer["prediction"], answer["score"])

    Added to a row are, by the model's task:

    - a class: `prediction`, its name, and `score`, its probability
    - several labels: lists of them
    - a regression: `prediction`, a number
    - tags of words: `prediction` and `score`, lists with an entry for every word, null for words that are cut off
    - a sentence model: `embedding`, the mean of the last hidden states, or the cosine `similarity` of two texts
    - a language model: `prediction`, its likeliest continuation, and `perplexity` of the row itself; it continues a
      conversation without the last answer

    Args:
        name: an output folder of `opdf distill`, a saved model's folder, or a hub name.
        rows: a file, a folder of images, an open stream of bytes, or values: texts, names of images, images, or
            mappings with the columns.
        form: lines, csv, tsv or jsonl, of a stream (lines by default) or of a file whose name does not say it.
        inputs: the column that is read, or two of a pair; those that the run was trained on by default.
        scores: add `scores`, the probability of every class by name.
        new_tokens: length of a continuation; 0 gives perplexities only.
        max_length: of a text in tokens; the run's by default, else as many as tokenizer and model take.
        batch: rows at a time.
        progress: called with the numbers of rows done and in all; of a stream with the first twice.

    Raises:
        UserError, ValueError, TypeError, FileNotFoundError: the model or the rows cannot be read, or rows are not what
            the model reads. Files and values are checked before the first answer, a stream row by row.
    """
    if batch < 1 or new_tokens < 0:
        raise UserError(f"batch is {batch} and new_tokens {new_tokens}; give at least 1 and at least 0")
    if form is not None and form not in ROW_FORMATS:
        raise UserError(f"form is {form!r}; expected one of {', '.join(ROW_FORMATS)}")
    saved = find_saved(str(name))
    found, is_stream = _rows(rows, form)
    first = next(found, None)
    if first is None:
        return iter(())
    asked = _asked(saved, first, inputs, scores, new_tokens, max_length)
    read = (_read(row, asked.task) for row in itertools.chain([first], found))
    known = read if is_stream else list(read)
    return _answered(known, asked, batch, progress)


def _rows(rows: Any, form: str | None) -> tuple[Iterator[Row], bool]:
    """The rows, and whether they come from a stream and can be looked at only once."""
    if isinstance(rows, str | Path):
        return read_rows(rows, form), False
    if hasattr(rows, "read"):
        return parse_rows(rows, form or "lines"), True
    values = (value if isinstance(value, Mapping) else {None: value} for value in rows)
    return (Row(f"row {k}", value) for k, value in enumerate(values, 1)), False


def _asked(
    saved: Saved, first: Row, inputs: str | Sequence[str] | None, scores: bool, new_tokens: int, max_length: int | None
) -> Asked:
    model = load_saved(saved.model)
    kind = _kind(saved.model, model)
    if scores and kind not in ("classification", "multi-label", "image-classification"):
        raise UserError(
            f"scores is true and {saved.model} is for {kind}; it is for classes of whole rows: leave it out"
        )
    if max_length is not None and kind in ("image-classification", "causal-lm"):
        raise UserError(
            f"max_length is {max_length} and {saved.model} is for {kind}, of which nothing is cut: leave it out"
        )
    names = (inputs,) if isinstance(inputs, str) else tuple(inputs or saved.metrics.get("inputs", ()))
    labels = tuple(str(model.config.id2label[k]) for k in sorted(model.config.id2label))
    task = Task(kind, names or _usual(first, kind), None, () if kind in ("regression", "causal-lm") else labels)
    processor = load_processor(TeacherConfig(model=saved.model), task)
    if kind == "causal-lm":
        processor = padding(processor)
    elif not task.is_image:
        settle_padding(saved.model, model)
    if kind == "causal-lm" and (most := places(model)) is not None and new_tokens >= most:
        raise UserError(f"new_tokens is {new_tokens}; {saved.model} has places for {most} tokens")
    length = 0 if task.is_image or kind == "causal-lm" else _length(saved, model, processor, max_length)
    return Asked(model.to(PartialState().device), processor, task, scores, new_tokens, length)


def _kind(name: str, model: Any) -> str:
    """The kind of task that a model is for.

    Raises:
        UserError: there are no predictions for its task.
    """
    kind = type(model).__name__
    if kind.endswith("ForSequenceClassification"):
        problem = model.config.problem_type
        if problem == "multi_label_classification":
            return "multi-label"
        return "regression" if problem == "regression" or model.config.num_labels == 1 else "classification"
    found = next((task for end, task in KINDS.items() if kind.endswith(end)), None)
    if found == "image-classification" and not _has_one_class(model.config):
        raise UserError(f"{name} is a {kind} for several labels or for a number; of images predict says one class each")
    if (
        found is None
        and has_no_head(model)
        and not model.config.is_encoder_decoder
        and model.main_input_name == "input_ids"
    ):
        return "similarity"
    if found is None:
        raise UserError(
            f"{name} is a {kind}; predict is for classes, numbers and tags of texts, classes of images, sentence "
            "embeddings and decoders"
        )
    return found


def _has_one_class(config: Any) -> bool:
    """Whether the outputs are scores of classes, of which an example has one."""
    return config.problem_type in (None, "single_label_classification") and config.num_labels > 1


def _usual(first: Row, kind: str) -> tuple[str, ...]:
    """The column that is read, if nobody has named it.

    Raises:
        UserError: there are several that could be meant.
    """
    columns = [column for column in first.values if column is not None]
    if not columns:
        return ("image" if kind == "image-classification" else "text",)
    named = [column for column in USUAL.get(kind, ("text",)) if column in columns]
    texts = named or [column for column, value in first.values.items() if isinstance(value, str)]
    if not named and len(texts) != 1:
        raise UserError(f"{first.where} has the columns {', '.join(columns)}; say in inputs which the model reads")
    return (texts[0],)


def _length(saved: Saved, model: Any, processor: Any, given: int | None) -> int:
    """Tokens of a text at most."""
    most = min(processor.model_max_length, places(model) or MOST_TOKENS)
    if given is not None and not 0 < given <= most:
        raise UserError(f"max_length is {given}; {saved.model} reads 1 to {most} tokens")
    usual = read_config(str(saved.run / CONFIG)).data.max_length if saved.run is not None else MOST_TOKENS
    return int(given or min(most, usual))


def _read(row: Row, task: Task) -> Row:
    """A row with its columns named, and with values that the model can read.

    Raises:
        ValueError: something is missing or is not what the model reads.
    """
    values = dict(row.values)
    if None in values:
        if len(task.inputs) > 1:
            raise ValueError(f"{row.where} is one text and the model reads {' and '.join(task.inputs)}; give columns")
        values[task.inputs[0]] = values.pop(None)
    taken = next((c for c in ADDED.get(task.kind, ("prediction", "score", "scores")) if c in values), None)
    if taken is not None:
        raise ValueError(f"{row.where} has a column {taken!r}, which answers are called; rename it")
    for column in task.inputs:
        if column not in values:
            raise ValueError(
                f"{row.where} has no column {column!r}, which the model reads; it has {', '.join(map(str, values))}: "
                "name others in inputs"
            )
        if not _fits(values[column], task.kind):
            raise ValueError(
                f"{row.where} has {str(values[column])[:40]!r} in {column!r}; the model reads {READ[task.kind]}"
            )
    return replace(row, values=values)


READ = {
    "image-classification": "images or their names",
    "token-classification": "texts or lists of words",
    "causal-lm": "texts or lists of messages",
    **dict.fromkeys(("classification", "multi-label", "regression", "similarity"), "texts"),
}


def _fits(value: Any, kind: str) -> bool:
    if kind == "image-classification":
        return isinstance(value, Image.Image) or (isinstance(value, str | Path) and bool(str(value)))
    if kind == "token-classification" and isinstance(value, list):
        return bool(value) and all(isinstance(word, str) for word in value)
    if kind == "causal-lm" and isinstance(value, list):
        return bool(value) and all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value)
    return isinstance(value, str)


def _answered(rows: Iterable[Row], asked: Asked, batch: int, progress: Progress | None) -> Iterator[dict[str, Any]]:
    waiting, done, total = iter(rows), 0, len(rows) if isinstance(rows, list) else None
    while some := list(itertools.islice(waiting, batch)):
        with torch.no_grad():
            answers = ANSWERS[asked.task.kind](some, asked)
        for row, answer in zip(some, answers, strict=True):
            yield {**_shown(row.values, asked.task), **answer}
        done += len(some)
        if progress is not None:
            progress(done, total or done)


def _shown(values: Mapping[Any, Any], task: Task) -> dict[str, Any]:
    """A row as it is repeated: an image by its name."""
    images = task.inputs if task.is_image else ()
    return {column: _name_of(value) if column in images else value for column, value in values.items()}


def _name_of(image: Any) -> str:
    """Of an image or its file; empty for one that was made in memory."""
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
    batch = _batch(encoded, asked)
    return asked.model(**batch), batch


def _batch(encoded: Mapping[str, Any], asked: Asked) -> dict[str, Tensor]:
    """Encoded texts, by column, as the model is given them."""
    rows = [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]
    return dict(TextCollator(asked.processor)(rows).to(asked.model.device))


def _opened(row: Row, column: str) -> Any:
    value = row.values[column]
    try:
        if isinstance(value, Image.Image):
            return _upright(value)
        with Image.open(value) as image:
            return _upright(image)
    except FileNotFoundError as error:
        raise ValueError(
            f"{row.where}: there is no image {_name_of(value)}; relative names are looked for in {Path.cwd()}"
        ) from error
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{row.where}: the image {_name_of(value)} cannot be read: {error}") from error


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
    words = [value if isinstance(value := row.values[column], list) else value.split() for row in rows]
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
    said = _continued([_prompt(row, asked) for row in rows], asked)
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


def _prompt(row: Row, asked: Asked) -> list[int]:
    """The tokens to continue."""
    tokenizer, value = asked.processor, row.values[asked.task.inputs[0]]
    if isinstance(value, list):
        turns = value[:-1] if value[-1]["role"] == "assistant" else value
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    else:
        ids = tokenizer(value, verbose=False)["input_ids"]
        ends = {tokenizer.eos_token_id, tokenizer.sep_token_id}
        while len(ids) > 1 and ids[-1] in ends:  # some tokenizers put an end behind every text
            ids = ids[:-1]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if not ids and start is None:
        raise ValueError(f"{row.where} is empty, and the tokenizer has no token to begin with; give a text")
    ids, most = list(ids or [start]), places(asked.model)
    if most is None:
        return ids
    if len(ids) > most - asked.new_tokens:
        note_cut(most, asked.new_tokens)
    return ids[asked.new_tokens - most :]


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
