"""Pairs of matrices: the teacher's for every matrix of the student, and the shape that it is decomposed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from opdf.overparam.config import LayerMap
from opdf.overparam.select import Matrix, find_matrices
from opdf.overparam.shapes import shared_factors, teacher_shape


def pair(model: nn.Module, matrices: Sequence[Matrix], teacher: nn.Module, layer_map: LayerMap) -> dict[str, Matrix]:
    """The teacher's matrix for each of a student's, by block and role.

    Args:
        model: the student.
        matrices: the student's, with their shapes planned.
        teacher: any module with the same kind of blocks; it is read, not changed.
        layer_map: see `Constraint`.

    Returns:
        By the student matrix's name; the teacher's has the shape that it is decomposed with, see `teacher_shape`.

    Raises:
        ValueError: a block or role has no partner, or sizes cannot be reconciled.
    """
    candidates = _teacher_matrices(teacher, layer_map)
    students = {matrix.name: matrix for matrix in matrices}
    names = _pair_names(model, students, teacher, candidates, layer_map)
    pairs = {}
    for ours, theirs in names.items():
        student, partner = students[ours], candidates[theirs]
        try:
            shape = teacher_shape(student.shape, partner.rows, partner.cols)
        except ValueError as error:
            remedy = _remedy([(students[s], candidates[t]) for s, t in names.items()])
            shapes = f"give the shapes {remedy}, or " if remedy else ""
            raise ValueError(
                f"{ours} ({student.rows}x{student.cols}, {student.shape}) cannot follow {theirs} "
                f"({partner.rows}x{partner.cols}): {error}; {shapes}leave the constraint out"
            ) from None
        pairs[ours] = replace(partner, shape=shape)
    return pairs


def _remedy(pairs: Sequence[tuple[Matrix, Matrix]]) -> dict[str, list[list[int]]]:
    """For `OverParamConfig.shapes`: factors with which every student matrix can follow its teacher's.

    Empty where one has none.
    """
    found = {}
    for student, teacher in pairs:
        factors = shared_factors(student.shape, teacher.rows, teacher.cols)
        if factors is None:
            return {}
        # A digit stands before the role, so that output.dense is not also attention.output.dense.
        role = student.role.removesuffix(".weight")
        found[f"{student.blocks}*[0-9].{role}" if student.blocks else role] = [list(side) for side in factors]
    return found


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
    by_place = {(m.blocks, m.block, m.role): m.name for m in teachers.values()}
    depths = _depths(model, students)
    _check_blocks(layer_map, max(depths.values(), default=0))
    lists = _pair_lists(depths, _depths(teacher, teachers))
    names = {}
    for matrix in students.values():
        if not matrix.blocks:
            continue
        blocks, ours, theirs = lists[matrix.blocks]
        block = _partner_block(matrix.block, ours, theirs, layer_map)
        if block is None:
            continue
        partner = by_place.get((blocks, block, matrix.role))
        if partner is None:
            roles = sorted({m.role for m in teachers.values() if m.blocks == blocks})
            raise ValueError(
                f"{matrix.name} has no partner in block {block} of the teacher's {blocks!r}; its matrices there are "
                f"{', '.join(roles)}. Give layer_map={{student name: teacher name}}"
            )
        names[matrix.name] = partner
    if not names:
        raise ValueError(f"layer_map={layer_map!r} pairs none of the {len(students)} matrices of {owner}")
    return names


def _pair_lists(ours: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, tuple[str, int, int]]:
    """Student's list of blocks -> (teacher's, how many ours, theirs): by the common end of names, else in order."""
    if len(ours) > len(theirs):
        raise ValueError(f"the student has the lists of blocks {list(ours)}, the teacher only {list(theirs)}")
    pairs = {}
    for (name, depth), fallback in zip(ours.items(), theirs, strict=False):
        same_end = [t for t in theirs if f".{t}".endswith(f".{name}") or f".{name}".endswith(f".{t}")]
        partner = same_end[0] if len(same_end) == 1 else fallback
        pairs[name] = (partner, depth, theirs[partner])
    return pairs


def _depths(model: nn.Module, matrices: Mapping[str, Matrix]) -> dict[str, int]:
    return {m.blocks: len(model.get_submodule(m.blocks)._modules) for m in matrices.values() if m.blocks}


def _check_blocks(layer_map: LayerMap, depth: int) -> None:
    """Refuse a map of blocks with one that the student, whose longest list has `depth` of them, does not have."""
    if isinstance(layer_map, Mapping) and depth:
        for block in layer_map:
            if not 0 <= block < depth:  # type: ignore[operator]
                raise ValueError(f"layer_map has block {block}; the student has blocks 0 to {depth - 1}")


def _partner_block(block: int, ours: int, theirs: int, layer_map: LayerMap) -> int | None:
    if isinstance(layer_map, Mapping):
        partner = layer_map.get(block)  # type: ignore[call-overload]
        if partner is not None and not 0 <= partner < theirs:
            raise ValueError(f"layer_map sends block {block} to {partner}; the teacher has blocks 0 to {theirs - 1}")
        return partner
    if theirs % ours:
        raise ValueError(
            f"{ours} student blocks do not divide the teacher's {theirs}; "
            "give layer_map={student block: teacher block}"
        )
    group = theirs // ours
    return block * group + (group - 1 if layer_map == "last" else 0)
