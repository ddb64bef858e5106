"""Bases for the residual stream: the directions of the teacher's width that a narrower student keeps."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from opdf.distill.shrink.choose import choose_units


class Basis(NamedTuple):
    """Two maps between the streams, float64.

    Attributes:
        project: `[teacher width, student width]`; a row of the teacher's stream times `project` is the student's. The
            mean square of the entries is kept as far as the stream is.
        expand: `[teacher width, student width]`; `expand` times a state of the student estimates the teacher's.
    """

    project: Tensor
    expand: Tensor


def principal_axes(moments: Tensor, width: int, *, centred: bool) -> Basis:
    """The directions of most variance, turned towards single entries.

    A norm scales single entries, so its scale is exact where the student's entries are the teacher's. So the basis is
    turned, within the span of the axes, towards the entries that predict most of the others.

    Args:
        moments: `[teacher width, teacher width]`, the stream's second moments, float64.
        width: the student's.
        centred: whether norms subtract the mean. Then the student's mean is the teacher's, and `width - 1` axes are
            orthogonal to it.
    """
    size = len(moments)
    if centred:
        # The mean is kept whatever its variance, so the axes leave it out.
        share = moments.trace() / size
        off = torch.eye(size).to(moments) - 1 / size
        moments = off @ moments @ off
        kept = choose_units(moments + share / size, torch.ones_like(moments[0]), width)
        axes = torch.linalg.eigh(moments - share).eigenvectors.flip(1)[:, : width - 1]
        flat = _zero_sum(width).to(moments)
    else:
        kept = choose_units(moments, torch.ones_like(moments[0]), width)
        axes = torch.linalg.eigh(moments).eigenvectors.flip(1)[:, :width]
        flat = torch.eye(width).to(moments)
    basis = axes @ _polar(axes[kept].mT @ flat.mT) @ flat
    if centred:
        basis = basis + 1 / math.sqrt(basis.numel())
    scale = math.sqrt(width / size)
    return Basis(basis * scale, basis / scale)


def _polar(matrix: Tensor) -> Tensor:
    """The nearest orthogonal matrix."""
    u, _, vh = torch.linalg.svd(matrix)
    return u @ vh


def _zero_sum(width: int) -> Tensor:
    """`[width - 1, width]` orthonormal rows that each sum to zero (Helmert's)."""
    rows = torch.ones(width - 1, width, dtype=torch.float64).tril()
    k = torch.arange(1, width, dtype=torch.float64)
    rows[range(width - 1), range(1, width)] = -k
    return rows / (k * (k + 1)).sqrt()[:, None]
