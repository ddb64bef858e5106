"""What `shrink` is made of by brute force: sums over rows, fits and choices, and what tells how much a token counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from opdf.distill.shrink import moments as module
from opdf.distill.shrink.calibration import _shares, leads
from opdf.distill.shrink.choose import choose_groups, choose_units
from opdf.distill.shrink.moments import Moments
from opdf.distill.shrink.ridge import explained, ridge
from opdf.distill.shrink.tokens import real_tokens


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def pairs() -> tuple[Tensor, Tensor, Moments]:
    x, y = random(50, 4, seed=0) * torch.tensor([1.0, 2.0, 0.5, 3.0]) + 1, random(50, 3, seed=1) - 2
    moments = Moments(4, 3, torch.device("cpu"))
    moments.add(x, y)
    return x, y, moments


def test_sums_of_weighted_rows_are_numpys(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than are summed at a time, and more columns than are multiplied at a time."""
    monkeypatch.setattr(module, "ROWS", 7)
    monkeypatch.setattr(module, "WIDE", 2)
    x, y, weights = random(40, 11, seed=0) + 1, random(40, 2, seed=1), random(40, seed=2).abs()
    moments = Moments(11, 2, torch.device("cpu"))
    for part in (slice(3), slice(3, 5), slice(5, 40)):
        moments.add(x[part], y[part], weights[part])
    rows = torch.cat([x, y], 1).numpy()
    expected = np.cov(rows.T, aweights=weights.numpy(), ddof=0)
    assert moments.count == pytest.approx(float(weights.sum()))
    np.testing.assert_allclose(torch.cat(moments.means()), np.average(rows, 0, weights.numpy()), atol=1e-12)
    np.testing.assert_allclose(torch.cat(moments.covariances(True), 1), expected[:11], atol=1e-12)
    np.testing.assert_allclose(moments.variance(), expected.diagonal()[11:], atol=1e-12)


@pytest.mark.parametrize("constant", [True, False])
def test_a_fit_is_least_squares_with_further_rows_for_the_pull(constant: bool) -> None:
    (x, y, moments), guess = pairs(), random(3, 4, seed=2)
    found = ridge(moments, guess, constant=constant, strength=0.3)
    inputs, outputs = (values - values.mean(0) if constant else values for values in (x, y))
    pull = (0.3 * inputs.square().mean()).sqrt()
    rows = torch.cat([inputs / 50**0.5, pull * torch.eye(4)])
    weight = torch.linalg.lstsq(rows, torch.cat([outputs / 50**0.5, pull * guess.mT])).solution.mT
    torch.testing.assert_close(found.weight, weight, rtol=1e-4, atol=1e-5)
    bias = y.mean(0) - weight @ x.mean(0) if constant else torch.zeros(3).double()
    torch.testing.assert_close(found.bias, bias, rtol=1e-4, atol=1e-5)


def test_what_is_explained_is_what_least_squares_leave_over() -> None:
    x, y, moments = pairs()
    inputs, outputs = x - x.mean(0), y - y.mean(0)
    left = outputs - inputs @ torch.linalg.lstsq(inputs, outputs).solution
    assert explained(moments) == pytest.approx(1 - float(left.square().sum() / outputs.square().sum()), rel=1e-6)


def without(covariance: Tensor, units: list[int]) -> Tensor:
    """What the covariance is once some units are known."""
    columns = covariance[:, units]
    return covariance - columns @ torch.linalg.pinv(columns[units]) @ columns.mT


def test_each_unit_is_the_one_of_which_the_chosen_tell_least() -> None:
    values, weight = random(9, 9, seed=0), random(9, seed=1).abs() + 0.2
    covariance, chosen = values @ values.mT, list[int]()
    for _ in range(4):
        gains = without(covariance, chosen).diagonal() * weight**2
        gains[chosen] = -math.inf
        chosen.append(int(gains.argmax()))
    assert choose_units(covariance, weight, 4).tolist() == sorted(chosen)


def test_each_group_is_the_one_that_adds_most_to_the_outputs_of_all_layers() -> None:
    layers = [
        (values @ values.mT, random(5, 12, seed=seed)) for seed in (0, 1) for values in [random(12, 12, seed=7 + seed)]
    ]
    chosen, known = list[int](), list[int]()
    for _ in range(3):
        gains = []
        for group in range(6):
            mine = [2 * group, 2 * group + 1]
            parts = [(outgoing[:, mine], without(c, known)[mine][:, mine]) for c, outgoing in layers]
            gains.append(sum(float((out @ left @ out.mT).trace()) for out, left in parts) if group not in chosen else 0)
        chosen.append(int(np.argmax(gains)))
        known += [2 * chosen[-1], 2 * chosen[-1] + 1]
    found = choose_groups([c for c, _ in layers], [outgoing for _, outgoing in layers], 2, 3)
    assert found.tolist() == sorted(chosen)


def test_how_far_an_answer_is_ahead_of_the_next() -> None:
    real = torch.tensor([[True, True, False], [True, True, True], [True, False, False]])
    scores = torch.tensor([[1.0, 3.0, 9.0], [5.0, 2.0, 4.0], [1.0, -math.inf, -math.inf]])
    assert leads("logits", scores, real).tolist() == [6, 1, 0]
    assert leads("start_logits", scores, real).tolist() == [2, 1, 0]  # padding is no answer
    assert leads("logits", torch.tensor([[-2.0], [1.0], [3.0]]), real).tolist() == [-2, 1, 3]
    assert leads("logits", torch.tensor([-2.0, 1.0, 3.0]), real).tolist() == [-2, 1, 3]
    assert leads("logits", torch.tensor([[3.0, 4.0]]), real, rivals=False).tolist() == [5]
    tokens = torch.stack([scores.nan_to_num(neginf=0.0), torch.zeros(3, 3)], 2)
    assert leads("logits", tokens, real).tolist() == [1, 3, 5, 2, 4, 1]


def test_tokens_of_an_example_on_which_no_output_depends_count_alike() -> None:
    real = torch.tensor([[True, True, False], [True, True, True]])
    slopes = torch.tensor([[3.0, 4.0], [0.0, 15.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert _shares(slopes, real).tolist() == [0.75, 1.25, 1, 1, 1]


def test_which_tokens_of_a_decoder_are_real() -> None:
    states, labels = torch.zeros(2, 3, 4), torch.tensor([[3, 4, -100], [5, -100, -100]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    given = {"attention_mask": mask}
    assert torch.equal(real_tokens(given | {"labels": labels}, "decoder_attention_mask", states), labels != -100)
    assert torch.equal(real_tokens(given | {"labels": labels[:, 0]}, "decoder_attention_mask", states), mask.bool())
    assert torch.equal(real_tokens(given, "decoder_attention_mask", states), mask.bool())
    both = given | {"decoder_input_ids": mask, "labels": labels}  # as collators that know the model make them
    assert torch.equal(real_tokens(both, "decoder_attention_mask", states), labels != -100)
    assert real_tokens(given | {"decoder_input_ids": mask}, "decoder_attention_mask", states).all()
    assert torch.equal(real_tokens({"attention_mask": mask[None]}, "attention_mask", states), mask.bool())
    assert real_tokens({"attention_mask": mask[:, :2]}, "attention_mask", states).all()  # it is of other tokens
