"""Shapes of matrix product operators: equations (2) to (4) of OPDF (arXiv 2411.06448)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

DEFAULT_ONES = 3
MAX_ONES = 100
"""The paper uses up to 8. The time to find the best order of products is cubic in the number of sites."""

MAX_PLANNED_ONES = 10
"""`plan_shape(scale=...)` looks at chains with up to this many 1x1 sites (the paper uses up to 8)."""

# Sizes for which the paper (tables S3 to S5) does not take the most square pair of factors.
_PAPER_FACTORS = {192: (24, 8), 448: (32, 14), 576: (32, 18), 1344: (48, 28), 1728: (54, 32), 2304: (64, 36)}


@dataclass(frozen=True)
class MPOShape:
    """How a matrix of `rows` x `cols` is laid out as a chain of cores.

    Core k has the shape `[d_{k-1}, i_k, j_k, d_k]` with row factors i, column factors j and bond dimensions d.

    Args:
        row_factors: i_1..i_n; their product is the number of rows. i_1 is the slowest digit of the row index.
        col_factors: j_1..j_n; their product is the number of columns.
        bond_dims: d_0..d_n, with d_0 = d_n = 1. None takes the full dimensions of equation (3), with which
            the chain represents every matrix exactly. Smaller ones truncate.

    Raises:
        TypeError: a factor or bond dimension is not an integer.
        ValueError: a factor is below 1, the lists are empty or differ in length, or a bond dimension cannot be reached.
    """

    row_factors: tuple[int, ...]
    col_factors: tuple[int, ...]
    bond_dims: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        rows = _int_tuple("row_factors", self.row_factors)
        cols = _int_tuple("col_factors", self.col_factors)
        if len(rows) != len(cols):
            raise ValueError(
                f"row_factors has {len(rows)} entries {rows} and col_factors {len(cols)} {cols}; "
                "give one row factor and one column factor for every site (pad with 1)"
            )
        full = _full_bond_dims(rows, cols)
        bonds = full if self.bond_dims is None else _int_tuple("bond_dims", self.bond_dims)
        _check_bonds(bonds, full, rows, cols)
        object.__setattr__(self, "row_factors", rows)
        object.__setattr__(self, "col_factors", cols)
        object.__setattr__(self, "bond_dims", bonds)

    @cached_property
    def _bonds(self) -> tuple[int, ...]:
        assert self.bond_dims is not None
        return self.bond_dims

    @property
    def rows(self) -> int:
        return math.prod(self.row_factors)

    @property
    def cols(self) -> int:
        return math.prod(self.col_factors)

    @property
    def sites(self) -> int:
        """The number of cores n."""
        return len(self.row_factors)

    @property
    def full_bond_dims(self) -> tuple[int, ...]:
        """d_0..d_n of equation (3), with which nothing is truncated."""
        return _full_bond_dims(self.row_factors, self.col_factors)

    @property
    def is_exact(self) -> bool:
        return self._bonds == self.full_bond_dims

    @property
    def core_shapes(self) -> list[tuple[int, int, int, int]]:
        d = self._bonds
        return [(d[k], i, j, d[k + 1]) for k, (i, j) in enumerate(zip(self.row_factors, self.col_factors, strict=True))]

    @property
    def num_params(self) -> int:
        """Parameters of all cores together."""
        return sum(math.prod(s) for s in self.core_shapes)

    @property
    def added_params(self) -> int:
        """Parameters beyond the dense matrix's: equation (4). Negative for a strongly truncated chain."""
        return self.num_params - self.rows * self.cols

    @property
    def scale(self) -> float:
        """Parameters of the cores over parameters of the matrix."""
        return self.num_params / (self.rows * self.cols)

    @property
    def center(self) -> int:
        """Index of the central tensor, counted from 0; all other cores are auxiliary."""
        return (self.sites - 1) // 2

    @property
    def auxiliary(self) -> tuple[int, ...]:
        return tuple(k for k in range(self.sites) if k != self.center)

    @property
    def square_sites(self) -> tuple[int, ...]:
        """Inner 1x1 sites. Their bonds are equal and have the same singular vectors, so an identity will do."""
        inner = list(enumerate(self.core_shapes))[1:-1]
        return tuple(k for k, (_, i, j, _) in inner if i * j == 1)

    @property
    def contract_flops(self) -> int:
        """Floating-point operations (2 per multiply-add) to multiply the cores out once, in the best order.

        `pullback` takes twice as many for the gradients.
        """
        return contraction_plan(self).flops

    def __str__(self) -> str:
        rows, cols = (",".join(map(str, f)) for f in (self.row_factors, self.col_factors))
        return f"T({rows} / {cols})"


def _int_tuple(name: str, values: Sequence[int]) -> tuple[int, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(f"{name} is {values!r}; give a sequence of positive integers")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} holds {value!r} of type {type(value).__name__}; give positive integers")
        if value < 1:
            raise ValueError(f"{name} holds {value}; every entry must be at least 1")
    if not values:
        raise ValueError(f"{name} is empty; give at least one entry")
    return tuple(values)


def _full_bond_dims(rows: tuple[int, ...], cols: tuple[int, ...]) -> tuple[int, ...]:
    sites = [i * j for i, j in zip(rows, cols, strict=True)]
    return tuple(min(math.prod(sites[:k]), math.prod(sites[k:])) for k in range(len(sites) + 1))


def _check_bonds(bonds: tuple[int, ...], full: tuple[int, ...], rows: tuple[int, ...], cols: tuple[int, ...]) -> None:
    if len(bonds) != len(full):
        raise ValueError(f"bond_dims has {len(bonds)} entries; {len(rows)} sites need {len(full)} (d_0..d_n)")
    for k, (bond, most) in enumerate(zip(bonds, full, strict=True)):
        if bond > most:
            raise ValueError(f"bond_dims[{k}] is {bond}; these factors carry at most {most} there (full: {full})")
    for k, (i, j) in enumerate(zip(rows, cols, strict=True)):
        left, right = bonds[k], bonds[k + 1]
        if right > left * i * j or left > right * i * j:
            raise ValueError(
                f"bond_dims {bonds}: bonds {k} and {k + 1} ({left} and {right}) differ by more than the factor "
                f"{i}*{j} of the site between them; lower the larger one"
            )


@dataclass(frozen=True)
class ContractionPlan:
    """Order of the n-1 products: each step multiplies sites [start, split) with [split, stop)."""

    steps: tuple[tuple[int, int, int], ...]
    flops: int


@lru_cache(maxsize=1024)
def contraction_plan(shape: MPOShape) -> ContractionPlan:
    """The cheapest order of multiplying the chain, by dynamic programming over its segments."""
    n, d = shape.sites, shape._bonds
    sites = [i * j for i, j in zip(shape.row_factors, shape.col_factors, strict=True)]
    best: dict[tuple[int, int], tuple[int, int]] = {(a, a + 1): (0, a) for a in range(n)}
    for length in range(2, n + 1):
        for a in range(n - length + 1):
            c = a + length
            outer = 2 * d[a] * math.prod(sites[a:c]) * d[c]
            best[a, c] = min((best[a, b][0] + best[b, c][0] + outer * d[b], b) for b in range(a + 1, c))
    steps: list[tuple[int, int, int]] = []

    def emit(a: int, c: int) -> None:
        if c - a > 1:
            b = best[a, c][1]
            emit(a, b)
            emit(b, c)
            steps.append((a, b, c))

    emit(0, n)
    return ContractionPlan(tuple(steps), best[0, n][0])


def plan_shape(rows: int, cols: int, *, ones: int | None = None, scale: float | None = None) -> MPOShape:
    """Choose factors for a matrix: two outer sites and 1x1 sites between them, as the paper does.

    Args:
        rows, cols: size of the matrix, at least 1; primes are fine.
        ones: number L of 1x1 sites. 0 gives two cores, the paper's SVD baseline. Each adds a square core.
        scale: wanted ratio of training to dense parameters (at least 1). The nearest reachable one over all
            pairs of outer factors and 0 to 10 ones is taken; the result's `.scale` and `.num_params` say
            which, and a warning tells when it is more than 10 % away.

    With neither, `ones=3`.

        plan_shape(3072, 768, ones=3)  # T(64,1,1,1,48 / 32,1,1,1,24)

    Raises:
        TypeError: a size or `ones` is no integer.
        ValueError: a size is below 1, `ones` is not from 0 to 100, `scale` is no finite number of at least 1, or both
            are given.
    """
    rows, cols = _int_tuple("rows, cols", (rows, cols))
    if ones is not None and scale is not None:
        raise ValueError(f"ones={ones} and scale={scale} were both given; give one of them")
    if scale is not None:
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not (number and math.isfinite(scale) and scale >= 1):
            raise ValueError(
                f"scale is {scale!r}; it must be a finite number of at least 1 (2.0 doubles the parameters)"
            )
        shape = _plan_by_scale(rows, cols, scale)
        if abs(shape.scale - scale) > 0.1 * scale:
            warnings.warn(
                f"scale {scale:g} is out of reach for a {rows}x{cols} matrix; "
                f"the nearest is {shape.scale:.2f} with {shape}",
                stacklevel=2,
            )
        return shape
    ones = DEFAULT_ONES if ones is None else ones
    if isinstance(ones, bool) or not isinstance(ones, int):
        raise TypeError(f"ones is {ones!r}; give the number of 1x1 sites as an integer")
    if not 0 <= ones <= MAX_ONES:
        raise ValueError(f"ones is {ones}; it must be 0 or more, and at most {MAX_ONES}")
    return _with_ones(*_default_outer(rows, cols), ones)


Pair = tuple[int, int]


def _with_ones(row_pair: Pair, col_pair: Pair, ones: int) -> MPOShape:
    middle = (1,) * ones
    return MPOShape((row_pair[0], *middle, row_pair[1]), (col_pair[0], *middle, col_pair[1]))


def _default_outer(rows: int, cols: int) -> tuple[Pair, Pair]:
    row_pair, col_pair = _most_square_pair(rows), _most_square_pair(cols)
    if 1 in (row_pair[1], col_pair[1]):
        # A prime size stands whole at one site. The columns' larger factor goes to the other one, for a wider bond.
        col_pair = (col_pair[1], col_pair[0])
    return row_pair, col_pair


def _most_square_pair(size: int) -> Pair:
    if size in _PAPER_FACTORS:
        return _PAPER_FACTORS[size]
    small = next(f for f in range(math.isqrt(size), 0, -1) if size % f == 0)
    return size // small, small


def _pairs(size: int) -> list[Pair]:
    return [(f, size // f) for f in range(1, size + 1) if size % f == 0]


@lru_cache(maxsize=1024)
def _plan_by_scale(rows: int, cols: int, scale: float) -> MPOShape:
    target, default = scale * rows * cols, _default_outer(rows, cols)

    def distance(candidate: tuple[Pair, Pair, int]) -> tuple[float, bool, int, int]:
        (i1, i2), (j1, j2), ones = candidate
        left, right = i1 * j1, i2 * j2
        bond = min(left, right)
        params = bond * (left + right + ones * bond)
        return abs(params - target), (candidate[0], candidate[1]) != default, ones, -bond

    candidates = (
        (row_pair, col_pair, ones)
        for row_pair in _pairs(rows)
        for col_pair in _pairs(cols)
        for ones in range(MAX_PLANNED_ONES + 1)
    )
    return _with_ones(*min(candidates, key=distance))
