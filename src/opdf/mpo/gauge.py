"""Bringing one MPO into another's gauge, so that comparing their cores means something.

An orthogonal matrix and its inverse can be put on any bond without changing the matrix that a chain represents; SVD
leaves signs and degenerate subspaces free in the same way. Elementwise distances between the cores of two matrices
(equation 5 of arXiv 2411.06448) are dominated by that freedom unless it is removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from opdf.mpo.contract import shape_of

SWEEPS = 4
"""Passes over the bonds when more than one of them is free; one bond is solved exactly by one pass."""


@torch.no_grad()
def match_gauge(cores: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Tensor]:
    """Rotate the bonds of `cores` towards `reference` by orthogonal Procrustes; the matrix stays the same.

    Bonds that only 1x1 sites separate share one rotation, so that identity cores stay identities.

    Args:
        cores, reference: chains `[..., d_{k-1}, i_k, j_k, d_k]` with equal bond dimensions. Cores of unequal
            factors (a wider teacher's central core) are rotated but not compared.

    Returns:
        The rotated cores, which contract to the same matrix.

    Raises:
        ValueError: the chains differ in length or bond dimensions.
    """
    ours, theirs = shape_of(cores), shape_of(reference)
    if ours.bond_dims != theirs.bond_dims:
        raise ValueError(
            f"cores have bond dimensions {ours.bond_dims} and the reference {theirs.bond_dims}; "
            "decompose both with the same bond dimensions"
        )
    rotated = list(cores)
    groups = _bond_groups([core.shape[-4:] for core in cores])
    for _ in range(SWEEPS if len(groups) > 1 else 1):
        for first, last in groups:
            left, right = rotated[first - 1], rotated[last]
            overlap = left.new_zeros((*left.shape[:-4], left.shape[-1], left.shape[-1]))
            if left.shape == reference[first - 1].shape:
                overlap = overlap + left.flatten(-4, -2).mT @ reference[first - 1].flatten(-4, -2)
            if right.shape == reference[last].shape:
                overlap = overlap + right.flatten(-3) @ reference[last].flatten(-3).mT
            u, _s, vh = torch.linalg.svd(overlap)
            rotation = u @ vh
            rotated[first - 1] = _rotate_right(left, rotation)
            rotated[last] = _rotate_left(right, rotation)
            for k in range(first, last):
                rotated[k] = _rotate_right(_rotate_left(rotated[k], rotation), rotation)
    return [core.contiguous() for core in rotated]


def _bond_groups(shapes: Sequence[torch.Size]) -> list[tuple[int, int]]:
    """Runs `(first, last)` of inner bonds joined through square 1x1 sites; bond k lies right of core k-1."""
    groups: list[tuple[int, int]] = []
    for bond in range(1, len(shapes)):
        d_left, i, j, d_right = shapes[bond - 1]
        if groups and i * j == 1 and d_left == d_right:
            groups[-1] = (groups[-1][0], bond)
        else:
            groups.append((bond, bond))
    return groups


def _rotate_right(core: Tensor, rotation: Tensor) -> Tensor:
    return (core.flatten(-4, -2) @ rotation).reshape(core.shape)


def _rotate_left(core: Tensor, rotation: Tensor) -> Tensor:
    return (rotation.mT @ core.flatten(-3)).reshape(core.shape)
