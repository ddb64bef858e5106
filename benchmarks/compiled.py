"""Whether torch.compile makes the step of one matrix's cores faster: pull-back, AdamW, contraction.

The first way is the optimizer as it is. The second is the same arithmetic as one compiled function.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import opdf
from benchmarks.measure import DEVICE, alternate, synchronize, write
from opdf.mpo import contract, decompose, plan_shape, pullback

SIZES = ((384, 384), (1536, 384), (768, 768))
RATE, BETAS, EPS = 1e-5, (0.9, 0.999), 1e-8


def optimizer_step(weight: Tensor, grad: Tensor) -> Callable[[], Any]:
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
    model.weight.data.copy_(weight)
    over = opdf.overparameterize(model, opdf.OverParamConfig(ones=3, targets=["*"]))
    optimizer = over.optimizer(torch.optim.AdamW, lr=RATE, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)
    model.weight.grad = grad
    return optimizer.step


def compiled_step(weight: Tensor, grad: Tensor) -> Callable[[], Any]:
    cores = decompose(weight, plan_shape(*weight.shape, ones=3))
    first, second = [torch.zeros_like(core) for core in cores], [torch.zeros_like(core) for core in cores]
    steps, product = torch.zeros((), device=weight.device), weight.clone()

    @torch.compile(dynamic=False)
    def advance(cores: list[Tensor], first: list[Tensor], second: list[Tensor], steps: Tensor) -> Tensor:
        grads = pullback(cores, grad)
        for core, g, m, v in zip(cores, grads, first, second, strict=True):
            m.lerp_(g, 1 - BETAS[0])
            v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
            corrected = (v / (1 - BETAS[1] ** steps)).sqrt() + EPS
            core.sub_(RATE / (1 - BETAS[0] ** steps) * (m / corrected))
        return contract(cores)

    def step() -> None:
        steps.add_(1)
        product.copy_(advance(cores, first, second, steps))

    return step


@torch.no_grad()
def main(repeats: int = 21) -> None:
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        weight, grad = torch.randn(size, device=DEVICE) * 0.04, torch.randn(size, device=DEVICE) * 1e-3
        eager, compiled = optimizer_step(weight, grad), compiled_step(weight, grad)
        synchronize()
        start = time.perf_counter()
        compiled()
        synchronize()
        seconds = time.perf_counter() - start
        times = alternate({"opdf": eager, "compiled": compiled}, repeats, warmup=3)
        faster = times["opdf"].median / times["compiled"].median
        rows.append({"matrix": f"{size[0]}x{size[1]}", "compilation s": seconds, **times, "opdf / compiled": faster})
    notes = f"Medians of {repeats} alternating steps, AdamW, float32, L = 3."
    write("compiled", "torch.compile of the step of one matrix's cores", rows, notes)
