"""Eigenvalues and singular values of every finite matrix.

LAPACK gives up on some. MKL's `eigh` fails on the Gram matrix of a folded identity, or returns NaN without an error.
Those matrices take a slower way: in float64, and turned by a random rotation, which leaves no pattern to fail on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TURNS = 8
"""Rotations that are tried. None has been seen to fail; if one did, the next would give another matrix."""


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """`torch.linalg.eigh` of a symmetric `[n, n]`, whose lower triangle is read. None where it fails."""
    found = _attempt(torch.linalg.eigh, matrix)
    return (found[0], found[1]) if found else None


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.linalg.svd(matrix, full_matrices=False)` of any finite `[..., p, q]`, float32 or float64.

    Raises:
        ValueError: the matrix holds NaN or infinity.
    """
    u, s, vh = _attempt(_svd, matrix) or _turned_svd(matrix)
    return u, s, vh


def singular_values(matrix: Tensor) -> Tensor:
    """`torch.linalg.svdvals` of any finite `[..., p, q]`, float32 or float64: `[..., min(p, q)]`, the largest first.

    Raises:
        ValueError: the matrix holds NaN or infinity.
    """
    found = _attempt(lambda given: [torch.linalg.svdvals(given)], matrix)
    return found[0] if found else _turned_svd(matrix)[1]


def _turned_svd(matrix: Tensor) -> tuple[Tensor, ...]:
    """If Q A = U S V' then A = (Q' U) S V'. On the CPU, which has float64."""
    work = matrix.cpu().double()
    if not work.isfinite().all():
        raise ValueError("matrix holds NaN or infinite entries; it has no singular values. Repair the weights first")
    generator = torch.Generator().manual_seed(0)
    size = matrix.shape[-2]
    for _ in range(TURNS):
        noise = torch.randn(size, size, generator=generator, dtype=torch.float64, device="cpu")
        rotation = torch.linalg.qr(noise).Q
        found = _attempt(_svd, rotation @ work)
        if found:
            u, s, vh = found
            return (rotation.mT @ u).to(matrix), s.to(matrix), vh.to(matrix)
    raise RuntimeError(f"the singular values of a matrix {tuple(matrix.shape)} were not found by any of {TURNS} ways")


def _svd(matrix: Tensor) -> Sequence[Tensor]:
    return torch.linalg.svd(matrix, full_matrices=False)


def _attempt(factorize: Callable[[Tensor], Sequence[Tensor]], matrix: Tensor) -> tuple[Tensor, ...] | None:
    try:
        found = tuple(factorize(matrix))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    return found if all(bool(part.isfinite().all()) for part in found) else None
