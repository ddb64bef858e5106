"""Latency of a student trained over-parameterized and saved, against one that was never decomposed."""

from __future__ import annotations

import tempfile

import torch
from transformers import BertForSequenceClassification

from benchmarks.contenders import CONTENDERS, batch, student
from benchmarks.measure import DEVICE, alternate, write


def main(repeats: int = 21) -> None:
    data = batch("MiniLM")
    trained = student("MiniLM")
    CONTENDERS["opdf"](trained, data, 3)(1)
    with tempfile.TemporaryDirectory() as folder:
        trained.save_pretrained(folder)
        saved = BertForSequenceClassification.from_pretrained(folder).to(DEVICE).eval()
    never = student("MiniLM").eval()
    trained.eval()
    with torch.inference_mode():
        difference = float(
            (saved(data.inputs["input_ids"]).logits - trained(data.inputs["input_ids"]).logits).abs().max()
        )
        times = alternate(
            {
                "never decomposed": lambda: never(data.inputs["input_ids"]),
                "saved": lambda: saved(data.inputs["input_ids"]),
            },
            repeats,
        )
    rows = [{**times, "ratio": times["saved"].median / times["never decomposed"].median, "max difference": difference}]
    write("inference", "Inference of a saved student, MiniLM with 3 layers, 16x32 tokens", rows)
