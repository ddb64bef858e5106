"""The precision of a training's weights and matrix products, and how fast a machine multiplies in it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from opdf.overparam import OverParamConfig

SLOWER = 1.5
"""From so many times the time of float32 on, a user is told. Less may be noise."""

HALF = (torch.bfloat16, torch.float16)


def half_precision(args: TrainingArguments) -> torch.dtype | None:
    """The dtype that matrix products of a training have, None for that of the weights."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


@lru_cache
def product_rate(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of matrix products, measured once a process in about 0.1 s.

    Args:
        device: its type: "cpu", "cuda".
        dtype: of the factors.
    """
    # With one small product at a time, a GPU would mostly wait.
    size, products = (4096, 4) if device == "cuda" else (768, 1)
    a = torch.ones(size, size, device=device, dtype=dtype)  # no random numbers: the next ones are a training's
    best, began = 0.0, time.perf_counter()
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(products):
            found = a @ a
        float(found[0, 0])
        end = time.perf_counter()
        best = max(best, products * 2 * size**3 / (end - start))
        if end - began > 0.5:  # a processor that has no instructions for a dtype takes a second for one product
            break
    return best


def slowdown(device: torch.device, dtype: torch.dtype | None) -> float:
    """How many times as long a product of a dtype takes as one in float32, on a CPU; 1 elsewhere and for None."""
    if dtype is None or device.type != "cpu":
        return 1.0
    return product_rate("cpu", torch.float32) / product_rate("cpu", dtype)


def warn_of_slow_training(
    args: TrainingArguments, overparam: OverParamConfig | None, teacher: nn.Module | None
) -> None:
    """Warn of half precision on a CPU without instructions for it: many have none, and take 25 to 50 times as long."""
    asked = [(half_precision(args), "leave bf16 out")]
    if overparam is not None and overparam.precision == "bf16":
        asked.append((torch.bfloat16, "leave precision out of overparam"))
    for dtype, remedy in asked:
        warn_of_slow_products(args.device, dtype, remedy, stacklevel=5)
    if teacher is not None:
        warn_of_slow_weights(args.device, teacher, stacklevel=5)


def warn_of_slow_weights(device: torch.device, teacher: nn.Module, stacklevel: int = 3) -> None:
    """Warn of the same where a teacher's weights are half-precision, as those of many files are."""
    for dtype in {p.dtype for p in teacher.parameters() if p.dtype in HALF}:
        remedy = "which the teacher's weights have; give teacher.float()"
        warn_of_slow_products(device, dtype, remedy, stacklevel=stacklevel + 1)


def warn_of_slow_products(device: torch.device, dtype: torch.dtype | None, remedy: str, stacklevel: int) -> None:
    if (times := slowdown(device, dtype)) >= SLOWER:
        warnings.warn(
            f"matrix products in {dtype} take {times:.3g} times as long on this CPU as in float32; {remedy}",
            stacklevel=stacklevel,
        )


def warn_of_rounding(who: str, trained: Iterable[Tensor]) -> None:
    """Warn that weights are trained in half precision, which they have from their file."""
    half = sorted({str(p.dtype) for p in trained if p.dtype in HALF})
    if half:
        warnings.warn(
            f"the {who}'s weights are {' and '.join(half)}: steps smaller than their rounding are lost, but not those "
            f"of cores, which are float32. Train {who}.float(), with bf16=True in the arguments to compute in half "
            "precision",
            stacklevel=4,
        )
