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
from opdf.mpo.factorize import svd
from opdf.mpo.precision import factorized_on

SWEEPS = 4
"""Passes over single cores when more than one bond is free; a single free bond is solved exactly before them."""


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
    # A side of a bond, multiplied out, does not depend on the gauge of the bonds inside it. Comparing sides first
    # finds all bonds at once; comparing single cores only, the sweeps over a long chain can get stuck.
    left, right = _overlaps_of_sides(cores, reference)
    for first, last in groups:
        _rotate_bonds(rotated, first, last, left[first] + right[last])
    for _ in range(SWEEPS if len(groups) > 1 else 0):
        for first, last in groups:
            overlap = _left_overlap(rotated[first - 1], reference[first - 1])
            _rotate_bonds(rotated, first, last, overlap + _right_overlap(rotated[last], reference[last]))
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


def _overlaps_of_sides(cores: Sequence[Tensor], reference: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """For bonds 0..n, `[..., d, d]`: the overlap of what lies left of the bond, and of what lies right of it."""
    lead = cores[0].shape[:-4]
    left, right = [cores[0].new_ones((*lead, 1, 1))], [cores[0].new_ones((*lead, 1, 1))]
    for core, other in zip(cores, reference, strict=True):
        left.append(_left_overlap(_rotate_left(core, left[-1]), other))
    for core, other in zip(reversed(cores), reversed(reference), strict=True):
        right.append(_right_overlap(_rotate_right(core, right[-1]), other))
    return left, right[::-1]


def _left_overlap(core: Tensor, other: Tensor) -> Tensor:
    """`[..., d, d]` at the right bond of two cores; zero where their factors differ."""
    if core.shape != other.shape:
        return core.new_zeros((*core.shape[:-4], core.shape[-1], core.shape[-1]))
    return core.flatten(-4, -2).mT @ other.flatten(-4, -2)


def _right_overlap(core: Tensor, other: Tensor) -> Tensor:
    """`[..., d, d]` at the left bond of two cores; zero where their factors differ."""
    if core.shape != other.shape:
        return core.new_zeros((*core.shape[:-4], core.shape[-4], core.shape[-4]))
    return core.flatten(-3) @ other.flatten(-3).mT


def _rotate_bonds(cores: list[Tensor], first: int, last: int, overlap: Tensor) -> None:
    """Turn bonds `first` to `last` by the orthogonal matrix nearest to `overlap`, in place of the list."""
    u, _s, vh = svd(overlap.to(factorized_on(overlap.device)))
    rotation = (u @ vh).to(overlap.device)
    cores[first - 1] = _rotate_right(cores[first - 1], rotation)
    cores[last] = _rotate_left(cores[last], rotation)
    for k in range(first, last):
        cores[k] = _rotate_right(_rotate_left(cores[k], rotation), rotation)


def _rotate_right(core: Tensor, rotation: Tensor) -> Tensor:
    return (core.flatten(-4, -2) @ rotation).reshape(core.shape)


def _rotate_left(core: Tensor, rotation: Tensor) -> Tensor:
    return (rotation.mT @ core.flatten(-3)).reshape(core.shape)
