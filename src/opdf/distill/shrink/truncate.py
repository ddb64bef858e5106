"""Heads of fewer dimensions: the product of two matrices through fewer rows."""

from __future__ import annotations

import torch
from torch import Tensor


def truncate(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Mixtures of the rows of two matrices whose product `A' B` keeps most of its size.

    Queries and keys, and values and outputs, only appear in a product `x' A' B y`. The singular values of the product,
    taken after whitening x and y, tell what fewer rows lose.

    Args:
        left: `[..., rows, rows]`, second moments of `A x`: the mean of `A x x' A'`.
        right: `[..., rows, rows]`, those of `B y`.
        rank: rows to keep. With as many as there are, or more, the rows stay as they are and zeros follow.

    Returns:
        S and T `[..., rank, rows]`: `(S A)' (T B)` is the best product of that many rows.
    """
    rows = left.shape[-1]
    if rank >= rows:
        same = torch.eye(rank, rows, dtype=left.dtype, device=left.device).expand(*left.shape[:-2], rank, rows)
        return same, same
    root_left, inverse_left = _roots(left)
    root_right, inverse_right = _roots(right)
    u, s, vh = torch.linalg.svd(root_left @ root_right)
    half = s[..., :rank].sqrt().unsqueeze(-1)
    return half * u.mT[..., :rank, :] @ inverse_left, half * vh[..., :rank, :] @ inverse_right


def _roots(moments: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of positive matrices and its pseudo-inverse."""
    values, vectors = torch.linalg.eigh(moments)
    values = values.clamp(min=0)
    floor = 1e-12 * values[..., -1:]
    root = values.sqrt()
    inverse = torch.where(values > floor, root, torch.inf).reciprocal()
    return (vectors * root.unsqueeze(-2)) @ vectors.mT, (vectors * inverse.unsqueeze(-2)) @ vectors.mT
