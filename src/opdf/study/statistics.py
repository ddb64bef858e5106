"""What a study's runs say: rates chosen on validation, differences paired by seed, intervals, verdicts in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
        low, high: bootstrap 95 % interval.
        seeds: pairs of runs that it rests on.
    """

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """In words, in points (hundredths of the metric), with half the width of the interval."""
        points, half = 100 * self.mean, 50 * (self.high - self.low)
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
    would give intervals that are too narrow.
    """
    rng = np.random.default_rng(0)
    # Every pair's examples are resampled once per draw; the draws of a seed are then shared by all that pick it.
    table = np.array([
        [pair.difference(metric, rng.integers(len(pair.labels), size=len(pair.labels))) for _ in range(RESAMPLES)]
        for pair in pairs
    ])  # fmt: skip
    picks = rng.integers(len(pairs), size=(len(pairs), RESAMPLES))
    found = np.array([pair.difference(metric) for pair in pairs])
    by_seed = found[picks].mean(axis=0) - found.mean()
    by_example = (table[picks, np.arange(RESAMPLES)] - found[picks]).mean(axis=0)
    return Differences(float(found.mean()), by_seed, by_example, len(pairs))


def effect(settings: Sequence[Differences]) -> Effect:
    """The mean difference over some settings, each with the same weight, and its 95 % interval.

    The deviations by seed are widened as Student's t widens a normal interval, and for the spread that resampling n
    values loses: with three seeds, which are often three alike, a bootstrap alone would say far too little. With
    one seed a setting nothing is known of it, and the interval is of the test examples alone.
    """
    mean = float(np.mean([s.mean for s in settings]))
    seeds = sum(s.seeds for s in settings)
    by_seed = _widening(seeds, len(settings)) * np.mean([s.by_seed for s in settings], axis=0)
    draws = mean + by_seed + np.mean([s.by_example for s in settings], axis=0)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Effect(mean, float(low), float(high), seeds)


def _widening(seeds: int, settings: int) -> float:
    freedom = seeds - settings
    if not freedom:
        return 1.0
    return float(stats.t.ppf(0.975, freedom) / stats.norm.ppf(0.975) * (seeds / freedom) ** 0.5)


def complete_seeds(plan: Plan, done: Mapping[Cell, object], setting: str) -> list[int]:
    """The seeds with which every variant has been trained at every rate on a setting."""
    return [
        seed
        for seed in plan.seeds
        if all(Cell(seed, setting, variant, rate) in done for variant in plan.variants for rate in plan.rates)
    ]


def chosen_rate(
    plan: Plan, validation: Mapping[Cell, float], setting: str, variant: str, seeds: Sequence[int]
) -> float:
    """The rate with the best mean validation score; of equal ones the smaller."""
    means = {rate: np.mean([validation[Cell(s, setting, variant, rate)] for s in seeds]) for rate in sorted(plan.rates)}
    return max(means, key=lambda rate: means[rate])
