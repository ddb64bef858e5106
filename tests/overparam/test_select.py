"""Which weights are taken, and what is said when none or the wrong ones are."""

from __future__ import annotations

import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.pytorch_utils import Conv1D

from opdf.overparam.select import find_matrices


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.conv = nn.Conv2d(3, 4, 3, groups=1)
        self.mix = nn.Linear(8, 8)
        self.out = nn.Linear(8, 10)
        self.wide = Conv1D(6, 8)


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(4, 4)


def names(targets: object, exclude: object = (), model: nn.Module | None = None) -> list[str]:
    return [m.name for m in find_matrices(model or Small(), targets, exclude)]  # type: ignore[arg-type]


def test_all_linear_takes_linear_and_conv1d() -> None:
    assert names("all-linear") == ["mix.weight", "out.weight", "wide.weight"]


@pytest.mark.parametrize("pattern", ["conv", "conv.weight", "c*v"])
def test_patterns(pattern: str) -> None:
    assert names([pattern]) == ["conv.weight"]


def test_suffix_matches_after_a_dot_only() -> None:
    model = nn.ModuleDict({"a_mix": nn.Linear(2, 2), "block": nn.ModuleDict({"mix": nn.Linear(2, 2)})})
    assert names(["mix"], model=model) == ["block.mix.weight"]


def test_exclude() -> None:
    assert names("all-linear", ["out"]) == ["mix.weight", "wide.weight"]


@pytest.mark.parametrize("module", [nn.Linear(6, 4), nn.Conv2d(3, 4, 2), nn.Conv2d(6, 4, 1), Conv1D(4, 6)])
def test_matrix_view_round_trip(module: nn.Module) -> None:
    model = nn.ModuleDict({"m": module})
    (matrix,) = find_matrices(model, ["m"], ())
    weight = model.get_parameter("m.weight")
    view = matrix.of(weight)
    assert view.shape == (matrix.rows, matrix.cols)
    assert matrix.rows == 4
    assert torch.equal(matrix.weight(view), weight)


def test_attention_with_keys_of_another_width_has_three_inputs() -> None:
    model = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, kdim=6, vdim=4)})
    inputs = [f"a.{kind}_proj_weight" for kind in "qkv"]
    assert names("all-linear", model=model) == [*inputs, "a.out_proj.weight"]
    assert [(m.rows, m.cols) for m in find_matrices(model, "all-linear", ())] == [(8, 8), (8, 6), (8, 4), (8, 8)]


def test_tied_to_an_embedding_is_left_alone_or_refused_when_named() -> None:
    model = Small()
    model.out.weight = model.embedding.weight
    assert "out.weight" not in names("all-linear", model=model)
    with pytest.raises(ValueError, match=r"out\.weight shares its tensor with embedding\.weight"):
        names(["out"], model=model)


def test_tied_targets_are_handled_once() -> None:
    model = nn.ModuleDict({"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    model["b"].weight = model["a"].weight
    assert names("all-linear", model=model) == ["a.weight"]


def test_a_block_in_several_places_is_handled_once() -> None:
    first, last = SelfAttention(), SelfAttention()
    found = find_matrices(nn.ModuleDict({"layer": nn.ModuleList([first, first, last])}), "blocks", ())
    assert [(m.name, m.block) for m in found] == [("layer.0.q.weight", 0), ("layer.2.q.weight", 2)]


def test_frozen_weights_are_left_alone() -> None:
    model = Small()
    model.mix.requires_grad_(False)
    assert "mix.weight" not in names("all-linear", model=model)


@pytest.mark.parametrize(
    ("targets", "exclude", "message"),
    [
        ("blocks", (), "found no attention blocks in Small; set targets to 'all-linear'"),
        (["mx"], (), "pattern 'mx' matches no matrix; did you mean 'mix'"),
        ("all-linear", ["nothing"], "exclude pattern 'nothing' matches no matrix"),
        (["mix"], ["mix"], "leaves no trainable matrix"),
    ],
)
def test_errors(targets: object, exclude: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        names(targets, exclude)


def test_nan_and_integer_weights_are_refused() -> None:
    model = Small()
    with torch.no_grad():
        model.mix.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"mix\.weight holds NaN"):
        names(["mix"], model=model)
    model.out.weight = nn.Parameter(torch.zeros(10, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match="int8; over-parameterization needs float weights"):
        find_matrices(model, ["out"], (), trainable_only=False)


def test_blocks_with_names_of_their_own_are_counted_in_order() -> None:
    """As torchvision's ViT has them."""

    blocks = OrderedDict((f"encoder_layer_{k}", nn.TransformerEncoderLayer(4, 1, 4)) for k in (0, 1))
    model = nn.ModuleDict({"layers": nn.Sequential(blocks)})
    found = find_matrices(model, "blocks", ())
    roles = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    assert [(m.blocks, m.block, m.role) for m in found] == [("layers", k, role) for k in (0, 1) for role in roles]


def test_a_list_with_other_parts_is_no_list_of_blocks() -> None:
    """Else the Linear would be a block, and every block after it the partner of another."""
    with pytest.raises(ValueError, match="found no attention blocks"):
        names("blocks", model=nn.ModuleDict({"parts": nn.Sequential(nn.Linear(4, 4), SelfAttention())}))


def test_lists_beside_those_with_attention_hold_parts_of_the_same_blocks() -> None:
    """As XLM's and FlauBERT's: of their blocks the attention alone was taken."""
    parts = {
        "attentions": nn.ModuleList(SelfAttention() for _ in range(2)),
        "ffns": nn.ModuleList(nn.Linear(4, 4) for _ in range(2)),
        "heads": nn.ModuleList(nn.Linear(4, 4) for _ in range(3)),
    }
    found = find_matrices(nn.ModuleDict({"model": nn.ModuleDict(parts)}), "blocks", ())
    assert {(m.blocks, m.block) for m in found} == {(f"model.{n}", k) for n in ("attentions", "ffns") for k in (0, 1)}


def test_a_list_of_blocks_alone_is_refused() -> None:
    """It was said to hold no attention."""
    message = r"is itself a list of blocks \(Sequential\): give the module that holds it"
    with pytest.raises(ValueError, match=message):
        names("blocks", model=nn.Sequential(SelfAttention(), SelfAttention()))


def test_weights_that_are_computed_are_no_candidates() -> None:
    model = Small()
    nn.utils.parametrizations.weight_norm(model.mix)
    assert "mix.weight" not in names("all-linear", model=model)


def test_kernels_and_tokens_of_blocks_are_not_taken_for_experts() -> None:
    attention = SelfAttention()
    attention.mix, attention.token = nn.Conv1d(4, 4, 3), nn.Parameter(torch.zeros(1, 1, 4))
    with warnings.catch_warnings(action="error"):
        assert names("blocks", model=nn.ModuleDict({"layer": nn.ModuleList([attention])})) == [
            "layer.0.q.weight",
            "layer.0.mix.weight",
        ]


def test_experts_in_one_tensor_are_named() -> None:
    config = MixtralConfig(vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                           num_attention_heads=2, num_key_value_heads=1, num_local_experts=2)  # fmt: skip
    model = MixtralForCausalLM(config)
    with pytest.warns(UserWarning, match=r"2 weights of blocks have more than .*layers\.0\.mlp\.experts"):
        find_matrices(model, "blocks", ())
