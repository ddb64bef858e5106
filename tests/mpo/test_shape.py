"""Shapes against brute force: bond dimensions, parameter counts, planners, contraction orders, errors."""

from __future__ import annotations

import math
import warnings
from itertools import product

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.utils.flop_counter import FlopCounterMode

from chains import truncated
from opdf.mpo import MPOShape, contract, plan_shape, pullback
from opdf.mpo.shape import MAX_PLANNED_ONES, contraction_plan

SITES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=6)
SIZES = st.integers(1, 400)


def shape_from(sites: list[tuple[int, int]]) -> MPOShape:
    return MPOShape(tuple(i for i, _ in sites), tuple(j for _, j in sites))


def divisors(size: int) -> list[int]:
    return [f for f in range(1, size + 1) if size % f == 0]


class TestMPOShape:
    def test_the_papers_feed_forward_shape(self):
        shape = MPOShape((64, 1, 1, 1, 48), (32, 1, 1, 1, 24))
        assert (shape.rows, shape.cols, shape.sites) == (3072, 768, 5)
        assert shape.bond_dims == (1, 1152, 1152, 1152, 1152, 1)
        assert shape.core_shapes == [(1, 64, 32, 1152), *[(1152, 1, 1, 1152)] * 3, (1152, 48, 24, 1)]
        assert shape.num_params == 2_359_296 + 1_327_104 + 3 * 1_327_104
        assert shape.added_params == shape.num_params - 3072 * 768
        assert shape.scale == pytest.approx(3.25)
        assert (shape.center, shape.auxiliary) == (2, (0, 1, 3, 4))
        assert str(shape) == "T(64,1,1,1,48 / 32,1,1,1,24)"

    @pytest.mark.parametrize(("sites", "center"), [(1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (10, 4)])
    def test_center(self, sites, center):
        assert MPOShape((2,) * sites, (2,) * sites).center == center

    @given(SITES)
    def test_full_bond_dims_are_equation_3(self, sites):
        shape = shape_from(sites)
        weights = [i * j for i, j in sites]
        expected = [min(math.prod(weights[:k]), math.prod(weights[k:])) for k in range(len(sites) + 1)]
        assert list(shape.bond_dims) == list(shape.full_bond_dims) == expected
        assert shape.bond_dims[0] == shape.bond_dims[-1] == 1
        assert shape.is_exact

    @given(SITES)
    def test_params_are_equation_4(self, sites):
        shape = shape_from(sites)
        d = shape.bond_dims
        params = sum(i * j * d[k] * d[k + 1] for k, (i, j) in enumerate(sites))
        assert shape.num_params == params == sum(math.prod(core) for core in shape.core_shapes)
        assert shape.added_params == params - shape.rows * shape.cols
        assert shape.scale == params / (shape.rows * shape.cols)
        assert shape.added_params >= 0  # at full bond dimensions the chain never has fewer parameters

    def test_a_chain_with_any_smaller_bond_is_not_exact(self):
        assert MPOShape((4, 6, 2), (2, 3, 2), (1, 8, 4, 1)).is_exact
        assert not MPOShape((4, 6, 2), (2, 3, 2), (1, 7, 4, 1)).is_exact
        assert not MPOShape((4, 6, 2), (2, 3, 2), (1, 8, 3, 1)).is_exact

    def test_equal_shapes_are_equal_and_hash_alike(self):
        first, second = MPOShape([4, 6], [2, 3]), MPOShape((4, 6), (2, 3), (1, 8, 1))
        assert first == second
        assert hash(first) == hash(second)
        assert first != truncated(second, 4)

    @pytest.mark.parametrize(
        ("args", "error", "message"),
        [
            (((2, 3), (2, 3, 4)), ValueError, r"row_factors has 2 entries \(2, 3\) and col_factors 3 .*pad with 1"),
            (((), ()), ValueError, "row_factors is empty"),
            (((2, 0), (1, 1)), ValueError, "row_factors holds 0; every entry must be at least 1"),
            (((2, 3), (1, -4)), ValueError, "col_factors holds -4"),
            (((2, 3.0), (1, 1)), TypeError, r"row_factors holds 3\.0 of type float"),
            (((2, True), (1, 1)), TypeError, "row_factors holds True of type bool"),
            (("23", (1, 1)), TypeError, "row_factors is '23'; give a sequence"),
            ((6, (1, 1)), TypeError, "row_factors is 6; give a sequence"),
            (((2, 3), (2, 3), (1, 1)), ValueError, r"bond_dims has 2 entries; 2 sites need 3"),
            (((2, 3), (2, 3), (1, 5, 1)), ValueError, r"bond_dims\[1\] is 5; these factors carry at most 4"),
            (((2, 3), (2, 3), (1, 0, 1)), ValueError, "bond_dims holds 0"),
            (((2, 3), (2, 3), (1, 2.0, 1)), TypeError, "bond_dims holds 2.0"),
            (((4, 1, 4), (4, 1, 4), (1, 2, 3, 1)), ValueError, "bonds 1 and 2 .* lower the larger one"),
            (((4, 1, 4), (4, 1, 4), (1, 3, 2, 1)), ValueError, "bonds 1 and 2 .* lower the larger one"),
        ],
    )
    def test_errors(self, args, error, message):
        with pytest.raises(error, match=message):
            MPOShape(*args)


class TestContractionPlan:
    @staticmethod
    def cheapest(shape: MPOShape, a: int, c: int) -> int:
        """The fewest FLOPs over all parenthesizations of sites [a, c), by plain recursion."""
        if c - a == 1:
            return 0
        d, p = shape.bond_dims, [i * j for i, j in zip(shape.row_factors, shape.col_factors, strict=True)]
        return min(
            TestContractionPlan.cheapest(shape, a, b)
            + TestContractionPlan.cheapest(shape, b, c)
            + 2 * (d[a] * math.prod(p[a:b])) * d[b] * (math.prod(p[b:c]) * d[c])
            for b in range(a + 1, c)
        )

    @given(SITES, st.integers(1, 60))
    def test_it_is_the_cheapest_order(self, sites, most):
        shape = truncated(shape_from(sites), most)
        assert shape.contract_flops == self.cheapest(shape, 0, shape.sites)

    @given(SITES)
    def test_every_step_joins_two_parts_that_exist(self, sites):
        shape = shape_from(sites)
        parts = {(k, k + 1) for k in range(shape.sites)}
        for a, b, c in contraction_plan(shape).steps:
            parts -= {(a, b), (b, c)}
            parts |= {(a, c)}
        assert parts == {(0, shape.sites)}

    @pytest.mark.parametrize(
        "shape", [plan_shape(96, 40, ones=3), MPOShape((4, 2, 3), (2, 5, 2)), MPOShape((6,), (4,))]
    )
    def test_flops_are_those_that_torch_counts(self, shape):
        cores = [torch.randn(size) for size in shape.core_shapes]
        with FlopCounterMode(display=False) as forward:
            matrix = contract(cores)
        assert forward.get_total_flops() == shape.contract_flops
        with FlopCounterMode(display=False) as backward:
            pullback(cores, matrix)
        assert 2 * shape.contract_flops <= backward.get_total_flops() <= 3 * shape.contract_flops


class TestPlanByOnes:
    @pytest.mark.parametrize("ones", range(9))
    def test_the_papers_sizes(self, ones):
        middle = (1,) * ones
        assert plan_shape(3072, 768, ones=ones) == MPOShape((64, *middle, 48), (32, *middle, 24))
        assert plan_shape(768, 3072, ones=ones) == MPOShape((32, *middle, 24), (64, *middle, 48))
        assert plan_shape(768, 768, ones=ones) == MPOShape((32, *middle, 24), (32, *middle, 24))

    def test_three_ones_by_default(self):
        assert plan_shape(3072, 768) == plan_shape(3072, 768, ones=3)

    @given(SIZES, SIZES, st.integers(0, 10))
    def test_any_size(self, rows, cols, ones):
        shape = plan_shape(rows, cols, ones=ones)
        assert (shape.rows, shape.cols, shape.sites) == (rows, cols, ones + 2)
        assert shape.row_factors[1:-1] == shape.col_factors[1:-1] == (1,) * ones
        assert shape.is_exact

    @given(SIZES, SIZES, st.integers(0, 10))
    def test_every_one_adds_a_square_core(self, rows, cols, ones):
        fewer, more = plan_shape(rows, cols, ones=ones), plan_shape(rows, cols, ones=ones + 1)
        bond = fewer.bond_dims[1]
        assert more.num_params == fewer.num_params + bond * bond

    @pytest.mark.parametrize(("rows", "cols"), [(97, 89), (2, 3), (7, 768), (768, 7), (7, 7)])
    def test_prime_sizes_get_the_wider_bond(self, rows, cols):
        """All of a prime sits on one site; were both sizes' weight on the same one, the bond would be 1."""
        shape = plan_shape(rows, cols, ones=1)
        assert shape.bond_dims[1] >= MPOShape(shape.row_factors, shape.col_factors[::-1]).bond_dims[1]

    @pytest.mark.parametrize(
        ("args", "options", "error", "message"),
        [
            ((0, 4), {}, ValueError, "rows, cols holds 0"),
            ((4, 2.0), {}, TypeError, r"rows, cols holds 2\.0"),
            ((4, 4), {"ones": -1}, ValueError, "ones is -1; it must be 0 or more"),
            ((4, 4), {"ones": 1.5}, TypeError, r"ones is 1\.5; give the number"),
            ((4, 4), {"ones": True}, TypeError, "ones is True"),
            ((4, 4), {"ones": 1, "scale": 2.0}, ValueError, "ones=1 and scale=2.0 were both given"),
        ],
    )
    def test_errors(self, args, options, error, message):
        with pytest.raises(error, match=message):
            plan_shape(*args, **options)


class TestPlanByScale:
    @staticmethod
    def nearest(rows: int, cols: int, scale: float) -> float:
        """The smallest |scale - wanted| over all pairs of outer factors and 0 to 10 ones."""
        return min(
            abs(MPOShape((i, *(1,) * ones, rows // i), (j, *(1,) * ones, cols // j)).scale - scale)
            for i, j, ones in product(divisors(rows), divisors(cols), range(MAX_PLANNED_ONES + 1))
        )

    @given(st.integers(1, 48), st.integers(1, 48), st.floats(1, 8))
    @settings(deadline=None)  # all factors of 48 x 48 are tried, which a busy machine does not do in 0.2 s
    def test_the_nearest_reachable_one(self, rows, cols, scale):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shape = plan_shape(rows, cols, scale=scale)
        assert (shape.rows, shape.cols) == (rows, cols)
        assert abs(shape.scale - scale) == pytest.approx(self.nearest(rows, cols, scale), abs=1e-9)

    @pytest.mark.parametrize("scale", [1, 1.5, 2, 3, 5])
    @pytest.mark.parametrize(("rows", "cols"), [(768, 768), (3072, 768), (384, 1536)])
    def test_transformer_sizes_get_within_a_tenth_and_say_nothing(self, rows, cols, scale):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            shape = plan_shape(rows, cols, scale=scale)
        assert shape.scale == pytest.approx(scale, rel=0.1)

    @pytest.mark.parametrize("ones", range(6))
    def test_a_scale_of_the_papers_gives_the_papers_shape(self, ones):
        paper = plan_shape(3072, 768, ones=ones)
        assert plan_shape(3072, 768, scale=paper.scale) == paper

    @given(st.integers(1, 48), st.integers(1, 48), st.integers(0, MAX_PLANNED_ONES))
    def test_the_scale_of_a_shape_by_ones_gives_that_shape(self, rows, cols, ones):
        """Others may have as many parameters."""
        shape = plan_shape(rows, cols, ones=ones)
        assert plan_shape(rows, cols, scale=shape.scale) == shape

    def test_out_of_reach_says_which_is_nearest(self):
        for _ in range(2):  # the second time, the shape is in a cache
            with pytest.warns(
                UserWarning, match=r"scale 50 is out of reach for a 4x4 matrix; the nearest is 12\.00 with T"
            ):
                assert plan_shape(4, 4, scale=50).scale == 12

    @pytest.mark.parametrize("scale", [0.5, -1, math.nan, math.inf, "2"])
    def test_errors(self, scale):
        with pytest.raises(ValueError, match=r"scale is .*; it must be a finite number of at least 1"):
            plan_shape(8, 8, scale=scale)
