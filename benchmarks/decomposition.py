"""Decomposing a 6-layer BERT-base student (36 matrices, L = 3) against the textbook algorithm.

The textbook way is an SVD at every bond from left to right, then a sweep of QR factorizations in each direction and
an SVD of every bond's matrix for the symmetric gauge (algorithm S.2 of arXiv 2411.06448).
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from benchmarks.measure import alternate, write
from opdf.mpo import MPOShape, contract, decompose, plan_shape

SIZES = {(768, 768): 24, (3072, 768): 6, (768, 3072): 6}


def textbook(matrix: Tensor, shape: MPOShape) -> list[Tensor]:
    """SVD at every bond, canonical sweeps from both sides, then square roots of the bond spectra."""
    cores = _left_to_right(matrix, shape)
    return _symmetric(cores, _sweep(cores))


def _left_to_right(matrix: Tensor, shape: MPOShape) -> list[Tensor]:
    n = shape.sites
    digits = matrix.reshape(*shape.row_factors, *shape.col_factors)
    rest = digits.permute([axis for k in range(n) for axis in (k, n + k)])
    cores = []
    for d_left, i, j, d_right in shape.core_shapes[:-1]:
        u, s, vh = torch.linalg.svd(rest.reshape(d_left * i * j, -1), full_matrices=False)
        cores.append(u[:, :d_right].reshape(d_left, i, j, d_right))
        rest = s[:d_right, None] * vh[:d_right]
    return [*cores, rest.reshape(shape.core_shapes[-1])]


def _sweep(cores: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """R factors of the parts left of every bond, and L factors of the parts right of it."""
    lefts, carry = [], torch.ones(1, 1)
    for core in cores[:-1]:
        merged = (carry @ core.flatten(1)).reshape(-1, core.shape[-1])
        carry = torch.linalg.qr(merged).R
        lefts.append(carry)
    rights, carry = [], torch.ones(1, 1)
    for core in reversed(cores[1:]):
        merged = (core.flatten(0, 2) @ carry).reshape(core.shape[0], -1)
        carry = torch.linalg.qr(merged.T).R.T
        rights.append(carry)
    return lefts, rights[::-1]


def _symmetric(cores: list[Tensor], factors: tuple[list[Tensor], list[Tensor]]) -> list[Tensor]:
    lefts, rights = factors
    result = list(cores)
    for bond, (left, right) in enumerate(zip(lefts, rights, strict=True)):
        u, s, vh = torch.linalg.svd(left @ right, full_matrices=False)
        root = s.clamp(min=1e-12).rsqrt()
        result[bond] = (result[bond].flatten(0, 2) @ (right @ vh.T * root)).reshape(result[bond].shape)
        after = result[bond + 1]
        result[bond + 1] = ((root[:, None] * u.T @ left) @ after.flatten(1)).reshape(after.shape)
    return result


def error(matrix: Tensor, cores: list[Tensor]) -> float:
    return float((contract(cores) - matrix).norm() / matrix.norm())


def main(repeats: int = 7) -> None:
    torch.manual_seed(0)
    rows = []
    total = {"textbook": 0.0, "opdf": 0.0}
    start = time.perf_counter()
    for size, count in SIZES.items():
        matrix, shape = torch.randn(size) * 0.04, plan_shape(*size, ones=3)
        times = alternate(
            {"textbook": lambda m=matrix, s=shape: textbook(m, s), "opdf": lambda m=matrix, s=shape: decompose(m, s)},
            repeats,
        )
        for name in total:
            total[name] += count * times[name].median
        rows.append(
            {"matrices": f"{count} of {size[0]}x{size[1]}", "textbook": times["textbook"], "opdf": times["opdf"],
             "ratio": times["textbook"].median / times["opdf"].median,
             "textbook error": error(matrix, textbook(matrix, shape)),
             "opdf error": error(matrix, decompose(matrix, shape))}
        )  # fmt: skip
    ratio = total["textbook"] / total["opdf"]
    notes = (
        f"All 36 matrices: textbook {total['textbook']:.1f} s, opdf {total['opdf']:.1f} s, "
        f"**{ratio:.0f} times faster** "
        f"(medians of {repeats}, alternating; errors are relative Frobenius norms in float32). "
        f"Whole benchmark: {time.perf_counter() - start:.0f} s."
    )
    write("decomposition", "Decomposition of a 6-layer BERT-base student, L = 3", rows, notes)
