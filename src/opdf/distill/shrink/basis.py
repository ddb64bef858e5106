"""Bases for the residual stream: the directions of the teacher's width that a narrower student keeps."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from opdf.distill.shrink.choose import choose_units

OUTPUTS = 4.0
"""How much the model's outputs count beside the stream as a whole."""


class Basis(NamedTuple):
    """Two maps between the streams, float64.

    Attributes:
        project: `[teacher width, student width]`; a row of the teacher's stream times `project` is the student's. The
            mean square of the entries is kept as far as the stream is.
        expand: `[teacher width, student width]`; `expand` times a state of the student estimates the teacher's.
    """

    project: Tensor
    expand: Tensor


def leading_axes(moments: Tensor, width: int, *, centred: bool, gradients: Tensor | None = None) -> Basis:
    """The directions that tell most of the stream and of the model's outputs, turned towards single entries.

    A norm scales single entries, so its scale is exact where the student's entries are the teacher's. So the basis is
    turned, within the span of the axes, towards the entries that predict most of the others.

    Args:
        moments: `[teacher width, teacher width]`, the stream's second moments, float64.
        width: the student's.
        centred: whether norms subtract the mean. Then the student's mean is the teacher's, and `width - 1` axes are
            orthogonal to it.
        gradients: `[teacher width, teacher width]`, second moments of the outputs' gradients to the stream; without
            them only the stream counts, and the axes are those of most variance.
    """
    size = len(moments)
    if centred:
        # The mean is kept whatever its variance, so the axes leave it out.
        share = moments.trace() / size
        off = _zero_sum(size).to(moments)
        moments = off @ moments @ off.mT
        kept = choose_units(off.mT @ moments @ off + share / size, torch.ones_like(off[0]), width)
        axes = off.mT @ _directions(moments, None if gradients is None else off @ gradients @ off.mT)[:, : width - 1]
        flat = _zero_sum(width).to(moments)
    else:
        kept = choose_units(moments, torch.ones_like(moments[0]), width)
        axes = _directions(moments, gradients)[:, :width]
        flat = torch.eye(width).to(moments)
    basis = axes @ _polar(axes[kept].mT @ flat.mT) @ flat
    if centred:
        basis = basis + 1 / math.sqrt(basis.numel())
    scale = math.sqrt(width / size)
    return Basis(basis * scale, basis / scale)


def _directions(moments: Tensor, gradients: Tensor | None) -> Tensor:
    """Orthonormal directions whose leading ones tell most of the stream, as much as the outputs depend on it.

    What k directions P cannot tell is the covariance `C - C P (P' C P)^-1 P' C`. Its product with the metric G has the
    least trace for the leading eigenvectors U of `C^(1/2) G C^(1/2)` and `P = C^(-1/2) U` (reduced-rank regression).
    """
    variances, directions = torch.linalg.eigh(moments)
    if gradients is None or not 0 < gradients.trace() < math.inf:  # float16 may overflow
        return directions.flip(1)
    metric = gradients * (OUTPUTS * len(moments) / gradients.trace())
    metric.diagonal().add_(1)
    root = directions * variances.clamp(min=1e-12 * variances[-1]).sqrt()
    inner = torch.linalg.eigh(root.mT @ metric @ root).eigenvectors.flip(1)
    return torch.linalg.qr((root / root.square().sum(0)) @ inner).Q


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
