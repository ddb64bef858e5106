"""Matrix to cores: the MPO decomposition of OPDF (arXiv 2411.06448, equations 2, 3 and S.5).

One sweep from left to right, one factorization per bond that carries something new. With A_k the left-orthogonal core
of the sweep and S_k the singular values at bond k, the core in the symmetric gauge is
`S_{k-1}^(-1/2) A_k S_k^(1/2)`, so no second sweep is needed. At a 1x1 site both neighbouring bonds have the same
singular vectors: its core is the identity and no SVD is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from opdf.mpo.contract import contract, from_matrix
from opdf.mpo.shape import MPOShape

GAUGES = ("symmetric", "left")


@dataclass(frozen=True)
class Decomposition:
    """The cores of a matrix and what was lost on the way.

    Attributes:
        cores: core k of shape `[..., d_{k-1}, i_k, j_k, d_k]`.
        bond_errors: `[..., n-1]`, float64, the Frobenius norm e_k that truncation dropped at each inner bond.
    """

    cores: list[Tensor]
    bond_errors: Tensor

    @property
    def bound(self) -> Tensor:
        """`[...]`, float64, the bound on the Frobenius error before rounding: sqrt(sum_k e_k^2), equation (S.5)."""
        return torch.linalg.vector_norm(self.bond_errors, dim=-1)

    def error(self, matrix: Tensor) -> Tensor:
        """`[...]`, float64, the Frobenius norm of `matrix - contract(cores)`."""
        return torch.linalg.matrix_norm(matrix.double() - contract(self.cores).double())


def decompose(matrix: Tensor, shape: MPOShape, *, gauge: str = "symmetric") -> list[Tensor]:
    """Write a matrix as a chain of cores, exactly unless `shape` truncates.

    Args:
        matrix: `[..., rows, cols]`, float32 or float64; float16 and bfloat16 are computed in float32.
        shape: factors and bond dimensions.
        gauge: "symmetric" shares every bond's singular values by square root between the two cores it joins;
            "left" keeps all cores but the last orthogonal.

    Returns:
        One contiguous tensor per site, `[..., d_{k-1}, i_k, j_k, d_k]`. The same matrix gives the same cores on
        every run; signs are fixed by making the largest entry of every left singular vector positive. Where a
        matrix has no weight (singular value 0) one of the two cores keeps a direction, so that it can still be trained.

    Raises:
        TypeError: `matrix` is not a floating-point tensor.
        ValueError: its size is not the shape's, it holds NaN or infinity, or `gauge` is unknown.
    """
    return decompose_with_errors(matrix, shape, gauge=gauge).cores


@torch.no_grad()
def decompose_with_errors(matrix: Tensor, shape: MPOShape, *, gauge: str = "symmetric") -> Decomposition:
    """`decompose` that also reports the truncation error per bond and its bound (S.5)."""
    work = _checked(matrix, shape, gauge)
    lead = work.shape[:-2]
    # Powers of 4 leave mantissas alone and have an exact square root for the two ends to share.
    scale = _power_of_four(work)
    rest = from_matrix(work / scale[..., None, None], shape)
    split = _split_svd if work.dtype == torch.float64 else _split_gram
    previous = rest.new_ones((*lead, 1))
    cores: list[Tensor] = []
    dropped: list[Tensor] = []
    for size in shape.core_shapes[:-1]:
        d_left, i, j, d_right = size
        if i * j == 1 and d_left == d_right and cores:
            eye = torch.eye(d_left, dtype=rest.dtype, device=rest.device)
            cores.append(eye.reshape(size).expand(*lead, *size))
            dropped.append(rest.new_zeros(lead))
            continue
        left, rest, singular = split(rest.reshape(*lead, d_left * i * j, -1), d_right)
        dropped.append(torch.linalg.vector_norm(singular[..., d_right:], dim=-1))
        share = _share(singular[..., :d_right], work.dtype) if gauge == "symmetric" else torch.ones_like(rest[..., 0])
        left = left.reshape(*lead, *size) / previous[..., :, None, None, None]
        cores.append(left * share[..., None, None, None, :])
        previous = share
    cores.append(rest.reshape(*lead, *shape.core_shapes[-1]) / previous[..., :, None, None, None])
    errors = torch.stack(dropped, -1) if dropped else rest.new_zeros((*lead, 0))
    ends = (0, -1) if gauge == "symmetric" and shape.sites > 1 else (-1,)
    for k in ends:
        cores[k] = cores[k] * scale.pow(1 / len(ends))[..., None, None, None, None]
    return Decomposition([core.to(work.dtype).contiguous() for core in cores], errors * scale[..., None])


Split = tuple[Tensor, Tensor, Tensor]
"""Orthogonal left factor `[..., p, d]`, what goes on `[..., d, q]`, all singular values `[..., min(p, q)]`."""


def _split_svd(rest: Tensor, bond: int) -> Split:
    u, s, vh = torch.linalg.svd(rest, full_matrices=False)
    u, onward = u[..., :bond], s[..., :bond, None] * vh[..., :bond, :]
    sign = _signs(u)
    return u * sign, onward * sign.mT, s


def _split_gram(rest: Tensor, bond: int) -> Split:
    """`_split_svd` from the eigenvectors of the smaller Gram matrix, for float32 input held in float64.

    Squaring costs a small singular value half its digits; float64 has twice as many as float32. One factor is square
    and orthogonal, so the product stays exact, and this is faster than an SVD in float32.
    """
    tall = rest.shape[-2] > rest.shape[-1]
    values, vectors = torch.linalg.eigh(rest.mT @ rest if tall else rest @ rest.mT)
    s = values.flip(-1).clamp(min=0).sqrt()
    vectors = vectors.flip(-1)[..., :bond]
    if not tall:
        u = vectors * _signs(vectors)
        return u, u.mT @ rest, s
    safe = _share(s[..., :bond], torch.float32).square().unsqueeze(-2)
    u = rest @ vectors / safe
    sign = _signs(u)
    return u * sign, (vectors * safe * sign).mT, s


def _checked(matrix: Tensor, shape: MPOShape, gauge: str) -> Tensor:
    if gauge not in GAUGES:
        raise ValueError(f"gauge is {gauge!r}; expected one of {GAUGES}")
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        kind = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
        raise TypeError(f"matrix is {kind}; give a floating-point torch.Tensor (convert with .float())")
    if matrix.is_meta:
        raise ValueError("matrix is on the meta device and holds no values; load the weights first")
    if matrix.shape[-2:] != (shape.rows, shape.cols):
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; {shape} factors [..., {shape.rows}, {shape.cols}]")
    work = matrix.detach()
    if work.dtype not in (torch.float32, torch.float64):
        work = work.float()
    if not torch.isfinite(work).all():
        raise ValueError("matrix holds NaN or infinite entries; it has no decomposition. Repair the weights first")
    return work


def _power_of_four(matrix: Tensor) -> Tensor:
    """`[...]`, float64, a power of four near the largest entry; 1 for a zero matrix."""
    largest = matrix.abs().amax(dim=(-2, -1)).double()
    exponent = torch.frexp(largest).exponent.clamp(max=1022)  # 2^1024 is infinite
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent - exponent % 2), 1.0)


def _signs(u: Tensor) -> Tensor:
    """`[..., 1, d]`, the sign of the largest entry of every column."""
    largest = u.gather(-2, u.abs().argmax(dim=-2, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(u.dtype)


def _share(singular: Tensor, dtype: torch.dtype) -> Tensor:
    """Square roots of the singular values, kept away from zero so that dividing by them is safe in `dtype`."""
    largest = singular.amax(dim=-1, keepdim=True)
    floor = torch.where(largest > 0, largest * torch.finfo(dtype).eps, 1.0)
    return torch.maximum(singular, floor).sqrt()
