"""Whether ours meets its targets on a GPU: step time and memory over plain distillation's, in each precision.

A BERT-base student of 6 layers under a teacher of 12, with the models' passes in bfloat16. Plain distillation and ours
in all precisions of the cores' products alternate in one process. `overhead / floor` is as in `benchmarks.step`, at the
rate of products measured in the same precision.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

import opdf
from benchmarks.contenders import Batch, Step, batch, ours, plain, student
from benchmarks.measure import PRODUCT_SIZE, alternate, matmul_rate, write
from opdf.mpo import decompose_many
from opdf.overparam.config import PRECISIONS

ONES = 3
STEP_TARGETS = {1: 1.25, 8: 1.07}
"""By accumulation, what ours over plain may be at most."""

MEMORY_TARGET = 1.10
"""What ours minus plain may be at most, over the cores and their two moments in float32."""


def step_time(name: str, overparam: opdf.OverParameterization, data: Batch, repeats: int, size: int) -> None:
    """Of plain distillation and ours; `size` is that of the products whose rate is measured."""
    steps = {"plain": plain(student(name), data, ONES)}
    steps |= {precision: ours(student(name), data, ONES, precision) for precision in PRECISIONS}
    rates = {precision: matmul_rate(precision, size) for precision in PRECISIONS}
    flops = sum(3 * target.shape.contract_flops for target in overparam.matrices)
    rows: list[dict[str, Any]] = []
    for accumulation, target in STEP_TARGETS.items():
        found = alternate({n: lambda s=s, k=accumulation: s(k) for n, s in steps.items()}, repeats, warmup=2)
        base = found["plain"].median
        for precision, rate in rates.items():
            mine, floor = found[precision].median, flops / rate
            rows.append({
                "accumulation": accumulation, "products in": precision, "plain": found["plain"],
                "opdf": found[precision], "opdf / plain": mine / base, "target": f"at most {target}",
                "TFLOP/s": rate / 1e12, "floor s": floor, "overhead / floor": (mine - base) / floor,
            })  # fmt: skip
        write(
            "gpu-step",
            f"Time of one optimizer step of distillation on a GPU, {described(name, data)}",
            rows,
            f"Medians of {repeats} alternating runs, fused AdamW, passes under bf16 autocast, the teacher's included.",
        )


def decomposition(name: str, overparam: opdf.OverParameterization) -> None:
    weights = [overparam.model.get_parameter(target.name) for target in overparam.matrices]
    shapes = [target.shape for target in overparam.matrices]
    found = alternate({"opdf": lambda: decompose_many(weights, shapes)}, repeats=1, warmup=0)
    write(
        "gpu-decomposition",
        f"Decomposition of a {name} student on a GPU, L = {ONES}",
        [{"matrices": len(weights), **found}],
        "Once, after other decompositions in the same process.",
    )


def peak(build: Callable[[], Step]) -> int:
    """Bytes that a contender's first two steps take on the GPU at their peak, beyond what is there already."""
    gc.collect()  # models of earlier contenders; freed during the steps, they would be taken off
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step = build()
    for _ in range(2):
        step(1)
    return torch.cuda.max_memory_allocated() - before


def memory(name: str, overparam: opdf.OverParameterization, data: Batch) -> None:
    cores = 3 * 4 * sum(target.shape.num_params for target in overparam.matrices)
    base = peak(lambda: plain(student(name), data, ONES))
    rows: list[dict[str, Any]] = []
    for precision in PRECISIONS:
        mine = peak(lambda p=precision: ours(student(name), data, ONES, p))
        rows.append({
            "products in": precision, "plain MiB": round(base / 2**20), "opdf MiB": round(mine / 2**20),
            "cores and moments MiB": round(cores / 2**20), "(opdf - plain) / cores and moments": (mine - base) / cores,
            "target": f"at most {MEMORY_TARGET}",
        })  # fmt: skip
        write(
            "gpu-memory",
            f"Peak GPU memory allocated by torch in two steps, accumulation 1, {described(name, data)}",
            rows,
            "Without the teacher and the batch. Cores and moments: three times the cores' parameters in float32.",
        )


def described(name: str, data: Batch) -> str:
    examples, tokens = data.ids.shape
    return f"{name} student, {examples}x{tokens} tokens a micro-batch, L = {ONES}"


def main(
    name: str = "BERT-base", examples: int = 32, tokens: int = 128, repeats: int = 7, size: int = PRODUCT_SIZE
) -> None:
    """Measure and write, the most wanted first; `name` is one of `benchmarks.contenders.MODELS`."""
    overparam = opdf.overparameterize(student(name), opdf.OverParamConfig(ones=ONES))
    data = batch(name, examples, tokens, autocast=True)
    step_time(name, overparam, data, repeats, size)
    decomposition(name, overparam)
    # After the steps, so that the libraries' workspaces are there already and count for no contender.
    memory(name, overparam, data)
