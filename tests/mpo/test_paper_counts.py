"""The paper's parameter counts (arXiv 2411.06448, tables 1, 2, 3 and S.3 to S.5) from shapes alone, in millions."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from transformers import BertConfig, BertModel

from opdf.mpo import MPOShape, plan_shape

MILLION = 1e6


@pytest.fixture(scope="module", params=[6, 4], ids=["6 layers", "4 layers"])
def bert(request):
    """BERT-base cut to six layers (Theseus, LGTM, AD-KD) or four (DBKD), pooler included, without weights."""
    with torch.device("meta"):
        return BertModel(BertConfig(num_hidden_layers=request.param))


BLOCK_MATRIX = re.compile(r"encoder\.layer\.\d+\..*(query|key|value|dense)\.weight")


def block_matrices(model: BertModel) -> list[tuple[int, int]]:
    """Sizes of query, key, value, attention output and the two feed-forward matrices of every block."""
    return [tuple(p.shape) for name, p in model.named_parameters() if BLOCK_MATRIX.fullmatch(name)]


class TestBert:
    def test_matrices(self, bert):
        layers = bert.config.num_hidden_layers
        sizes = block_matrices(bert)
        assert len(sizes) == 6 * layers
        assert sizes.count((768, 768)) == 4 * layers
        assert sizes.count((3072, 768)) == sizes.count((768, 3072)) == layers

    def test_inference(self, bert):
        """Table 1 prints 66 or 67 M for six layers and 53 M for four."""
        expected = {6: 66.96, 4: 52.78}[bert.config.num_hidden_layers]
        assert bert.num_parameters() / MILLION == pytest.approx(expected, abs=0.005)

    @pytest.mark.parametrize(
        ("ones", "six", "four"),
        [(0, 90.8, 68.7), (1, 114.7, 84.6), (3, 162.5, 116.5), (4, 186.4, 132.4), (8, 281.9, 196.1)],
    )
    def test_training(self, bert, ones, six, four):
        """Table 1 prints 90 or 91 (SVD), 160 and 163 (L = 3) for six layers; 69 (SVD) and 83 for four.

        The 83 comes near L = 1 only, though the paper lists L = 4 to 8 for that method.
        """
        added = sum(plan_shape(rows, cols, ones=ones).added_params for rows, cols in block_matrices(bert))
        expected = {6: six, 4: four}[bert.config.num_hidden_layers]
        assert (bert.num_parameters() + added) / MILLION == pytest.approx(expected, abs=0.05)

    def test_cores_of_one_matrix(self):
        """Bonds 576 (attention) and 1152 (feed-forward); every one between the ends adds a square core."""
        for ones in range(9):
            attention, feed_forward = plan_shape(768, 768, ones=ones), plan_shape(3072, 768, ones=ones)
            assert attention.num_params == 589_824 + 331_776 + ones * 576**2
            assert feed_forward.num_params == 2_359_296 + 1_327_104 + ones * 1152**2


class TestFactorsOfTable3:
    """Three ways to factor 768 and 3072, which the paper compares "at the same scale" (tables 3, S.3 and S.4)."""

    OUTER = (
        ((32,), (24,), (64,), (48,)),
        ((16, 2), (2, 12), (32, 2), (2, 24)),
        ((4, 4, 2), (2, 3, 4), (8, 4, 2), (2, 4, 6)),
    )

    @staticmethod
    def shapes(ones: int) -> list[MPOShape]:
        middle = (1,) * ones
        return [
            MPOShape((*up_left, *middle, *up_right), (*down_left, *middle, *down_right))
            for up_left, up_right, down_left, down_right in TestFactorsOfTable3.OUTER
        ]

    @pytest.mark.parametrize("ones", [1, 3, 4, 6, 7, 8])
    def test_the_scales(self, ones):
        shapes = self.shapes(ones)
        assert all((shape.rows, shape.cols) == (768, 3072) for shape in shapes)
        assert shapes[0] == plan_shape(768, 3072, ones=ones)
        scales = [shape.scale for shape in shapes]
        assert max(scales) <= 1.15 * min(scales)

    def test_the_middle_ones_join_bonds_of_1152_in_all_of_them(self):
        for shape in self.shapes(3):
            first = shape.row_factors.index(1)
            assert shape.core_shapes[first : first + 3] == [(1152, 1, 1, 1152)] * 3


# Table S.5: factors of the outputs and of the inputs for stages 1 to 3 without the middle 1, which OPDF adds to both.
# (The paper's list for the TinyViT-5M attention of stage 1 lacks that 1 on one side, a misprint.)
TINY_VIT_FACTORS = {
    "5M": {
        "qkv": (((24, 16), (16, 8)), ((24, 20), (16, 10)), ((32, 30), (20, 16))),
        "proj": (((16, 8), (16, 8)), ((16, 10), (16, 10)), ((20, 16), (20, 16))),
        "fc1": (((32, 16), (16, 8)), ((32, 20), (16, 10)), ((40, 32), (20, 16))),
    },
    "11M": {
        "qkv": (((24, 16), (16, 8)), ((32, 24), (16, 16)), ((48, 28), (32, 14))),
        "proj": (((16, 8), (16, 8)), ((16, 16), (16, 16)), ((32, 14), (32, 14))),
        "fc1": (((32, 16), (16, 8)), ((32, 32), (16, 16)), ((56, 32), (32, 14))),
    },
    "21M": {
        "qkv": (((32, 18), (24, 8)), ((36, 32), (24, 16)), ((54, 32), (32, 18))),
        "proj": (((24, 8), (24, 8)), ((24, 16), (24, 16)), ((32, 18), (32, 18))),
        "fc1": (((32, 24), (24, 8)), ((48, 32), (24, 16)), ((64, 36), (32, 18))),
    },
}
TINY_VIT_DEPTHS = (2, 6, 2)
TINY_VIT_WIDTHS = {"5M": (128, 160, 320), "11M": (128, 256, 448), "21M": (192, 384, 576)}
TINY_VIT_DENSE = {"5M": 5.4, "11M": 11.0, "21M": 21.0}
"""Parameters at inference in millions, as table 2 prints them."""


def tiny_vit_shapes(model: str, ones: int) -> list[MPOShape]:
    """The 40 decomposed matrices: fused query-key-value, projection and two feed-forward matrices of every block."""
    middle = (1,) * ones
    shapes = []
    for factors in ("qkv", "proj", "fc1"):
        for depth, (rows, cols) in zip(TINY_VIT_DEPTHS, TINY_VIT_FACTORS[model][factors], strict=True):
            outputs, inputs = (rows[0], *middle, rows[1]), (cols[0], *middle, cols[1])
            shapes += depth * [MPOShape(outputs, inputs)]
            if factors == "fc1":
                shapes += depth * [MPOShape(inputs, outputs)]
    return shapes


class TestTinyViT:
    @pytest.mark.parametrize("model", TINY_VIT_FACTORS)
    def test_the_factors_are_those_of_the_models_matrices(self, model):
        widths = [w for w, depth in zip(TINY_VIT_WIDTHS[model], TINY_VIT_DEPTHS, strict=True) for _ in range(depth)]
        expected = [size for w in widths for size in ((3 * w, w), (w, w), (4 * w, w), (w, 4 * w))]
        shapes = tiny_vit_shapes(model, ones=1)
        assert len(shapes) == 40
        assert sorted((shape.rows, shape.cols) for shape in shapes) == sorted(expected)

    @pytest.mark.parametrize("ones", [0, 1])
    @pytest.mark.parametrize("model", TINY_VIT_FACTORS)
    def test_plan_shape_takes_the_papers_factors(self, model, ones):
        for shape in tiny_vit_shapes(model, ones):
            assert plan_shape(shape.rows, shape.cols, ones=ones) == shape

    @pytest.mark.parametrize(
        ("model", "ones", "counted", "printed"),
        [
            ("5M", 0, 7.9, 7.6),
            ("5M", 1, 10.5, 9.9),
            ("11M", 0, 16.7, 17),
            ("11M", 1, 22.4, 23),
            ("21M", 0, 28.9, 29),
            ("21M", 1, 36.7, 38),
        ],
    )
    def test_training(self, model, ones, counted, printed):
        """Table 2 does not follow from table S.5: it agrees in two of six cells and is up to 6 % off in the others."""
        added = sum(shape.added_params for shape in tiny_vit_shapes(model, ones)) / MILLION
        total = TINY_VIT_DENSE[model] + added
        assert total == pytest.approx(counted, abs=0.05)
        if (model, ones) in {("11M", 0), ("21M", 0)}:
            assert round(total) == printed
        assert math.isclose(total, printed, rel_tol=0.06)

    def test_no_choice_of_kinds_and_stages_gives_table_2(self):
        """So the layers that the paper decomposed are not those of its table S.5, or not all of its numbers are."""
        exact = {"5M": 5.39, "11M": 11.0, "21M": 21.2}
        printed = torch.tensor([7.6, 9.9, 17, 23, 29, 38], dtype=torch.float64)
        rounding = torch.tensor([0.05, 0.05, 0.5, 0.5, 0.5, 0.5], dtype=torch.float64)
        added, dense = [], []
        for model in exact:
            for ones in (0, 1):
                shapes = tiny_vit_shapes(model, ones)
                sizes = [(shape.rows, shape.cols) for shape in shapes]
                kinds = list(dict.fromkeys(sizes))  # four kinds in three stages, in one order for all models
                added.append([sum(s.added_params for s in shapes if (s.rows, s.cols) == kind) for kind in kinds])
                dense.append(exact[model])
        choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=12)), dtype=torch.float64)
        totals = torch.tensor(dense).double() + choices @ torch.tensor(added, dtype=torch.float64).T / MILLION
        off = ((totals - printed).abs() / rounding).amax(-1)
        assert off.min() > 3  # the best choice misses a number by more than three times its rounding
