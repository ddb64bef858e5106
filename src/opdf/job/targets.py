"""What some methods want from the teacher before training: decisions counted, outputs stored."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import DatasetDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import BatchEncoding

from opdf.data import ImageNoise, TextNoise, encode_rows
from opdf.distill import DecisionDistillation, Objective, SparseLogitsDistillation
from opdf.distill.dbkd import count_decisions, decision_logits
from opdf.distill.sparse_logits import LogitsStore, StoredDataset, StoreInfo, fingerprint, noisy, weights_digest
from opdf.files import replacing
from opdf.job.config import DistillConfig
from opdf.job.errors import UserError
from opdf.job.prepared import Prepared
from opdf.job.progress import counting

BATCH = 128


def training_rows(objective: Objective, config: DistillConfig, prepared: Prepared, teacher: Any, output: Path) -> Any:
    """The training data, with what the objective needs of the teacher in it."""
    if isinstance(objective, DecisionDistillation):
        return with_decisions(objective, config, prepared, teacher, output / "decisions.safetensors")
    if isinstance(objective, SparseLogitsDistillation):
        return stored(objective, config, prepared, teacher)
    return prepared.data["train"]


def with_decisions(
    objective: DecisionDistillation, config: DistillConfig, prepared: Prepared, teacher: Any, cache: Path
) -> Any:
    """The training data with logits recovered from decisions; the counts are kept in `cache` for a resumed run."""
    if config.constraint is not None:
        note = "note: the constraint loss reads the teacher's weights, which a black box would not show"
        print(note, file=sys.stderr, flush=True)
    if prepared.task.kind == "regression":
        raise UserError("objective dbkd is for classification: a regression has no decisions to count")
    examples = list(zip(*(prepared.raw["train"][c] for c in prepared.task.inputs), strict=True))
    options = f"{config.data.max_length} {objective.copies} {objective.noise} {objective.seed}"
    key = f"{fingerprint(prepared.raw['train'])} {weights_digest(teacher)} {options}"
    with PartialState().main_process_first():
        counts = _kept_counts(cache, key)
        if counts is None:
            with counting("asking the teacher") as progress:
                counts = count_decisions(
                    Decisions(teacher, prepared, config.data.max_length), examples, prepared.task.num_labels,
                    _example_noise(prepared, objective.noise), copies=objective.copies, seed=objective.seed,
                    progress=progress,
                )  # fmt: skip
            with replacing(cache) as scratch:
                save_file({"counts": torch.from_numpy(counts)}, scratch, {"key": key})
    found = decision_logits(counts, solver=objective.solver).astype(np.float32)
    return _with_column(prepared.data["train"], "decision_logits", found)


def _kept_counts(cache: Path, key: str) -> np.ndarray | None:
    """The counts of an earlier part of this run; None where none of the same data, teacher and options are whole."""
    if not cache.is_file():
        return None
    with suppress(SafetensorError), safe_open(cache, "pt") as file:
        if (file.metadata() or {}).get("key") == key:
            counts: np.ndarray = file.get_tensor("counts").numpy()
            return counts
    return None


def with_teacher_logits(prepared: Prepared, teacher: Any) -> Prepared:
    """The data with the teacher's logits beside its training examples, so that no teacher has to run with a student."""
    train = prepared.data["train"]
    logits = [
        teacher_logits(teacher, prepared, [train[k] for k in range(start, min(start + BATCH, len(train)))])
        for start in range(0, len(train), BATCH)
    ]
    return replace(
        prepared,
        data=DatasetDict({**prepared.data, "train": _with_column(train, "teacher_logits", torch.cat(logits).numpy())}),
    )


def _with_column(data: Any, name: str, values: np.ndarray) -> Any:
    return data.with_format(None).add_column(name, list(values)).with_format(data.format["type"])


class Decisions:
    """A transformers model as the black box that DBKD asks: raw examples to class numbers."""

    def __init__(self, model: Any, prepared: Prepared, max_length: int = 128) -> None:
        self.model, self.prepared, self.max_length = model, prepared, max_length

    def __call__(self, examples: Sequence[tuple[Any, ...]]) -> list[int]:
        task = self.prepared.task
        rows = dict(zip(task.inputs, map(list, zip(*examples, strict=True)), strict=True))
        rows[task.label] = [0] * len(examples)
        encoded = encode_rows(rows, task, self.prepared.processor, max_length=self.max_length)
        return teacher_logits(self.model, self.prepared, _by_row(encoded)).argmax(-1).tolist()


def store_of(objective: SparseLogitsDistillation, config: DistillConfig, prepared: Prepared, teacher: Any) -> StoreInfo:
    """What the store of this configuration holds."""
    if not objective.store:
        raise UserError("objective.options.store is not set; name the folder for the teacher's outputs")
    if objective.noise and not prepared.task.is_image:
        raise UserError("objective.options.noise is for images; texts are stored once, as they are")
    classes = prepared.task.num_labels
    return StoreInfo(
        rows=len(prepared.data["train"]),
        epochs=objective.stored_epochs,
        classes=classes,
        top_k=min(objective.top_k, classes),
        data=fingerprint(_stored_examples(objective, prepared), _row_noise(objective, prepared)),
        teacher=weights_digest(teacher),
        seed=config.data.seed,
    )


def write_store(
    objective: SparseLogitsDistillation, config: DistillConfig, prepared: Prepared, teacher: Any
) -> LogitsStore:
    """Run the teacher over what the store does not hold yet."""
    store = LogitsStore.create(Path(objective.store) / "logits", store_of(objective, config, prepared, teacher))
    examples, noise = _stored_examples(objective, prepared), _row_noise(objective, prepared)
    encode = _encoder(objective, config, prepared)
    done, total = 0, store.info.rows * store.info.epochs
    with counting("running the teacher") as progress:
        for epoch, shard, rows in store.missing():
            seeds, logits = store.seeds(epoch, rows), []
            for start in range(0, len(rows), BATCH):
                some = rows[start : start + BATCH]
                inputs = [encode(noisy(examples[row], int(seeds[start + k]), noise)) for k, row in enumerate(some)]
                logits.append(teacher_logits(teacher, prepared, inputs))
                done += len(some)
                progress(done, total)
            store.write(epoch, shard, seeds, torch.cat(logits))
    return store


def stored(objective: SparseLogitsDistillation, config: DistillConfig, prepared: Prepared, teacher: Any) -> Any:
    """The training data beside the stored outputs of the teacher."""
    store = LogitsStore(Path(objective.store) / "logits", store_of(objective, config, prepared, teacher))
    examples, noise = _stored_examples(objective, prepared), _row_noise(objective, prepared)
    return StoredDataset(examples, store, _encoder(objective, config, prepared), noise)


def teacher_logits(teacher: Any, prepared: Prepared, inputs: list[dict[str, Any]]) -> torch.Tensor:
    """Logits `[examples, classes]` of encoded examples, on the CPU."""
    device = next(teacher.parameters()).device
    batch = BatchEncoding(prepared.collator(inputs)).to(device)
    batch.pop("labels")
    was = teacher.training
    with torch.no_grad():
        logits = teacher.eval()(**batch).logits.cpu()
    teacher.train(was)
    return logits


def _stored_examples(objective: SparseLogitsDistillation, prepared: Prepared) -> Any:
    return prepared.raw["train"] if objective.noise else prepared.data["train"]


def _encoder(objective: SparseLogitsDistillation, config: DistillConfig, prepared: Prepared) -> Any:
    if not objective.noise:
        return dict

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        columns = {name: [value] for name, value in row.items()}
        return _by_row(encode_rows(columns, prepared.task, prepared.processor, max_length=config.data.max_length))[0]

    return encode


def _row_noise(objective: SparseLogitsDistillation, prepared: Prepared) -> Any:
    if not objective.noise:
        return None
    image, noise = prepared.task.inputs[0], ImageNoise()
    return lambda row, rng: {**row, image: noise(row[image], rng)}


def _example_noise(prepared: Prepared, rate: float) -> Any:
    """Noise for tuples of inputs."""
    if prepared.task.is_image:
        images = ImageNoise()
        return lambda example, rng: (images(example[0], rng),)
    texts = TextNoise([text for c in prepared.task.inputs for text in prepared.raw["train"][c]], rate)
    return lambda example, rng: tuple(texts(text, rng) for text in example)


def _by_row(columns: dict[str, Any]) -> list[dict[str, Any]]:
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
