"""Gauge matching: the matrix stays, the distance between cores falls to what the matrices themselves differ by."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from opdf.mpo import MPOShape, contract, decompose, match_gauge, plan_shape, shape_of

GENERAL = MPOShape((4, 2, 1, 6), (2, 5, 1, 6))
LONG = MPOShape((4, 4, 2, 1, 2, 3, 4), (4, 4, 2, 1, 2, 3, 4))
SHAPES = [plan_shape(48, 60, ones=0), plan_shape(48, 60, ones=3), GENERAL, MPOShape((6, 2, 1, 4), (1, 3, 5, 4))]


def random_matrix(shape: MPOShape, *lead: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*lead, shape.rows, shape.cols, dtype=torch.float64, generator=generator)


def rotation(size: int, seed: int, signs: bool) -> Tensor:
    square = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.sign(square[0]).diag() if signs else torch.linalg.qr(square).Q


def distance(cores: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Squared distance over all cores, relative to the reference's squared norm."""
    apart = sum(float((a - b).square().sum()) for a, b in zip(cores, reference, strict=True))
    return apart / sum(float(b.square().sum()) for b in reference)


@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_matrix_stays_the_same(shape, lead):
    matrix, other = random_matrix(shape, *lead), random_matrix(shape, *lead, seed=1)
    matched = match_gauge(decompose(matrix, shape), decompose(other, shape))
    assert shape_of(matched) == shape
    assert all(core.is_contiguous() for core in matched)
    torch.testing.assert_close(contract(matched), matrix, rtol=0, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_distance_falls(shape):
    """Also for unrelated matrices; a sweep can only improve on the bonds as they were."""
    cores = decompose(random_matrix(shape), shape)
    for seed in range(3):
        reference = decompose(random_matrix(shape, seed=1 + seed), shape)
        assert distance(match_gauge(cores, reference), reference) <= distance(cores, reference)


@pytest.mark.parametrize("signs", [True, False], ids=["signs", "rotations"])
@pytest.mark.parametrize("shape", [*SHAPES, LONG], ids=str)
def test_what_a_decomposition_leaves_free_is_undone(shape, signs):
    """Every bond turned by a random rotation, or by the signs that an SVD leaves open, comes back exactly."""
    reference = decompose(random_matrix(shape), shape)
    turned, turn = [], torch.eye(1, dtype=torch.float64)
    for k, core in enumerate(reference):
        before = turn
        if core.shape[1:3] != (1, 1):  # the bonds of a run of identities turn alike, or they would be none
            last = k == shape.sites - 1
            turn = torch.eye(1).double() if last else rotation(core.shape[3], seed=k, signs=signs)
        turned.append(torch.tensordot(torch.tensordot(before.T, core, 1), turn, 1))
    torch.testing.assert_close(contract(turned), contract(reference))
    assert distance(turned, reference) > 0.1
    assert distance(match_gauge(turned, reference), reference) < 1e-20


@pytest.mark.parametrize("ones", [0, 3])
def test_one_free_bond_is_brought_as_near_as_rotations_can(ones):
    """The least squared distance over all rotations has a closed form: |A|^2 + |B|^2 - 2 * nuclear norm of A^T B."""
    shape = plan_shape(48, 60, ones=ones)
    cores, reference = decompose(random_matrix(shape), shape), decompose(random_matrix(shape, seed=1), shape)

    def both_ends(chain: Sequence[Tensor]) -> Tensor:
        return torch.cat([chain[0].flatten(0, 2), chain[-1].flatten(1).T])

    ours, theirs = both_ends(cores), both_ends(reference)
    least = ours.square().sum() + theirs.square().sum() - 2 * torch.linalg.matrix_norm(ours.T @ theirs, "nuc")
    matched = both_ends(match_gauge(cores, reference))
    torch.testing.assert_close((matched - theirs).square().sum(), least, rtol=1e-10, atol=0)


@pytest.mark.parametrize("shape", [GENERAL, SHAPES[-1]], ids=str)
def test_no_rotation_of_a_single_bond_brings_cores_nearer(shape):
    """At the optimum over one bond, the overlap of the cores at it is symmetric without negative eigenvalues."""
    reference = decompose(random_matrix(shape, seed=1), shape)
    matched = match_gauge(decompose(random_matrix(shape), shape), reference)
    for bond in range(1, shape.sites):
        if (1, 1) in (shape.core_shapes[bond - 1][1:3], shape.core_shapes[bond][1:3]):
            continue  # shared with the next bond
        left = matched[bond - 1].flatten(0, 2).T @ reference[bond - 1].flatten(0, 2)
        overlap = left + matched[bond].flatten(1) @ reference[bond].flatten(1).T
        asymmetry = float((overlap - overlap.T).norm() / overlap.norm())
        assert asymmetry < 1e-3
        assert torch.linalg.eigvalsh(overlap + overlap.T).min() > -1e-3 * overlap.norm()


@pytest.mark.parametrize("shape", [plan_shape(96, 96, ones=0), plan_shape(96, 96, ones=3), LONG], ids=str)
def test_neighbouring_matrices_come_close(shape):
    """Two matrices that differ by 10 %: raw cores look unrelated, matched ones differ by that much."""
    student = random_matrix(shape)
    teacher = decompose(student + 0.1 * random_matrix(shape, seed=1), shape)
    cores = decompose(student, shape)
    ends = (0, -1)
    raw = distance([cores[k] for k in ends], [teacher[k] for k in ends])
    matched = match_gauge(teacher, cores)
    close = distance([matched[k] for k in ends], [cores[k] for k in ends])
    assert raw > 0.5
    assert close < 0.02


@pytest.mark.parametrize("ones", [1, 4])
def test_identities_stay_identities(ones):
    shape = plan_shape(48, 60, ones=ones)
    matched = match_gauge(decompose(random_matrix(shape), shape), decompose(random_matrix(shape, seed=1), shape))
    eye = torch.eye(shape.bond_dims[1], dtype=torch.float64)
    for core in matched[1:-1]:
        torch.testing.assert_close(core[:, 0, 0, :], eye, rtol=0, atol=1e-12)


def test_the_same_matrix_keeps_its_cores():
    cores = decompose(random_matrix(GENERAL), GENERAL)
    for before, after in zip(cores, match_gauge(cores, cores), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=1e-11)


def test_all_zero_matrices():
    shape = plan_shape(24, 18)
    cores = match_gauge(decompose(torch.zeros(24, 18), shape), decompose(torch.ones(24, 18), shape))
    assert torch.equal(contract(cores), torch.zeros(24, 18))


def test_it_does_the_same_to_every_matrix_of_a_batch():
    shape = plan_shape(24, 18, ones=2)
    ours, theirs = random_matrix(shape, 3), random_matrix(shape, 3, seed=1)
    batched = match_gauge(decompose(ours, shape), decompose(theirs, shape))
    for b in range(3):
        alone = match_gauge(decompose(ours[b], shape), decompose(theirs[b], shape))
        for core, single in zip(batched, alone, strict=True):
            torch.testing.assert_close(core[b], single, rtol=0, atol=1e-10)


def test_a_wider_teacher_is_compared_where_its_cores_fit():
    """A central core of other factors is rotated along and left out of the comparison."""
    narrow, wide = MPOShape((6, 2, 6), (6, 2, 6)), MPOShape((6, 4, 6), (6, 3, 6))
    student, teacher = decompose(random_matrix(narrow), narrow), decompose(random_matrix(wide), wide)
    assert narrow.bond_dims == wide.bond_dims
    matched = match_gauge(teacher, student)
    torch.testing.assert_close(contract(matched), random_matrix(wide), rtol=0, atol=1e-11)
    ends = (0, -1)
    raw = distance([teacher[k] for k in ends], [student[k] for k in ends])
    assert distance([matched[k] for k in ends], [student[k] for k in ends]) < raw


def test_unlike_bonds_are_refused():
    with pytest.raises(ValueError, match=r"cores have bond dimensions .* decompose both with the same bond dimensions"):
        match_gauge(
            decompose(random_matrix(GENERAL), GENERAL),
            decompose(random_matrix(plan_shape(48, 60)), plan_shape(48, 60)),
        )
