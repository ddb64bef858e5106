"""What a study's runs say: rates chosen on validation, differences paired by seed, intervals, verdicts in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
    """Differences on one setting: their mean over seeds, and the same of every bootstrap resample `[RESAMPLES]`."""

    mean: float
    draws: np.ndarray
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
    draws = table[picks, np.arange(RESAMPLES)].mean(axis=0)
    return Differences(float(np.mean([pair.difference(metric) for pair in pairs])), draws, len(pairs))


def effect(settings: Sequence[Differences]) -> Effect:
    """The mean difference over some settings, each with the same weight, and its 95 % interval."""
    low, high = np.quantile(np.mean([s.draws for s in settings], axis=0), (0.025, 0.975))
    return Effect(float(np.mean([s.mean for s in settings])), float(low), float(high), sum(s.seeds for s in settings))


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
