"""The constraint loss: pairs, gradient, gauges, logs, resuming. Its training is held to autograd in test_oracle."""

from __future__ import annotations

import ast
import copy
import io
import re
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from opdf.distill import keep_layers
from opdf.mpo import decompose, plan_shape
from opdf.overparam import Alignment, Constraint, Matrix, OverParamConfig, OverParameterizedOptimizer, overparameterize
from opdf.overparam.alignment import compared_sites
from opdf.overparam.cores import match
from opdf.overparam.pairing import _pair_lists, pair
from opdf.overparam.shapes import teacher_shape


def bert(layers: int = 4, width: int = 16, seed: int = 0) -> BertModel:
    torch.manual_seed(seed)
    return BertModel(
        BertConfig(vocab_size=30, hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
                   intermediate_size=2 * width, max_position_embeddings=12, hidden_dropout_prob=0.0,
                   attention_probs_dropout_prob=0.0)
    )  # fmt: skip


def pairs(student: nn.Module, teacher: nn.Module, **options: Any) -> dict[str, str]:
    matrices = overparameterize(student, OverParamConfig(ones=1)).matrices
    return {
        ours: theirs.name for ours, theirs in pair(student, matrices, teacher, Constraint(**options).layer_map).items()
    }


def step(model: nn.Module, optimizer: OverParameterizedOptimizer) -> None:
    optimizer.zero_grad()
    model(torch.arange(8).reshape(1, 8)).last_hidden_state.square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize(("layer_map", "expected"), [("last", [1, 3]), ("first", [0, 2]), ({0: 3, 1: 0}, [3, 0])])
def test_pairs_by_block_and_role(layer_map: Any, expected: list[int]) -> None:
    found = pairs(bert(2), bert(4), layer_map=layer_map)
    assert len(found) == 12
    for ours, theirs in found.items():
        block = int(ours.split(".")[2])
        assert theirs == ours.replace(f"layer.{block}.", f"layer.{expected[block]}.")


def test_a_partial_map_leaves_the_rest_free() -> None:
    assert all(".layer.1." in name for name in pairs(bert(2), bert(4), layer_map={1: 0}))


def test_lists_of_blocks_are_paired_by_the_end_of_their_names_and_else_in_order() -> None:
    ours, theirs = {"decoder.block": 1, "layers": 2}, {"model.layers": 4, "decoder.block": 3}
    assert _pair_lists(ours, theirs) == {"decoder.block": ("decoder.block", 1, 3), "layers": ("model.layers", 2, 4)}
    assert _pair_lists({"blocks": 2}, {"layers": 4}) == {"blocks": ("layers", 2, 4)}


def test_explicit_names() -> None:
    names = {"encoder.layer.0.output.dense.weight": "encoder.layer.3.output.dense.weight"}
    assert pairs(bert(2), bert(4), layer_map=names) == names


def test_last_pairs_a_student_of_kept_layers_with_its_origin() -> None:
    teacher = bert(4)
    student = keep_layers(teacher, 2)
    overparam = overparameterize(student, OverParamConfig(ones=3))
    overparam.align(teacher)
    optimizer = overparam.optimizer(torch.optim.SGD, lr=0.0)
    step(student, optimizer)
    assert optimizer.constraint_logs["constraint_loss"] < 1e-9


def test_gauge_matching_undoes_a_rotation_that_raw_cores_suffer_from() -> None:
    teacher = bert(2)
    student = copy.deepcopy(teacher)
    with torch.no_grad():
        for p in student.parameters():
            p += 0.02 * p.abs().mean() * torch.randn_like(p)
    losses = {}
    for gauge in ("matched", "raw"):
        overparam = overparameterize(student, OverParamConfig(ones=2))
        overparam.align(teacher, Constraint(gauge=gauge))
        optimizer = overparam.optimizer(torch.optim.SGD, lr=0.0)
        step(student, optimizer)
        losses[gauge] = optimizer.constraint_logs["constraint_loss"]
    assert losses["matched"] < 0.05 * losses["raw"]


@pytest.mark.parametrize("normalize", ["relative", "mse"])
@pytest.mark.parametrize("ones", [0, 2])
def test_no_rotation_of_the_teachers_bonds_lowers_the_loss(ones: int, normalize: str) -> None:
    """Turned further at one end, by little or by any rotation, the matched cores give a larger loss."""
    generator = torch.Generator().manual_seed(0)
    shape = plan_shape(12, 18, ones=ones)
    cores, teacher = (decompose(torch.randn(12, 18, dtype=torch.float64, generator=generator), shape) for _ in range(2))
    alignment = Alignment(Constraint(normalize=normalize), {"weight": Matrix("weight", False, (12, 18), shape)}, {})
    (matched,) = match([teacher], [cores], [alignment.weights_of(shape, teacher)])
    targets = {k: matched[k] for k in compared_sites(shape)}
    assert targets.keys() == {0, shape.sites - 1} - {shape.center}
    least = float(alignment.gradients(shape, cores, targets)[0])
    for strength in (1e-3, 0.1, 10.0):
        for site, core in targets.items():
            bond = core.shape[-1] if site == 0 else core.shape[0]
            angles = strength * torch.randn(bond, bond, dtype=torch.float64, generator=generator)
            rotation = torch.linalg.matrix_exp(angles - angles.T)
            further = core @ rotation if site == 0 else torch.tensordot(rotation, core, 1)
            assert float(alignment.gradients(shape, cores, targets | {site: further})[0]) > least


@pytest.mark.parametrize("normalize", ["relative", "mse"])
def test_a_descent_over_all_bonds_finds_no_lower_loss_of_what_is_trained(normalize: str) -> None:
    """With several sites on a side their weights in the loss decide where the bonds between them turn."""
    generator = torch.Generator().manual_seed(0)
    rows, cols = (3, 2, 2, 1, 2, 2, 2), (2, 2, 2, 1, 2, 2, 3)
    student, teacher = (nn.Linear(96, 96, bias=False).double() for _ in range(2))
    for model in (student, teacher):
        nn.init.normal_(model.weight, generator=generator)
    over = overparameterize(student, OverParamConfig(targets=["weight"], shapes={"weight": (rows, cols)}))
    over.align(teacher, Constraint(normalize=normalize, layer_map={"weight": "weight"}))
    optimizer = over.optimizer(torch.optim.SGD, lr=0.0)
    optimizer.make_cores()
    state, shape = optimizer.state[student.weight], over.matrices[0].shape
    cores = [state[f"core{k}"] for k in range(shape.sites)]
    matched = {k: state[f"teacher{k}"] for k in compared_sites(shape)}
    alignment = Alignment(Constraint(normalize=normalize), {"weight": over.matrices[0]}, {})
    angles = [torch.zeros(d, d, dtype=torch.float64, requires_grad=True) for d in shape.bond_dims]

    def turned() -> torch.Tensor:
        rotations = [torch.linalg.matrix_exp(angle - angle.T) for angle in angles]
        rotations[0] = rotations[-1] = torch.eye(1, dtype=torch.float64)
        targets = {k: torch.tensordot(rotations[k].T, t, 1) @ rotations[k + 1] for k, t in matched.items()}
        weights = alignment.weights_of(shape, [matched.get(k, core) for k, core in enumerate(cores)])
        return torch.stack([weights[k] * (cores[k] - t).square().sum() for k, t in targets.items()]).sum()

    start = float(turned().detach())
    assert start == pytest.approx(float(alignment.gradients(shape, cores, matched)[0]))
    descent = torch.optim.LBFGS(angles, max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        descent.zero_grad()
        loss = turned()
        loss.backward()
        return loss

    descent.step(closure)
    assert float(turned().detach()) > 0.999 * start


@pytest.mark.parametrize("normalize", ["relative", "mse"])
def test_gradient_is_autograds_and_spares_the_central_core(normalize: str) -> None:
    torch.manual_seed(0)
    shape = plan_shape(12, 18, ones=2)
    cores = decompose(torch.randn(12, 18, dtype=torch.float64), shape)
    others = decompose(torch.randn(12, 18, dtype=torch.float64), shape)
    cores = [c + 0.1 * torch.randn_like(c) for c in cores]
    targets = {k: others[k] for k in shape.auxiliary}
    partners = {"weight": Matrix("weight", False, (12, 18), shape)}
    alignment = Alignment(Constraint(weight=1.0, gauge="raw", normalize=normalize), partners, {})
    loss, gradients = alignment.gradients(shape, cores, targets)
    leaves = [c.clone().requires_grad_() for c in cores]
    errors = [(leaves[k] - others[k]).square() for k in shape.auxiliary]
    if normalize == "relative":
        expected = sum(e.sum() / others[k].square().sum() for e, k in zip(errors, shape.auxiliary, strict=True))
    else:
        expected = sum(e.mean() for e in errors) / len(errors)
    exact = torch.autograd.grad(expected, leaves, allow_unused=True)
    assert float(loss) == pytest.approx(float(expected.detach()))
    assert exact[shape.center] is None
    assert shape.center not in gradients
    for k in shape.auxiliary:
        torch.testing.assert_close(gradients[k], exact[k])


def test_a_teacher_of_zeros_pulls_to_zero() -> None:
    """A relative distance to it would be infinite, and is the plain one."""
    shape = plan_shape(12, 18, ones=1)
    cores = decompose(torch.randn(12, 18, generator=torch.Generator().manual_seed(0)), shape)
    targets = {k: torch.zeros_like(cores[k]) for k in shape.auxiliary}
    loss, gradients = Alignment(Constraint(), {}, {}).gradients(shape, cores, targets)
    assert float(loss) == pytest.approx(sum(float(cores[k].square().sum()) for k in shape.auxiliary))
    assert all(torch.equal(gradients[k], 2 * cores[k]) for k in shape.auxiliary)


def test_logs_are_the_loss_and_the_ratio_of_gradient_norms() -> None:
    student, teacher = bert(1), bert(1, seed=1)
    overparam = overparameterize(student, OverParamConfig(ones=1, targets=["query"]))
    overparam.align(teacher, Constraint(weight=3.0))
    optimizer = overparam.optimizer(torch.optim.SGD, lr=0.0)
    step(student, optimizer)
    name = overparam.matrices[0].name
    cores, state = optimizer.cores(name), optimizer.state[student.get_parameter(name)]
    assert cores is not None
    ends = [(cores[k], state[f"teacher{k}"]) for k in (0, 2)]
    loss = sum(float((c - t).square().sum() / t.square().sum()) for c, t in ends)
    gradient = sum(float((2 * 3.0 * (c - t) / t.square().sum()).square().sum()) for c, t in ends) ** 0.5
    leaves = [c.clone().requires_grad_() for c in cores]
    weight = torch.einsum("aijb,bklc,cmnd->ikmjln", *leaves).reshape(16, 16)
    grads = torch.autograd.grad((weight * student.get_parameter(name).grad).sum(), leaves)
    distillation = sum(float(g.square().sum()) for g in grads) ** 0.5
    assert optimizer.constraint_logs["constraint_loss"] == pytest.approx(loss, rel=1e-4)
    assert optimizer.constraint_logs["constraint_grad_ratio"] == pytest.approx(gradient / distillation, rel=1e-4)
    optimizer.zero_grad()
    optimizer.step()  # of no matrix, and so without a constraint
    assert optimizer.constraint_logs == {}


@pytest.mark.parametrize("maximize", [False, True])
def test_weight_of_order_one_pulls_the_student_to_the_teacher(maximize: bool) -> None:
    """Without any distillation gradient the auxiliary cores approach the teacher's."""
    student, teacher = bert(1), bert(1, seed=1)
    overparam = overparameterize(student, OverParamConfig(ones=2))
    overparam.align(teacher)
    optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-2, weight_decay=0.0, maximize=maximize)
    losses = []
    for _ in range(10):
        for p in student.parameters():
            p.grad = torch.full_like(p, 1e-12)
        optimizer.step()
        losses.append(optimizer.constraint_logs["constraint_loss"])
    assert losses[-1] < 0.5 * losses[0]


def test_resuming_keeps_the_targets_bit_for_bit() -> None:
    student, teacher = bert(2), bert(4, seed=1)

    def start(model: nn.Module) -> OverParameterizedOptimizer:
        overparam = overparameterize(model, OverParamConfig(ones=2))
        overparam.align(teacher)
        return overparam.optimizer(torch.optim.AdamW, lr=1e-2)

    optimizer = start(student)
    for _ in range(3):
        step(student, optimizer)
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    resumed = copy.deepcopy(student)
    again = start(resumed)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    for model, stepper in ((student, optimizer), (resumed, again)):
        for _ in range(3):
            step(model, stepper)
    for a, b in zip(student.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("other", [{"layer_map": "first"}, {"gauge": "raw"}, {"weight": 0.3}], ids=str)
def test_a_state_that_goes_on_with_other_targets_says_so(other: dict[str, Any]) -> None:
    student, teacher = bert(2), bert(4, seed=1)
    states = []
    for options in ({}, other):
        overparam = overparameterize(student, OverParamConfig(ones=2))
        overparam.align(teacher, Constraint(**options))
        optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-2)
        said = "the constraint's layer_map, its gauge or the blocks" if states and "weight" not in options else ""
        with warnings.catch_warnings(record=True) as told:
            if states:
                optimizer.load_state_dict(states[0])
        assert [said in str(one.message) for one in told] == [True] * bool(said)
        step(student, optimizer)
        states.append(optimizer.state_dict())


def test_a_wider_teacher_shares_the_outer_factors() -> None:
    student, teacher = bert(2, 16), bert(4, 32)
    overparam = overparameterize(student, OverParamConfig(ones=1))
    overparam.align(teacher)
    optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-2)
    losses = []
    for _ in range(8):
        step(student, optimizer)
        losses.append(optimizer.constraint_logs["constraint_loss"])
    assert losses[-1] < losses[0]


def test_a_wider_teacher_of_the_students_own_matrix_is_at_no_distance() -> None:
    """A teacher [[W, 0], [0, 0]]-like by its central factor: kron(e1, W) has the student's own outer cores."""
    torch.manual_seed(0)
    shape = plan_shape(12, 12, ones=1)
    student = torch.randn(12, 12, dtype=torch.float64)
    wide = teacher_shape(shape, 24, 12)
    assert (wide.row_factors, wide.col_factors) == ((4, 2, 3), (4, 1, 3))
    digits = student.reshape(4, 1, 3, 12)
    teacher = torch.cat([digits, torch.zeros_like(digits)], dim=1).reshape(24, 12)
    ours, theirs = decompose(student, shape), decompose(teacher, wide)
    for k in shape.auxiliary:
        torch.testing.assert_close(ours[k], theirs[k])


@pytest.mark.parametrize(
    "config", [OverParamConfig(ones=3), OverParamConfig(ones=1), OverParamConfig(ones=2), OverParamConfig(ones=0)]
)
@pytest.mark.parametrize(("ours", "theirs"), [(24, 36), (36, 24), (12, 20)])
def test_widths_that_share_a_factor_are_refused_with_the_shapes_that_do(
    ours: int, theirs: int, config: OverParamConfig
) -> None:
    student, teacher = bert(2, ours), bert(4, theirs)
    plain = overparameterize(student, config)
    try:
        plain.align(teacher)
    except ValueError as error:
        (shapes,) = re.findall(r"give the shapes (\{.*\}), or leave the constraint out", str(error))
    else:
        assert config.ones == 0  # one auxiliary core a matrix: its factors may divide both as they are
        return
    shared = overparameterize(student, OverParamConfig(shapes=ast.literal_eval(shapes)))
    assert {t.shape.sites for t in shared.matrices} == {t.shape.sites for t in plain.matrices}
    assert all(t.shape.added_params > 0 for t in shared.matrices)
    shared.align(teacher, Constraint(weight=10.0))
    optimizer = shared.optimizer(torch.optim.AdamW, lr=1e-2)
    losses = []
    for _ in range(12):
        step(student, optimizer)
        losses.append(optimizer.constraint_logs["constraint_loss"])
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        (bert(3), bert(4), {}, "3 student blocks do not divide the teacher's 4"),
        (bert(2), bert(4), {"layer_map": "middle"}, "layer_map is 'middle'"),
        (bert(2), bert(4), {"layer_map": {0: 4}}, "sends block 0 to 4; the teacher has blocks 0 to 3"),
        (bert(2), bert(4), {"layer_map": {0: 1, 2: 3}}, "layer_map has block 2; the student has blocks 0 to 1"),
        (bert(2), bert(4), {"layer_map": {}}, r"layer_map is \{\}; expected 'last', 'first' or a mapping"),
        (bert(2), bert(4), {"layer_map": {0: "1"}}, r"of block numbers to block numbers or of names to names"),
        (bert(2), bert(4), {"layer_map": [1, 3]}, r"layer_map is \[1, 3\]; expected 'last', 'first' or a mapping"),
        (bert(2), bert(4), {"layer_map": {"x": "y"}}, "'x', which is not an over-parameterized matrix"),
        (bert(2), bert(4), {"gauge": "none"}, "gauge is 'none'"),
        (bert(2), bert(4), {"normalize": "sum"}, "normalize is 'sum'"),
        (bert(2), bert(4), {"weight": -1.0}, "weight is -1.0"),
        (bert(2, 16), bert(4, 12), {}, "are not a multiple of"),
        (bert(2, 10), bert(4, 14), {}, r"are not a multiple of .*give the shapes \{"),
        (bert(2, 32), bert(4, 16), {}, "larger than|are not a multiple"),
    ],
)
def test_what_cannot_be_paired_is_refused(student: Any, teacher: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairs(student, teacher, **options)


def test_a_matrix_of_one_core_cannot_follow_another() -> None:
    over = overparameterize(bert(2), OverParamConfig(shapes={"query": ((16,), (16,))}))
    with pytest.raises(ValueError, match=r"T\(16 / 16\)\) cannot follow .*: it has one core, .*; leave"):
        over.align(bert(4))
