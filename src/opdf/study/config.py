"""The options of a study's file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class StudyConfig:
    """A study.

    Args:
        common: what all runs share: a configuration of opdf distill.
        tasks: changes to `common` for each task (data, teacher, student), by name.
        train_sizes: numbers of training examples, each tried on every task; null leaves the tasks' own.
        variants: what is compared, by name: changes to the task's configuration. The extra key as_long_as names another
            variant, and this one then takes as many steps as fit into the other's time.
        baseline: the variant that the others are compared with; the first when null.
        learning_rates: every variant is trained with each of them.
        seeds: of splits, initialisation and data order. Comparisons are paired by seed.
        probe: judge students by a linear classifier on their frozen features instead of their own head.
        curve: score students on the validation split before training, and after 1/32, 1/16, ... 1/2 of their steps.
            The time for it is not counted.
        output: folder for runs, teachers and results.json.
        workers: processes on this machine; each gets its share of the CPU's cores.
    """

    common: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=lambda: {"task": {}})
    train_sizes: list[int] | None = None
    variants: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    learning_rates: list[float] = field(default_factory=lambda: [5e-5, 1e-4, 2e-4])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    probe: bool = False
    curve: bool = False
    output: str = "runs/study"
    workers: int = 1
