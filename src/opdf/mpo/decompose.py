"""Matrix to cores: the MPO decomposition of OPDF (arXiv 2411.06448, equations 2, 3 and S.5).

One sweep from left to right, one factorization per bond that carries something new. With A_k the left-orthogonal core
of the sweep and S_k the singular values at bond k, the core in the symmetric gauge is
`S_{k-1}^(-1/2) A_k S_k^(1/2)`, so no second sweep is needed. At a 1x1 site both neighbouring bonds have the same
singular vectors: its core is the identity and no SVD is computed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdf.mpo.contract import contract, from_matrix
from opdf.mpo.factorize import eigh, svd
from opdf.mpo.precision import factorized_on, matmul_precision
from opdf.mpo.shape import MPOShape
from opdf.mpo.threads import Progress, one_a_thread, threads_for

WELL_CONDITIONED = 1e-3
"""Float32 is used if the smallest squared singular value is at least this share of the largest (condition 32)."""

BLOCK = 128
"""Triangular products are computed this many columns at a time, which skips most of the zeros."""


@dataclass(frozen=True)
class Decomposition:
    """The cores of a matrix and what was lost on the way.

    Attributes:
        cores: core k of shape `[..., d_{k-1}, i_k, j_k, d_k]`.
        bond_errors: `[..., n-1]`, float64, the Frobenius norm e_k that truncation dropped at each inner bond. On the
            cores' device, or on the CPU if that has no float64.
    """

    cores: list[Tensor]
    bond_errors: Tensor

    @property
    def bound(self) -> Tensor:
        """`[...]`, float64, the bound on the Frobenius error before rounding: sqrt(sum_k e_k^2), equation (S.5)."""
        return torch.linalg.vector_norm(self.bond_errors, dim=-1)

    def error(self, matrix: Tensor) -> Tensor:
        """`[...]`, float64, the Frobenius norm of `matrix - contract(cores)`."""
        place = self.bond_errors.device
        return torch.linalg.matrix_norm(matrix.to(place).double() - contract(self.cores).to(place).double())


def decompose(matrix: Tensor, shape: MPOShape) -> list[Tensor]:
    """Write a matrix as a chain of cores, exactly unless `shape` truncates.

    Args:
        matrix: `[..., rows, cols]`, float32 or float64; float16 and bfloat16 are computed in float32.
        shape: factors and bond dimensions.

    Returns:
        One contiguous tensor per site, `[..., d_{k-1}, i_k, j_k, d_k]`, float64 for float64 and float32 for all others.
        They are in the symmetric gauge: both cores at a bond carry the square roots of its singular values. In a
        direction of singular value 0 one of the two cores is zero and the other is not, so that the direction can still
        be trained.

        The same matrix gives the same cores on every run, alone or in a batch, on any number of threads. Signs are
        fixed: the largest entry of every left singular vector is positive.

    Raises:
        TypeError: `matrix` is not a floating-point tensor, or `shape` no `MPOShape`.
        ValueError: its size is not the shape's, it holds NaN or infinity, or nothing (an empty batch, the meta device).
    """
    return decompose_with_errors(matrix, shape).cores


def decompose_with_errors(matrix: Tensor, shape: MPOShape) -> Decomposition:
    """`decompose` that also reports the truncation error per bond and its bound (S.5).

    Raises:
        TypeError, ValueError: as `decompose`.
    """
    _check(matrix, shape)
    lead = matrix.shape[:-2]
    if not lead:
        return _on_threads([matrix], [shape])[0]
    results = _on_threads(list(matrix.flatten(0, -3)), [shape] * lead.numel())

    def stacked(tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(tensors)).reshape(*lead, *tensors[0].shape)

    cores = [stacked(chain) for chain in zip(*(result.cores for result in results), strict=True)]
    return Decomposition(cores, stacked([result.bond_errors for result in results]))


def decompose_many(
    matrices: Sequence[Tensor], shapes: Sequence[MPOShape], *, progress: Progress | None = None
) -> list[list[Tensor]]:
    """`decompose` for many matrices `[rows, cols]`, each with its shape: on a CPU one matrix a thread.

    Several eigenproblems at once are faster than one with several threads. The cores are those that `decompose`
    gives.

    Args:
        matrices, shapes: as for `decompose`, one shape a matrix.
        progress: called with the number of matrices done and of all, at the start and whenever one is done.

    Raises:
        TypeError, ValueError: as `decompose`, before anything is computed; or the lists differ in length, or a matrix
            has more than two dimensions.
    """
    if len(matrices) != len(shapes):
        raise ValueError(f"{len(matrices)} matrices came with {len(shapes)} shapes; give one shape a matrix")
    for k, (matrix, shape) in enumerate(zip(matrices, shapes, strict=True)):
        _check(matrix, shape)
        if matrix.dim() != 2:
            raise ValueError(f"matrices[{k}] has shape {tuple(matrix.shape)}; give two dimensions, or use decompose")
    return [result.cores for result in _on_threads(matrices, shapes, progress)]


def _on_threads(
    matrices: Sequence[Tensor], shapes: Sequence[MPOShape], progress: Progress | None = None
) -> list[Decomposition]:
    """Each matrix on one thread; matrices on a GPU one after another."""
    # Copied before the threads start: Apple's devices allow one thread at a time.
    near = [matrix.detach().to(factorized_on(matrix.device)) for matrix in matrices]
    with matmul_precision():
        found = one_a_thread(
            lambda given: _decompose(*given),
            list(zip(near, shapes, strict=True)),
            [shape.num_params for shape in shapes],
            threads=threads_for(matrix.device for matrix in near),
            progress=progress,
        )
    return [
        Decomposition([core.to(matrix.device) for core in one.cores], one.bond_errors)
        for one, matrix in zip(found, matrices, strict=True)
    ]


@torch.no_grad()
def _decompose(matrix: Tensor, shape: MPOShape) -> Decomposition:
    """One matrix `[rows, cols]` that has been checked."""
    work = matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()
    scale = _power_of_four(work)
    # One factorization in float32 is as exact as the result can be stored; the errors of several add up.
    single = shape.is_exact and sum(i * j > 1 for _, i, j, _ in shape.core_shapes) == 2 and work.device.type == "cpu"
    rest = from_matrix(work, shape).to(work.dtype if single else torch.float64) / scale
    split = _split_svd if work.dtype == torch.float64 else _split_gram
    # `carried` multiplies the next core: roots of singular values, and at the ends a part of the scale.
    ends = 2 if shape.sites > 1 else 1
    carried = rest.new_full((1,), scale**0.5 if ends == 2 else 1.0)
    cores: list[Tensor] = []
    dropped: list[Tensor] = []
    square_sites = shape.square_sites
    for k, size in enumerate(shape.core_shapes[:-1]):
        d_left, i, j, d_right = size
        if k in square_sites:
            cores.append(torch.eye(d_left, dtype=rest.dtype, device=rest.device).reshape(size))
            dropped.append(rest.new_zeros((), dtype=torch.float64))
            continue
        left, rest, singular = split(rest.reshape(d_left * i * j, -1), d_right)
        dropped.append(torch.linalg.vector_norm(singular[d_right:].double()))
        share = _share(singular[:d_right], work.dtype)
        factors = carried[:, None, None] * share  # [d_left, 1, d_right]
        cores.append(left.reshape(d_left, i * j, d_right).mul_(factors).reshape(size))
        carried = 1 / share
    cores.append(rest.mul_((carried * scale ** (1 / ends))[:, None]).reshape(shape.core_shapes[-1]))
    errors = torch.stack(dropped) if dropped else rest.new_zeros(0, dtype=torch.float64)
    return Decomposition([core.to(work.dtype).contiguous() for core in cores], errors * scale)


Split = tuple[Tensor, Tensor, Tensor]
"""Orthogonal left factor `[p, d]`, what goes on `[d, q]`, all singular values `[min(p, q)]`."""


def _split_svd(rest: Tensor, bond: int) -> Split:
    u, s, vh = svd(rest)
    sign = _signs(u)[:bond]
    return u[:, :bond] * sign, (s[:bond] * sign)[:, None] * vh[:bond], s


def _split_gram(rest: Tensor, bond: int) -> Split:
    """`_split_svd` from the eigenvectors of the smaller Gram matrix: faster, and exact enough for float32.

    Squaring costs small singular values half their digits. Float64 has twice as many digits as float32, so that none
    is missed. Float32 is used for matrices of modest condition. The product stays exact in either, because one of the
    factors is square and orthogonal. Where `eigh` fails, float64 is tried, then the SVD.
    """
    tall = rest.shape[-2] > rest.shape[-1]
    single = rest.dtype == torch.float32
    found = eigh(_gram(rest.mT if tall else rest))
    if found is None or (single and not found[0][0] > WELL_CONDITIONED * found[0][-1]):
        return _split_gram(rest.double(), bond) if single else _split_svd(rest, bond)
    values, vectors = found
    if single:
        _orthogonalize(vectors)
    s = values.flip(-1).clamp(min=0).sqrt()
    vectors = vectors.flip(-1)[:, :bond]
    if not tall:
        u = vectors.mul_(_signs(vectors))
        return u, u.mT @ rest, s
    safe = _share(s[:bond], torch.float32).square()
    u = (rest @ vectors).div_(safe)
    sign = _signs(u)
    return u.mul_(sign), vectors.mul_(safe * sign).mT, s


def _orthogonalize(columns: Tensor) -> None:
    """Make nearly orthogonal columns orthogonal to rounding, in place. Eigensolvers leave ten times as much.

    V <- V (I + T) with T lower triangular and T + T' = I - V'V: to first order V's QL decomposition.
    """
    change = _gram(columns.mT).tril_().neg_()
    change.diagonal().add_(1).mul_(0.5)
    for start in range(0, len(change), BLOCK):
        columns[:, start : start + BLOCK] += columns[:, start:] @ change[start:, start : start + BLOCK]


def _gram(rows: Tensor) -> Tensor:
    """`rows @ rows.mT` in blocks on and below the diagonal; the rest stays zero, because `eigh` does not read it."""
    n = len(rows)
    gram = rows.new_zeros(n, n)
    for start in range(0, n, BLOCK):
        stop = min(n, start + BLOCK)
        torch.mm(rows[start:stop], rows[:stop].mT, out=gram[start:stop, :stop])
    return gram


def _check(matrix: Tensor, shape: MPOShape) -> None:
    if not isinstance(matrix, Tensor) or not matrix.is_floating_point():
        kind = matrix.dtype if isinstance(matrix, Tensor) else type(matrix).__name__
        raise TypeError(f"matrix is {kind}; give a floating-point torch.Tensor (convert with .float())")
    if not isinstance(shape, MPOShape):
        raise TypeError(f"shape is {shape!r}; give an MPOShape, as from plan_shape(rows, cols)")
    if matrix.is_meta:
        raise ValueError("matrix is on the meta device and holds no values; load the weights first")
    if matrix.shape[-2:] != (shape.rows, shape.cols):
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; {shape} factors [..., {shape.rows}, {shape.cols}]")
    if not matrix.numel():
        raise ValueError(f"matrix has shape {tuple(matrix.shape)}; give a batch of at least one matrix")
    if not math.isfinite(_largest(matrix)):
        raise ValueError("matrix holds NaN or infinite entries; it has no decomposition. Repair the weights first")


def _largest(matrix: Tensor) -> float:
    """The largest absolute entry; NaN if there is one."""
    low, high = torch.aminmax(matrix.detach())
    return float(torch.maximum(-low, high))


def _power_of_four(matrix: Tensor) -> float:
    """A power of four near the largest entry, 1 for a zero matrix.

    Powers of 4 leave mantissas alone and have an exact square root for the two ends of a chain to share.
    """
    largest = _largest(matrix)
    most = 124 if matrix.dtype == torch.float32 else 1022  # the next power, or its reciprocal, is infinite
    exponent = max(-most, min(most, math.frexp(largest)[1]))
    return 2.0 ** (exponent - exponent % 2) if largest else 1.0


def _signs(u: Tensor) -> Tensor:
    """`[d]`, the sign of the largest entry of every column."""
    return torch.where(u.amax(dim=0) < -u.amin(dim=0), -1.0, 1.0).to(u.dtype)


def _share(singular: Tensor, dtype: torch.dtype) -> Tensor:
    """Square roots of the singular values, kept away from zero so that dividing by them is safe in `dtype`."""
    largest = singular.amax()
    floor = torch.where(largest > 0, largest * torch.finfo(dtype).eps, 1.0)
    return torch.maximum(singular, floor).sqrt()
