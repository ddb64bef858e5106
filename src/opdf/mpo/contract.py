"""Cores to matrix, and the gradient back: equation (2) of OPDF (arXiv 2411.06448) and its adjoint.

A segment of the chain is kept as `[..., d_left, p, d_right]`, where p runs over the interleaved digits
(i_a, j_a, i_b, j_b, ...) of its sites. Then every product of two neighbours is one plain matrix product without
a copy, and digits are sorted into rows and columns once, at the end.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from opdf.mpo.shape import MPOShape, contraction_plan

Segments = dict[tuple[int, int], Tensor]
"""Products of neighbouring cores by (first site, last site + 1)."""


def shape_of(cores: Sequence[Tensor]) -> MPOShape:
    """The shape that a list of cores has.

    Raises:
        ValueError: the list is empty, a core has fewer than four dimensions, leading dimensions differ, neighbours do
            not fit, or a bond is larger than the factors on one of its sides.
    """
    if not cores:
        raise ValueError("cores is empty; give at least one tensor [..., d_left, i, j, d_right]")
    for k, core in enumerate(cores):
        if core.dim() < 4:
            raise ValueError(f"cores[{k}] has shape {tuple(core.shape)}; expected [..., d_left, i, j, d_right]")
        if core.shape[:-4] != cores[0].shape[:-4]:
            raise ValueError(
                f"cores[{k}] has shape {tuple(core.shape)} and cores[0] {tuple(cores[0].shape)}; all but the last four "
                "dimensions must be alike"
            )
        if k and core.shape[-4] != cores[k - 1].shape[-1]:
            raise ValueError(
                f"cores[{k - 1}] ends with bond dimension {cores[k - 1].shape[-1]} and cores[{k}] begins with "
                f"{core.shape[-4]}; they must agree"
            )
    bonds = (cores[0].shape[-4], *(core.shape[-1] for core in cores))
    return MPOShape(tuple(c.shape[-3] for c in cores), tuple(c.shape[-2] for c in cores), bonds)


def contract(cores: Sequence[Tensor]) -> Tensor:
    """Multiply the cores out.

    Args:
        cores: core k of shape `[..., d_{k-1}, i_k, j_k, d_k]`, leading dimensions alike.

    Returns:
        The matrix `[..., rows, cols]`, contiguous, of the cores' dtype.

    Raises:
        ValueError: as `shape_of`.
    """
    return contract_segments(cores, shape_of(cores))[0]


def contract_segments(cores: Sequence[Tensor], shape: MPOShape) -> tuple[Tensor, Segments]:
    """`contract`, together with the intermediate products that `pullback` can use again."""
    segments = _leaves(cores)
    for a, b, c in contraction_plan(shape).steps:
        segments[a, c] = _join(segments[a, b], segments[b, c])
    return to_matrix(segments.pop((0, shape.sites)), shape), segments


def pullback(cores: Sequence[Tensor], grad: Tensor, segments: Segments | None = None) -> list[Tensor]:
    """Gradient of `<grad, contract(cores)>` with respect to every core (the vector-Jacobian product).

    Args:
        cores: as for `contract`.
        grad: `[..., rows, cols]`, the gradient with respect to the matrix.
        segments: what `contract_segments` returned for the same cores; computed when absent.

    Returns:
        One tensor per core, of the core's shape.

    Raises:
        ValueError: as `shape_of`, or `grad` does not have the shape of the matrix.
    """
    shape = shape_of(cores)
    lead = cores[0].shape[:-4]
    if grad.shape != (*lead, shape.rows, shape.cols):
        raise ValueError(f"grad has shape {tuple(grad.shape)}; the cores give {(*lead, shape.rows, shape.cols)}")
    steps = contraction_plan(shape).steps
    if segments is None:
        segments = _leaves(cores)
        for a, b, c in steps[:-1]:
            segments[a, c] = _join(segments[a, b], segments[b, c])
    grads: Segments = {(0, shape.sites): from_matrix(grad, shape)}
    for a, b, c in reversed(steps):
        left, right = segments[a, b], segments[b, c]
        outer = grads.pop((a, c)).reshape(*lead, left.shape[-3] * left.shape[-2], right.shape[-2] * right.shape[-1])
        grads[a, b] = (outer @ right.flatten(-2).mT).reshape(left.shape)
        grads[b, c] = (left.flatten(-3, -2).mT @ outer).reshape(right.shape)
    return [grads[k, k + 1].reshape(core.shape) for k, core in enumerate(cores)]


def to_matrix(chain: Tensor, shape: MPOShape) -> Tensor:
    """`[..., 1, p, 1]` with interleaved digits -> `[..., rows, cols]`."""
    lead, n = chain.shape[:-3], shape.sites
    digits = [f for pair in zip(shape.row_factors, shape.col_factors, strict=True) for f in pair]
    b = len(lead)
    order = [*range(b), *range(b, b + 2 * n, 2), *range(b + 1, b + 2 * n, 2)]
    return chain.reshape(*lead, *digits).permute(order).reshape(*lead, shape.rows, shape.cols)


def from_matrix(matrix: Tensor, shape: MPOShape) -> Tensor:
    """`[..., rows, cols]` -> `[..., 1, p, 1]` with interleaved digits; inverse of `to_matrix`."""
    lead, n = matrix.shape[:-2], shape.sites
    b = len(lead)
    order = [*range(b), *(b + k + offset for k in range(n) for offset in (0, n))]
    digits = matrix.reshape(*lead, *shape.row_factors, *shape.col_factors).permute(order)
    return digits.reshape(*lead, 1, shape.rows * shape.cols, 1)


def _leaves(cores: Sequence[Tensor]) -> Segments:
    return {(k, k + 1): core.flatten(-3, -2) for k, core in enumerate(cores)}


def _join(left: Tensor, right: Tensor) -> Tensor:
    product = left.flatten(-3, -2) @ right.flatten(-2)
    return product.reshape(*left.shape[:-2], left.shape[-2] * right.shape[-2], right.shape[-1])
