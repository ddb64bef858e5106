"""Which neurons and heads to keep: by pivoted Cholesky of their covariance, so that copies are not kept twice."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.linalg import lapack
from torch import Tensor

from opdf.distill.shrink.moments import ROUNDING


def choose_units(covariance: Tensor, weight: Tensor, count: int) -> Tensor:
    """Choose units one by one, each time the one with most weighted variance that the chosen ones do not explain.

    Args:
        covariance: `[units, units]`, float64.
        weight: `[units]`, how much a unit counts: the norm of the weights that read it.
        count: how many to choose.

    Returns:
        `[count]` rising indices.
    """
    if count == len(covariance):
        return torch.arange(count, device=covariance.device)
    weighted = (covariance * weight * weight[:, None]).cpu().numpy()
    _, pivots, _, _ = lapack.dpstrf(weighted, lower=1)  # the order of the pivots is the order of the choice
    return torch.from_numpy(pivots[:count].astype("int64") - 1).sort().values.to(covariance.device)


def choose_groups(covariances: Sequence[Tensor], outgoing: Sequence[Tensor], size: int, count: int) -> Tensor:
    """Choose groups of units (heads) in the same way: each time the one that adds most to the output of the others.

    Args:
        covariances: `[units, units]` float64, of one layer or of several that must keep the same groups.
        outgoing: for each the matrix `[outputs, units]` that reads the units.
        size: units a group; they stand side by side.
        count: groups to choose.

    Returns:
        `[count]` rising indices of groups.
    """
    left = list(covariances)
    chosen: list[int] = []
    while len(chosen) < count:
        gains = torch.stack([_gains(c, o, size) for c, o in zip(left, outgoing, strict=True)]).sum(0)
        gains[chosen] = -torch.inf
        # Copies of one group gain the same up to rounding, which must not decide.
        best = int((gains >= gains.max() - 1e-9 * gains.max().abs()).nonzero()[0])
        chosen.append(best)
        left = [_without(c, slice(best * size, (best + 1) * size)) for c in left]
    return torch.tensor(sorted(chosen), device=left[0].device)


def _gains(covariance: Tensor, outgoing: Tensor, size: int) -> Tensor:
    """`[groups]`, variance of what each group adds to the output."""
    groups = len(covariance) // size
    blocks = covariance.view(groups, size, groups, size).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    heads = outgoing.view(len(outgoing), groups, size).movedim(1, 0)
    return ((heads @ blocks) * heads).sum((1, 2))


def _without(covariance: Tensor, units: slice) -> Tensor:
    """What remains of a covariance once some units are known."""
    columns = covariance[:, units]
    return covariance - columns @ torch.linalg.pinv(covariance[units, units], rtol=1e-10, hermitian=True) @ columns.mT


def units_of(groups: Tensor, size: int) -> Tensor:
    """The units of some groups (heads) that have `size` of them each, side by side."""
    return (groups[:, None] * size + torch.arange(size, device=groups.device)).flatten()


def retold(covariance: Tensor, kept: Tensor) -> Tensor:
    """`[units, kept]`, the matrix that predicts all units from the kept ones with least squared error.

    Kept units that are alike but for rounding are read alike, not with large weights of opposite signs.
    """
    if len(kept) == len(covariance):
        return torch.eye(len(kept), dtype=covariance.dtype, device=covariance.device)
    inner = covariance[kept][:, kept]
    inner.diagonal().add_(ROUNDING * inner.diagonal().mean() + torch.finfo(inner.dtype).tiny)
    mixture = torch.linalg.solve(inner, covariance[kept]).mT
    mixture[kept] = torch.eye(len(kept), dtype=inner.dtype, device=inner.device)
    return mixture
