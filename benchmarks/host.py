"""What a GPU's host has to do in a step beside the GPU's arithmetic, measured where there is next to none: width 32.

Layers, matrices, and matrices a stack are those of a BERT-base student on a GPU. Where the GPU is faster than this, the
host's time is the step's.
"""

from __future__ import annotations

from unittest import mock

import torch

import opdf
from benchmarks.contenders import batch, ours, plain, student
from benchmarks.measure import DEVICE, alternate, write
from opdf.overparam import cores

NARROW, REAL, ONES = "BERT of width 32", "BERT-base", 3


def core_entries(name: str) -> int:
    matrices = opdf.overparameterize(student(name), opdf.OverParamConfig(ones=ONES)).matrices
    return sum(matrix.shape.num_params for matrix in matrices)


def main(repeats: int = 41) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    data = batch(NARROW, examples=2, tokens=8, autocast=True)
    limit = cores.STACK_ENTRIES["cuda"] * core_entries(NARROW) // core_entries(REAL)
    with mock.patch.dict(cores.STACK_ENTRIES, {DEVICE.type: limit}):
        steps = {"plain": plain(student(NARROW), data, ONES), "opdf": ours(student(NARROW), data, ONES)}
        found = alternate({n: lambda s=s: s(1) for n, s in steps.items()}, repeats, warmup=5)
    torch.set_num_threads(threads)
    ratio = found["opdf"].median / found["plain"].median
    write(
        "host",
        "Time of one optimizer step of distillation where there is next to no arithmetic",
        [{"student": f"6 layers, width 32, L = {ONES}", **found, "opdf / plain": ratio}],
        f"Medians of {repeats} alternating steps, fused AdamW, bf16 autocast, teacher of 12 layers, one thread.",
    )
