"""The shapes in which matrices are factorized: those asked for, and a teacher's to go with its student's.

This file and `cores.py` are the only ones that call `opdf.mpo`. Another factorization would be added in these two.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

from opdf.mpo import MPOShape, plan_shape

__all__ = ["Factors", "MPOShape", "check", "explicit", "plan_shape", "shared_factors", "teacher_shape", "undivided"]

Factors = tuple[Sequence[int], Sequence[int]]
"""Row factors and column factors of a matrix."""


def check(ones: int | None, scale: float | None) -> None:
    """Refuse what no matrix can be planned with.

    Raises:
        ValueError, TypeError: as `plan_shape`.
    """
    with warnings.catch_warnings(action="ignore"):  # which scales are out of reach depends on the matrix
        plan_shape(4, 4, ones=ones, scale=scale)


def explicit(factors: Factors) -> MPOShape:
    """The shape with the given factors.

    Raises:
        ValueError, TypeError: as `MPOShape`.
    """
    return MPOShape(tuple(factors[0]), tuple(factors[1]))


def undivided(rows: int, cols: int) -> MPOShape:
    """One core, the matrix itself."""
    return MPOShape((rows,), (cols,))


def teacher_shape(student: MPOShape, rows: int, cols: int) -> MPOShape:
    """The shape of a teacher's matrix of `rows` x `cols` whose auxiliary cores have the student's sizes.

    The student's factors stand at every auxiliary site, the rest at the central one. The bonds of a wider teacher are
    truncated to the student's, which keeps the largest singular values.

    Raises:
        ValueError: the sizes do not allow it.
    """
    if not student.auxiliary:
        raise ValueError("it has one core, and the constraint is on those beside the central one")
    row_factors = _stretched(student, student.row_factors, rows, "rows")
    col_factors = _stretched(student, student.col_factors, cols, "columns")
    full = MPOShape(row_factors, col_factors)
    if any(ours > theirs for ours, theirs in zip(student._bonds, full._bonds, strict=True)):
        raise ValueError(
            f"the student has bond dimensions {student._bonds}, larger than the {full._bonds} of the smaller teacher "
            "with the same outer factors"
        )
    return MPOShape(row_factors, col_factors, student._bonds)


def _stretched(student: MPOShape, factors: Sequence[int], size: int, side: str) -> tuple[int, ...]:
    """The student's factors with the central one changed so that all multiply to `size`."""
    outer = math.prod(factors[k] for k in student.auxiliary)
    if size % outer:
        raise ValueError(
            f"the teacher's {size} {side} are not a multiple of {outer}, the product of the student's auxiliary factors"
        )
    return (*factors[: student.center], size // outer, *factors[student.center + 1 :])


def shared_factors(student: MPOShape, rows: int, cols: int) -> Factors | None:
    """Factors with which the student could follow a teacher's matrix of `rows` x `cols`, with as many sites as now.

    None where the two have no factor but 1 in common.
    """
    found = _shared(student.rows, rows, student.sites), _shared(student.cols, cols, student.sites)
    try:
        shape = explicit(found)
        teacher_shape(shape, rows, cols)
    except ValueError:
        return None
    return None if shape.bond_dims == (1,) * (shape.sites + 1) else found


def _shared(ours: int, theirs: int, sites: int) -> list[int]:
    """Factors of `ours`: two outer ones of what it has in common with `theirs`, the rest at the central site."""
    common = math.gcd(ours, theirs)
    last = next(f for f in range(math.isqrt(common), 0, -1) if common % f == 0)
    factors = [1] * sites
    factors[-1] = last
    if sites > 2:
        factors[0] = common // last
    factors[(sites - 1) // 2] *= ours // math.prod(factors)
    return factors
