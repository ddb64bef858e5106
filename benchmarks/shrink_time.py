"""How long `shrink` takes, beside the teacher's forward passes over the same examples."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.measure import DEVICE, alternate, write
from opdf.data import load_data, minilm
from opdf.distill import shrink

Case = tuple[str, Any, list[dict[str, torch.Tensor]], dict[str, int]]
"""The teacher's name, the teacher, batches and the student's sizes."""


def main() -> None:
    """MiniLM to half the width."""
    measured("shrink-time", *minilm_cases(512, 192))


def minilm_cases(examples: int, width: int) -> list[Case]:
    """A narrower stream, narrower feed-forward too, and that of a classifier, whose gradients count."""
    model, batches = minilm_and_texts(examples)
    classifier = AutoModelForSequenceClassification.from_pretrained(minilm(), num_labels=2).to(DEVICE).eval()
    both = {"hidden_size": width, "intermediate_size": 4 * width}
    return [
        ("MiniLM", model, batches, {"hidden_size": width}),
        ("MiniLM", model, batches, both),
        ("MiniLM, a classifier", classifier, batches, both),
    ]


def measured(result: str, *cases: Case, repeats: int = 3) -> None:
    """Write a table of that name."""
    rows = []
    for name, teacher, batches, sizes in cases:
        runs = {
            "forward passes": partial(_forward, teacher, batches),
            "shrink": partial(shrink, teacher, batches, **sizes),
        }
        found = alternate(runs, repeats)
        tokens = sum(int(b.get("attention_mask", b["input_ids"]).ne(0).sum()) for b in batches)
        ratio = found["shrink"].median / found["forward passes"].median
        rows.append({"teacher": name, **sizes, "tokens": tokens, **found, "ratio": ratio})
    columns = {key: "" for row in rows for key in row}
    write(
        result, "Time of shrink to half the width", [columns | row for row in rows],
        f"Medians of {repeats} alternating runs; the teacher's forward passes are those over the same examples.",
    )  # fmt: skip


def minilm_and_texts(examples: int) -> tuple[Any, list[dict[str, torch.Tensor]]]:
    """MiniLM, and film reviews three in a row, so that nearly all have 48 tokens and more."""
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    single = load_data("movie-sentiment")[0]["train"]["text"]
    texts = [" ".join(single[k : k + 3]) for k in range(0, 3 * examples, 3)]
    encode = {"padding": "max_length", "truncation": True, "max_length": 48, "return_tensors": "pt"}
    batches = [dict(tokenizer(texts[k : k + 64], **encode).to(DEVICE)) for k in range(0, len(texts), 64)]
    return AutoModel.from_pretrained(minilm(), dtype=torch.float32).to(DEVICE).eval(), batches


@torch.no_grad()
def _forward(model: Any, batches: list[dict[str, torch.Tensor]]) -> None:
    for inputs in batches:
        model(**inputs)
