"""Bringing one MPO into another's gauge, so that comparing their cores means something.

An orthogonal matrix and its inverse can be put on any bond without changing the matrix that a chain represents; SVD
leaves signs and degenerate subspaces free in the same way. Elementwise distances between the cores of two matrices
(equation 5 of arXiv 2411.06448) are dominated by that freedom unless it is removed.

Equation 5 leaves the central core out. So the bonds on its left and those on its right are matched separately, and the
central core takes up both rotations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from opdf.mpo.contract import shape_of
from opdf.mpo.factorize import svd
from opdf.mpo.precision import factorized_on

SWEEPS = 100
"""Passes over the bonds of one side, at most, where several are free. A single one is solved exactly."""

TOLERANCE = 1e-5
"""Sweeps end when one lowers the distance by less than this share of it."""


@torch.no_grad()
def match_gauge(
    cores: Sequence[Tensor], reference: Sequence[Tensor], weights: Mapping[int, Tensor | float] | None = None
) -> list[Tensor]:
    """Rotate the bonds of `cores` so that its auxiliary cores come as near to the reference's as they can.

    The distance is `sum_k weights[k] |cores[k] - reference[k]|^2` over auxiliary sites. Where one bond a side is free,
    as in all shapes of `plan_shape`, its minimum has a closed form (orthogonal Procrustes). Where several are free,
    sweeps over them lower the distance until it falls no further.

    Bonds that only square 1x1 sites separate share one rotation, so that identities there stay identities. These cores
    are not compared. The central core is not compared either; an identity there does not stay one.

    Args:
        cores, reference: chains `[..., d_{k-1}, i_k, j_k, d_k]` with equal bond dimensions, and equal factors at
            auxiliary sites. Central cores may differ (a wider teacher's).
        weights: of the distance, by auxiliary site: numbers or tensors `[...]`. None takes `1 / |cores[k]|^2`.

    Returns:
        The rotated cores, contiguous, which contract to the same matrix.

    Raises:
        ValueError: the chains differ in length, bond dimensions or auxiliary factors.
    """
    shape, other = shape_of(cores), shape_of(reference)
    if shape.bond_dims != other.bond_dims:
        raise ValueError(
            f"cores have bond dimensions {shape.bond_dims} and the reference {other.bond_dims}; "
            "decompose both with the same bond dimensions"
        )
    if any(shape.core_shapes[k] != other.core_shapes[k] for k in shape.auxiliary):
        raise ValueError(f"cores have the shape {shape} and the reference {other}; only central factors may differ")
    place, dtype = factorized_on(cores[0].device), cores[0].dtype
    # In float64, where their products neither overflow nor vanish.
    ours, theirs = ([core.to(place, torch.float64).flatten(-3, -2) for core in chain] for chain in (cores, reference))
    weights = {k: _relative(ours[k]) for k in shape.auxiliary} if weights is None else weights
    sites: list[_Site | None] = [
        None if k in shape.square_sites else _Site(*pair, torch.as_tensor(weights.get(k, 0.0)).to(pair[0]))
        for k, pair in enumerate(zip(ours, theirs, strict=True))
    ]
    left = _rotations(sites[: shape.center], dtype)
    right = _rotations([_mirrored(site) for site in sites[: shape.center : -1]], dtype)
    turns = [None, *left, *reversed(right), None]  # of bonds 0 to n
    return [
        _turned(mine, outer, inner).reshape(core.shape).to(core)
        for core, mine, (outer, inner) in zip(cores, ours, pairwise(turns), strict=True)
    ]


class _Site(NamedTuple):
    """A core, the core that it is compared with, both `[..., d_outer, p, d_inner]`, and their weight `[...]`."""

    core: Tensor
    other: Tensor
    weight: Tensor

    def overlap_inside(self, outer: Tensor | None) -> Tensor:
        """`[..., d_inner, d_inner]`, once the outer bond is turned."""
        core = _turned(self.core, outer, None)
        return self.weight[..., None, None] * (core.flatten(-3, -2).mT @ self.other.flatten(-3, -2))

    def overlap_outside(self, inner: Tensor) -> Tensor:
        """`[..., d_outer, d_outer]`, once the inner bond is turned."""
        core = _turned(self.core, None, inner)
        return self.weight[..., None, None] * (core.flatten(-2) @ self.other.flatten(-2).mT)

    def distance(self, outer: Tensor | None, inner: Tensor | None) -> Tensor:
        """`[...]`, once both bonds are turned."""
        return self.weight * (_turned(self.core, outer, inner) - self.other).square().sum((-3, -2, -1))


def _rotations(side: Sequence[_Site | None], dtype: torch.dtype) -> list[Tensor]:
    """The rotation of every core's inner bond on one side of the centre, the outermost first.

    At None, an identity, the inner bond turns as the outer one does.
    """
    free = [site for site in side if site]
    turns: list[Tensor] = []
    for site in free:
        turns.append(_nearest_rotation(site.overlap_inside(turns[-1] if turns else None), dtype))
    if len(free) > 1:
        _sweep(free, turns, dtype)
    found, result = iter(turns), list[Tensor]()
    for core in side:
        result.append(next(found) if core else result[-1])
    return result


def _sweep(free: Sequence[_Site], turns: list[Tensor], dtype: torch.dtype) -> None:
    """Improve `turns` in place, one bond at a time with its neighbours held, until the distance falls no further."""
    last: Tensor | float = torch.inf
    for _ in range(SWEEPS):
        for k, site in enumerate(free):
            overlap = site.overlap_inside(turns[k - 1] if k else None)
            if k + 1 < len(free):
                overlap = overlap + free[k + 1].overlap_outside(turns[k + 1])
            turns[k] = _nearest_rotation(overlap, dtype)
        bonds = pairwise([None, *turns])
        distance = torch.stack([site.distance(*pair) for site, pair in zip(free, bonds, strict=True)]).sum(0)
        if bool((distance >= (1 - TOLERANCE) * last).all()):
            return
        last = distance


def _mirrored(site: _Site | None) -> _Site | None:
    """The site with its bonds exchanged, for the side on the right of the centre."""
    return site and _Site(site.core.transpose(-3, -1), site.other.transpose(-3, -1), site.weight)


def _relative(core: Tensor) -> Tensor:
    """`[...]`, one over the squared norm of `[..., d_left, p, d_right]`; 1 for zero."""
    norm = core.square().sum((-3, -2, -1))
    return torch.where(norm > 0, norm, 1.0).reciprocal()


def _turned(core: Tensor, outer: Tensor | None, inner: Tensor | None) -> Tensor:
    """`[..., d_outer, p, d_inner]` with its bonds turned; None leaves one as it is."""
    if outer is not None:
        core = (outer.mT @ core.flatten(-2)).reshape(core.shape)
    if inner is not None:
        core = (core.flatten(-3, -2) @ inner).reshape(core.shape)
    return core


def _nearest_rotation(overlap: Tensor, dtype: torch.dtype) -> Tensor:
    """The orthogonal matrix with the largest inner product with `[..., d, d]`, found in `dtype`."""
    size = overlap.abs().amax((-2, -1), keepdim=True)
    u, _s, vh = svd((overlap / torch.where(size > 0, size, 1.0)).to(dtype))
    return (u @ vh).to(overlap)
