"""The figures of a study's report, made of the content of results.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from opdf.study.results import POOLED

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = "osD^vPX*<>"
STYLE: dict[str, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "svg.fonttype": "none",
    "svg.hashsalt": "opdf",
}  # fmt: skip
COLUMNS = 2
"""Panels side by side; more would be too small on a phone."""


def frame(results: dict[str, Any]) -> pd.DataFrame:
    """The runs as a table, with the scale of each: parameters in training over parameters at inference."""
    runs = pd.DataFrame(results["runs"])
    return runs.assign(scale=runs["train_params"] / runs["inference_params"])


def chosen(results: dict[str, Any]) -> pd.DataFrame:
    """The runs at their variant's chosen rate, of the seeds that count."""
    runs = frame(results)
    keep = [
        results["rates"].get(r.setting, {}).get(r.variant) == r.rate and r.seed in results["seeds"][r.setting]
        for r in runs.itertuples()
    ]
    return runs[keep]


def figures(results: dict[str, Any]) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of everything that these results can show."""
    with matplotlib.rc_context(STYLE):
        if results["effects"]:
            yield "gains", _gains_caption(results), gains(results)
        yield "scores", "Test score at each variant's own best rate: mean and spread over seeds.", scores(results)
        yield "rates", "Validation score against learning rate: mean over seeds, and their range.", rates(results)
        if frame(results)["scale"].nunique() > 1:
            yield "scale", "Test score against parameters in training over parameters at inference.", scale(results)
        if any(facts.get("curve") for facts in chosen(results)["facts"]):
            yield "curves", "Training loss at each variant's chosen rate, mean over seeds.", curves(results)
        for number, run in enumerate(_with_spectra(results)):
            caption = f"Singular values of the cores of {run['facts']['spectra']['matrix']}, {run['variant']}, by step."
            yield f"spectra-{number + 1}", caption, spectra(run)


def gains(results: dict[str, Any]) -> Figure:
    """Differences from the baseline with their intervals, one row a variant, one panel a setting."""
    entries = [e for e in results["effects"] if e["at"] == "best"]
    settings = [s for s in [*results["plan"]["settings"], POOLED] if any(e["setting"] == s for e in entries)]
    figure, axes = _panels(len(settings), height=0.6 + 0.3 * len(results["plan"]["variants"]))
    for axis, setting in zip(axes, settings, strict=True):
        rows = [e for e in entries if e["setting"] == setting][::-1]
        for place, entry in enumerate(rows):
            low, mean, high = (100 * entry[k] for k in ("low", "mean", "high"))
            axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3,
                          color=_colour(results, entry["variant"]))  # fmt: skip
        axis.axvline(0, color="#444444", linewidth=1)
        axis.set(title=setting, xlabel="points", ylim=(-0.6, len(rows) - 0.4))
        axis.set_yticks(range(len(rows)), [e["variant"] for e in rows])
    return figure


def scores(results: dict[str, Any]) -> Figure:
    """Bars of test scores (figure 2c of arXiv 2411.06448)."""
    runs, settings = chosen(results), list(results["rates"])
    variants = results["plan"]["variants"]
    figure, axes = _panels(len(settings), height=0.7 + 0.3 * len(variants))
    for axis, setting in zip(axes, settings, strict=True):
        test = [100 * runs[(runs.setting == setting) & (runs.variant == v)]["test"].to_numpy(float) for v in variants]
        means, spreads = [t.mean() for t in test], [t.std(ddof=1) if len(t) > 1 else 0.0 for t in test]
        colours = [_colour(results, v) for v in variants]
        axis.barh(range(len(variants)), means, xerr=spreads, color=colours, capsize=3, height=0.7, ecolor="#777777")
        reach = max(spreads) + 0.15 * (max(means) - min(means)) + 0.5
        axis.set_xlim(min(means) - reach, max(means) + reach)
        axis.set(title=setting, xlabel=f"test {results['metrics'][setting]}, %")
        axis.set_yticks(range(len(variants)), variants)
        axis.invert_yaxis()
    return figure


def rates(results: dict[str, Any]) -> Figure:
    """Validation score against the learning rate (figure 2b)."""
    runs = frame(results)
    settings = [s for s in results["plan"]["settings"] if (runs.setting == s).any()]
    figure, axes = _panels(len(settings), height=3.0)
    for axis, setting in zip(axes, settings, strict=True):
        for variant in results["plan"]["variants"]:
            some = runs[(runs.setting == setting) & (runs.variant == variant)].groupby("rate")["validation"]
            mean, low, high = 100 * some.mean(), 100 * some.min(), 100 * some.max()
            colour = _colour(results, variant)
            axis.plot(mean.index, mean, marker=_marker(results, variant), color=colour, label=variant, markersize=4)
            axis.fill_between(mean.index, low, high, color=colour, alpha=0.08, linewidth=0)
        axis.set(title=setting, xlabel="learning rate", ylabel=f"validation {results['metrics'][setting]}, %")
        axis.set_xscale("log")
        axis.set_xticks(tried := results["plan"]["rates"], [f"{rate:g}" for rate in tried], rotation=30)
        axis.minorticks_off()
    return _with_legend(figure, axes)


def scale(results: dict[str, Any]) -> Figure:
    """Test score against the scale (figure 2a)."""
    runs, settings = chosen(results), list(results["rates"])
    figure, axes = _panels(len(settings), height=3.0)
    for axis, setting in zip(axes, settings, strict=True):
        for variant in results["plan"]["variants"]:
            some = runs[(runs.setting == setting) & (runs.variant == variant)]
            test = 100 * some["test"].to_numpy(float)
            error = test.std(ddof=1) if len(test) > 1 else 0.0
            axis.errorbar(some["scale"].mean(), test.mean(), yerr=error, capsize=3, label=variant,
                          fmt=_marker(results, variant), color=_colour(results, variant))  # fmt: skip
        axis.set(title=setting, xlabel="parameters in training / at inference",
                 ylabel=f"test {results['metrics'][setting]}, %")  # fmt: skip
    return _with_legend(figure, axes)


def curves(results: dict[str, Any]) -> Figure:
    """Training losses of the chosen runs; one that diverged early has none."""
    runs, settings = chosen(results), list(results["rates"])
    figure, axes = _panels(len(settings), height=3.0)
    for axis, setting in zip(axes, settings, strict=True):
        for variant in results["plan"]["variants"]:
            some = runs[(runs.setting == setting) & (runs.variant == variant)]
            points = [point for facts in some["facts"] for point in facts.get("curve", [])]
            if not points:
                continue
            mean = pd.DataFrame(points).groupby("step")["loss"].mean()
            axis.plot(mean.index, mean, color=_colour(results, variant), label=variant, linewidth=1.2)
        axis.set(title=setting, xlabel="optimizer step", ylabel="training loss")
    return _with_legend(figure, axes)


def spectra(run: dict[str, Any]) -> Figure:
    """Singular values of every core of one matrix, one line a step."""
    steps = run["facts"]["spectra"]["steps"]
    cores = len(steps[0]["cores"])
    figure, axes = _panels(cores, height=2.6)
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(steps)))
    for k, axis in enumerate(axes):
        for entry, shade in zip(steps, shades, strict=True):
            values = entry["cores"][k]
            axis.plot(np.linspace(0, 1, len(values)), values, color=shade, label=f"step {entry['step']}")
        axis.set(title=f"core {k}", xlabel="rank, largest first", ylabel="singular value")
    return _with_legend(figure, axes)


def _with_spectra(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One run a variant that recorded them, at its chosen rate on the first setting."""
    setting = next(iter(results["rates"]), None)
    return [
        run for run in results["runs"]
        if run["setting"] == setting and "spectra" in run["facts"]
        and run["rate"] == results["rates"][setting][run["variant"]]
    ]  # fmt: skip


def _gains_caption(results: dict[str, Any]) -> str:
    return (
        f"Test score minus that of {results['plan']['baseline']}, paired by seed, each variant at its own best rate: "
        "mean and 95 % interval."
    )


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, height * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _with_legend(figure: Figure, axes: list[Axes]) -> Figure:
    shown = {label: h for axis in axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=min(4, len(shown)), fontsize=8)
    return figure


def _place(results: dict[str, Any], variant: str) -> int:
    return int(results["plan"]["variants"].index(variant))


def _colour(results: dict[str, Any], variant: str) -> str:
    return COLOURS[_place(results, variant) % len(COLOURS)]


def _marker(results: dict[str, Any], variant: str) -> str:
    return MARKERS[_place(results, variant) % len(MARKERS)]
