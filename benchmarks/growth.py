"""How the cost of a step grows with width, L and tokens: ours over plain."""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForSequenceClassification

import opdf
from benchmarks.contenders import Batch, ours, plain
from benchmarks.measure import DEVICE, alternate, write

BASE = {"width": 256, "depth": 3, "L": 3, "tokens": 512}
SWEEPS = {"width": (128, 256, 512), "depth": (1, 3, 6), "L": (0, 1, 3, 8), "tokens": (256, 512, 2048)}


def main(repeats: int = 7) -> None:
    rows = []
    for axis, values in SWEEPS.items():
        for value in values:
            size = BASE | {axis: value}
            config = BertConfig(
                hidden_size=size["width"], num_attention_heads=4, intermediate_size=4 * size["width"],
                num_hidden_layers=size["depth"], vocab_size=1000, num_labels=2,
            )  # fmt: skip
            teacher = BertForSequenceClassification(config).to(DEVICE).eval().requires_grad_(False)
            ids = torch.randint(0, 1000, (size["tokens"] // 32, 32)).to(DEVICE)
            data = Batch({"input_ids": ids}, teacher)
            steps = {
                n: f(BertForSequenceClassification(config).to(DEVICE), data, size["L"])
                for n, f in (("plain", plain), ("opdf", ours))
            }
            times = alternate({n: lambda s=s: s(1) for n, s in steps.items()}, repeats)
            planned = opdf.overparameterize(BertForSequenceClassification(config), opdf.OverParamConfig(ones=size["L"]))
            gflop = sum(3 * t.shape.contract_flops for t in planned.matrices) / 1e9
            rows.append({"varied": axis, **size, **times, "ratio": times["opdf"].median / times["plain"].median,
                         "extra s": times["opdf"].median - times["plain"].median, "floor GFLOP": gflop})  # fmt: skip
    write("growth", "Growth of the step with width, depth, L and tokens (accumulation 1)", rows)
