"""The runs of a study: every variant with every learning rate, on every setting and seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

OPTIONS = {"settings": "tasks", "variants": "variants", "rates": "learning_rates", "seeds": "seeds"}
"""Lists of a plan by the options of a study's file."""


@dataclass(frozen=True, order=True)
class Cell:
    """One training run."""

    seed: int
    setting: str
    variant: str
    rate: float


@dataclass(frozen=True)
class Plan:
    """A grid of runs in which every variant has the same tuning budget.

    Args:
        settings: names of the tasks (with a number of training examples, say).
        variants: names of what is compared.
        rates: learning rates; one is chosen for every setting and variant on the validation split.
        seeds: of splits, initialisation and data order; comparisons are paired by them.
        baseline: the variant that the others are compared with.

    Raises:
        ValueError: a list is empty or repeats itself, a rate is not above 0, a seed is out of range, or the baseline is
            no variant.
    """

    settings: tuple[str, ...]
    variants: tuple[str, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    baseline: str

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            _check_list(option, getattr(self, name))
        for rate in self.rates:
            if not 0 < rate < math.inf:
                raise ValueError(f"learning_rates holds {rate}; they are finite and above 0")
        for seed in self.seeds:
            if not 0 <= seed < 2**32:
                raise ValueError(f"seeds holds {seed}; they are from 0 to 2**32 - 1")
        if self.baseline not in self.variants:
            raise ValueError(f"baseline is {self.baseline!r}; expected one of {', '.join(self.variants)}")

    def cells(self, share: float = 0.0) -> Iterator[Cell]:
        """All runs, one seed after the other, so that a study that was stopped early can still be compared.

        Args:
            share: of the settings that come last with each seed, 0 to 1. Processes that begin with others do not wait
                for one another's teachers.
        """
        first = int(share * len(self.settings))
        for seed in self.seeds:
            for setting in self.settings[first:] + self.settings[:first]:
                for rate in self.rates:
                    for variant in self.variants:
                        yield Cell(seed, setting, variant, rate)


def _check_list(name: str, values: Sequence[Any]) -> None:
    if not values:
        raise ValueError(f"{name} is empty; give at least one")
    if len(set(values)) != len(values):
        raise ValueError(f"{name} is {list(values)}; every entry may stand there once")
