"""How long the steps of two trainings take, measured side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import Any

from transformers import Trainer, TrainerCallback

from opdf.distill import TrainingDiverged
from opdf.job import now

STEPS = 25
"""Optimizer steps of a measurement."""

Opened = Callable[[], AbstractContextManager[Trainer]]
"""Makes a trainer before its training."""


@dataclass(frozen=True)
class Pace:
    """The time that a training takes.

    Attributes:
        first: seconds until the end of the first optimizer step, with all that is done once.
        later: seconds of a later step, the median.
        steps: of the whole training.
    """

    first: float
    later: float
    steps: int

    @property
    def seconds(self) -> float:
        """Of the whole training."""
        return self.first + (self.steps - 1) * self.later

    def steps_in(self, seconds: float) -> int:
        """How many steps fit into some time; one at least."""
        return 1 + max(0, round((seconds - self.first) / self.later))


def measured(trainings: Sequence[Opened]) -> list[Pace]:
    """The paces of some trainings. Each is begun twice for a few steps, in order and in reverse order.

    So other work on the machine, and a clock that slows down, affect all of them alike.
    """
    watches = [[] for _ in trainings]  # type: list[list[Watch]]
    order = range(len(trainings))
    for which in (*order, *reversed(order)):
        with trainings[which]() as trainer:
            watch = Watch()
            trainer.add_callback(watch)
            with suppress(TrainingDiverged):  # its steps took their time all the same
                trainer.train()
        watches[which].append(watch)
    return [_pace(some) for some in watches]


class Watch(TrainerCallback):
    """Notes when steps end, and ends the training after a few."""

    def __init__(self) -> None:
        self.steps = 0
        self.ends = [now()]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.steps = state.max_steps
        self.ends.append(now())
        control.should_training_stop = len(self.ends) > STEPS


def _pace(watches: Sequence[Watch]) -> Pace:
    times = [[end - begin for begin, end in zip(w.ends, w.ends[1:], strict=False)] for w in watches]
    first = min(some[0] for some in times)
    later = [seconds for some in times for seconds in some[1:]] or [first]
    return Pace(first, statistics.median(later), watches[0].steps)
