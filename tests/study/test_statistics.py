"""Intervals against closed forms, and by how often they cover a known difference and find it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtri
from sklearn.metrics import f1_score

from opdf.study.plan import Cell, Plan
from opdf.study.statistics import Differences, Effect, Pair, chosen_rate, complete_seeds, differences, effect, interval

PLAN = Plan(("a",), ("KD", "OPDF"), (1e-4, 1e-3), (0, 1, 2), "KD")
GAIN = 0.03


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return np.count_nonzero(predictions == labels) / len(labels)


def students(
    rng: np.random.Generator, of_seeds: np.ndarray, *, own: bool = False, spread: float = 0.0, alike: float = 0.0,
    examples: int = 200, gain: float = GAIN,
) -> list[Pair]:  # fmt: skip
    """Classifiers of accuracy 0.75 and 0.75 + gain on one setting, a pair a seed.

    Args:
        of_seeds: `[seeds]`, standard normal, what a seed does on all settings.
        own: each seed has test examples of its own; else all seeds have the same.
        spread: standard deviation of the seeds' true differences.
        alike: correlation of these between settings.
    """
    seeds, splits = len(of_seeds), len(of_seeds) if own else 1
    shifts = gain + spread * (alike**0.5 * of_seeds + (1 - alike) ** 0.5 * rng.normal(size=seeds))
    labels = np.repeat(rng.integers(2, size=(splits, examples)), seeds // splits, axis=0)
    hard, other = rng.normal(size=(2, splits, examples))  # for both classifiers, and for one of them
    answers = []
    for mean, share in ((0.8 * hard + 0.6 * other, 0.75 + shifts), (hard, np.full(seeds, 0.75))):
        score = 0.8**0.5 * mean + 0.2**0.5 * rng.normal(size=(seeds, examples))
        answers.append(np.where(score < ndtri(np.clip(share, 0.001, 0.999))[:, None], labels, 1 - labels))
    return [Pair(*row) for row in zip(*answers, labels, strict=True)]


def exactly(pairs: list[Pair]) -> Differences:
    """`differences` of accuracies without the jackknife: of a mean it is known what each example adds."""
    each = np.array([(p.variant == p.labels).astype(float) - (p.baseline == p.labels) for p in pairs])
    by_seed = each.mean(axis=1)
    return Differences(by_seed, list((each - by_seed[:, None]) / each.shape[1]), [p.labels.tobytes() for p in pairs])


def study(rng: np.random.Generator, *, seeds: int, settings: int = 1, **options: float) -> list[Differences]:
    of_seeds = rng.normal(size=seeds)
    return [exactly(students(rng, of_seeds, **options)) for _ in range(settings)]


def coverage(studies: int, **options: float) -> float:
    rng = np.random.default_rng(0)
    found = [effect(study(rng, **options)) for _ in range(studies)]
    return float(np.mean([e.low <= GAIN <= e.high for e in found]))


@pytest.mark.parametrize("own", [False, True], ids=["one split", "a split a seed"])
@pytest.mark.parametrize("examples", [90, 300])
def test_the_jackknife_finds_what_examples_add_to_an_accuracy(examples: int, own: bool) -> None:
    """Exactly, up to 100 examples; in groups as well as variances are known from 100 numbers."""
    pairs = students(np.random.default_rng(0), np.zeros(4), own=own, examples=examples)
    found, expected = (effect([each]) for each in (differences(pairs, accuracy), exactly(pairs)))
    assert found.mean == pytest.approx(expected.mean)
    for name in ("example_error", "shared_error"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-9 if examples < 100 else 0.25)


@pytest.mark.parametrize("seeds", [3, 4, 5, 8])
def test_the_rule_covers_for_any_share_of_seeds_and_examples(seeds: int) -> None:
    """Seeds' differences and the examples' part both normal, so that thousands of studies take a second."""
    rng = np.random.default_rng(0)
    for share in (0.0, 0.05, 0.3, 0.7, 0.95, 1.0):
        of_seeds, shared = rng.normal(size=(2500, seeds)), rng.normal(size=(2500, 1))
        errors = of_seeds * (share * seeds) ** 0.5 + shared * (1 - share) ** 0.5
        found = [interval(by_seed, 0.0, (1 - share) ** 0.5) for by_seed in errors]
        assert 0.93 <= np.mean([e.low <= 0 <= e.high for e in found]) <= 0.97


@pytest.mark.parametrize("own", [False, True], ids=["one split", "a split a seed"])
@pytest.mark.parametrize(
    ("seeds", "settings", "spread", "alike"), [(3, 1, 0.0, 0), (5, 1, 0.015, 0), (4, 2, 0.05, 0.8)]
)
def test_intervals_cover_the_truth(seeds: int, settings: int, spread: float, alike: float, own: bool) -> None:
    """The standard error of 500 studies is 1 %."""
    found = coverage(500, seeds=seeds, settings=settings, own=own, spread=spread, alike=alike)
    assert 0.92 <= found <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("own", [False, True], ids=["one split", "a split a seed"])
@pytest.mark.parametrize("settings", [1, 2, 4])
@pytest.mark.parametrize("seeds", [3, 4, 5, 8])
def test_intervals_cover_93_to_97_percent(seeds: int, settings: int, own: bool) -> None:
    """The standard error of 3,000 studies is 0.4 %."""
    for spread in (0.0, 0.015, 0.05):
        for alike in (0.0, 0.8) if settings > 1 else (0.0,):
            found = coverage(3000, seeds=seeds, settings=settings, own=own, spread=spread, alike=alike, examples=150)
            assert 0.93 <= found <= 0.97, (spread, alike)


def test_a_gain_is_found_as_often_as_by_students_t_over_the_seeds() -> None:
    """Five seeds, a gain of 3.0 points, seeds that differ by 1.5, examples that are equally hard for both sides."""
    rng = np.random.default_rng(7)
    found = np.zeros(2)
    for _ in range(400):
        labels, hard = rng.integers(0, 2, 500), rng.normal(size=500)
        pairs = []
        for shift in rng.normal(GAIN, 0.015, size=5):
            right = [0.8**0.5 * hard + 0.2**0.5 * rng.normal(size=500) < ndtri(share) for share in (0.75 + shift, 0.75)]
            pairs.append(Pair(*(np.where(r, labels, 1 - labels) for r in right), labels))
        setting = exactly(pairs)
        student = stats.t.interval(0.95, 4, setting.by_seed.mean(), stats.sem(setting.by_seed))
        found += effect([setting]).low > 0, student[0] > 0
    assert found[0] / 400 > 0.55
    assert found[0] >= 0.97 * found[1]


def test_nothing_is_found_in_nothing_more_often_than_said() -> None:
    rng = np.random.default_rng(3)
    found = [effect(study(rng, seeds=4, spread=0.02, gain=0.0)) for _ in range(500)]
    assert np.mean([e.low > 0 or e.high < 0 for e in found]) <= 0.09


def test_one_seed_has_the_interval_of_a_paired_difference() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=2000)
    one = Pair(*(np.where(rng.random(2000) < share, labels, 1 - labels) for share in (0.75, 0.7)), labels)
    found = effect([differences([one], accuracy)])
    each = (one.variant == one.labels).astype(float) - (one.baseline == one.labels)
    assert found.mean == pytest.approx(each.mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * each.std() / len(each) ** 0.5, rel=0.1)


def test_one_split_has_the_variance_of_two_crossed_samples() -> None:
    """By the mean squares of a table of seeds and examples, as textbooks have it, with as many groups as examples."""
    rng = np.random.default_rng(0)
    seeds, examples = 4, 90
    table = rng.normal(size=(seeds, 1)) + 3 * rng.normal(size=(1, examples)) + rng.normal(size=(seeds, examples))
    pairs = [Pair(row, np.zeros(examples), np.zeros(examples)) for row in table]
    found = effect([differences(pairs, lambda predictions, _: float(predictions.mean()))])
    of_examples = seeds * table.mean(0).var(ddof=1)
    rest = table - table.mean(0) - table.mean(1, keepdims=True) + table.mean()
    of_rest = (rest**2).sum() / (seeds - 1) / (examples - 1)
    assert found.mean == pytest.approx(table.mean())
    assert found.shared_error**2 == pytest.approx((of_examples - of_rest) / seeds / examples)
    assert found.example_error**2 == pytest.approx(of_examples / seeds / examples)


@pytest.mark.parametrize("metric", [pytest.param("f1", marks=pytest.mark.slow), "pearson"])
def test_metrics_that_are_no_means(metric: str) -> None:
    """The error of one seed's test examples, beside a bootstrap of them."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=400)
    answers = [truth + noise * rng.normal(size=400) for noise in (0.6, 0.8)]
    if metric == "f1":
        pair, score = Pair(*(a > 0.5 for a in answers), truth > 0.5), lambda a, b: float(f1_score(b, a))
    else:
        pair, score = Pair(*answers, truth), lambda a, b: float(stats.pearsonr(a, b)[0])
    found = effect([differences([pair], score)])
    drawn = [pair.difference(score, rng.integers(400, size=400)) for _ in range(150)]
    assert found.mean == pytest.approx(pair.difference(score))
    assert found.example_error == pytest.approx(np.std(drawn), rel=0.2)


def test_a_metric_that_is_not_defined_gives_no_verdict() -> None:
    pair = Pair(np.ones(50), np.arange(50.0), np.arange(50.0))
    with pytest.warns(stats.ConstantInputWarning):
        found = effect([differences([pair] * 3, lambda a, b: float(stats.pearsonr(a, b)[0]))])
    assert found.verdict == "no verdict: the metric is not defined on these answers"


def test_a_split_a_seed_has_students_interval() -> None:
    rng = np.random.default_rng(0)
    (setting,) = study(rng, seeds=5, own=True, spread=0.02)
    found = effect([setting])
    low, high = stats.t.interval(0.95, 4, setting.by_seed.mean(), stats.sem(setting.by_seed))
    assert (found.low, found.high, found.shared_error) == (pytest.approx(low), pytest.approx(high), 0)


def test_seeds_with_one_test_split_do_not_average_out_what_is_particular_to_it() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=300)
    one = Pair(*(np.where(rng.random(300) < share, labels, 1 - labels) for share in (0.75, 0.7)), labels)
    alone, six = effect([differences([one], accuracy)]), effect([differences([one] * 6, accuracy)])
    assert (six.low, six.high) == pytest.approx((alone.low, alone.high))


@pytest.mark.parametrize("own", [False, True], ids=["one split", "a split a seed"])
def test_settings_that_are_copies_of_one_are_no_more_than_one(own: bool) -> None:
    """Seeds are shared, and of one split the examples too: the interval does not narrow."""
    (setting,) = study(np.random.default_rng(5), seeds=4, own=own, spread=0.03)
    single, pooled = effect([setting]), effect([setting] * 3)
    assert (pooled.low, pooled.high) == pytest.approx((single.low, single.high))


@pytest.mark.parametrize("own", [False, True], ids=["one split", "a split a seed"])
def test_seeds_that_agree_by_chance_do_not_hide_how_few_examples_there_are(own: bool) -> None:
    """Three seeds with the same difference, on 50 examples: Student's t alone says ± 0."""
    rng = np.random.default_rng(0)
    pairs, labels = [], rng.integers(2, size=50)
    for _ in range(3):
        labels = rng.integers(2, size=50) if own else labels
        wrong = [rng.choice(50, count, replace=False) for count in (10, 14)]
        pairs.append(Pair(*(np.where(np.isin(np.arange(50), w), 1 - labels, labels) for w in wrong), labels))
    found = effect([differences(pairs, accuracy)])
    assert found.mean == pytest.approx(0.08)
    by_chance = (2 * 0.2 / 50 / 3) ** 0.5  # of three seeds that err on other examples
    assert found.example_error == pytest.approx(by_chance, rel=0.3)
    assert found.high - found.low > 2 * by_chance
    assert found.low < 0.06


def test_settings_of_other_examples_share_no_error() -> None:
    rng = np.random.default_rng(6)
    settings = [study(rng, seeds=4)[0] for _ in range(4)]
    for name in ("example_error", "shared_error"):
        errors = [getattr(effect([setting]), name) for setting in settings]
        assert getattr(effect(settings), name) == pytest.approx(sum(e**2 for e in errors) ** 0.5 / 4)
    assert effect(settings).mean == pytest.approx(np.mean([s.by_seed.mean() for s in settings]))


def test_settings_with_other_numbers_of_seeds_are_not_pooled() -> None:
    rng = np.random.default_rng(6)
    settings = [study(rng, seeds=n)[0] for n in (1, 3)]
    with pytest.raises(ValueError, match="the settings have 1, 3 seeds"):
        effect(settings)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Effect(0.004, 0.002, 0.006, 5), "gain of 0.4 ± 0.2"),
        (Effect(-0.01, -0.02, -0.001, 5), "loss of 1.0 ± 0.9"),
        (Effect(-0.001, -0.006, 0.004, 5), "no difference found (-0.1 ± 0.5)"),
        (Effect(0.05, 0.03, 0.07, 1), "no verdict from one seed (+5.0 ± 2.0 by its test examples)"),
        (Effect(-0.05, -0.051, -0.049, 2), "no verdict from two seeds (-5.0 ± 0.1)"),
        (Effect(math.nan, math.nan, math.nan, 5), "no verdict: the metric is not defined on these answers"),
        (Effect(0.5, math.nan, math.nan, 5), "no verdict: too few test examples for an interval (+50.0)"),
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


@pytest.mark.parametrize("rate", PLAN.rates)
def test_a_rate_whose_score_is_not_defined_is_chosen_last(rate: float) -> None:
    validation = dict.fromkeys(PLAN.cells(), 0.5) | {Cell(1, "a", "KD", rate): np.nan}
    assert chosen_rate(PLAN, validation, "a", "KD", PLAN.seeds) != rate


def test_only_seeds_that_all_variants_have_count() -> None:
    done = dict.fromkeys(PLAN.cells())
    assert complete_seeds(PLAN, done, "a") == [0, 1, 2]
    del done[Cell(1, "a", "OPDF", 1e-3)]
    assert complete_seeds(PLAN, done, "a") == [0, 2]
