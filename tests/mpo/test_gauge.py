"""Gauge matching: the matrix stays, and no rotation of the bonds brings the auxiliary cores nearer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from opdf.data import minilm
from opdf.mpo import MPOShape, contract, decompose, match_gauge, plan_shape, shape_of

GENERAL = MPOShape((4, 2, 1, 6), (2, 5, 1, 6))
LONG = MPOShape((4, 2, 2, 1, 2, 2, 3), (4, 3, 2, 1, 2, 2, 3))
PLANNED = [plan_shape(48, 60, ones=ones) for ones in (0, 1, 2, 3)]
SEVERAL = [GENERAL, MPOShape((6, 2, 1, 4), (1, 3, 5, 4)), MPOShape((3, 2, 2, 2, 3), (2, 2, 3, 2, 2)), LONG]
SHAPES = [*PLANNED, *SEVERAL]

Weights = Mapping[int, float]


def random_matrix(shape: MPOShape, *lead: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*lead, shape.rows, shape.cols, dtype=torch.float64, generator=generator)


def rotation(size: int, seed: int, *, strength: float | None = None) -> Tensor:
    """Any rotation or reflection, or with `strength` one that turns by about so many radians."""
    square = torch.randn(size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    if strength is None:
        return torch.linalg.qr(square).Q
    return torch.linalg.matrix_exp(strength * (square - square.T) / (2 * size**0.5))


def compared(shape: MPOShape) -> list[int]:
    """Sites that the constraint compares and a rotation changes: all but the centre and identities."""
    return [k for k in shape.auxiliary if k not in shape.square_sites]


def relative(cores: Sequence[Tensor]) -> Weights:
    return {k: 1 / float(cores[k].square().sum()) for k in compared(shape_of(cores))}


def mean_squares(cores: Sequence[Tensor]) -> Weights:
    return {k: 1 / cores[k].numel() for k in compared(shape_of(cores))}


def loss(cores: Sequence[Tensor], reference: Sequence[Tensor], weights: Weights) -> float:
    """Equation 5 with one weight or the other, by definition."""
    return sum(weight * float((cores[k] - reference[k]).square().sum()) for k, weight in weights.items())


def turned(cores: Sequence[Tensor], rotations: Sequence[Tensor]) -> list[Tensor]:
    """Bond k turned by `rotations[k]`, for k from 0 to n."""
    return [
        torch.tensordot(torch.tensordot(rotations[k].T, core, 1), rotations[k + 1], 1) for k, core in enumerate(cores)
    ]


def tied(shape: MPOShape, make: Sequence[Tensor]) -> list[Tensor]:
    """Of rotations for all bonds, with ends that are not turned and one rotation for both sides of an identity."""
    rotations = [torch.eye(1).double(), *make[1 : shape.sites], torch.eye(1).double()]
    for k in shape.square_sites:
        if k < shape.center:
            rotations[k + 1] = rotations[k]
    for k in reversed(shape.square_sites):
        if k > shape.center:
            rotations[k] = rotations[k + 1]
    return rotations


@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_matrix_stays_the_same(shape, lead):
    matrix, other = random_matrix(shape, *lead), random_matrix(shape, *lead, seed=1)
    matched = match_gauge(decompose(matrix, shape), decompose(other, shape))
    assert shape_of(matched) == shape
    assert all(core.is_contiguous() for core in matched)
    torch.testing.assert_close(contract(matched), matrix, rtol=0, atol=1e-11)


@pytest.mark.parametrize("weigh", [relative, mean_squares])
@pytest.mark.parametrize("apart", [None, 0.1])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_rotation_brings_the_cores_nearer(shape, apart, weigh):
    """Unrelated matrices, or two that differ by 10 %, from which all bonds or one are turned further."""
    student = random_matrix(shape)
    teacher = random_matrix(shape, seed=1) if apart is None else student + apart * random_matrix(shape, seed=1)
    reference, cores = decompose(student, shape), decompose(teacher, shape)
    weights = weigh(cores)
    matched = match_gauge(cores, reference, weights)
    least = loss(matched, reference, weights)
    assert least <= loss(cores, reference, weights)
    # Where several bonds a side are free, sweeps end within 1e-4 of the loss.
    slack = 1e-10 if shape in PLANNED else 1e-4
    for seed, strength in enumerate([None, 1e-3, 1e-2, 0.1, 1.0]):
        further = [rotation(d, seed, strength=strength) for d in shape.bond_dims]
        one = [r if k == 1 + seed % (shape.sites - 1) else torch.eye(len(r)).double() for k, r in enumerate(further)]
        for rotations in (further, one):
            assert loss(turned(matched, tied(shape, rotations)), reference, weights) >= least * (1 - slack)


def test_no_bond_alone_brings_the_cores_nearer():
    """Where several are free: each by the closed form for one whose neighbours are held (orthogonal Procrustes).

    The matrix is in a batch, beside one that is matched from the beginning.
    """
    shape = MPOShape((2, 2, 2, 2, 2, 3), (2, 2, 2, 2, 3, 2))
    reference, cores = decompose(random_matrix(shape), shape), decompose(random_matrix(shape, seed=1), shape)
    both = match_gauge([torch.stack(pair) for pair in zip(reference, cores, strict=True)],
                       [torch.stack([core, core]) for core in reference])  # fmt: skip
    matched, weights = [core[1] for core in both], relative(cores)
    least = loss(matched, reference, weights)
    for bond in range(1, shape.sites):
        left, right = weights.get(bond - 1, 0.0), weights.get(bond, 0.0)
        overlap = left * matched[bond - 1].flatten(0, 2).T @ reference[bond - 1].flatten(0, 2)
        overlap += right * matched[bond].flatten(1) @ reference[bond].flatten(1).T
        rotations = [torch.eye(d, dtype=torch.float64) for d in shape.bond_dims]
        rotations[bond] = orthogonal_factor(overlap)
        assert loss(turned(matched, rotations), reference, weights) >= least * (1 - 1e-4)


def orthogonal_factor(square: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(square)
    return u @ vh


@pytest.mark.parametrize("weigh", [relative, pytest.param(mean_squares, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "shape",
    [MPOShape((2, 2), (2, 1)), pytest.param(MPOShape((2, 1, 2, 2), (1, 2, 1, 2)), marks=pytest.mark.slow)],
    ids=str,
)
def test_brute_force_finds_nothing_better(shape, weigh):
    """L-BFGS over all rotations, from random starts in every component of the orthogonal groups."""
    reference, cores = decompose(random_matrix(shape), shape), decompose(random_matrix(shape, seed=1), shape)
    weights = weigh(cores)
    generator = torch.Generator().manual_seed(0)
    found = []
    for signs in itertools.product([1.0, -1.0], repeat=shape.sites - 1):
        flips = [torch.ones(d, dtype=torch.float64) for d in shape.bond_dims]
        for flip, sign in zip(flips[1:], signs, strict=False):
            flip[0] = sign
        angles = [torch.randn(d, d, dtype=torch.float64, generator=generator).requires_grad_() for d in shape.bond_dims]
        optimizer = torch.optim.LBFGS(angles, max_iter=100, line_search_fn="strong_wolfe")

        def distance(angles: list[Tensor] = angles, flips: list[Tensor] = flips) -> Tensor:
            rotations = [torch.linalg.matrix_exp(a - a.T) * flip for a, flip in zip(angles, flips, strict=True)]
            there = turned(cores, tied(shape, rotations))
            return torch.stack([w * (there[k] - reference[k]).square().sum() for k, w in weights.items()]).sum()

        def closure(optimizer: torch.optim.Optimizer = optimizer, distance=distance) -> Tensor:
            optimizer.zero_grad()
            value = distance()
            value.backward()
            return value

        optimizer.step(closure)
        found.append(float(distance().detach()))
    matched = loss(match_gauge(cores, reference, weights), reference, weights)
    assert matched == pytest.approx(min(found), rel=1e-4)


def nuclear(cores: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """The least relative loss where both ends are free, in closed form: |A|^2 + |B|^2 - 2 * nuclear norm of A^T B."""
    shape = shape_of(cores)
    total = 0.0
    for k in compared(shape):
        a, b = (chain[k].flatten(0, 2) if k < shape.center else chain[k].flatten(1).T for chain in (cores, reference))
        least = a.square().sum() + b.square().sum() - 2 * torch.linalg.matrix_norm(a.T @ b, "nuc")
        total += float(least / a.square().sum())
    return total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ones", [3, 0])
def test_unrelated_matrices_attain_the_optimum_of_each_side(ones, dtype):
    """An untrained student's query matrix and MiniLM's. Were the two sides tied, 1.43 would be the least with L = 3."""
    name = "encoder.layer.1.attention.self.query.weight"
    teacher = load_file(minilm() / "model.safetensors")[name].to(dtype)
    shape = plan_shape(*teacher.shape, ones=ones)
    cores, reference = decompose(teacher, shape), decompose(0.02 * random_matrix(shape).to(dtype), shape)
    found = loss(match_gauge(cores, reference), reference, relative(cores))
    assert found == pytest.approx(nuclear(cores, reference), rel=1e-4)
    assert found < (1.0 if ones else 0.33)


def test_a_wider_teacher():
    """Its central core has other factors, takes up the rotations and is left out of the comparison."""
    narrow, wide = MPOShape((6, 2, 6), (6, 2, 6)), MPOShape((6, 4, 6), (6, 3, 6))
    student, teacher = decompose(random_matrix(narrow), narrow), decompose(random_matrix(wide), wide)
    assert narrow.bond_dims == wide.bond_dims
    matched = match_gauge(teacher, student)
    torch.testing.assert_close(contract(matched), random_matrix(wide), rtol=0, atol=1e-11)
    assert loss(matched, student, relative(teacher)) == pytest.approx(nuclear(teacher, student))


@pytest.mark.parametrize("kind", ["signs", "rotations"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_a_decomposition_leaves_free_is_undone(shape, kind):
    """Every bond turned by a random rotation, or by the signs that an SVD leaves open, comes back exactly."""
    reference = decompose(random_matrix(shape), shape)
    free = [rotation(d, seed=k) for k, d in enumerate(shape.bond_dims)]
    if kind == "signs":
        free = [torch.sign(r[0]).diag() for r in free]
    moved = turned(reference, tied(shape, free))
    weights = relative(reference)
    assert loss(moved, reference, weights) > 0.1
    matched = match_gauge(moved, reference)
    for core, other in zip(matched, reference, strict=True):
        torch.testing.assert_close(core, other, rtol=0, atol=1e-10 * float(other.abs().max()))


@pytest.mark.parametrize("shape", [plan_shape(96, 96, ones=0), plan_shape(96, 96, ones=3), LONG], ids=str)
def test_neighbouring_matrices_come_close(shape):
    """Two matrices that differ by 10 %: raw cores look unrelated, matched ones differ by that much."""
    student = random_matrix(shape)
    teacher = decompose(student + 0.1 * random_matrix(shape, seed=1), shape)
    cores = decompose(student, shape)
    weights = relative(teacher)
    assert loss(teacher, cores, weights) > 0.5 * len(weights)
    assert loss(match_gauge(teacher, cores), cores, weights) < 0.02 * len(weights)


@pytest.mark.parametrize("ones", [2, 4])
def test_auxiliary_identities_stay_identities(ones):
    shape = plan_shape(48, 60, ones=ones)
    matched = match_gauge(decompose(random_matrix(shape), shape), decompose(random_matrix(shape, seed=1), shape))
    eye = torch.eye(shape.bond_dims[1], dtype=torch.float64)
    for k in shape.square_sites:
        if k != shape.center:
            torch.testing.assert_close(matched[k][:, 0, 0, :], eye, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_same_matrix_keeps_its_cores(dtype, scale):
    cores = [core * (1 if k else scale) for k, core in enumerate(decompose(random_matrix(GENERAL).to(dtype), GENERAL))]
    for before, after in zip(cores, match_gauge(cores, cores), strict=True):
        assert after.dtype == dtype
        torch.testing.assert_close(before, after, rtol=0, atol=1e-5 * float(before.abs().max()))


@pytest.mark.parametrize("weight", [1e-42, 3e38])
def test_the_size_of_the_weights_does_not_matter(weight):
    """Nor where products with it have no place in float32, in which rotations are found."""
    shape = plan_shape(48, 60, ones=1)
    cores, reference = (decompose(random_matrix(shape, seed=seed).float(), shape) for seed in (0, 1))
    found = match_gauge(cores, reference, dict.fromkeys(shape.auxiliary, weight))
    torch.testing.assert_close(found, match_gauge(cores, reference), rtol=0, atol=1e-4)


def test_all_zero_matrices():
    shape = plan_shape(24, 18)
    cores = match_gauge(decompose(torch.zeros(24, 18), shape), decompose(torch.ones(24, 18), shape))
    assert torch.equal(contract(cores), torch.zeros(24, 18))


@pytest.mark.parametrize("shape", [plan_shape(24, 18, ones=2), MPOShape((2, 2, 2, 3), (2, 3, 2, 2))], ids=str)
def test_it_does_the_same_to_every_matrix_of_a_batch(shape):
    cores, reference = decompose(random_matrix(shape, 3), shape), decompose(random_matrix(shape, 3, seed=1), shape)
    weights = {k: 1 / cores[k].square().sum((-4, -3, -2, -1)) for k in compared(shape)}
    batched = match_gauge(cores, reference, weights)
    for b in range(3):
        ours, theirs = [core[b] for core in cores], [core[b] for core in reference]
        alone = match_gauge(ours, theirs)
        least = loss(alone, theirs, relative(ours))
        assert loss([core[b] for core in batched], theirs, relative(ours)) == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (plan_shape(48, 60), r"cores have bond dimensions .* decompose both with the same bond dimensions"),
        (MPOShape((4, 2, 1, 9), (2, 5, 1, 4)), r"T\(4,2,1,6 .* and the reference T\(4,2,1,9 .*only central factors"),
    ],
)
def test_unlike_chains_are_refused(other, message):
    with pytest.raises(ValueError, match=message):
        match_gauge(decompose(random_matrix(GENERAL), GENERAL), decompose(random_matrix(other), other))
