"""Decomposition: exact at full bond dimensions, bounded when truncated, the same on every run, in the symmetric gauge.

Matrices are put together again by an einsum over all digits in float64, which shares nothing with `opdf.mpo.contract`.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from safetensors import safe_open
from torch import Tensor

from chains import truncated
from opdf.data import minilm
from opdf.mpo import MPOShape, contract, decompose, decompose_many, decompose_with_errors, plan_shape
from opdf.mpo.decompose import _orthogonalize

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float32, torch.float64]


def by_definition(cores: Sequence[Tensor]) -> Tensor:
    """Equation (2) in float64: sum over the bonds of the product of all cores."""
    n = len(cores)
    operands: list[object] = []
    for k, core in enumerate(cores):
        operands += [core.double(), [..., k, n + 1 + k, 2 * n + 1 + k, k + 1]]
    digits = torch.einsum(*operands, [..., *range(n + 1, 3 * n + 1)])
    rows = int(np.prod([core.shape[-3] for core in cores]))
    return digits.reshape(*cores[0].shape[:-4], rows, -1)


def relative_error(matrix: Tensor, cores: Sequence[Tensor]) -> float:
    """Relative Frobenius error of the worst matrix of a batch, in float64; absolute for a zero matrix.

    The worse of two: the cores multiplied out in float64, and by `contract` in their own precision.
    """
    want = matrix.double()
    size = torch.linalg.matrix_norm(want)
    rebuilt = torch.stack([by_definition(cores), contract(cores).double()])
    distance = torch.linalg.matrix_norm(want - rebuilt)
    return float((distance / torch.where(size > 0, size, 1.0)).max())


def threshold(dtype: torch.dtype, sites: int) -> float:
    if dtype == torch.float64:
        return 1e-13
    return 2e-6 if sites <= 5 else 5e-6


def random_matrix(*size: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*size, dtype=torch.float64, generator=generator).to(dtype)


def rank_deficient(rows: int, cols: int, rank: int) -> Tensor:
    return random_matrix(rows, rank, seed=1) @ random_matrix(rank, cols, seed=2)


MATRICES = {
    "random": lambda: random_matrix(96, 60),
    "tall": lambda: random_matrix(240, 12),
    "wide": lambda: random_matrix(12, 240),
    "rank deficient": lambda: rank_deficient(96, 60, 3),
    "rank one": lambda: torch.ones(48, 96),
    "one entry": lambda: torch.zeros(48, 36).index_put_((torch.tensor(5), torch.tensor(7)), torch.tensor(-3.0)),
    "all zero": lambda: torch.zeros(48, 96),
    "zero rows": lambda: random_matrix(48, 96) * (torch.arange(48) % 2)[:, None],
    "identity": lambda: torch.eye(96),
    "orthogonal": lambda: torch.linalg.qr(random_matrix(96, 96)).Q,
    "1 x n": lambda: random_matrix(1, 96),
    "n x 1": lambda: random_matrix(96, 1),
    "1 x 1": lambda: random_matrix(1, 1),
    "prime sizes": lambda: random_matrix(97, 89),
    "prime and composite": lambda: random_matrix(7, 96),
    "ill conditioned": lambda: random_matrix(96, 60) @ torch.logspace(0, -12, 60).double().diag(),
    "1e-20": lambda: random_matrix(96, 60) * 1e-20,
    "1e20": lambda: random_matrix(96, 60) * 1e20,
    "1e-20 beside 1e20": lambda: random_matrix(96, 60) * torch.tensor([1e-20, 1e20]).double().repeat(30),
}


class TestExact:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("ones", [0, 1, 3, 8])
    @pytest.mark.parametrize("name", MATRICES)
    def test_planned_shapes(self, name, ones, dtype, device):
        matrix = MATRICES[name]().to(device, dtype)
        shape = plan_shape(*matrix.shape, ones=ones)
        cores = decompose(matrix, shape)
        assert [tuple(core.shape) for core in cores] == shape.core_shapes
        assert all(core.dtype == dtype and core.device == matrix.device and core.is_contiguous() for core in cores)
        assert all(torch.isfinite(core).all() for core in cores)
        assert relative_error(matrix, cores) <= threshold(dtype, shape.sites)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "shape",
        [
            MPOShape((48,), (60,)),
            MPOShape((4, 2, 1, 1, 2, 3), (4, 1, 1, 1, 3, 5)),
            MPOShape((1, 48), (60, 1)),
            MPOShape((1, 4, 12, 1), (1, 6, 10, 1)),
            MPOShape((2,) * 4 + (3, 1), (2, 2, 3, 5, 1, 1)),
        ],
        ids=str,
    )
    def test_general_factors(self, shape, dtype):
        for matrix in (random_matrix(48, 60, dtype=dtype), rank_deficient(48, 60, 2).to(dtype), torch.zeros(48, 60)):
            cores = decompose(matrix.to(dtype), shape)
            assert relative_error(matrix.to(dtype), cores) <= threshold(dtype, shape.sites)

    @given(
        st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5),
        st.sampled_from(DTYPES),
        st.integers(0, 2**20),
    )
    def test_any_factors(self, sites, dtype, seed):
        shape = MPOShape(tuple(i for i, _ in sites), tuple(j for _, j in sites))
        matrix = random_matrix(shape.rows, shape.cols, dtype=dtype, seed=seed)
        assert relative_error(matrix, decompose(matrix, shape)) <= threshold(dtype, shape.sites)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("ones", [0, 3, 8])
    @pytest.mark.parametrize(
        "layer", ["attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"]
    )
    def test_pretrained(self, pretrained, layer, ones, dtype):
        matrix = pretrained(f"encoder.layer.2.{layer}.weight").to(dtype)
        shape = plan_shape(*matrix.shape, ones=ones)
        assert relative_error(matrix, decompose(matrix, shape)) <= threshold(dtype, shape.sites)

    @pytest.mark.parametrize(("ones", "dtype"), [
        (3, torch.float32),
        pytest.param(8, torch.float32, marks=pytest.mark.slow),
        pytest.param(3, torch.float64, marks=pytest.mark.slow),
    ])  # fmt: skip
    def test_the_papers_feed_forward_matrix(self, ones, dtype):
        matrix = 0.04 * random_matrix(3072, 768, dtype=dtype)
        shape = plan_shape(3072, 768, ones=ones)
        assert relative_error(matrix, decompose(matrix, shape)) <= threshold(dtype, shape.sites)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_batches(self, dtype):
        shape = plan_shape(24, 18, ones=3)
        batch = random_matrix(3, 2, 24, 18, dtype=dtype)
        batch[0, 0], batch[1, 0] = 0, batch[1, 0] * 1e20
        batch[2, 1] *= 1e-20
        cores = decompose(batch, shape)
        assert [tuple(core.shape) for core in cores] == [(3, 2, *size) for size in shape.core_shapes]
        assert relative_error(batch, cores) <= threshold(dtype, shape.sites)
        for a in range(3):
            for b in range(2):
                alone = decompose(batch[a, b], shape)
                assert relative_error(batch[a, b], alone) <= threshold(dtype, shape.sites)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_computed_in_float32(self, dtype):
        matrix = random_matrix(96, 60, dtype=dtype)
        shape = plan_shape(96, 60)
        cores = decompose(matrix, shape)
        assert all(core.dtype == torch.float32 for core in cores)
        assert all(torch.equal(a, b) for a, b in zip(cores, decompose(matrix.float(), shape), strict=True))
        assert relative_error(matrix, cores) <= 2e-6

    def test_views_and_parameters(self):
        """A transposed weight (GPT-2's Conv1D) and one that takes gradients; the cores stand apart from both."""
        weight = torch.nn.Parameter(random_matrix(60, 96, dtype=torch.float32))
        shape = plan_shape(96, 60)
        cores = decompose(weight.T, shape)
        assert relative_error(weight.detach().T, cores) <= 2e-6
        assert not any(core.requires_grad for core in cores)

    def test_a_single_site_is_the_matrix(self):
        matrix = random_matrix(6, 4)
        (core,) = decompose(matrix, MPOShape((6,), (4,)))
        assert torch.equal(core, matrix[None, :, :, None])


class TestTruncated:
    @given(
        st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=5),
        st.integers(1, 12),
        st.sampled_from(DTYPES),
        st.integers(0, 2**20),
    )
    def test_the_error_is_never_above_the_bound(self, sites, most, dtype, seed):
        shape = truncated(MPOShape(tuple(i for i, _ in sites), tuple(j for _, j in sites)), most)
        matrix = random_matrix(shape.rows, shape.cols, dtype=dtype, seed=seed)
        result = decompose_with_errors(matrix, shape)
        size = float(matrix.double().norm())
        rounding = threshold(dtype, shape.sites) * size
        assert [tuple(core.shape) for core in result.cores] == shape.core_shapes
        error, bound = float(result.error(matrix)), float(result.bound)
        assert error == pytest.approx(relative_error(matrix, result.cores) * size, abs=rounding)
        assert error <= bound + rounding
        assert bound == pytest.approx(float(result.bond_errors.square().sum().sqrt()))

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("scale", [1, 1e-20, 1e20])
    def test_one_bond_drops_the_smallest_singular_values(self, dtype, scale):
        """Eckart-Young: with one bond the error is the norm of the dropped singular values, and the bound is tight."""
        matrix = (random_matrix(48, 60) * scale).to(dtype)
        shape = truncated(plan_shape(48, 60, ones=3), 20)
        left, right = shape.row_factors[0] * shape.col_factors[0], shape.row_factors[-1] * shape.col_factors[-1]
        digits = matrix.double().reshape(shape.row_factors[0], -1, shape.col_factors[0], shape.col_factors[-1])
        values = torch.linalg.svdvals(digits.transpose(1, 2).reshape(left, right))
        dropped = float(values[20:].square().sum().sqrt())
        result = decompose_with_errors(matrix, shape)
        assert result.bond_errors.tolist() == [pytest.approx(dropped, rel=1e-5, abs=0), 0, 0, 0]
        assert float(result.bound) == pytest.approx(dropped, rel=1e-5, abs=0)
        assert float(result.error(matrix)) == pytest.approx(dropped, rel=1e-5, abs=0)

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_a_bond_as_large_as_the_rank_loses_nothing(self, dtype):
        left, right = random_matrix(5, 48, seed=1), random_matrix(5, 60, seed=2)  # rank 5 across the bond
        chain = [left.T.reshape(1, 6, 8, 5), right.reshape(5, 6, 10, 1)]
        matrix = by_definition(chain).to(dtype)
        shape = MPOShape((6, 1, 6), (8, 1, 10), (1, 5, 5, 1))
        result = decompose_with_errors(matrix, shape)
        assert relative_error(matrix, result.cores) <= threshold(dtype, 3)
        assert float(result.bound) <= threshold(dtype, 3) * float(matrix.norm())

    def test_exact_shapes_report_no_error(self):
        for matrix in (random_matrix(48, 60), torch.zeros(48, 60)):
            result = decompose_with_errors(matrix, plan_shape(48, 60))
            assert result.bond_errors.tolist() == [0, 0, 0, 0]
            assert result.bound == 0

    def test_a_batch_reports_an_error_for_every_matrix(self):
        batch = random_matrix(2, 3, 24, 30)
        shape = truncated(MPOShape((4, 2, 3), (5, 2, 3)), 7)
        result = decompose_with_errors(batch, shape)
        assert result.bond_errors.shape == (2, 3, 2)
        assert result.bound.shape == result.error(batch).shape == (2, 3)
        assert (result.error(batch) <= result.bound * (1 + 1e-12)).all()
        for a in range(2):
            for b in range(3):
                alone = decompose_with_errors(batch[a, b], shape)
                torch.testing.assert_close(result.bond_errors[a, b], alone.bond_errors)


class TestDeterminism:
    PROGRAM = """
import hashlib, torch
from opdf.mpo import decompose, plan_shape
matrix = torch.randn(96, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64):
    for core in decompose(matrix.to(dtype), plan_shape(96, 60)):
        digest.update(core.numpy().tobytes())
print(digest.hexdigest())
"""

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", MATRICES)
    def test_twice_in_a_process(self, name, dtype, device):
        matrix = MATRICES[name]().to(device, dtype)
        shape = plan_shape(*matrix.shape)
        again = decompose(matrix.clone(), shape)
        assert all(torch.equal(a, b) for a, b in zip(decompose(matrix, shape), again, strict=True))

    @pytest.mark.slow
    def test_in_another_process(self):
        result = subprocess.run([sys.executable, "-c", self.PROGRAM], capture_output=True, text=True, check=True)
        digest = hashlib.sha256()
        for dtype in DTYPES:
            for core in decompose(random_matrix(96, 60, dtype=dtype), plan_shape(96, 60)):
                digest.update(core.numpy().tobytes())
        assert result.stdout.strip() == digest.hexdigest()

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_signs_stay_when_the_matrix_hardly_changes(self, dtype):
        """With free signs, a change of 1e-12 would flip some of them and move cores by their own size."""
        matrix = random_matrix(48, 60)
        nudged = matrix + 1e-12 * random_matrix(48, 60, seed=3)
        shape = plan_shape(48, 60, ones=1)
        for a, b in zip(decompose(matrix.to(dtype), shape), decompose(nudged.to(dtype), shape), strict=True):
            assert (a - b).norm() <= 1e-5 * a.norm()

    def test_the_largest_entry_of_a_left_singular_vector_is_positive(self):
        first = decompose(random_matrix(48, 60), plan_shape(48, 60, ones=0))[0].flatten(-4, -2)
        assert (first.gather(0, first.abs().argmax(0, keepdim=True)) > 0).all()


@pytest.fixture(params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


class TestMany:
    MATRICES = tuple(
        [random_matrix(150, 320, dtype=torch.float32, seed=seed) for seed in range(3)]
        + [make().to(dtype) for make in MATRICES.values() for dtype in DTYPES]
        + [random_matrix(48, 60, dtype=torch.bfloat16)]
    )
    SHAPES = tuple(plan_shape(*matrix.shape, ones=2) for matrix in MATRICES)

    def test_cores_do_not_depend_on_company_or_threads(self, threads):
        torch.set_num_threads(2)
        alone = [decompose(matrix, shape) for matrix, shape in zip(self.MATRICES, self.SHAPES, strict=True)]
        torch.set_num_threads(threads)
        for turn in (1, -1):
            many = decompose_many(self.MATRICES[::turn], self.SHAPES[::turn])[::turn]
            for chain, expected in zip(many, alone, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(chain, expected, strict=True))
        assert torch.get_num_threads() == threads

    def test_a_batch_has_the_cores_of_its_matrices(self):
        batch = random_matrix(2, 3, 24, 30, dtype=torch.float32)
        batch[0, 1] = 0  # one that float32 cannot do beside some that it can
        cores = decompose(batch, plan_shape(24, 30))
        for a in range(2):
            for b in range(3):
                alone = decompose(batch[a, b], plan_shape(24, 30))
                assert all(torch.equal(core[a, b], single) for core, single in zip(cores, alone, strict=True))

    def test_progress_counts_every_matrix(self, threads):
        seen = []
        decompose_many(self.MATRICES, self.SHAPES, progress=lambda done, total: seen.append((done, total)))
        assert seen == [(k, len(self.MATRICES)) for k in range(len(self.MATRICES) + 1)]

    def test_autocast_and_precision_outside_do_not_reach_it(self, threads):
        expected = decompose_many(self.MATRICES[:3], self.SHAPES[:3])
        torch.set_float32_matmul_precision("medium")
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found = decompose_many(self.MATRICES[:3], self.SHAPES[:3])
                alone = decompose(self.MATRICES[0], self.SHAPES[0])
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision("highest")
        for chain, other in zip([*found, alone], [*expected, expected[0]], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(chain, other, strict=True))

    def test_an_error_on_the_way_ends_it(self, threads, monkeypatch):
        def fail(_rest: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

        monkeypatch.setattr(torch.linalg, "eigh", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            decompose_many(self.MATRICES, self.SHAPES)
        assert torch.get_num_threads() == threads

    def test_nothing(self):
        assert decompose_many([], []) == []

    @pytest.mark.parametrize(
        ("matrices", "shapes", "message"),
        [
            ([torch.ones(4, 4)], [], "1 matrices came with 0 shapes"),
            ([torch.ones(2, 4, 4)], [plan_shape(4, 4)], r"matrices\[0\] has shape \(2, 4, 4\); give two dimensions"),
            ([torch.ones(4, 4), torch.full((4, 4), torch.nan)], [plan_shape(4, 4)] * 2, "NaN"),
        ],
    )
    def test_errors(self, matrices, shapes, message):
        with pytest.raises(ValueError, match=message):
            decompose_many(matrices, shapes, progress=lambda done, total: pytest.fail("work has started"))


class TestCondition:
    """Float32 where it loses nothing, float64 where squaring would: the gauge is held to float64's at any condition."""

    @pytest.mark.parametrize("size", [(300, 200), (200, 300)])
    @pytest.mark.parametrize("condition", [1, 5, 25, 31, 33, 100, 1e4, 1e8])
    def test_gauge_and_error(self, size, condition):
        shape = plan_shape(*size, ones=1)
        left, right = (i * j for i, j in ((s[1], s[2]) for s in (shape.core_shapes[0], shape.core_shapes[-1])))
        u, v = (torch.linalg.qr(random_matrix(n, n, seed=n)).Q for n in (left, right))
        d = shape.bond_dims[1]
        values = torch.logspace(0, -float(np.log10(condition)), d).double()
        folded = (u[:, :d] * values) @ v[:, :d].T
        (i1, j1), (i2, j2) = shape.core_shapes[0][1:3], shape.core_shapes[-1][1:3]
        matrix = folded.reshape(i1, j1, i2, j2).transpose(1, 2).reshape(size).float()
        cores = decompose(matrix, shape)
        assert relative_error(matrix, cores) <= 2e-6
        exact = torch.linalg.svdvals(matrix.double().reshape(i1, i2, j1, j2).transpose(1, 2).reshape(left, right))
        for gram in (
            cores[0].double().flatten(0, 2).T @ cores[0].double().flatten(0, 2),
            cores[-1].double().flatten(1) @ cores[-1].double().flatten(1).T,
        ):
            torch.testing.assert_close(gram, exact.diag(), rtol=0, atol=1e-5)

    def test_eigenvectors_are_orthogonal_to_rounding(self):
        """As the eigensolver leaves them, they are off by 9e-7."""
        cores = decompose(random_matrix(300, 200, dtype=torch.float32), plan_shape(300, 200, ones=0))
        rows = torch.nn.functional.normalize(cores[-1].double().flatten(1))
        assert float((rows @ rows.T - torch.eye(len(rows))).norm()) <= 4e-7 * len(rows) ** 0.5

    def test_nearly_orthogonal_columns_become_those_of_a_ql_decomposition(self):
        """More columns than are multiplied at a time; what is left is of second order."""
        near = torch.linalg.qr(random_matrix(300, 300)).Q + 1e-6 * random_matrix(300, 300, seed=1)
        q, r = torch.linalg.qr(near.flip(1))
        exact, found = (q * r.diagonal().sign()).flip(1), near.clone()
        _orthogonalize(found)
        assert float((found - exact).norm()) < 1e-3 * float((near - exact).norm())


class TestGauge:
    @staticmethod
    def parts(cores: list[Tensor], bond: int) -> tuple[Tensor, Tensor]:
        """The chain left of a bond as [p, d] and right of it as [d, q]."""
        left = cores[0].flatten(0, 2)
        for core in cores[1:bond]:
            left = torch.tensordot(left, core, 1).flatten(0, -2)
        right = cores[-1].flatten(1, 3)
        for core in reversed(cores[bond:-1]):
            right = torch.tensordot(core, right, 1).flatten(1)
        return left.double(), right.double()

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(
        "shape",
        [
            plan_shape(48, 60, ones=0),
            plan_shape(48, 60, ones=3),
            MPOShape((4, 2, 1, 6), (2, 5, 1, 6)),
            MPOShape((1, 4, 12, 1), (1, 6, 10, 1)),
            plan_shape(97, 7),
        ],
        ids=str,
    )
    def test_both_sides_of_every_bond_carry_the_roots_of_its_singular_values(self, shape, dtype):
        matrix = random_matrix(shape.rows, shape.cols, dtype=dtype)
        cores = decompose(matrix, shape)
        tolerance = 1e-10 if dtype == torch.float64 else 1e-5
        for bond in range(1, shape.sites):
            left, right = self.parts(cores, bond)
            values = torch.linalg.svdvals(left @ right)[: shape.bond_dims[bond]].diag()
            for gram in (left.T @ left, right @ right.T):
                torch.testing.assert_close(gram, values, rtol=tolerance, atol=tolerance * float(values.max()))

    @pytest.mark.parametrize("name", ["random", "rank deficient", "all zero", "identity", "prime sizes", "1e20"])
    def test_square_1x1_sites_are_exactly_the_identity(self, name):
        matrix = MATRICES[name]().float()
        cores = decompose(matrix, plan_shape(*matrix.shape, ones=4))
        for core in cores[1:-1]:
            assert torch.equal(core[:, 0, 0, :], torch.eye(core.shape[0]))

    def test_truncated_bonds_keep_identities_too(self):
        cores = decompose(random_matrix(48, 60), truncated(plan_shape(48, 60, ones=3), 9))
        assert all(torch.equal(core[:, 0, 0, :], torch.eye(9, dtype=core.dtype)) for core in cores[1:-1])

    @pytest.mark.parametrize("name", ["rank deficient", "all zero", "zero rows", "one entry"])
    def test_where_there_is_no_weight_one_side_keeps_a_direction(self, name):
        """Were both sides of a bond zero, neither would ever get a gradient."""
        matrix = MATRICES[name]().float()
        left, right = (
            core.flatten(0, 2) if k == 0 else core.flatten(1)
            for k, core in enumerate(decompose(matrix, plan_shape(*matrix.shape, ones=0)))
        )
        assert (torch.maximum(left.norm(dim=0), right.norm(dim=1)) > 0).all()


class TestErrors:
    SHAPE = plan_shape(8, 6)

    @pytest.mark.parametrize(
        ("matrix", "error", "message"),
        [
            (torch.ones(8, 6, dtype=torch.int64), TypeError, r"matrix is torch\.int64; .*\(convert with \.float\(\)\)"),
            (np.ones((8, 6)), TypeError, "matrix is ndarray; give a floating-point"),
            (torch.ones(6, 8), ValueError, r"matrix has shape \(6, 8\); T\(.*\) factors \[\.\.\., 8, 6\]"),
            (torch.ones(8), ValueError, r"matrix has shape \(8,\)"),
            (torch.full((8, 6), torch.nan), ValueError, "NaN or infinite entries"),
            (torch.full((8, 6), -torch.inf), ValueError, "NaN or infinite entries"),
            (torch.ones(8, 6, device="meta"), ValueError, "meta device"),
            (torch.ones(0, 8, 6), ValueError, r"matrix has shape \(0, 8, 6\); give a batch of at least one matrix"),
        ],
    )
    def test_matrix(self, matrix, error, message):
        with pytest.raises(error, match=message):
            decompose(matrix, self.SHAPE)

    def test_shape(self):
        with pytest.raises(TypeError, match=r"shape is \(8, 6\); give an MPOShape"):
            decompose(torch.ones(8, 6), (8, 6))


def test_contract_gives_the_same_as_the_definition():
    cores = decompose(random_matrix(2, 48, 60), MPOShape((4, 2, 1, 6), (2, 5, 1, 6)))
    torch.testing.assert_close(contract(cores), by_definition(cores), rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def pretrained():
    """A function that reads one tensor of the shipped all-MiniLM-L6-v2."""
    with safe_open(minilm() / "model.safetensors", framework="pt") as weights:
        yield weights.get_tensor
