"""Decomposing a 6-layer BERT-base student (36 matrices, L = 3) against the textbook algorithm.

The textbook way is an SVD at every bond from left to right, then a sweep of QR factorizations in each direction and
an SVD of every bond's matrix for the symmetric gauge (algorithm S.2 of arXiv 2411.06448).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import DEVICE, alternate, write
from opdf.mpo import MPOShape, contract, decompose, decompose_many, plan_shape
from opdf.mpo.contract import from_matrix

SIZES = {(768, 768): 24, (3072, 768): 6, (768, 3072): 6}


def textbook(matrix: Tensor, shape: MPOShape, xp: Any = torch) -> list[Any]:
    """SVD at every bond, canonical sweeps from both sides, then square roots of the bond spectra; `xp` computes."""
    digits = from_matrix(matrix, shape).flatten()
    cores = _left_to_right(digits.double().numpy() if xp is np else digits, shape, xp)
    return _symmetric(cores, _sweep(cores, xp), xp)


def _left_to_right(rest: Any, shape: MPOShape, xp: Any) -> list[Any]:
    cores = []
    for d_left, i, j, d_right in shape.core_shapes[:-1]:
        u, s, vh = xp.linalg.svd(rest.reshape(d_left * i * j, -1), full_matrices=False)
        cores.append(u[:, :d_right].reshape(d_left, i, j, d_right))
        rest = s[:d_right, None] * vh[:d_right]
    return [*cores, rest.reshape(shape.core_shapes[-1])]


def _sweep(cores: list[Any], xp: Any) -> tuple[list[Any], list[Any]]:
    """R factors of the parts left of every bond, and L factors of the parts right of it."""
    one = xp.ones((1, 1), dtype=cores[0].dtype, device=cores[0].device)
    lefts, carry = [], one
    for core in cores[:-1]:
        merged = (carry @ core.reshape(core.shape[0], -1)).reshape(-1, core.shape[-1])
        carry = xp.linalg.qr(merged)[1]
        lefts.append(carry)
    rights, carry = [], one
    for core in reversed(cores[1:]):
        merged = (core.reshape(-1, core.shape[-1]) @ carry).reshape(core.shape[0], -1)
        carry = xp.linalg.qr(merged.T)[1].T
        rights.append(carry)
    return lefts, rights[::-1]


def _symmetric(cores: list[Any], factors: tuple[list[Any], list[Any]], xp: Any) -> list[Any]:
    lefts, rights = factors
    result = list(cores)
    for bond, (left, right) in enumerate(zip(lefts, rights, strict=True)):
        u, s, vh = xp.linalg.svd(left @ right, full_matrices=False)
        root = s.clip(1e-12) ** -0.5
        before, after = result[bond], result[bond + 1]
        result[bond] = (before.reshape(-1, before.shape[-1]) @ (right @ vh.T * root)).reshape(before.shape)
        result[bond + 1] = ((root[:, None] * u.T @ left) @ after.reshape(after.shape[0], -1)).reshape(after.shape)
    return result


def error(matrix: Tensor, cores: list[Any]) -> float:
    product = contract([torch.as_tensor(core, device=matrix.device) for core in cores])
    return float((product - matrix).norm() / matrix.norm())


def main(repeats: int = 7, sixth: bool = False) -> None:
    """All 36 matrices at a time, as an optimizer's first step does; `sixth` measures one block of the six."""
    torch.manual_seed(0)
    sizes = [size for size, count in SIZES.items() for _ in range(count // 6 if sixth else count)]
    matrices = [torch.randn(size, device=DEVICE) * 0.04 for size in sizes]
    hosted, shapes = [matrix.cpu() for matrix in matrices], [plan_shape(*size, ones=3) for size in sizes]
    contenders = {
        "NumPy float64": lambda: [textbook(m, s, np) for m, s in zip(hosted, shapes, strict=True)],
        "torch float32": lambda: [textbook(m, s) for m, s in zip(matrices, shapes, strict=True)],
        "opdf, one by one": lambda: [decompose(m, s) for m, s in zip(matrices, shapes, strict=True)],
        "opdf": lambda: decompose_many(matrices, shapes),
    }
    times = alternate(contenders, repeats)
    worst = {n: max(map(error, matrices, run())) for n, run in contenders.items()}
    ours = times["opdf"].median
    rows = [
        {"way": name, "time": times[name], "over opdf": times[name].median / ours, "largest error": worst[name]}
        for name in contenders
    ]
    beside = "one matrix a thread" if DEVICE.type == "cpu" else "one matrix after another, NumPy runs on the CPU"
    notes = (
        f"{len(sizes)} matrices. The first two are the textbook algorithm, in NumPy and float64 as in the authors' "
        f"code and in torch and float32; opdf does {beside}. "
        f"Medians of {repeats}, alternating; errors are relative Frobenius norms in float32."
    )
    write("decomposition", "Decomposition of a 6-layer BERT-base student, L = 3", rows, notes)
