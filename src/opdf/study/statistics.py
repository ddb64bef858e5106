"""Statistics of a study: rates chosen on validation, differences paired by seed, intervals, verdicts in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from opdf.study.plan import Cell, Plan

GROUPS = 100
"""Most groups of test examples that are left out in turn, because some metrics take milliseconds."""

NARROWEST = 0.6
"""Least width of an interval, as a share of the one that test examples alone give. Few seeds can agree by chance, more
so with few examples. If seeds differ only by their examples, this raises the coverage to 97 % at most."""

Metric = Callable[[np.ndarray, np.ndarray], float]
"""Predictions and labels to a score, higher is better."""


@dataclass(frozen=True)
class Effect:
    """The difference between a variant and the baseline.

    Attributes:
        mean: of the differences, over seeds (and settings, if pooled), in the metric's unit.
        low, high: 95 % interval, see `effect`; with one seed of its test examples alone.
        seeds: how many it rests on, on every setting.
        example_error: the mean's standard error from the choice of test examples, for these seeds.
        shared_error: the part of it that more seeds would not lower, because they share their test examples.
    """

    mean: float
    low: float
    high: float
    seeds: int
    example_error: float = 0.0
    shared_error: float = 0.0

    @property
    def verdict(self) -> str:
        """In words, in points (hundredths of the metric), with half the width of the interval."""
        points, half = 100 * self.mean, 50 * (self.high - self.low)
        if np.isnan(points):
            return "no verdict: the metric is not defined on these answers"
        if np.isnan(half):  # or is not where some are left out
            return f"no verdict: too few test examples for an interval ({points:+.1f})"
        if self.seeds == 1:  # others may differ by any amount
            return f"no verdict from one seed ({points:+.1f} ± {half:.1f} by its test examples)"
        if self.seeds == 2:  # their distance, and so the interval, is mostly chance
            return f"no verdict from two seeds ({points:+.1f} ± {half:.1f})"
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
    """Differences on one setting.

    Attributes:
        by_seed: `[seeds]`.
        by_example: for each seed `[groups]`, what each group of test examples adds to its difference.
        splits: for each seed a name of its test examples, by which those of other seeds and settings are recognized.
    """

    by_seed: np.ndarray
    by_example: list[np.ndarray]
    splits: list[bytes]

    @property
    def seeds(self) -> int:
        return len(self.by_seed)


def differences(pairs: Sequence[Pair], metric: Metric) -> Differences:
    """The differences of one setting, given one pair a seed. Pairs with equal labels have one test split.

    What a group of examples adds is found by leaving it out (the jackknife). That is exact for accuracy and good for
    metrics that are no means, such as F1 or Pearson's correlation.
    """
    return Differences(
        np.array([pair.difference(metric) for pair in pairs]),
        [_by_example(pair, metric) for pair in pairs],
        [pair.labels.tobytes() for pair in pairs],
    )


def effect(settings: Sequence[Differences]) -> Effect:
    """The mean difference over some settings, each with the same weight, and its 95 % interval.

    Seeds and test examples are two samples. The variance of the mean has a part of each:

    - A, the variance of the seeds' differences over their number. A seed's difference is its mean over settings.
      So settings may share what a seed fixes (split, teacher, initialisation), and nothing is assumed of that.
    - B, of test examples that are the same for all seeds. What is left over between seeds and examples is in A already
      and is taken out of B. Settings with one test split are taken together. B is 0 where each seed has its own split.

    With B = 0 the interval is Student's t, of the seeds less one. With A = 0 it is the normal one. Between the two the
    factor is `z + (t - z) (A / (A + B))^1.5`, with which intervals cover 94 to 96 % for any A and B. They are never
    narrower than `NARROWEST` of the interval that test examples alone give, which is all that one seed has.

    It is an interval for these settings. It does not say how other settings would differ.

    Raises:
        ValueError: the settings differ in their number of seeds.
    """
    counts = {s.seeds for s in settings}
    if len(counts) > 1:
        raise ValueError(f"the settings have {', '.join(map(str, sorted(counts)))} seeds; pool those of equally many")
    return interval(np.mean([s.by_seed for s in settings], axis=0), *_example_errors(settings))


def interval(by_seed: Sequence[float] | np.ndarray, example_error: float, shared_error: float) -> Effect:
    """The effect, see `effect`, of seeds' differences `[seeds]` and of the errors of test examples, see `Effect`."""
    mean, seeds = float(np.mean(by_seed)), len(by_seed)
    normal = float(ndtri(0.975))
    half = normal * example_error
    if seeds > 1:
        of_seeds = float(np.var(by_seed, ddof=1)) / seeds
        variance = of_seeds + shared_error**2
        factor = normal
        if of_seeds > 0:
            factor += (float(stdtrit(seeds - 1, 0.975)) - normal) * (of_seeds / variance) ** 1.5
        half = float(np.maximum(factor * variance**0.5, NARROWEST * half))
    return Effect(mean, mean - half, mean + half, seeds, example_error, shared_error)


def _by_example(pair: Pair, metric: Metric) -> np.ndarray:
    """`[groups]`, see `Differences`. Groups are drawn at random, and alike for all pairs of equally many examples."""
    examples = len(pair.labels)
    if examples < 2:
        return np.array([np.nan])
    found, whole = [], pair.difference(metric)
    for group in np.array_split(np.random.default_rng(0).permutation(examples), min(GROUPS, examples)):
        rest = np.ones(examples, bool)
        rest[group] = False
        found.append((1 - len(group) / examples) * (whole - pair.difference(metric, rest)))
    return np.array(found) - np.mean(found)


def _example_errors(settings: Sequence[Differences]) -> tuple[float, float]:
    """`example_error` and `shared_error` of the mean, see `Effect`."""
    splits: dict[bytes, dict[int, np.ndarray]] = {}  # to seeds, and what groups add to the sum over settings
    for setting in settings:
        for seed, (split, added) in enumerate(zip(setting.splits, setting.by_example, strict=True)):
            of_split = splits.setdefault(split, {})
            of_split[seed] = of_split.get(seed, 0.0) + added
    alone = shared = 0.0
    for of_split in splits.values():
        table = np.array(list(of_split.values()))
        seeds, groups = table.shape
        per_group = groups / max(1, groups - 1)
        variance = per_group * float((table.sum(axis=0) ** 2).sum())
        alone += variance
        if seeds > 1:
            rest = per_group * float(((table - table.mean(axis=0)) ** 2).sum()) * seeds / (seeds - 1)
            shared += float(np.maximum(variance - rest, 0.0))
    count = len(settings) * settings[0].seeds
    return alone**0.5 / count, shared**0.5 / count


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
    """The rate with the fewest diverged runs and of these the best mean validation score; of equal ones the smaller.

    A mean that is not a number, of a score that is not defined, is the worst.
    """

    def merit(rate: float) -> tuple[int, float]:
        cells = [Cell(seed, setting, variant, rate) for seed in seeds]
        mean = float(np.mean([validation[cell] for cell in cells]))
        return -sum(cell in diverged for cell in cells), -math.inf if math.isnan(mean) else mean

    return max(sorted(plan.rates), key=merit)
