"""Contraction and its gradient against tensorly, quimb, an einsum over all digits, and autograd."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import quimb.tensor as qtn
import torch
from hypothesis import given, strategies as st
from tensorly.decomposition import tensor_train_matrix
from tensorly.tt_matrix import TTMatrix, tt_matrix_to_matrix
from torch import Tensor

from chains import truncated
from opdf.mpo import MPOShape, contract, contract_segments, decompose, plan_shape, pullback, shape_of

SHAPES = [
    MPOShape((12,), (10,)),
    plan_shape(24, 36, ones=0),
    plan_shape(24, 36, ones=3),
    plan_shape(7, 11, ones=1),
    plan_shape(1, 12, ones=1),
    MPOShape((4, 2, 1, 3), (2, 3, 1, 6)),
    truncated(MPOShape((2, 2, 2, 3), (3, 2, 3, 2)), 5),
    MPOShape((1, 4, 6, 1), (6, 1, 1, 6)),
]
SITES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5)


def random_cores(shape: MPOShape, *lead: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*lead, *size, dtype=torch.float64, generator=generator) for size in shape.core_shapes]


def by_definition(cores: Sequence[Tensor]) -> Tensor:
    """Equation (2) by one einsum over all digits and bonds; autograd goes through it."""
    n = len(cores)
    operands: list[object] = []
    for k, core in enumerate(cores):
        operands += [core, [..., k, n + 1 + k, 2 * n + 1 + k, k + 1]]
    digits = torch.einsum(*operands, [..., *range(n + 1, 3 * n + 1)])
    return digits.reshape(*cores[0].shape[:-4], int(np.prod([c.shape[-3] for c in cores])), -1)


def quimb_operator(cores: Sequence[Tensor]) -> qtn.MatrixProductOperator:
    """Cores as quimb wants them: [left bond, right bond, row digit, column digit], no outer bonds at the ends."""
    arrays = [core.numpy().transpose(0, 3, 1, 2) for core in cores]
    arrays[0], arrays[-1] = arrays[0][0], arrays[-1][:, 0]
    return qtn.MatrixProductOperator(arrays, shape="lrud")


class TestContract:
    @pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_equation_2(self, shape, lead):
        cores = random_cores(shape, *lead)
        matrix = contract(cores)
        assert matrix.shape == (*lead, shape.rows, shape.cols)
        assert matrix.is_contiguous()
        torch.testing.assert_close(matrix, by_definition(cores), rtol=1e-12, atol=1e-12)

    @given(SITES, st.integers(1, 20), st.integers(0, 2**20))
    def test_any_shape(self, sites, most, seed):
        shape = truncated(MPOShape(tuple(i for i, _ in sites), tuple(j for _, j in sites)), most)
        cores = random_cores(shape, seed=seed)
        torch.testing.assert_close(contract(cores), by_definition(cores), rtol=1e-10, atol=1e-10)

    def test_the_first_digit_is_the_slowest(self):
        rows = torch.tensor([10.0, 20.0]), torch.tensor([1.0, 2.0, 3.0])
        matrix = contract([rows[0].reshape(1, 2, 1, 1), rows[1].reshape(1, 3, 1, 1)])
        assert matrix.squeeze(1).tolist() == [10, 20, 30, 20, 40, 60]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_keeps_the_dtype(self, dtype):
        assert contract([core.to(dtype) for core in random_cores(SHAPES[2])]).dtype == dtype


class TestAgainstTensorly:
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_it_puts_our_cores_together_to_the_same_matrix(self, shape):
        matrix = torch.randn(shape.rows, shape.cols, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        cores = decompose(matrix, shape)
        theirs = tt_matrix_to_matrix(TTMatrix([core.numpy() for core in cores]))
        np.testing.assert_allclose(contract(cores).numpy(), theirs, rtol=0, atol=1e-12)
        if shape.is_exact:
            np.testing.assert_allclose(theirs, matrix.numpy(), rtol=0, atol=1e-12)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_we_put_its_cores_together_to_the_same_matrix(self, shape):
        """Its own decomposition with our bond dimensions: same layout, same core sizes, same (truncated) matrix."""
        matrix = np.random.default_rng(0).standard_normal((shape.rows, shape.cols))
        factors = tensor_train_matrix(
            matrix.reshape(*shape.row_factors, *shape.col_factors), rank=list(shape.bond_dims)
        ).factors
        assert [f.shape for f in factors] == shape.core_shapes
        theirs = contract([torch.from_numpy(np.ascontiguousarray(f)) for f in factors])
        ours = contract(decompose(torch.from_numpy(matrix), shape))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


class TestAgainstQuimb:
    SHAPES = tuple(shape for shape in SHAPES if shape.sites > 1)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_it_puts_our_cores_together_to_the_same_matrix(self, shape):
        cores = random_cores(shape)
        dense = quimb_operator(cores).to_dense()
        np.testing.assert_allclose(contract(cores).numpy(), dense, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.is_exact], ids=str)
    def test_bond_spectra_agree(self, shape):
        """quimb's singular values at every bond are what our symmetric cores share by square root there."""
        matrix = torch.randn(shape.rows, shape.cols, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        cores = decompose(matrix, shape)
        left = cores[0].flatten(0, 2)
        for bond in range(1, shape.sites):
            theirs = quimb_operator(cores).singular_values(bond)
            ours = left.square().sum(0).numpy()
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)
            left = torch.tensordot(left, cores[bond], 1).flatten(0, -2)


class TestPullback:
    @pytest.mark.parametrize("lead", [(), (2,), (2, 3)], ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_against_autograd(self, shape, lead):
        cores = random_cores(shape, *lead)
        grad = torch.randn(*lead, shape.rows, shape.cols, dtype=torch.float64)
        leaves = [core.clone().requires_grad_() for core in cores]
        expected = torch.autograd.grad(by_definition(leaves), leaves, grad)
        for ours, theirs in zip(pullback(cores, grad), expected, strict=True):
            assert ours.shape == theirs.shape
            torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)

    @given(SITES, st.integers(1, 20), st.integers(0, 2**20))
    def test_any_shape(self, sites, most, seed):
        shape = truncated(MPOShape(tuple(i for i, _ in sites), tuple(j for _, j in sites)), most)
        leaves = [core.requires_grad_() for core in random_cores(shape, seed=seed)]
        grad = random_cores(MPOShape((shape.rows,), (shape.cols,)), seed=seed + 1)[0][0, ..., 0]
        expected = torch.autograd.grad(by_definition(leaves), leaves, grad)
        with torch.no_grad():
            for ours, theirs in zip(pullback(leaves, grad), expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("lead", [(), (2,)], ids=str)
    @pytest.mark.parametrize("shape", [plan_shape(6, 4, ones=2), MPOShape((2, 1, 3), (3, 2, 1))], ids=str)
    def test_gradcheck(self, shape, lead):
        """`pullback` as the backward of `contract`, held against finite differences."""

        class Contract(torch.autograd.Function):
            @staticmethod
            def forward(ctx, *cores):
                ctx.save_for_backward(*cores)
                return contract(cores)

            @staticmethod
            def backward(ctx, grad):
                return tuple(pullback(ctx.saved_tensors, grad))

        cores = [core.requires_grad_() for core in random_cores(shape, *lead)]
        assert torch.autograd.gradcheck(Contract.apply, cores)

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_with_the_segments_of_the_contraction(self, shape):
        cores = random_cores(shape, 2)
        matrix, segments = contract_segments(cores, shape)
        assert torch.equal(matrix, contract(cores))
        reused, computed = pullback(cores, matrix, segments), pullback(cores, matrix)
        assert all(torch.equal(a, b) for a, b in zip(reused, computed, strict=True))

    def test_float32(self):
        cores = random_cores(SHAPES[2])
        grad = contract(cores)
        single = pullback([core.float() for core in cores], grad.float())
        for ours, theirs in zip(single, pullback(cores, grad), strict=True):
            assert ours.dtype == torch.float32
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()

    def test_a_grad_of_the_wrong_shape(self):
        cores = random_cores(plan_shape(6, 4), 2)
        with pytest.raises(ValueError, match=r"grad has shape \(6, 4\); the cores give \(2, 6, 4\)"):
            pullback(cores, torch.ones(6, 4))


class TestShapeOf:
    @pytest.mark.parametrize("lead", [(), (2, 3)], ids=str)
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_it_is_the_shape_they_were_made_with(self, shape, lead):
        assert shape_of(random_cores(shape, *lead)) == shape

    @pytest.mark.parametrize(
        ("sizes", "message"),
        [
            ([], "cores is empty"),
            ([(2, 3)], r"cores\[0\] has shape \(2, 3\); expected \[\.\.\., d_left, i, j, d_right\]"),
            ([(1, 2, 2, 4), (3, 2, 2, 1)], r"cores\[0\] ends with bond dimension 4 and cores\[1\] begins with 3"),
            (
                [(1, 2, 2, 4), (3, 4, 2, 2, 1)],
                r"cores\[1\] has shape \(3, 4, 2, 2, 1\) and cores\[0\] \(1, 2, 2, 4\); all",
            ),
            ([(1, 2, 2, 4), (4, 2, 2, 2)], r"bond_dims\[2\] is 2; these factors carry at most 1"),
        ],
    )
    def test_errors(self, sizes, message):
        with pytest.raises(ValueError, match=message):
            shape_of([torch.ones(size) for size in sizes])
