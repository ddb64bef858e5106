"""What a user sees while matrices are decomposed: nothing if it is quick, else a line that vanishes."""

from __future__ import annotations

from typing import Any

import pytest

from opdf.cli import progress as module
from opdf.cli.progress import Bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def lines(bar: Any) -> list[tuple[str, float, float | None]]:
    return [(task.description, task.completed, task.total) for task in bar.progress.tasks[1:]]


def test_quick_decompositions_show_nothing(clock: list[float]) -> None:
    bar = Bar("distilling")
    for done in range(4):
        clock[0] += 0.5
        bar.decomposing(done, 3)
        assert lines(bar) == []


def test_slow_ones_get_a_line_until_they_are_done(clock: list[float]) -> None:
    bar = Bar("distilling")
    seen = []
    for _ in range(2):
        for done in range(4):
            bar.decomposing(done, 3)
            seen.append(lines(bar))
            clock[0] += 2.5
    assert seen == 2 * [[], [("decomposing", 1, 3)], [("decomposing", 2, 3)], []]
