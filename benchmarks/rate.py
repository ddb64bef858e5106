"""How far a step of the cores moves a weight, over what the same optimizer would have moved it densely.

Two blocks of MiniLM are fine-tuned on tweets. Beside the cores an optimizer of the dense weights gets the same
gradients in every step, keeps its own moments, and starts each step from the weights that the cores have made.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.optimization import Adafactor

import opdf
from benchmarks.measure import DEVICE, write
from opdf.data import load_data, minilm
from opdf.distill import keep_layers

STEPS, EXAMPLES, TOKENS = 200, 8, 32
FACTORED = {"scale_parameter": False, "relative_step": False}
RUNS: list[tuple[str, Any, dict[str, Any], int, str]] = [
    ("AdamW", torch.optim.AdamW, {"lr": 1e-4}, 3, "as it comes"),
    ("AdamW", torch.optim.AdamW, {"lr": 1e-4}, 0, "as it comes"),
    ("AdamW", torch.optim.AdamW, {"lr": 1e-4}, 1, "as it comes"),
    ("AdamW", torch.optim.AdamW, {"lr": 1e-4}, 8, "as it comes"),
    ("AdamW", torch.optim.AdamW, {"lr": 1e-4}, 3, "first gradient in one row"),
    ("AdamW", torch.optim.AdamW, {"lr": 1e-4}, 3, "warm-up from 0"),
    ("RAdam", torch.optim.RAdam, {"lr": 1e-4}, 3, "as it comes"),
    ("SGD, momentum 0.9", torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9}, 3, "as it comes"),
    ("Adafactor", Adafactor, {"lr": 1e-4, **FACTORED}, 3, "as it comes"),
]


def batches(path: str) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(path)
    raw, task = load_data("tweet-sentiment")
    (text,) = task.inputs
    rows = raw["train"].shuffle(seed=0)
    while True:
        for start in range(0, len(rows) - EXAMPLES, EXAMPLES):
            part = rows[start : start + EXAMPLES]
            tokens = tokenizer(part[text], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt")
            yield tokens.to(DEVICE), torch.tensor(part[task.label]).to(DEVICE)


def movements(inner: Any, options: dict[str, Any], ones: int, start: str) -> tuple[Tensor, list[float]]:
    """`[steps, matrices]`, moved over moved densely; and by matrix the factor of the rate at the end."""
    torch.manual_seed(0)
    path = str(minilm())
    body = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
    model = keep_layers(body, 2).to(DEVICE).train()
    over = opdf.overparameterize(model, opdf.OverParamConfig(ones=ones))
    optimizer = over.optimizer(inner, **options)
    weights = [model.get_parameter(matrix.name) for matrix in over.matrices]
    shadows = [nn.Parameter(weight.detach().clone()) for weight in weights]
    dense = inner(shadows, **options)
    found = []
    for step, (tokens, labels) in zip(range(STEPS), batches(path), strict=False):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(**tokens).logits, labels).backward()
        for group in (*optimizer.param_groups, *dense.param_groups):
            group["lr"] = options["lr"] * (min(1.0, step / 20) if start.startswith("warm-up") else 1.0)
        before = [weight.detach().clone() for weight in weights]
        for weight, shadow, old in zip(weights, shadows, before, strict=True):
            assert weight.grad is not None
            if step == 0 and start.startswith("first"):
                row = weight.grad[5].clone()
                weight.grad.zero_()[5] = row
            shadow.grad = weight.grad.clone()
            shadow.data.copy_(old)
        optimizer.step()
        dense.step()
        ours, theirs = (
            [(w.detach() - old).norm() for w, old in zip(ws, before, strict=True)] for ws in (weights, shadows)
        )
        found.append([float(a / b) if b else math.nan for a, b in zip(ours, theirs, strict=True)])
    return torch.tensor(found), [optimizer.state[weight]["lr_scale"] for weight in weights]


def span(values: Tensor) -> str:
    return f"{statistics.median(values.tolist()):.2f} ({values.min():.2f} to {values.max():.2f})"


def main() -> None:
    rows: list[dict[str, Any]] = []
    for name, inner, options, ones, start in RUNS:
        ratios, factors = movements(inner, options, ones, start)
        at_dense_rate = 1 / torch.tensor(factors)
        steps = {"step 2": ratios[1], "step 10": ratios[9], "step 50": ratios[49], "step 200": ratios[199]}
        # Each of n cores decays by rate * factor * weight_decay; to first order their product does by n times that.
        decay = (ones + 2) * torch.tensor(factors)
        rows.append(
            {"optimizer": name, "L": ones, "gradients": start, **{key: span(value) for key, value in steps.items()},
             "mean": float(ratios[1:].log().mean().exp()), "at the dense rate": span(at_dense_rate),
             "decay over dense decay": span(decay)}
        )  # fmt: skip
        write(
            "rate",
            "Movement of a weight through its cores, over the dense optimizer's, with lr_scaling match-dense",
            rows,
            f"Median and range over the {ratios.shape[1]} matrices of two blocks of MiniLM, fine-tuned on tweets, "
            f"{EXAMPLES} of at most {TOKENS} tokens a step; mean: geometric, over steps 2 to {STEPS} and matrices. "
            "At the dense rate: how far steps move without the factor that the run ended with.",
        )
