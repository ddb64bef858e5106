"""The grid of a study."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from opdf.study.plan import Plan

GOOD: dict[str, Any] = {
    "settings": ("a", "b"), "variants": ("KD", "OPDF"), "rates": (1e-4, 1e-3), "seeds": (0, 1, 2), "baseline": "KD"
}  # fmt: skip


def test_every_variant_has_the_same_number_of_runs_and_seeds_come_one_after_the_other() -> None:
    cells = list(Plan(**GOOD).cells())
    assert len(set(cells)) == len(cells) == 24
    assert set(Counter(c.variant for c in cells).values()) == {12}
    assert [c.seed for c in cells] == sorted(c.seed for c in cells)


def test_processes_begin_with_different_settings_of_the_same_seed() -> None:
    plan = Plan(**GOOD)
    first, second = list(plan.cells()), list(plan.cells(share=0.5))
    assert sorted(first) == sorted(second)
    assert (first[0].setting, second[0].setting) == ("a", "b")
    assert [c.seed for c in second] == sorted(c.seed for c in second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": ()}, "tasks is empty"),
        ({"seeds": (1, 1)}, "every entry may stand there once"),
        ({"rates": (0.0,)}, "learning_rates holds 0.0"),
        ({"rates": (float("nan"),)}, "learning_rates holds nan"),
        ({"seeds": (0, -1)}, "seeds holds -1; they are from 0 to"),
        ({"seeds": (0, 2**32)}, "seeds holds 4294967296; they are from 0 to"),
        ({"baseline": "kd"}, "baseline is 'kd'; expected one of KD, OPDF"),
    ],
)
def test_bad_plans(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan(**(GOOD | change))
