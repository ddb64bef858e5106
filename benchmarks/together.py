"""The optimizer's step with matrices one by one, and as it is: small ones in stacks, large ones one a thread.

Gradients are fixed, so that nothing but the step is timed. The ViT has the constraint, as in studies/narrow.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

import opdf
from benchmarks.contenders import student
from benchmarks.measure import DEVICE, alternate, write
from opdf.overparam import cores as shipped

GRID = (("ViT, width 48", 3), ("MiniLM", 1), ("MiniLM", 3), ("MiniLM", 8))


def vit(width: int) -> nn.Module:
    return ViTForImageClassification(
        ViTConfig(image_size=28, patch_size=7, hidden_size=width, num_hidden_layers=4, num_attention_heads=4,
                  intermediate_size=4 * width, num_channels=1, num_labels=10)
    ).to(DEVICE)  # fmt: skip


def stepper(name: str, ones: int) -> Callable[[], Any]:
    model = student(name) if name == "MiniLM" else vit(48)
    overparam = opdf.overparameterize(model, opdf.OverParamConfig(ones=ones))
    if name != "MiniLM":
        overparam.align(vit(96), opdf.Constraint(weight=0.1))
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return overparam.optimizer(torch.optim.AdamW, lr=1e-5, fused=True).step


def one_by_one(step: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        with mock.patch.multiple(shipped, STACK_ENTRIES={}, BESIDE_FLOPS=math.inf):
            step()

    return run


def main(repeats: int = 21) -> None:
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for name, ones in GRID:
        times = alternate({"one by one": one_by_one(stepper(name, ones)), "opdf": stepper(name, ones)}, repeats)
        rows.append({"model": name, "L": ones, **times, "ratio": times["opdf"].median / times["one by one"].median})
        write(
            "together",
            "The optimizer's step, matrices one by one and together",
            rows,
            f"Medians of {repeats} alternating runs, AdamW, float32; the model's passes are not included.",
        )
