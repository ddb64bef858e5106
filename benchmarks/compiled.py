"""Whether `OverParamConfig(compile=True)` makes the step of one matrix's cores faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import opdf
from benchmarks.measure import DEVICE, alternate, synchronize, write

SIZES = ((384, 384), (1536, 384), (768, 768))


def step(weight: Tensor, grad: Tensor, *, compiled: bool) -> Callable[[], Any]:
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
    model.weight.data.copy_(weight)
    over = opdf.overparameterize(model, opdf.OverParamConfig(ones=3, targets=["*"], compile=compiled))
    optimizer = over.optimizer(torch.optim.AdamW, lr=1e-5, weight_decay=0.0, fused=True)
    model.weight.grad = grad
    optimizer.start()
    return optimizer.step


def main(repeats: int = 21) -> None:
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        weight, grad = torch.randn(size, device=DEVICE) * 0.04, torch.randn(size, device=DEVICE) * 1e-3
        eager, compiled = (step(weight, grad, compiled=way) for way in (False, True))
        synchronize()
        start = time.perf_counter()
        for _ in range(2):  # the second one has products to use again, which is another graph
            compiled()
        synchronize()
        seconds = time.perf_counter() - start
        times = alternate({"opdf": eager, "compiled": compiled}, repeats, warmup=3)
        faster = times["opdf"].median / times["compiled"].median
        rows.append({"matrix": f"{size[0]}x{size[1]}", "first two s": seconds, **times, "opdf / compiled": faster})
    notes = f"Medians of {repeats} alternating steps, AdamW, float32, L = 3."
    write("compiled", "torch.compile of the step of one matrix's cores", rows, notes)
