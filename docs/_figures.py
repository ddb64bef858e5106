"""Draws figures and fills in tables of the pages from committed results: `make figures`.

Each function of `FIGURES` draws its numbers and describes them in words. The description
becomes the image's text for screen readers. In a page the comment
`<!-- studies/results/NAME -->` stands before the table of that study,
`<!-- near the teacher: NAME -->` before that of when its students came near, and
`<!-- studies of sizes -->` before that of students of several sizes. Tests compare them
with the results, so that no figure and no table outlives its data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from html import escape
from io import StringIO
from pathlib import Path
from statistics import fmean, median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tabulate import tabulate

from opdf.study import read_results, summary
from opdf.study.figures import Results
from opdf.study.report import near_rows

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"

# A colour on a light page and on a dark one. An image follows the scheme of its page.
COLOURS = {
    "page": ("#ffffff", "#1e2129"),
    "text": ("#1f2328", "#e6e8eb"),
    "grid": ("#d8dee4", "#3a4049"),
    "grey": ("#6e7781", "#9aa4af"),
    "blue": ("#0969da", "#58a6ff"),
    "green": ("#1a7f37", "#4ac26b"),
    "orange": ("#bc4c00", "#f0883e"),
}
PAGE, TEXT, GRID, GREY, BLUE, GREEN, ORANGE = (light for light, _ in COLOURS.values())
STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": TEXT,
    "axes.facecolor": PAGE,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "figure.facecolor": PAGE,
    "grid.color": GRID,
    "text.color": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "opdf",
}
FONT = "system-ui, Helvetica, Arial, sans-serif"
WIDTH = 6.4
"""Inches, of 72 pixels. A phone shows a figure at three quarters of its size."""

Study = dict[str, Any]


def main() -> None:
    for name in FIGURES:
        (IMAGES / f"{name}.svg").write_text(image(name))
    for page in sorted((ROOT / "docs").glob("*.md")):
        page.write_text(with_tables(page.read_text()))


def with_tables(page: str) -> str:
    """A page with the tables of studies, as `opdf report` prints them, and of sizes."""
    place = (
        r"(<!-- (studies/results/|near the teacher: |studies of sizes)([\w-]*) -->\n\n)"
        r"(?:\|.*\n)*\n*"
    )

    def filled(found: re.Match[str]) -> str:
        table = TABLES[found[2]](found[3])
        return f"{found[1]}{table}\n\n"

    return re.sub(place, filled, page)


def image(name: str) -> str:
    """A figure as SVG in the page's colours."""
    with matplotlib.rc_context(STYLE):
        figure, description = FIGURES[name]()
        buffer = StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", buffer.getvalue(), flags=re.DOTALL)
    svg = re.sub(r"(font: [\d. ]+px) [^;\"]*", rf"\1 {FONT}", svg)
    for colour, (light, _) in COLOURS.items():
        svg = svg.replace(light, f"var(--{colour})")
    head = f"<desc>{escape(description)}</desc>\n<style>{scheme()}</style>\n"
    return re.sub(r"(<svg [^>]*>\s*)", lambda start: start[1] + head, svg, count=1)


def scheme() -> str:
    light, dark = (
        "; ".join(f"--{colour}: {pair[k]}" for colour, pair in COLOURS.items())
        for k in (0, 1)
    )
    dark_rule = f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    return f":root {{ {light} }} {dark_rule}"


# --- the figures


def gains() -> tuple[Figure, str]:
    """OPDF's difference to plain distillation in every study that has both."""
    studies = {
        "half width, untrained, 300 steps": ("narrow", BLUE),
        "the same, frozen features": ("narrow-probe", BLUE),
        "the same, 1,500 steps": ("narrow-long", BLUE),
        "own blocks or untrained, ViT": ("constraint", ORANGE),
        "own blocks, 250 and 3,000 images": ("data-sizes", ORANGE),
        "own blocks, SGD": ("sgd", ORANGE),
        "own blocks, MiniLM, four texts": ("text-methods", ORANGE),
    }
    effects = {label: pooled(study(name), "OPDF") for label, (name, _) in studies.items()}
    figure, axes = panel(height=3.2)
    forest(axes, effects, {label: colour for label, (_, colour) in studies.items()})
    what = "OPDF minus plain distillation in points, at equal steps and tuned rates"
    return figure, f"{what}. {in_words(effects)}."


def what_helps() -> tuple[Figure, str]:
    """Every arm of the study that tried many."""
    results = study("what-helps")
    variants = results["plan"]["variants"]
    arms = [variant for variant in variants if not variant.startswith("KD")]
    effects = {arm: pooled(results, arm) for arm in arms}
    figure, axes = panel(height=0.26 * len(arms) + 0.6)
    forest(axes, effects, dict.fromkeys(arms, BLUE))
    what = "Arms with cores minus plain distillation in points, two students together"
    return figure, f"{what}. {in_words(effects)}."


def narrow() -> tuple[Figure, str]:
    """Test scores of narrow students after few and many steps."""
    studies = {"300": study("narrow"), "1,500": study("narrow-long")}
    settings = studies["300"]["plan"]["settings"]
    figure, axes = panel(height=3.0)
    labels, told = [], []
    for setting in settings:
        for steps, results in studies.items():
            place, label = len(labels), f"{setting}, {steps} steps"
            kd, opdf = (test_score(results, setting, v) for v in ("KD", "OPDF"))
            teacher = teacher_score(results, setting)
            axes.plot([kd, opdf], [place, place], color=GREY, linewidth=1)
            points = [
                axes.plot(kd, place, "o", color=GREY, label="plain distillation"),
                axes.plot(opdf, place, "o", color=BLUE, label="OPDF"),
                axes.plot(
                    teacher, place, "|", color=TEXT, markersize=12, label="teacher"
                ),
            ]
            labels.append(label)
            told.append(f"{label}: KD {kd:.1f}, OPDF {opdf:.1f}, teacher {teacher:.1f}")
    axes.set(xlabel="test accuracy in percent")
    rows(axes, labels)
    figure.legend(handles=[p[0] for p in points], loc="outside upper center", ncols=3)
    what = "Test accuracy of students of half their teacher's width that start untrained"
    return figure, f"{what}. {'; '.join(told)}."


def rates() -> tuple[Figure, str]:
    """Validation score against learning rate, with and without matched rates."""
    results = study("learning-rates")
    grid = results["plan"]["rates"]
    arms = {
        "1.0, plain": ("KD", GREY),
        "1.9": ("SVD {}", GREEN),
        "2.8": ("3x {}", BLUE),
        "4.5": ("5x {}", ORANGE),
    }
    figure = Figure((WIDTH, 4.8), layout="constrained")
    panels = figure.subplots(2, sharex=True, sharey=True)
    told = []
    for axes, kind, value in zip(
        panels, ("matched", "raw"), ("match-dense", "none"), strict=True
    ):
        for label, (variant, colour) in arms.items():
            scores = [
                validation_score(results, variant.format(kind), rate) for rate in grid
            ]
            score, best = max(zip(scores, grid, strict=True))
            (line,) = axes.plot(grid, scores, color=colour)
            axes.plot(best, score, "o", color=colour)
            if kind == "matched":
                line.set_label(label)
            told.append(f"{value}, scale {label}: best at {best:g} with {score:.1f}")
        title = f'lr_scaling="{value}"'
        axes.set(title=title, xscale="log", ylabel="validation accuracy")
    panels[-1].set(xlabel="learning rate (a dot marks the best one)")
    panels[-1].set_xticks(grid, [f"{rate:g}" for rate in grid])
    panels[-1].set_xticks([], minor=True)
    legend = "parameters in training over parameters at inference"
    figure.legend(loc="outside upper center", ncols=4, title=legend)
    return figure, f"Validation accuracy against learning rate. {'; '.join(told)}."


def step_time() -> tuple[Figure, str]:
    """The time of a step over plain distillation's, against micro-batches a step."""
    measured = benchmark("step")
    ways = {
        "opdf": ("opdf", "-", 1, (-8, 0), "right"),
        "rebuild": ("rebuilt", ":", 16, (8, 0), "left"),
    }
    figure, axes = panel(height=3.4)
    told = []
    for ones, colour in ((1, GREEN), (3, BLUE), (8, ORANGE)):
        chosen = [row for row in measured if row["L"] == ones]
        batches = [row["accumulation"] for row in chosen]
        for way, (name, dashes, end, offset, side) in ways.items():
            over = [row[way]["median"] / row["plain"]["median"] for row in chosen]
            axes.plot(batches, over, dashes, marker="o", markersize=4, color=colour)
            axes.annotate(
                f"L = {ones}, {name}",
                (end, over[batches.index(end)]),
                offset,
                textcoords="offset points",
                ha=side,
                va="center",
                color=colour,
            )
            pairs = zip(over, batches, strict=True)
            told.append(
                f"L = {ones}, {name}: " + ", ".join(f"{r:.2f} at {n}" for r, n in pairs)
            )
    axes.axhline(1, color=TEXT, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set(xlim=(0.35, 45), ylim=(0.8, None))
    axes.set(
        xlabel="micro-batches of 16x32 tokens in a step",
        ylabel="time over plain distillation",
    )
    axes.set_xticks([1, 4, 16], ["1", "4", "16"])
    what = "Time of a step over plain distillation's, MiniLM on two CPU cores"
    return figure, f"{what}. {'; '.join(told)}."


def shrunk() -> tuple[Figure, str]:
    """Students before any training: started by shrink, and made otherwise."""
    ways = {
        "shrink": ("started by shrink", BLUE, "o"),
        "blocks copied": ("blocks copied", GREEN, "D"),
        "pruned": ("pruned by Torch-Pruning", ORANGE, "s"),
        "untrained": ("untrained", GREY, "X"),
    }
    found = {
        (trial["sizes"], trial["way"]): trial["teacher"] - trial["behind"]
        for trial in lines("shrink")
        if trial["task"] == "text" and trial["examples"] == 512
    }
    teacher = next(t["teacher"] for t in lines("shrink") if t["task"] == "text")
    students = {
        "width 192, neurons 768": "half the width and neurons",
        "width 96, neurons 384": "a quarter of both",
        "3 blocks": "half the blocks",
        "3 blocks, width 192, neurons 768": "half of all three",
    }
    for (sizes, way), score in list(found.items()):
        if way.startswith("Torch-Pruning"):  # the better of its importances
            found[sizes, "pruned"] = max(score, found.get((sizes, "pruned"), 0.0))
    figure, axes = panel(height=2.8)
    told = []
    for way, (label, colour, marker) in ways.items():
        scores = {s: found[s, way] for s in students if (s, way) in found}
        places = [list(students).index(s) for s in scores]
        axes.plot(list(scores.values()), places, marker, color=colour, label=label)
        each = ", ".join(f"{students[s]} {score:.1f}" for s, score in scores.items())
        told.append(f"{label}: {each}")
    axes.axvline(teacher, color=TEXT, linewidth=1)
    place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    axes.annotate("teacher", (teacher, 0.03), (-4, 0), ha="right", fontsize=9, **place)
    axes.set(xlabel="test accuracy before any training, %")
    axes.margins(y=0.15)
    rows(axes, list(students.values()))
    figure.legend(loc="outside upper center", ncols=4, fontsize=9, columnspacing=1)
    what = "Students of MiniLM on movie-sentiment before any training"
    return figure, f"{what}; teacher {teacher:.1f}. {'; '.join(told)}."


def sizes() -> tuple[Figure, str]:
    """Students of several sizes against their teacher, before and after a training."""
    figure, axes = panel(height=0.24 * len(sized()) + 0.9)
    told = []
    for place, (results, setting) in enumerate(sized()):
        before, after = behind(results, setting, "KD", "validation")
        axes.plot([before, after], [place, place], color=GREY, linewidth=1)
        axes.plot(before, place, "o", color=GREY, label="as it starts")
        axes.plot(after, place, "o", color=BLUE, label="after distilling")
        told.append(f"{setting}: {before:.1f} before, {after:.1f} after")
    axes.axvline(0, color=TEXT, linewidth=1)
    axes.invert_xaxis()
    axes.set(xlabel="points behind the teacher, validation")
    rows(axes, [setting for _, setting in sized()])
    handles = axes.get_legend_handles_labels()[0][:2]
    figure.legend(handles=handles, loc="outside upper center", ncols=2)
    what = "Points behind the teacher, validation"
    return figure, f"{what}. {'; '.join(told)}."


def arms() -> tuple[Figure, str]:
    """Scores of started students against the time of each way to train them."""
    results = study("start-images")
    settings = [s for s in results["plan"]["settings"] if s in results["rates"]]
    colours = dict(
        zip(
            results["plan"]["variants"],
            (GREY, BLUE, GREEN, ORANGE),
            strict=False,  # the others are in the table
        )
    )
    figure, axes = panel(height=3.4)
    told = []
    for variant, colour in colours.items():
        ways = [
            way(chosen_runs(results, s, variant), chosen_runs(results, s, "KD"))
            for s in settings
        ]
        times, scores = (fmeans([w[k] for w in ways]) for k in (0, 1))
        axes.plot(times, scores, marker="o", markersize=4, color=colour, label=variant)
        told.append(
            f"{variant}: {scores[0]:.1f} before training, {scores[-1]:.1f} after "
            f"{times[-1]:.2f} of the time"
        )
    axes.axhline(
        fmean(teacher_score(results, s, "validation") for s in settings),
        color=TEXT,
        linewidth=1,
    )
    axes.set_xscale("symlog", base=2, linthresh=1 / 32)
    axes.set_xticks(
        [0, 1 / 32, 1 / 8, 1 / 2, 1, 2], ["0", "1/32", "1/8", "1/2", "1", "2"]
    )
    axes.set(
        xlabel="time of training over that of plain distillation",
        ylabel="validation accuracy, %",
    )
    figure.legend(loc="outside upper center", ncols=3, fontsize=9)
    what = (
        f"Validation accuracy against time of training, mean of {len(settings)} sets; "
        "the line is the teacher"
    )
    return figure, f"{what}. {'; '.join(told)}."


FIGURES: dict[str, Callable[[], tuple[Figure, str]]] = {
    "shrunk": shrunk,
    "sizes": sizes,
    "arms": arms,
    "gains": gains,
    "what-helps": what_helps,
    "narrow": narrow,
    "rates": rates,
    "step-time": step_time,
}


# --- what they share


def panel(height: float) -> tuple[Figure, Axes]:
    figure = Figure((WIDTH, height), layout="constrained")
    return figure, figure.subplots()


Effects = dict[str, tuple[float, float, float]]
"""By label: low end, mean and high end of a difference, in points."""


def forest(axes: Axes, effects: Effects, colours: dict[str, str]) -> None:
    """Differences with their intervals, one a row."""
    for place, (label, (low, mean, high)) in enumerate(effects.items()):
        bar = [[mean - low], [high - mean]]
        axes.errorbar(mean, place, xerr=bar, fmt="o", capsize=3, color=colours[label])
    axes.axvline(0, color=TEXT, linewidth=1)
    axes.set(xlabel="points over plain distillation, 95 % intervals")
    rows(axes, list(effects))


def in_words(effects: Effects) -> str:
    ends = effects.items()
    return "; ".join(
        f"{label}: {m:+.1f} [{low:+.1f}, {high:+.1f}]" for label, (low, m, high) in ends
    )


def rows(axes: Axes, labels: list[str]) -> None:
    """Name the rows of a figure, the first on top."""
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


# --- the numbers


def study(name: str) -> Study:
    return read_results(ROOT / "studies" / "results" / name)


def benchmark(name: str) -> list[dict[str, Any]]:
    table = json.loads((ROOT / "benchmarks/results" / f"{name}.json").read_text())
    measured: list[dict[str, Any]] = table["rows"]
    return measured


def lines(name: str) -> list[dict[str, Any]]:
    """A benchmark's results that are kept as one JSON object a line."""
    text = (ROOT / "benchmarks/results" / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def pooled(results: Study, variant: str) -> tuple[float, float, float]:
    """Low end, mean and high end in points, over all settings where there are several."""
    found = [
        e for e in results["effects"] if (e["variant"], e["at"]) == (variant, "best")
    ]
    low, mean, high = (100 * found[-1][end] for end in ("low", "mean", "high"))
    return low, mean, high


def test_score(results: Study, setting: str, variant: str) -> float:
    """In percent, at the variant's chosen rate."""
    runs = chosen_runs(results, setting, variant)
    return 100 * fmean(run["test"] for run in runs if run["test"] is not None)


def chosen_runs(results: Study, setting: str, variant: str) -> list[dict[str, Any]]:
    """Those at a variant's chosen rate, one a seed."""
    chosen = (setting, variant, results["rates"][setting][variant])
    runs = [
        r for r in results["runs"] if (r["setting"], r["variant"], r["rate"]) == chosen
    ]
    return [run for run in runs if run["seed"] in results["seeds"][setting]]


SIZES = ("sizes-text", "sizes-topics", "sizes-images")
"""Studies of students of several sizes."""


@cache
def sized() -> list[tuple[Study, str]]:
    """The settings of these studies, each with its results."""
    found = [study(name) for name in SIZES]
    return [(results, setting) for results in found for setting in results["rates"]]


def behind(results: Study, setting: str, variant: str, part: str) -> tuple[float, float]:
    """Points behind the teacher before training, on validation, and after it. Means."""
    runs, metric = chosen_runs(results, setting, variant), results["metrics"][setting]
    before = [
        r["facts"]["teacher"]["validation"][metric]
        - r["facts"]["scores"][0]["validation"]
        for r in runs
    ]
    after = [r["facts"]["teacher"][part][metric] - r[part] for r in runs]
    return 100 * fmean(before), 100 * fmean(after)


def share(results: Study, setting: str, variant: str) -> tuple[float, float]:
    """Times of a student's start and of its training over its teacher's, medians.

    Runs of one teacher share its answers to all examples, and the first of them waited
    for these. Each training is charged for the examples that it used.
    """
    batch = results["study"]["common"]["training"].get("per_device_train_batch_size", 32)
    shares = []
    for run in chosen_runs(results, setting, variant):
        facts = run["facts"]
        if facts["teacher"]["train_seconds"] is None:
            continue  # its teacher is of an earlier process
        kin = [r for r in results["runs"] if r["facts"]["teacher"] == facts["teacher"]]
        alike = [r for r in kin if (r["setting"], r["variant"]) == (setting, variant)]
        started = median(r["facts"]["start_seconds"] for r in alike)
        all_asked = max(r["facts"]["start_seconds"] for r in kin) - started
        asked = all_asked * facts["steps"] * batch / facts["train_examples"]
        whole = facts["teacher"]["train_seconds"]
        shares.append((started / whole, (asked + run["seconds"]) / whole))
    start, training = (median(column) for column in zip(*shares, strict=True))
    return start, training


def near_table(name: str) -> str:
    """How many students came within a point of their teacher, and after how many steps.

    On validation; a line a variant. Medians are of those that came.
    """
    groups = near_rows(Results(study(name)))
    rows: dict[str, list[str]] = {}
    for group in groups:
        for row in group["rows"]:
            after = f" ({row['steps']})" if row["steps"] else ""
            rows.setdefault(row["variant"], []).append(f"{row['there']}{after}")
    heads = ("", *(group["setting"] for group in groups))
    lines = [(variant, *cells) for variant, cells in rows.items()]
    return tabulate(lines, heads, tablefmt="github", disable_numparse=True)


def sizes_table() -> str:
    """A line a setting: the teacher's score, points behind it, and the time for that."""
    table = []
    for results, setting in sized():
        before, after = behind(results, setting, "KD", "validation")
        _, tested = behind(results, setting, "KD", "test")
        scores = (f"{points:.1f}" for points in (before, after, tested))
        start, training = share(results, setting, "KD")
        time = f"{100 * start:.0f} + {100 * training:.0f} %"
        table.append((setting, f"{teacher_score(results, setting):.1f}", *scores, time))
    heads = ("", "teacher", "before", "after", "after, test", "time")
    return tabulate(table, heads, tablefmt="github", disable_numparse=True)


TABLES: dict[str, Callable[[str], str]] = {
    "studies/results/": lambda name: summary(study(name)),
    "near the teacher: ": near_table,
    "studies of sizes": lambda _: sizes_table(),
}
"""By how their comment begins; what follows there is given to them."""


def way(
    runs: list[dict[str, Any]], baseline: list[dict[str, Any]]
) -> tuple[list[float], list[float]]:
    """Times over the baseline's whole training, and validation scores in percent."""
    whole = median(run["seconds"] for run in baseline)
    points = [r["facts"]["scores"] for r in runs]
    times = [
        [p["seconds"] for p in some] + [r["seconds"]]
        for some, r in zip(points, runs, strict=True)
    ]
    scores = [
        [p["validation"] for p in some] + [r["validation"]]
        for some, r in zip(points, runs, strict=True)
    ]
    middle = [median(column) for column in zip(*times, strict=True)]
    return [t / whole for t in middle], [100 * s for s in fmeans(scores)]


def fmeans(rows: list[list[float]]) -> list[float]:
    """Of rows of equal length, column by column."""
    return [fmean(column) for column in zip(*rows, strict=True)]


def teacher_score(results: Study, setting: str, part: str = "test") -> float:
    """In percent, over the seeds."""
    metric = results["metrics"][setting]
    runs = [run for run in results["runs"] if run["setting"] == setting]
    return 100 * fmean(
        {r["seed"]: r["facts"]["teacher"][part][metric] for r in runs}.values()
    )


def validation_score(results: Study, variant: str, rate: float) -> float:
    """In percent, over the seeds of a study with one setting."""
    runs = [
        run for run in results["runs"] if (run["variant"], run["rate"]) == (variant, rate)
    ]
    return 100 * fmean(run["validation"] for run in runs)


if __name__ == "__main__":
    main()
