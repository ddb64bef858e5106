"""The figures of a study's report, drawn from results.json."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from opdf.study.results import DIVERGED, POOLED
from opdf.study.scale import Scale

# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = "osD^vPX*<>"
STYLE: dict[str, Any] = {
    "font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#dddddd",
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "svg.fonttype": "none",
    "svg.hashsalt": "opdf", "text.parse_math": False,  # names may hold a $
}  # fmt: skip
WIDTH = 4.6
"""Inches of a panel, about what a phone shows."""
COLUMNS = 2
"""Panels side by side in a file; on the page there are as many as fit."""
NAME = 24
"""Characters of a variant's name on a line."""
FEW = 15
"""Points of a line that are marked each."""
LEAST = 0.05
"""Least range of scores on an axis, so that a tenth of a point does not look like much."""


@dataclass(frozen=True)
class Key:
    """An entry of a legend; `marker` is matplotlib's, or "-", "--" or ":" for a line."""

    label: str
    colour: str
    marker: str


@dataclass(frozen=True)
class Picture:
    """A figure: panels that are drawn alike.

    Attributes:
        name, caption: of the figure.
        panels: their titles.
        height: of a panel, inches.
        draw: draws the panel with a title into an Axes.
        keys: the legend.
    """

    name: str
    caption: str
    panels: tuple[str, ...]
    height: float
    draw: Callable[[Axes, str], None]
    keys: tuple[Key, ...] = ()

    def panel(self, title: str) -> Figure:
        """One panel, without a legend."""
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(WIDTH, self.height), layout="constrained")
            axis = figure.subplots()
            axis.set_title(title)
            self.draw(axis, title)
            return figure

    def whole(self) -> Figure:
        """All panels in one, with the legend."""
        columns = min(COLUMNS, len(self.panels))
        rows = -(-len(self.panels) // columns)
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(WIDTH * columns, self.height * rows + 0.4), layout="constrained")
            axes = list(figure.subplots(rows, columns, squeeze=False).flat)
            for axis, title in zip(axes, self.panels, strict=False):
                axis.set_title(title)
                self.draw(axis, title)
            for unused in axes[len(self.panels) :]:
                unused.remove()
            if self.keys:
                handles = [_handle(key) for key in self.keys]
                figure.legend(handles=handles, loc="outside lower center", ncols=min(2 * columns, len(handles)))
            return figure


def svg(figure: Figure) -> str:
    """A figure as SVG text: words stay text, and the same figure gives the same file."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def pictures(results: dict[str, Any]) -> Iterator[Picture]:
    """Everything that these results can show."""
    seen = Results(results)
    if known := [e for e in results["effects"] if e["at"] == "best" and np.isfinite(e["low"])]:
        yield gains(seen, known)
    yield scores(seen)
    if any("scores" in facts for facts in seen.chosen["facts"]):
        yield way(seen)
    yield rates(seen)
    if seen.runs["scale"].nunique() > 1:
        yield scale(seen)
    if any(facts.get("curve") for facts in seen.chosen["facts"]):
        yield losses(seen)
    for number, run in enumerate(_with_spectra(seen)):
        yield spectra(f"spectra-{number + 1}", run)


class Results:
    """The content of results.json, as the figures and tables look at it.

    Attributes:
        plan, rates, seeds, metrics: see `conclude`.
        settings: those that have a seed with all of its runs.
        runs: a row a run; "scale" is parameters in training over parameters at inference.
        chosen: the runs at their variant's chosen rate, of the seeds that count.
    """

    def __init__(self, results: dict[str, Any]) -> None:
        self.content = results
        self.plan: dict[str, Any] = results["plan"]
        self.rates: dict[str, dict[str, float]] = results["rates"]
        self.seeds: dict[str, list[int]] = results["seeds"]
        self.metrics: dict[str, str] = results["metrics"]
        self.settings = tuple(self.rates)
        self.variants: list[str] = self.plan["variants"]
        runs = pd.DataFrame(results["runs"])
        self.runs = runs.assign(scale=runs["train_params"] / runs["inference_params"])
        self.chosen = self.runs[[
            self.rates.get(r.setting, {}).get(r.variant) == r.rate and r.seed in self.seeds[r.setting]
            for r in self.runs.itertuples()
        ]]  # fmt: skip

    def of(self, setting: str, variant: str, *, chosen: bool = True) -> pd.DataFrame:
        """The runs of a variant on a setting, those at its chosen rate or all."""
        runs = self.chosen if chosen else self.runs
        return runs[(runs.setting == setting) & (runs.variant == variant)]

    def scale(self, setting: str) -> Scale:
        """How a setting's scores are shown; those of all settings as the first's, since they have one unit."""
        return Scale(self.metrics[self.settings[0] if setting == POOLED else setting])

    def teachers(self, setting: str, part: str = "test") -> list[set[float]]:
        """The scores of all variants' teachers, as far as they are known, a set a seed."""
        found: dict[int, set[float]] = {}
        for run in self.chosen[self.chosen.setting == setting].itertuples():
            score = run.facts.get("teacher", {}).get(part, {}).get(self.metrics[setting])
            if score is not None:
                found.setdefault(run.seed, set()).add(self.scale(setting).score(score))
        return list(found.values())

    def teacher(self, setting: str, part: str = "test") -> float | None:
        """The teacher's score, mean over seeds; None if it is not known, or if variants have different teachers."""
        scores = self.teachers(setting, part)
        one = scores and all(len(some) == 1 for some in scores)
        return float(np.mean([score for some in scores for score in some])) if one else None

    def chance(self, setting: str) -> float | None:
        """The score of the best constant answer on the test split; None if the results do not have it."""
        found: float | None = self.content.get("chance", {}).get(setting)
        return found

    def way(self, run: Any) -> list[dict[str, float]]:
        """Step, seconds of training and validation score of a run: before, during and after training."""
        if "scores" not in run.facts:
            return []
        end = {"step": run.facts["steps"], "seconds": run.seconds, "validation": run.validation}
        return [*run.facts["scores"], end]

    def legend(self, *, teacher: bool = False) -> tuple[Key, ...]:
        """A legend of all variants."""
        line = [Key("teacher", "#444444", "--")] if teacher else []
        return (*(Key(v, self.colour(v), self.marker(v)) for v in self.variants), *line)

    def colour(self, variant: str) -> str:
        return COLOURS[self.variants.index(variant) % len(COLOURS)]

    def marker(self, variant: str) -> str:
        return MARKERS[self.variants.index(variant) % len(MARKERS)]


def gains(seen: Results, entries: list[dict[str, Any]]) -> Picture:
    """Differences from the baseline with their intervals, one row a variant, one panel a setting."""

    def draw(axis: Axes, setting: str) -> None:
        rows = [e for e in entries if e["setting"] == setting][::-1]
        scale = seen.scale(setting)
        alike = [e for e in entries if seen.scale(e["setting"]).of_perplexity == scale.of_perplexity]
        reach = 100 * np.array([(e["low"], e["high"]) for e in alike])
        edge = 0.05 * (np.ptp(reach) or 1.0)  # all differences may be zero
        for place, entry in enumerate(rows):
            low, mean, high = (100 * entry[k] for k in ("low", "mean", "high"))
            axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=3,
                          color=seen.colour(entry["variant"]))  # fmt: skip
        axis.axvline(0, color="#444444", linewidth=1)
        axis.set(xlabel="points of perplexity" if scale.of_perplexity else "points", ylim=(-0.6, len(rows) - 0.4))
        axis.set_xlim(min(0, reach.min()) - edge, max(0, reach.max()) + edge)  # the same for all settings of a unit
        axis.set_yticks(range(len(rows)), [_wrapped(e["variant"]) for e in rows])

    settings = [s for s in [*seen.plan["settings"], POOLED] if any(e["setting"] == s for e in entries)]
    caption = (
        f"Test score minus that of {seen.plan['baseline']}, paired by seed, each variant at its own best rate: mean "
        "and 95 % interval."
    )
    return Picture("gains", caption, tuple(settings), 0.9 + 0.32 * len(seen.variants), draw)


def scores(seen: Results) -> Picture:
    """Bars of test scores (figure 2c of arXiv 2411.06448) that begin at chance."""

    def draw(axis: Axes, setting: str) -> None:
        base, teacher, scale = seen.chance(setting) or 0.0, seen.teacher(setting), seen.scale(setting)
        reach, begins = [base] + ([teacher] if teacher is not None else []), scale.shown(base)
        for place, variant in enumerate(seen.variants):
            test = seen.of(setting, variant)["test"].to_numpy(float)
            mean, best = scale.shown(test.mean()), scale.shown(max(*test, base))
            axis.barh(place, mean - begins, left=begins, color=seen.colour(variant), height=0.7)
            axis.plot(scale.shown(test), [place] * len(test), "o", markersize=3, markerfacecolor="white",
                      markeredgecolor="#777777")  # fmt: skip
            axis.annotate(scale.text(test.mean()), (best, place), (5, 0), textcoords="offset points",
                          va="center", fontsize=9, bbox={"color": "white", "pad": 0.5, "alpha": 0.8})  # fmt: skip
            reach += [*test]
        low, high = scale.visible(min(reach), max(reach))
        room = 0.14 * ((high - low) or 0.01)  # for a number
        axis.set_xlim(*map(scale.shown, (low, high + room)))
        scale.mark(axis, "x")
        _teacher(axis.axvline, scale, teacher)
        known = (("chance", seen.chance(setting)), ("teacher", teacher))
        beside = ", ".join(f"{name} {scale.text(score)}" for name, score in known if score is not None)
        axis.set(xlabel=f"test {scale.label}" + (f"\n{beside}" if beside else ""))
        axis.set_yticks(range(len(seen.variants)), [_wrapped(v) for v in seen.variants])
        axis.invert_yaxis()

    begins = "Bars begin at chance, the best that one answer to everything gets"
    caption = (
        "Test score at each variant's own best rate: the mean, and a dot a seed. "
        + (f"{begins}. " if "chance" in seen.content else "") + "Dashed: the teacher."
    )  # fmt: skip
    return Picture("scores", caption, seen.settings, 1.1 + 0.32 * len(seen.variants), draw)


def way(seen: Results) -> Picture:
    """Validation score against time of training."""

    def draw(axis: Axes, setting: str) -> None:
        times, scale = [], seen.scale(setting)
        for variant in seen.variants:
            points = pd.DataFrame([p for run in seen.of(setting, variant).itertuples() for p in seen.way(run)])
            if len(points):
                # Seeds can differ in their number of steps, of which each was scored after its own half.
                part = np.log2((points["step"] / points["step"].max()).clip(lower=1e-9)).round()
                mean = points.groupby(part)[["seconds", "validation"]].mean()
                times += [t for t in mean["seconds"] if t > 0]
                axis.plot(mean["seconds"], scale.shown(mean["validation"]), marker=seen.marker(variant), markersize=4,
                          color=seen.colour(variant), linewidth=1.2)  # fmt: skip
        axis.set_xscale("symlog", linthresh=min(times, default=1.0))
        axis.xaxis.set_major_formatter("{x:g}")
        _scores_against(axis, "seconds of training", seen, setting, "validation")

    caption = (
        "Validation score against time of training at each variant's chosen rate, mean over seeds; 0 is before it."
    )
    return Picture("way", caption, seen.settings, 3.2, draw, seen.legend(teacher=True))


def rates(seen: Results) -> Picture:
    """Validation score against the learning rate (figure 2b)."""

    def draw(axis: Axes, setting: str) -> None:
        scale = seen.scale(setting)
        for variant in seen.variants:
            some = seen.of(setting, variant, chosen=False).groupby("rate")["validation"]
            mean, low, high = map(scale.shown, (some.mean(), some.min(), some.max()))
            colour = seen.colour(variant)
            axis.plot(mean.index, mean, marker=seen.marker(variant), color=colour, markersize=4)
            axis.fill_between(mean.index, low, high, color=colour, alpha=0.08, linewidth=0)
        _scores_against(axis, "learning rate", seen, setting, "validation")
        axis.set_xscale("log")
        axis.set_xticks(tried := seen.plan["rates"], [f"{rate:g}" for rate in tried], rotation=30)
        axis.minorticks_off()

    caption = "Validation score against learning rate: mean over seeds, and their range."
    return Picture("rates", caption, seen.settings, 3.2, draw, seen.legend(teacher=True))


def scale(seen: Results) -> Picture:
    """Test score against the scale (figure 2a)."""

    def draw(axis: Axes, setting: str) -> None:
        scale = seen.scale(setting)
        for variant in seen.variants:
            some = seen.of(setting, variant)
            test = scale.shown(some["test"].to_numpy(float))
            error = test.std(ddof=1) if len(test) > 1 else 0.0
            axis.errorbar(some["scale"].mean(), test.mean(), yerr=error, capsize=3,
                          fmt=seen.marker(variant), color=seen.colour(variant))  # fmt: skip
        _scores_against(axis, "parameters in training / at inference", seen, setting, "test")

    caption = "Test score against parameters in training over parameters at inference, with one standard deviation."
    return Picture("scale", caption, seen.settings, 3.2, draw, seen.legend(teacher=True))


def losses(seen: Results) -> Picture:
    """Training losses of the chosen runs; one that diverged early has none."""

    def draw(axis: Axes, setting: str) -> None:
        for variant in seen.variants:
            runs = [facts for facts in seen.of(setting, variant)["facts"] if facts.get("curve")]
            if runs:
                steps = pd.DataFrame([p for facts in runs for p in facts["curve"]]).groupby("step")["loss"]
                whole = sum(DIVERGED not in facts for facts in runs)
                mean = steps.mean()[steps.size() >= whole]  # curves of other lengths were thinned out otherwise
                marker = seen.marker(variant) if len(mean) <= FEW else None
                axis.plot(mean.index, mean, color=seen.colour(variant), linewidth=1.2, marker=marker, markersize=4)
        axis.set(xlabel="optimizer step", ylabel="training loss")
        axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]) if axis.dataLim.y0 < 0 else 0.0)

    logged = {run.variant for run in seen.chosen.itertuples() if run.facts.get("curve")}
    keys = tuple(key for key in seen.legend() if key.label in logged)
    caption = "Training loss at each variant's chosen rate, mean over seeds."
    return Picture("curves", caption, seen.settings, 3.2, draw, keys)


def spectra(name: str, run: dict[str, Any]) -> Picture:
    """Singular values of every core of one matrix, one line a step."""
    found = run["facts"]["spectra"]
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(found["steps"])))
    colours = [matplotlib.colors.to_hex(shade) for shade in shades]
    titles = tuple(f"core {k}" for k in range(len(found["steps"][0]["cores"])))

    def draw(axis: Axes, title: str) -> None:
        for entry, colour in zip(found["steps"], colours, strict=True):
            values = entry["cores"][titles.index(title)]
            marker = "o" if len(values) <= FEW else None
            axis.plot(np.linspace(0, 1, len(values)), values, color=colour, marker=marker, markersize=3)
        axis.set(xlabel="rank, largest first", ylabel="singular value")
        axis.set_ylim(bottom=0)

    keys = tuple(Key(f"step {e['step']}", colour, "-") for e, colour in zip(found["steps"], colours, strict=True))
    caption = f"Singular values of the cores of {found['matrix']}, {run['variant']}, by step."
    return Picture(name, caption, titles, 2.6, draw, keys)


def _with_spectra(seen: Results) -> list[dict[str, Any]]:
    """One run a variant that recorded them, at its chosen rate on the first setting."""
    setting = next(iter(seen.settings), None)
    return [
        run for run in seen.content["runs"]
        if run["setting"] == setting and "spectra" in run["facts"]
        and run["rate"] == seen.rates[setting][run["variant"]]
    ]  # fmt: skip


def _scores_against(axis: Axes, what: str, seen: Results, setting: str, part: str) -> None:
    """The teacher's line, and names of the axes, of scores on a split against something."""
    scale = seen.scale(setting)
    _teacher(axis.axhline, scale, seen.teacher(setting, part))
    _at_least(axis, scale)
    axis.set(xlabel=what, ylabel=f"{part} {scale.label}")


def _teacher(draw: Callable[..., Any], scale: Scale, score: float | None) -> None:
    if score is not None:
        draw(scale.shown(score), linestyle="--", color="#444444", linewidth=1.2, zorder=1)


def _at_least(axis: Axes, scale: Scale) -> None:
    """Show `LEAST` of the scores on the vertical axis."""
    scale.mark(axis, "y")
    low, high = scale.visible(*sorted(map(scale.seen, axis.get_ylim())))
    more = max(0.0, LEAST - (high - low)) / 2
    axis.set_ylim(*sorted(map(scale.shown, (low - more, high + more))))


def _wrapped(name: str) -> str:
    return textwrap.fill(name, NAME)


def _handle(key: Key) -> Line2D:
    line = key.marker in ("-", "--", ":")
    style = {"linestyle": key.marker} if line else {"linestyle": "", "marker": key.marker}
    return Line2D([], [], color=key.colour, label=key.label, **style)  # type: ignore[arg-type]
