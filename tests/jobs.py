"""Small jobs for tests: configurations whose runs take a second."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from opdf.job import DistillConfig
from opdf.job.options import fill, merged

VIT = {
    "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 4,
    "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
DIGITS: dict[str, Any] = {
    "data": {"name": "digits", "train_limit": 64},
    "teacher": {"model": None, "finetune": True, "config": VIT, "training": {"max_steps": 3, "use_cpu": True}},
    "student": {"layers": 2},
    "overparam": {"ones": 1},
    "constraint": {"weight": 1.0},
    "training": {
        "max_steps": 4, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 2, "use_cpu": True,
        "per_device_train_batch_size": 8,
    },
}  # fmt: skip

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 8}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{k}" for k in range(40))]
TEXTS = [f"w{k % 9} w{k % 7}" for k in range(60)]


def digits(folder: Path, **changes: Any) -> DistillConfig:
    """Distillation of a ViT of two blocks from one of four, into a folder; `changes` are merged into `DIGITS`."""
    config: DistillConfig = fill(DistillConfig, merged(DIGITS | {"output": str(folder)}, changes), "config")
    return config


def bert(folder: Path, words: list[str] = WORDS, **options: Any) -> BertForSequenceClassification:
    """A BERT of two tiny blocks with its tokenizer, saved."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 8,
             "max_position_embeddings": 32}  # fmt: skip
    made = BertForSequenceClassification(BertConfig(**(sizes | {"vocab_size": len(words)} | options)))
    made.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return made


def texts(file: Path, labels: list[Any] | None = None) -> Path:
    """Sixty texts with the labels 0 and 1, as JSON lines."""
    rows = zip(TEXTS, labels or [k % 2 for k in range(len(TEXTS))], strict=True)
    file.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return file


def read_only_folder() -> Path | None:
    """A place on a file system that is mounted without the right to write, which keeps out root too."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, _, options, *_ = line.split()
        if "ro" in options.split(",") and Path(place).is_dir():
            return Path(place)
    return None


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """Inside, the system refuses files above so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
