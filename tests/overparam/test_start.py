"""What training starts from: the same matrix in every start, and square cores as the start says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from opdf.mpo import MPOShape, contract, plan_shape
from opdf.overparam import OverParamConfig, overparameterize
from opdf.overparam.start import first_cores

SHAPE = plan_shape(24, 30, ones=3)


def cores_of(start: str, name: str = "weight", shape: MPOShape = SHAPE) -> tuple[torch.Tensor, list[torch.Tensor]]:
    matrix = torch.randn(24, 30, generator=torch.Generator().manual_seed(0))
    return matrix, first_cores([name], [matrix], [shape], start, None)[0]


@pytest.mark.parametrize("start", ["symmetric", "balanced", "random"])
@pytest.mark.parametrize("shape", [SHAPE, MPOShape((24,), (30,)), MPOShape((2, 1, 1, 12), (5, 1, 2, 3))], ids=str)
def test_every_start_is_the_same_matrix(start: str, shape: MPOShape) -> None:
    matrix, cores = cores_of(start, shape=shape)
    assert [tuple(core.shape) for core in cores] == shape.core_shapes
    assert float((contract(cores) - matrix).norm() / matrix.norm()) < 2e-6


def test_random_square_cores_are_near_the_identity_and_no_two_alike() -> None:
    torch.manual_seed(0)
    _, cores = cores_of("random")
    noise = [core[:, 0, 0] - torch.eye(core.shape[0]) for core in cores[1:-1]]
    bond = cores[1].shape[0]
    for one in noise:
        assert float(one.norm()) == pytest.approx(0.1 * bond**0.5, rel=0.1)
    assert not torch.equal(noise[0], noise[1])


def test_random_starts_follow_the_seed_and_the_name_and_leave_the_generator_alone() -> None:
    def first(seed: int, name: str) -> torch.Tensor:
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        core = cores_of("random", name)[1][1]
        assert torch.equal(torch.get_rng_state(), before)
        return core

    assert torch.equal(first(1, "a"), first(1, "a"))
    assert not torch.equal(first(1, "a"), first(2, "a"))
    assert not torch.equal(first(1, "a"), first(1, "b"))


@pytest.mark.parametrize("start", ["balanced", "random"])
def test_the_first_step_begins_there(start: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(30, 24)
    config = OverParamConfig(ones=3, targets="all-linear", start=start, cache=str(tmp_path))
    for _ in range(2):  # decomposed, then read from the cache
        overparam = overparameterize(model, config)
        expected = [core.clone() for core in overparam.cores(overparam.matrices[0])]
        optimizer = overparam.optimizer(torch.optim.SGD, lr=0.0)
        model(torch.ones(1, 30)).sum().backward()
        optimizer.step()
        for core, planned in zip(optimizer.cores("weight") or [], expected, strict=True):
            assert torch.equal(core, planned)
        assert not torch.equal(expected[1][:, 0, 0], torch.eye(expected[1].shape[0]))


def test_refusals() -> None:
    with pytest.raises(ValueError, match="start is 'zero'; expected one of 'symmetric', 'balanced', 'random'"):
        OverParamConfig(start="zero")
    student = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False)
    overparam = overparameterize(student, OverParamConfig(ones=1, start="balanced"))
    with pytest.raises(ValueError, match=r"start is 'balanced' and the constraint .* use start='symmetric'"):
        overparam.align(student)
