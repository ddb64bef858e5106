"""Intervals against a closed form and by how often they cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from opdf.study.plan import Cell, Plan
from opdf.study.statistics import Differences, Effect, Pair, chosen_rate, complete_seeds, differences, effect

PLAN = Plan(("a",), ("KD", "OPDF"), (1e-4, 1e-3), (0, 1, 2), "KD")


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float((predictions == labels).mean())


def pair(rng: np.random.Generator, gain: float, examples: int = 400, spread: float = 0.0) -> Pair:
    """Two classifiers of accuracy 0.7 and 0.7 + gain that err on different examples; `spread` moves both seeds."""
    labels = rng.integers(2, size=examples)
    shift = rng.normal(0, spread) if spread else 0.0
    right = rng.random(examples) < 0.7 + gain + shift, rng.random(examples) < 0.7
    ours, theirs = (np.where(r, labels, 1 - labels) for r in right)
    return Pair(ours, theirs, labels)


def test_one_seed_has_the_interval_of_a_paired_difference() -> None:
    one = pair(np.random.default_rng(0), 0.05, examples=2000)
    found = effect([differences([one], accuracy)])
    each = (one.variant == one.labels).astype(float) - (one.baseline == one.labels)
    error = each.std() / np.sqrt(len(each))
    assert found.mean == pytest.approx(each.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.1), (5, 0.02)])
def test_intervals_cover_the_truth(seeds: int, spread: float) -> None:
    rng = np.random.default_rng(1)
    covered = [
        found.low <= 0.02 <= found.high
        for found in (
            effect([differences([pair(rng, 0.02, 200, spread=spread) for _ in range(seeds)], accuracy)])
            for _ in range(60)
        )
    ]
    assert stats.binomtest(sum(covered), len(covered), 0.95, alternative="less").pvalue > 0.05


def test_seeds_that_differ_by_more_than_their_examples_have_students_interval() -> None:
    """Without any spread of examples: every example of a seed has the same difference."""
    found = np.random.default_rng(0).normal(size=8)
    pairs = [Pair(np.full(3, value), np.zeros(3), np.zeros(3)) for value in found]
    measured = effect([differences(pairs, lambda predictions, _: float(predictions.mean()))])
    low, high = stats.t.interval(0.95, 7, found.mean(), stats.sem(found))
    assert measured.high - measured.low == pytest.approx(high - low, rel=0.1)


def test_seeds_with_one_test_split_do_not_average_out_what_is_particular_to_it() -> None:
    one = pair(np.random.default_rng(0), 0.05)
    alone, six = effect([differences([one], accuracy)]), effect([differences([one] * 6, accuracy)])
    assert (six.low, six.high) == pytest.approx((alone.low, alone.high))


def test_intervals_of_one_test_split_cover_the_truth() -> None:
    """Half of what makes an example right is common to all seeds; the truth is over other examples too."""
    rng, covered, seeds, examples, truth = np.random.default_rng(4), 0, 6, 150, 0.0
    for _ in range(60):
        common = rng.normal(size=(2, examples))

        def right(side: int, common: np.ndarray = common) -> np.ndarray:
            return (common[side] + rng.normal(size=examples) > 0).astype(int)

        pairs = [Pair(right(0), right(1), np.ones(examples, int)) for _ in range(seeds)]
        found = effect([differences(pairs, accuracy)])
        covered += found.low <= truth <= found.high
    assert stats.binomtest(covered, 60, 0.95, alternative="less").pvalue > 0.05


def test_settings_that_share_what_their_seeds_do_are_no_more_than_one() -> None:
    rng = np.random.default_rng(5)
    shared = [rng.normal() for _ in range(4)]

    def setting(size: int) -> Differences:
        pairs = [Pair(np.full(size, value), np.zeros(size), np.zeros(size)) for value in shared]
        return differences(pairs, lambda predictions, _: float(predictions.mean()))

    settings = [setting(size) for size in (3, 7)]
    single, pooled = effect(settings[:1]), effect(settings)
    assert (pooled.low, pooled.high) == pytest.approx((single.low, single.high))


def test_settings_with_other_numbers_of_seeds_are_not_pooled() -> None:
    rng = np.random.default_rng(6)
    settings = [differences([pair(rng, 0.0) for _ in range(n)], accuracy) for n in (1, 3)]
    with pytest.raises(ValueError, match="the settings have 1, 3 seeds"):
        effect(settings)


def test_pooling_halves_the_interval_of_four_equal_settings() -> None:
    rng = np.random.default_rng(2)
    settings = [differences([pair(rng, 0.03) for _ in range(4)], accuracy) for _ in range(4)]
    single, pooled = effect(settings[:1]), effect(settings)
    assert pooled.mean == pytest.approx(np.mean([s.mean for s in settings]))
    assert pooled.seeds == 4
    assert 0.3 < (pooled.high - pooled.low) / (single.high - single.low) < 0.75


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Effect(0.004, 0.002, 0.006, 5), "gain of 0.4 ± 0.2"),
        (Effect(-0.01, -0.02, -0.001, 5), "loss of 1.0 ± 0.9"),
        (Effect(-0.001, -0.006, 0.004, 5), "no difference found (-0.1 ± 0.5)"),
        (Effect(0.05, 0.03, 0.07, 1), "no verdict from one seed (+5.0 ± 2.0 by its test examples)"),
        (Effect(0.5, float("nan"), float("nan"), 5), "no verdict: the metric is not defined on these answers"),
    ],
)
def test_verdicts(found: Effect, words: str) -> None:
    assert found.verdict == words


def test_the_rate_is_chosen_by_the_mean_over_seeds() -> None:
    validation = {cell: cell.rate for cell in PLAN.cells()}
    validation[Cell(0, "a", "OPDF", 1e-4)] = 0.5  # one lucky seed counts with the others
    assert chosen_rate(PLAN, validation, "a", "KD", PLAN.seeds) == 1e-3
    assert chosen_rate(PLAN, validation, "a", "OPDF", PLAN.seeds) == 1e-4
    assert chosen_rate(PLAN, dict.fromkeys(validation, 0.5), "a", "KD", PLAN.seeds) == 1e-4


def test_a_rate_with_a_diverged_run_is_chosen_last() -> None:
    validation = {cell: cell.rate for cell in PLAN.cells()}
    diverged = {Cell(1, "a", "KD", 1e-3)}
    assert chosen_rate(PLAN, validation, "a", "KD", PLAN.seeds, diverged) == 1e-4
    assert chosen_rate(PLAN, validation, "a", "KD", PLAN.seeds, {*diverged, Cell(0, "a", "KD", 1e-4)}) == 1e-3


def test_only_seeds_that_all_variants_have_count() -> None:
    done = dict.fromkeys(PLAN.cells())
    assert complete_seeds(PLAN, done, "a") == [0, 1, 2]
    del done[Cell(1, "a", "OPDF", 1e-3)]
    assert complete_seeds(PLAN, done, "a") == [0, 2]
