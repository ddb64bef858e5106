"""Matrices that LAPACK's fast routines cannot factorize: structured ones, in every precision, alone and in company."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from chains import truncated
from opdf.mpo import MPOShape, contract, decompose, decompose_many, decompose_with_errors, match_gauge, plan_shape
from opdf.mpo.factorize import _turned_svd, eigh, singular_values, svd

PATTERNS: dict[str, Callable[[int], Tensor]] = {
    "identity": torch.eye,
    "shift": lambda n: torch.roll(torch.eye(n), 1, 0),
    "blocks": lambda n: torch.block_diag(*[torch.ones(n // 8, n // 8)] * 8),
    "half an identity": lambda n: torch.cat([torch.eye(n)[: n // 2], torch.zeros(n - n // 2, n)]),
    "grid": lambda n: torch.kron(torch.ones(n // 16, n // 16), torch.eye(16)),
}
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def error(matrix: Tensor, cores: Sequence[Tensor]) -> float:
    """Relative, in float64; of the largest entry, so that squares neither overflow nor vanish."""
    largest = float(matrix.double().abs().max()) or 1.0
    want = matrix.double() / largest
    return float((contract([core.double() for core in cores]) / largest - want).norm() / max(float(want.norm()), 1.0))


def tolerance(dtype: torch.dtype) -> float:
    return 1e-12 if dtype == torch.float64 else 2e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [192, 256, 384])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_structured_matrices_are_decomposed(pattern: str, size: int, dtype: torch.dtype) -> None:
    shape = plan_shape(size, size, ones=3)
    for scale in (1.0, 0.3, 7.0):
        matrix = (PATTERNS[pattern](size) * scale).to(dtype)
        assert error(matrix, decompose(matrix, shape)) <= tolerance(dtype)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_the_largest_and_the_smallest_numbers(dtype: torch.dtype) -> None:
    signs = torch.randn(24, 18, generator=torch.Generator().manual_seed(0)).sign().to(dtype)
    # Halfway, products of cores are larger, and rounding is not: they are put together nearer to 1.
    for value, nearer in ((0.75 * torch.finfo(dtype).max, 2.0**-9), (torch.finfo(dtype).tiny, 2.0**9)):
        first, *others = decompose(signs * value, plan_shape(24, 18))
        assert error(signs * (value * nearer), [first * nearer, *others]) <= tolerance(dtype)


def test_the_slower_way_is_taken_on_the_cpu_whatever_the_default_device_is() -> None:
    matrix = torch.randn(8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.device("meta"):
        u, s, vh = _turned_svd(matrix)
    torch.testing.assert_close(u * s @ vh, matrix)


def test_many_and_batches_and_truncation() -> None:
    matrices = [make(256) for make in PATTERNS.values()]
    shape = plan_shape(256, 256, ones=3)
    many = decompose_many(matrices, [shape] * len(matrices))
    batch = decompose(torch.stack(matrices), shape)
    for k, matrix in enumerate(matrices):
        assert error(matrix, many[k]) <= 2e-6
        assert all(torch.equal(core[k], alone) for core, alone in zip(batch, many[k], strict=True))
        cut = decompose_with_errors(matrix, truncated(shape, 5))
        assert float(cut.error(matrix)) <= float(cut.bound) + 1e-5 * float(matrix.norm())
        matched = match_gauge(many[k], many[k - 1])
        assert error(matrix, matched) <= 2e-6


@settings(max_examples=40)
@given(
    sites=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=2, max_size=3),
    seed=st.integers(0, 2**20),
    levels=st.integers(1, 3),
    rank=st.integers(0, 3),
    exponent=st.integers(-44, 35),
    dtype=st.sampled_from(DTYPES),
)
def test_any_structure(
    sites: list[tuple[int, int]], seed: int, levels: int, rank: int, exponent: int, dtype: torch.dtype
) -> None:
    """Few different entries, of low rank across the bonds, at any scale: equal singular values and exact zeros."""
    draw = np.random.default_rng(seed)
    shape = MPOShape(tuple(i for i, _ in sites), tuple(j for _, j in sites))
    terms = [reduce(np.kron, [draw.integers(-levels, levels + 1, site) for site in sites]) for _ in range(rank)]
    matrix = torch.as_tensor(sum(terms) if terms else np.eye(shape.rows, shape.cols), dtype=torch.float64)
    scaled = (matrix * 10.0**exponent).to(dtype)
    cores = decompose(scaled, shape)
    assert all(core.isfinite().all() for core in cores)
    # The smallest float32s have fewer digits: what is left of them is within their spacing.
    assert error(scaled, cores) <= tolerance(dtype) or scaled.double().abs().max() < 1e-37
    assert all(core.isfinite().all() for core in match_gauge(cores, decompose(scaled.flip(0), shape)))


def fail(monkeypatch: pytest.MonkeyPatch, name: str, times: int, *, silently: bool = False) -> None:
    """Let a routine of torch.linalg fail some times, as LAPACK does, and then work."""
    real, left = getattr(torch.linalg, name), [times]

    def failing(matrix: Tensor, *args: Any, **options: Any) -> Any:
        if not left[0]:
            return real(matrix, *args, **options)
        left[0] -= 1
        if silently:
            found = real(matrix, *args, **options)
            return [part * torch.nan for part in found] if isinstance(found, tuple) else found * torch.nan
        raise torch.linalg.LinAlgError(f"linalg.{name}: the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, name, failing)


@pytest.mark.parametrize("silently", [False, True], ids=["raises", "NaN"])
class TestSlowerWays:
    @pytest.mark.parametrize("times", [1, 3])
    @pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
    @pytest.mark.parametrize("size", [(40, 24), (24, 40), (3, 24, 24)], ids=str)
    def test_svd(self, size, dtype, times, silently, monkeypatch):
        matrix = torch.randn(size, dtype=dtype, generator=torch.Generator().manual_seed(0))
        values = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        fail(monkeypatch, "svd", times, silently=silently)
        u, s, vh = svd(matrix)
        assert u.dtype == s.dtype == vh.dtype == dtype
        close = 1e-12 if dtype == torch.float64 else 1e-5
        np.testing.assert_allclose(s.numpy(), values, rtol=close)
        torch.testing.assert_close((u * s[..., None, :]) @ vh, matrix, rtol=0, atol=30 * close)
        torch.testing.assert_close(u.mT @ u, torch.eye(24, dtype=dtype).expand(*size[:-2], 24, 24), rtol=0, atol=close)

    def test_singular_values(self, silently, monkeypatch):
        matrix = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
        expected = torch.linalg.svdvals(matrix)
        fail(monkeypatch, "svdvals", 1, silently=silently)
        torch.testing.assert_close(singular_values(matrix), expected)

    def test_eigh_says_that_it_failed(self, silently, monkeypatch):
        fail(monkeypatch, "eigh", 1, silently=silently)
        assert eigh(torch.eye(3)) is None
        assert eigh(torch.eye(3)) is not None

    @pytest.mark.parametrize("eigh_fails", [1, 2, 9])
    @pytest.mark.parametrize("svd_fails", [0, 2])
    @pytest.mark.parametrize("size", [(48, 60), (60, 48)], ids=str)
    def test_decompose(self, size, svd_fails, eigh_fails, silently, monkeypatch):
        """Whichever way is taken, the cores are the same to rounding, which near singular values make larger."""
        matrix = torch.randn(size, generator=torch.Generator().manual_seed(0))
        expected = decompose(matrix, plan_shape(*size, ones=1))
        fail(monkeypatch, "eigh", eigh_fails, silently=silently)
        fail(monkeypatch, "svd", svd_fails, silently=silently)
        for core, other in zip(decompose(matrix, plan_shape(*size, ones=1)), expected, strict=True):
            torch.testing.assert_close(core, other, rtol=0, atol=2e-4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("function", [svd, singular_values])
def test_what_is_not_finite_is_refused(function: Callable[[Tensor], Any], bad: float) -> None:
    with pytest.raises(ValueError, match="matrix holds NaN or infinite entries"):
        function(torch.full((3, 3), bad))
