"""What a study's runs say: rates chosen on validation, differences paired by seed, intervals, verdicts in words."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from opdf.study.plan import Cell, Plan

RESAMPLES = 1000

Metric = Callable[[np.ndarray, np.ndarray], float]
"""Predictions and labels to a score, higher is better."""


@dataclass(frozen=True)
class Effect:
    """The difference between a variant and the baseline.

    Attributes:
        mean: of the differences, over seeds (and settings, if pooled), in the metric's unit.
        low, high: bootstrap 95 % interval; with one seed of its test examples alone.
        seeds: how many it rests on, on every setting.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """In words, in points (hundredths of the metric), with half the width of the interval."""
        points, half = 100 * self.mean, 50 * (self.high - self.low)
        if np.isnan(half):
            return "no verdict: the metric is not defined on these answers"
        if self.seeds == 1:  # which says nothing of others
            return f"no verdict from one seed ({points:+.1f} ± {half:.1f} by its test examples)"
        size = f"{abs(points):.1f} ± {half:.1f}"
        if self.low > 0:
            return f"gain of {size}"
        if self.high < 0:
            return f"loss of {size}"
        return f"no difference found ({points:+.1f} ± {half:.1f})"


@dataclass(frozen=True)
class Pair:
    """Predictions of a variant and the baseline for the same test examples, trained with the same seed and data."""

    variant: np.ndarray
    baseline: np.ndarray
    labels: np.ndarray

    def difference(self, metric: Metric, rows: np.ndarray | slice = slice(None)) -> float:
        labels = self.labels[rows]
        return metric(self.variant[rows], labels) - metric(self.baseline[rows], labels)


@dataclass(frozen=True)
class Differences:
    """Differences on one setting: their mean over seeds, and how far resampling moves it.

    Attributes:
        mean: over seeds.
        by_seed: `[RESAMPLES]`, the mean's deviation when seeds are resampled.
        by_example: `[RESAMPLES]`, what resampling test examples within these seeds adds to it.
        seeds: how many there are.
    """

    mean: float
    by_seed: np.ndarray
    by_example: np.ndarray
    seeds: int


def differences(pairs: Sequence[Pair], metric: Metric) -> Differences:
    """Bootstrap the mean difference of one setting, given one pair a seed.

    Seeds are resampled and, within each, test examples (the same for both sides): with few seeds, their spread alone
    would give intervals that are too narrow. Where all seeds have one test split, a draw of examples is the same for
    all of them: what is particular to it does not average out over seeds. Where each has its own, this is conservative.
    """
    rng = np.random.default_rng(0)
    common = all(np.array_equal(pair.labels, pairs[0].labels) for pair in pairs)
    draws = [_draws(rng, len(pair.labels)) for pair in (pairs[:1] if common else pairs)]
    # Every pair's examples are resampled once per draw; the draws of a seed are then shared by all that pick it.
    table = np.array([
        [pair.difference(metric, rows) for rows in draws[0 if common else k]] for k, pair in enumerate(pairs)
    ])  # fmt: skip
    # The same on every setting, in the seeds' order: a seed's teacher and split can be common to several settings.
    picks = np.random.default_rng(1).integers(len(pairs), size=(len(pairs), RESAMPLES))
    found = np.array([pair.difference(metric) for pair in pairs])
    by_seed = found[picks].mean(axis=0) - found.mean()
    by_example = (table[picks, np.arange(RESAMPLES)] - found[picks]).mean(axis=0)
    return Differences(float(found.mean()), by_seed, by_example, len(pairs))


def effect(settings: Sequence[Differences]) -> Effect:
    """The mean difference over some settings, each with the same weight, and its 95 % interval.

    It is an interval for these settings: how others would differ from them, it does not say. The deviations by seed are
    widened as Student's t widens a normal interval, and for the spread that resampling n values loses: with three
    seeds, which are often three alike, a bootstrap alone would say far too little. With one seed nothing is known of
    that, and the interval is of the test examples alone.

    Raises:
        ValueError: the settings have not the same number of seeds.
    """
    counts = {s.seeds for s in settings}
    if len(counts) > 1:
        raise ValueError(f"the settings have {', '.join(map(str, sorted(counts)))} seeds; pool those of equally many")
    (seeds,) = counts
    mean = float(np.mean([s.mean for s in settings]))
    by_seed = _widening(seeds) * np.mean([s.by_seed for s in settings], axis=0)
    draws = mean + by_seed + np.mean([s.by_example for s in settings], axis=0)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Effect(mean, float(low), float(high), seeds)


def _draws(rng: np.random.Generator, examples: int) -> list[np.ndarray]:
    return [rng.integers(examples, size=examples) for _ in range(RESAMPLES)]


def _widening(seeds: int) -> float:
    if seeds == 1:
        return 1.0
    return float(stats.t.ppf(0.975, seeds - 1) / stats.norm.ppf(0.975) * (seeds / (seeds - 1)) ** 0.5)


def complete_seeds(plan: Plan, done: Mapping[Cell, object], setting: str) -> list[int]:
    """The seeds with which every variant has been trained at every rate on a setting."""
    return [
        seed
        for seed in plan.seeds
        if all(Cell(seed, setting, variant, rate) in done for variant in plan.variants for rate in plan.rates)
    ]


def chosen_rate(
    plan: Plan,
    validation: Mapping[Cell, float],
    setting: str,
    variant: str,
    seeds: Sequence[int],
    diverged: Container[Cell] = (),
) -> float:
    """The rate with the fewest diverged runs and of these the best mean validation score; of equal ones the smaller."""

    def merit(rate: float) -> tuple[int, float]:
        cells = [Cell(seed, setting, variant, rate) for seed in seeds]
        return -sum(cell in diverged for cell in cells), float(np.mean([validation[cell] for cell in cells]))

    return max(sorted(plan.rates), key=merit)
