"""Time of one optimizer step of distillation: plain, rebuilt in forward, parametrize, tensorly-torch, and ours.

`overhead / floor` is ours minus plain, over the time that the contraction's arithmetic takes at the machine's measured
matrix-product rate: n-1 products to contract a chain of n cores and 2(n-1) to pull its gradient back.
"""

from __future__ import annotations

from typing import Any

import opdf
from benchmarks.contenders import CONTENDERS, batch, student
from benchmarks.measure import Timing, alternate, matmul_rate, write

GRID = [("MiniLM", ones, accumulation) for ones in (1, 3, 8) for accumulation in (1, 4, 16)]
GRID_LARGE = [("BERT-base", ones, 1) for ones in (1, 3, 8)] + [("BERT-base", ones, 4) for ones in (1, 3)]
"""What two cores can measure in half an hour; with accumulation 16 a row takes longer than that by itself."""


def floor_seconds(name: str, ones: int, rate: float) -> float:
    overparam = opdf.overparameterize(student(name), opdf.OverParamConfig(ones=ones))
    return sum(3 * matrix.shape.contract_flops for matrix in overparam.matrices) / rate


def measure(name: str, ones: int, accumulation: int, repeats: int = 7) -> dict[str, Timing]:
    data = batch(name)
    steps = {contender: build(student(name), data, ones) for contender, build in CONTENDERS.items()}
    return alternate({c: lambda s=s: s(accumulation) for c, s in steps.items()}, repeats)


def main(repeats: int = 7, large: bool = False) -> None:
    rows: list[dict[str, Any]] = []
    for name, ones, accumulation in GRID_LARGE if large else GRID:
        times = measure(name, ones, accumulation, repeats)
        floor = floor_seconds(name, ones, matmul_rate())
        base, mine = times["plain"].median, times["opdf"].median
        rows.append(
            {"model": name, "L": ones, "accumulation": accumulation, **times,
             "opdf / plain": mine / base, "opdf / rebuild": mine / times["rebuild"].median,
             "opdf / parametrize": mine / times["parametrize"].median, "overhead / floor": (mine - base) / floor}
        )  # fmt: skip
        write(
            "step-large" if large else "step",
            "Time of one optimizer step of distillation, 16x32 tokens a micro-batch",
            rows,
            f"Medians of {repeats} alternating runs, AdamW, float32, the teacher's forward pass included.",
        )
