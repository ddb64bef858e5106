"""From runs to conclusions: the content of a study's results.json, which reports show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from opdf.study.judge import Judge
from opdf.study.plan import Cell, Plan
from opdf.study.statistics import Differences, Effect, Pair, chosen_rate, complete_seeds, differences, effect, interval
from opdf.study.store import Outcome

Labels = Callable[[str, int], np.ndarray]
"""A setting and a seed to the labels of its test split."""

POOLED = "all settings"

DIVERGED = "diverged_in_step"
"""A key in the facts of a run that diverged."""


def conclude(
    plan: Plan, outcomes: Mapping[Cell, Outcome], labels: Labels, judges: Mapping[str, Judge]
) -> dict[str, Any]:
    """Choose rates, score the chosen runs on the test split, and compare every variant with the baseline.

    Test labels are looked at for two rates of a variant: its own best one and the baseline's best one, both chosen by
    the validation score. Only seeds with which all variants have run at all rates count.

    Args:
        plan: the study's.
        outcomes: the runs so far.
        labels: see `Labels`.
        judges: by setting.

    Returns:
        JSON: "seeds" and "rates" by setting (and variant), "chance" by setting (what the best constant answer scores on
        the test split, mean over seeds), "runs" (one entry a run, `test` null where it was not looked at), "effects"
        (one entry a setting or all, variant, and "best" or "equal" rate).
    """
    test: dict[Cell, float] = {}
    seeds, rates, chances, samples = {}, {}, {}, {}
    validation = {cell: outcome.validation for cell, outcome in outcomes.items()}
    diverged = {cell for cell, outcome in outcomes.items() if DIVERGED in outcome.facts}
    for setting in plan.settings:
        seeds[setting] = complete_seeds(plan, outcomes, setting)
        if not seeds[setting]:
            continue
        truth = {seed: labels(setting, seed) for seed in seeds[setting]}
        judge = judges[setting]
        chances[setting] = float(np.mean([judge.chance(some) for some in truth.values()]))
        rates[setting] = {v: chosen_rate(plan, validation, setting, v, seeds[setting], diverged) for v in plan.variants}
        opened = {(v, rate) for v in plan.variants for rate in (rates[setting][v], rates[setting][plan.baseline])}
        for variant, rate in opened:
            for seed in seeds[setting]:
                cell = Cell(seed, setting, variant, rate)
                test[cell] = judge.score(np.asarray(outcomes[cell].predictions), truth[seed])
        samples[setting] = _samples(plan, outcomes, setting, rates[setting], truth, judge)
    return {
        "seeds": seeds,
        "rates": rates,
        "chance": chances,
        "runs": [_run(cell, outcome, test.get(cell)) for cell, outcome in outcomes.items()],
        "effects": list(_effects(samples, seeds, one_unit=len({j.unit for j in judges.values()}) == 1)),
    }


def conclude_again(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The effects of a results.json by today's rule for intervals, from its scores alone.

    The share of test examples comes from each effect's `example_error` and `shared_error`.
    """
    baseline, seeds, rates = results["plan"]["baseline"], results["seeds"], results["rates"]
    test = {Cell(r["seed"], r["setting"], r["variant"], r["rate"]): r["test"] for r in results["runs"]}

    def by_seed(setting: str, compared: Compared) -> np.ndarray:
        variant, at = compared
        base = rates[setting][baseline]
        rate = rates[setting][variant] if at == "best" else base
        return np.array([
            test[Cell(seed, setting, variant, rate)] - test[Cell(seed, setting, baseline, base)]
            for seed in seeds[setting]
        ])  # fmt: skip

    again = []
    for entry in results["effects"]:
        compared = entry["variant"], entry["at"]
        settings = list(rates) if entry["setting"] == POOLED else [entry["setting"]]
        differences_ = np.mean([by_seed(setting, compared) for setting in settings], axis=0)
        found = interval(differences_, entry["example_error"], entry["shared_error"])
        again.append(_entry(entry["setting"], compared, found))
    return again


Compared = tuple[str, str]
"""A variant, and "best" (each at its own best rate) or "equal" (both at the baseline's)."""


def _samples(
    plan: Plan, outcomes: Mapping[Cell, Outcome], setting: str, rates: Mapping[str, float],
    truth: Mapping[int, np.ndarray], judge: Judge,
) -> dict[Compared, Differences]:  # fmt: skip
    base = rates[plan.baseline]

    def compare(variant: str, rate: float) -> Differences:
        def seen(name: str, at: float, seed: int) -> np.ndarray:
            return np.asarray(outcomes[Cell(seed, setting, name, at)].predictions)

        pairs = [Pair(seen(variant, rate, s), seen(plan.baseline, base, s), truth[s]) for s in truth]
        return differences(pairs, judge.score)

    found = {}
    for variant in plan.variants:
        if variant != plan.baseline:
            found[variant, "best"] = compare(variant, rates[variant])
            same = rates[variant] == base
            found[variant, "equal"] = found[variant, "best"] if same else compare(variant, base)
    return found


def _effects(
    samples: Mapping[str, Mapping[Compared, Differences]], seeds: Mapping[str, Sequence[int]], *, one_unit: bool
) -> Sequence[dict[str, Any]]:
    entries = []
    poolable = one_unit and len(samples) > 1 and len({tuple(seeds[setting]) for setting in samples}) == 1
    for compared in next(iter(samples.values()), {}):
        for setting, found in samples.items():
            entries.append(_entry(setting, compared, effect([found[compared]])))
        if poolable:
            entries.append(_entry(POOLED, compared, effect([found[compared] for found in samples.values()])))
    return entries


def _entry(setting: str, compared: Compared, found: Effect) -> dict[str, Any]:
    return {"setting": setting, "variant": compared[0], "at": compared[1], **asdict(found), "verdict": found.verdict}


def _run(cell: Cell, outcome: Outcome, test: float | None) -> dict[str, Any]:
    kept = {k: v for k, v in asdict(outcome).items() if k != "predictions"}
    return {**asdict(cell), "test": test, **kept}
