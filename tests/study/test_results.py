"""Concluding a study again from its scores alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from opdf.data import Task
from opdf.study import Outcome, Plan, conclude
from opdf.study.judge import Judge
from opdf.study.results import POOLED, conclude_again

PLAN = Plan(("shared", "own"), ("KD", "OPDF"), (1e-3, 2e-3), (0, 1, 2), "KD")


JUDGE = Judge(Task("classification", ("text",), "label", ("no", "yes")))


class Logarithmic(Judge):
    unit = "logarithm"


def labels(setting: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed if setting == "own" else 9).integers(2, size=120)


def concluded(seeds: dict[str, tuple[int, ...]], **judges: Judge) -> dict[str, Any]:
    """The content of results.json, read back, of a study whose settings have run with these seeds."""
    outcomes = {}
    for k, cell in enumerate(PLAN.cells()):
        if cell.seed in seeds[cell.setting]:
            rng, truth = np.random.default_rng(k), labels(cell.setting, cell.seed)
            answers = np.where(rng.random(120) < (0.8 if cell.variant == "OPDF" else 0.7), truth, 1 - truth)
            outcomes[cell] = Outcome(rng.random(), answers.tolist(), 1.0, 2, 1)
    found = conclude(PLAN, outcomes, labels, dict.fromkeys(PLAN.settings, JUDGE) | judges)
    return json.loads(json.dumps({"plan": {"baseline": PLAN.baseline}, **found}))


def test_scores_and_errors_are_enough_to_conclude_again() -> None:
    results = concluded(dict.fromkeys(PLAN.settings, PLAN.seeds))
    assert {e["setting"] for e in results["effects"]} == {"shared", "own", POOLED}
    assert all((e["shared_error"] == 0) == (e["setting"] == "own") for e in results["effects"])
    changed = results | {"effects": [e | {"low": -1.0, "high": 1.0, "verdict": ""} for e in results["effects"]]}
    for again, entry in zip(conclude_again(changed), results["effects"], strict=True):
        assert again == {k: pytest.approx(v) if isinstance(v, float) else v for k, v in entry.items()}


@pytest.mark.parametrize("own", [(0, 1), (1, 2), (0,)])
def test_settings_with_other_seeds_are_not_pooled(own: tuple[int, ...]) -> None:
    results = concluded({"shared": (0, 1), "own": own})
    pooled = [e for e in results["effects"] if e["setting"] == POOLED]
    assert bool(pooled) == (own == (0, 1))
    assert len(conclude_again(results)) == len(results["effects"])


def test_perplexities_are_not_pooled_with_shares() -> None:
    results = concluded(dict.fromkeys(PLAN.settings, PLAN.seeds), own=Logarithmic(JUDGE.task))
    assert {e["setting"] for e in results["effects"]} == {"shared", "own"}


def test_the_scores_are_of_the_runs_that_were_compared() -> None:
    results = concluded(dict.fromkeys(PLAN.settings, PLAN.seeds))
    for entry in results["effects"]:
        if entry["setting"] != POOLED and entry["at"] == "best":
            rates = results["rates"][entry["setting"]]
            tests = {
                variant: [r["test"] for r in results["runs"] if r["setting"] == entry["setting"]
                          and r["variant"] == variant and r["rate"] == rates[variant]]
                for variant in PLAN.variants
            }  # fmt: skip
            assert entry["mean"] == pytest.approx(np.mean(tests["OPDF"]) - np.mean(tests["KD"]))
