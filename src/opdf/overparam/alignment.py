"""The constraint loss: auxiliary cores of the student are pulled towards the teacher's (OPDF, equation 5).

Its gradient is closed form (the teacher's cores are constants), so it is added in the optimizer's step and costs no
autograd graph. Two matrices are compared after their gauges have been matched, see `opdf.mpo.gauge`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opdf.mpo import MPOShape, match_gauge
from opdf.overparam.config import LayerMap
from opdf.overparam.select import Matrix, as_matrix, find_matrices

GAUGES = ("matched", "raw")
NORMALIZATIONS = ("relative", "mse")


@dataclass(frozen=True)
class Pair:
    """The teacher matrix that a student's follows, and the factors it is decomposed with."""

    teacher: str
    kind: str
    shape: MPOShape


@dataclass
class Alignment:
    """What the optimizer needs to add the constraint loss.

    Attributes:
        pairs: by the student parameter's name.
        weights: the teacher's weights by the same name, read when the student's matrix is first decomposed.
        weight: factor of the constraint loss in the total.
        gauge: "matched" rotates the teacher's bonds to the student's first; "raw" compares the cores as decomposed.
        normalize: "relative" sums |S - T|^2 / |T|^2 over auxiliary cores and matrices, so that weights of order 1
            matter; "mse" is equation 5: mean squared error, averaged over auxiliary cores and matrices.
    """

    pairs: dict[str, Pair]
    weights: dict[str, Tensor]
    weight: float
    gauge: str
    normalize: str

    def teacher_matrix(self, name: str) -> Tensor:
        """`[rows, cols]`, the teacher's matrix as it is now, by the student parameter's name."""
        return as_matrix(self.weights[name].detach(), self.pairs[name].kind)

    def targets(self, name: str, cores: Sequence[Tensor], teacher: Sequence[Tensor]) -> dict[int, Tensor]:
        """What the auxiliary cores of one student matrix are compared with, by site; identities are left out.

        Args:
            name: the student parameter's name.
            cores: the student's cores `[d_{k-1}, i_k, j_k, d_k]`, whose gauge is the reference.
            teacher: the decomposition of `teacher_matrix(name)` with the pair's shape.
        """
        pair = self.pairs[name]
        if self.gauge == "matched":
            every = (0, 1, 2, 3)
            weights = {k: float(self._factor(pair.shape, teacher[k], every)) for k in pair.shape.auxiliary}
            teacher = match_gauge(teacher, cores, weights)
        return {k: teacher[k] for k in pair.shape.auxiliary if k not in pair.shape.square_sites}

    def gradients(
        self, shape: MPOShape, cores: Sequence[Tensor], targets: Mapping[int, Tensor]
    ) -> tuple[Tensor, dict[int, Tensor]]:
        """The share of some matrices in the loss and its gradient for every auxiliary core, both unweighted.

        Args:
            shape: of the student's chains.
            cores: the student's cores `[..., d_{k-1}, i_k, j_k, d_k]`, float32 or float64.
            targets: as `targets` gave them, by site, with the cores' leading dimensions.

        Returns:
            The loss, a scalar that is summed over the matrices, and by site a gradient of the core's shape and dtype.
        """
        loss = cores[0].new_zeros(())
        gradients = {}
        for k in shape.auxiliary:
            target = targets[k] if k in targets else _identity(cores[k])
            difference = cores[k] - target
            entries = tuple(range(cores[k].dim() - 4, target.dim()))  # of one matrix
            factor = self._factor(shape, target, entries)
            loss += (factor * difference.square().sum(entries, keepdim=True)).sum()
            gradients[k] = difference.mul_(2 * factor)
        return loss, gradients

    def _factor(self, shape: MPOShape, target: Tensor, entries: tuple[int, ...]) -> Tensor | float:
        if self.normalize == "mse":
            return 1 / (math.prod(target.shape[k] for k in entries) * len(shape.auxiliary) * len(self.pairs))
        norm = target.square().sum(entries, keepdim=True)
        return torch.where(norm > 0, norm, 1.0).reciprocal()


def build_alignment(
    model: nn.Module,
    matrices: Mapping[str, tuple[Matrix, MPOShape]],
    teacher: nn.Module,
    *,
    layer_map: LayerMap = "last",
    weight: float = 0.1,
    gauge: str = "matched",
    normalize: str = "relative",
) -> Alignment:
    """Pair a student's matrices with a teacher's by block and role.

    Args:
        model: the student.
        matrices: the student's matrices and their shapes by name.
        teacher: any module with the same kind of blocks; it is read, not changed.
        layer_map: "last" pairs student block s of S with the last teacher block of its group of T/S; "first" with the
            first; `{student block: teacher block}` and `{student name: teacher name}` are explicit, and matrices that
            they do not mention go without the constraint.
        weight, gauge, normalize: see `Alignment`.

    Raises:
        ValueError: an option is unknown, a block or role has no partner, or widths cannot be reconciled.
    """
    if gauge not in GAUGES:
        raise ValueError(f"gauge is {gauge!r}; expected one of {GAUGES}")
    if normalize not in NORMALIZATIONS:
        raise ValueError(f"normalize is {normalize!r}; expected one of {NORMALIZATIONS}")
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight is {weight}; it must be a finite number, 0 or more")
    candidates = _teacher_matrices(teacher, layer_map)
    students = {name: matrix for name, (matrix, _) in matrices.items()}
    names = _pair_names(model, students, teacher, candidates, layer_map)
    pairs = {}
    for student_name, teacher_name in names.items():
        student, shape = matrices[student_name]
        partner = candidates[teacher_name]
        try:
            pairs[student_name] = Pair(teacher_name, partner.kind, teacher_shape(student, shape, partner))
        except ValueError as error:
            remedy = _shared_shapes([(*matrices[s], candidates[t]) for s, t in names.items()])
            shapes = f"give OverParamConfig(shapes={remedy}), or " if remedy else ""
            raise ValueError(f"{error}; {shapes}leave the constraint out") from None
    weights: dict[str, Tensor] = {s: teacher.get_parameter(pair.teacher) for s, pair in pairs.items()}
    return Alignment(pairs, weights, weight, gauge, normalize)


def teacher_shape(student: Matrix, shape: MPOShape, teacher: Matrix) -> MPOShape:
    """The teacher's factors: the student's at every auxiliary site, the rest on the central one.

    A wider teacher then has auxiliary cores of the student's size once its bonds are truncated to the student's
    bond dimensions, keeping the largest singular values.

    Raises:
        ValueError: the sizes do not allow it.
    """
    factors = []
    for side, size, ours in (
        ("rows", teacher.rows, shape.row_factors),
        ("columns", teacher.cols, shape.col_factors),
    ):
        outer = 1
        for k in shape.auxiliary:
            outer *= ours[k]
        if size % outer:
            raise ValueError(
                f"{student.name} ({student.rows}x{student.cols}, {shape}) cannot follow {teacher.name} "
                f"({teacher.rows}x{teacher.cols}): its {size} {side} are not a multiple of {outer}, the product of the "
                "student's auxiliary factors"
            )
        factors.append((*ours[: shape.center], size // outer, *ours[shape.center + 1 :]))
    full = MPOShape(factors[0], factors[1])
    bonds = shape._bonds
    if any(ours > theirs for ours, theirs in zip(bonds, full._bonds, strict=True)):
        raise ValueError(
            f"{student.name} ({student.rows}x{student.cols}) has bond dimensions {bonds}, larger than the "
            f"{full._bonds} of the smaller {teacher.name} ({teacher.rows}x{teacher.cols}) with the same outer factors"
        )
    return MPOShape(factors[0], factors[1], bonds)


def _shared_shapes(pairs: Sequence[tuple[Matrix, MPOShape, Matrix]]) -> dict[str, list[list[int]]]:
    """For `OverParamConfig.shapes`: as many sites as now, whose auxiliary factors divide the teacher's sizes too.

    Empty where a matrix has none but 1 in common with its partner.
    """
    found = {}
    for student, shape, teacher in pairs:
        rows = _shared_factors(student.rows, teacher.rows, shape.sites)
        cols = _shared_factors(student.cols, teacher.cols, shape.sites)
        try:
            shared = MPOShape(tuple(rows), tuple(cols))
            teacher_shape(student, shared, teacher)
        except ValueError:
            return {}
        if shared.bond_dims == (1,) * (shared.sites + 1):
            return {}
        # A digit stands before the role, so that output.dense is not also attention.output.dense.
        role = student.role.removesuffix(".weight")
        found[f"{student.stack}*[0-9].{role}" if student.stack else role] = [rows, cols]
    return found


def _shared_factors(ours: int, theirs: int, sites: int) -> list[int]:
    """Factors of `ours`: two outer ones of what it has in common with `theirs`, the rest at the central site."""
    common = math.gcd(ours, theirs)
    last = next(f for f in range(math.isqrt(common), 0, -1) if common % f == 0)
    factors = [1] * sites
    factors[-1] = last
    if sites > 2:
        factors[0] = common // last
    factors[(sites - 1) // 2] *= ours // math.prod(factors)
    return factors


def _teacher_matrices(teacher: nn.Module, layer_map: LayerMap) -> dict[str, Matrix]:
    """The block matrices, or those that a map of names names: these can be anywhere in any module."""
    targets: str | list[str] = "blocks"
    if isinstance(layer_map, Mapping) and all(isinstance(k, str) for k in layer_map):
        known = dict(teacher.named_parameters())
        targets = [str(name) for name in layer_map.values() if name in known]
        if not targets:
            return {}
    return {m.name: m for m in find_matrices(teacher, targets, (), trainable_only=False)}


def _pair_names(
    model: nn.Module,
    students: Mapping[str, Matrix],
    teacher: nn.Module,
    teachers: Mapping[str, Matrix],
    layer_map: LayerMap,
) -> dict[str, str]:
    owner = type(model).__name__
    if isinstance(layer_map, Mapping) and all(isinstance(k, str) for k in layer_map):
        for ours, theirs in layer_map.items():
            if ours not in students:
                raise ValueError(f"layer_map names {ours!r}, which is not an over-parameterized matrix of {owner}")
            if theirs not in teachers:
                raise ValueError(f"layer_map maps {ours!r} to {theirs!r}, which is no matrix of the teacher")
        return {str(k): str(v) for k, v in layer_map.items()}
    by_place = {(m.stack, m.block, m.role): m.name for m in teachers.values()}
    stacks = _pair_stacks(_depths(model, students), _depths(teacher, teachers))
    names = {}
    for matrix in students.values():
        if not matrix.stack:
            continue
        stack, ours, theirs = stacks[matrix.stack]
        block = _partner_block(matrix.block, ours, theirs, layer_map)
        if block is None:
            continue
        partner = by_place.get((stack, block, matrix.role))
        if partner is None:
            roles = sorted({m.role for m in teachers.values() if m.stack == stack})
            raise ValueError(
                f"{matrix.name} has no partner in block {block} of the teacher's {stack!r}; its matrices there are "
                f"{', '.join(roles)}. Give layer_map={{student name: teacher name}}"
            )
        names[matrix.name] = partner
    if not names:
        raise ValueError(f"layer_map={layer_map!r} pairs none of the {len(students)} matrices of {owner}")
    return names


def _pair_stacks(ours: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, tuple[str, int, int]]:
    """Student stack -> (teacher stack, student blocks, teacher blocks); by the common end of the name, else order."""
    if len(ours) > len(theirs):
        raise ValueError(f"the student has block stacks {list(ours)}, the teacher only {list(theirs)}")
    pairs = {}
    for (name, depth), fallback in zip(ours.items(), theirs, strict=False):
        same_end = [t for t in theirs if f".{t}".endswith(f".{name}") or f".{name}".endswith(f".{t}")]
        partner = same_end[0] if len(same_end) == 1 else fallback
        pairs[name] = (partner, depth, theirs[partner])
    return pairs


def _depths(model: nn.Module, matrices: Mapping[str, Matrix]) -> dict[str, int]:
    return {m.stack: len(list(model.get_submodule(m.stack).children())) for m in matrices.values() if m.stack}


def _partner_block(block: int, ours: int, theirs: int, layer_map: LayerMap) -> int | None:
    if isinstance(layer_map, Mapping):
        partner = layer_map.get(block)  # type: ignore[call-overload]
        if partner is not None and not 0 <= partner < theirs:
            raise ValueError(f"layer_map sends block {block} to {partner}; the teacher has blocks 0 to {theirs - 1}")
        return partner
    if layer_map not in ("first", "last"):
        raise ValueError(f"layer_map is {layer_map!r}; expected 'last', 'first' or a mapping")
    if theirs % ours:
        raise ValueError(
            f"{ours} student blocks do not divide the teacher's {theirs}; "
            "give layer_map={student block: teacher block}"
        )
    group = theirs // ours
    return block * group + (group - 1 if layer_map == "last" else 0)


def _identity(core: Tensor) -> Tensor:
    return torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)[:, None, None].expand(core.shape)
