"""A study's results as one HTML page that needs no network, as figures, and as tables in Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from opdf.files import replacing
from opdf.job import load_yaml
from opdf.study.figures import Picture, Results, pictures, svg
from opdf.study.judge import POINT
from opdf.study.markdown import table
from opdf.study.results import DIVERGED, POOLED
from opdf.study.scale import mean_of

SIGNS = dict(zip("osD^vPX*<>", "●■◆▲▼✚✖★◀▶", strict=True)) | {"-": "━", "--": "╍", ":": "┈"}
"""Characters for matplotlib's markers and lines in a legend of text."""

NAMED = 4
"""Up to this many are named one by one."""

NEAR = 0.01
"""Distance of a score that counts as near the teacher's."""

ROUNDED = 1e-5
"""Least difference between scores: those on the way are kept with five digits."""


def read_results(folder: Path) -> dict[str, Any]:
    """The content of a study's results.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a study's.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; opdf sweep writes it when its runs are done")
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); run opdf sweep again") from error
    if not isinstance(results, dict) or not {"plan", "runs", "effects", "rates", "seeds", "metrics"} <= results.keys():
        raise ValueError(f"{path} was not written by opdf sweep; give the output folder of a study")
    if not results["rates"]:
        raise ValueError(f"{path} has no setting and seed with all of its runs; run opdf sweep again to finish one")
    return results


def is_superseded(results: dict[str, Any], folder: Path) -> bool:
    """Whether a sweep of another study has begun in the folder since it has these results, and has not ended."""
    path = folder / "study.yaml"
    if not path.is_file():
        return False
    newest = json.loads(json.dumps(load_yaml(path.read_text())))  # as results.json has it
    then, now = (dict(study, output=None, workers=None) for study in (results.get("study") or newest, newest))
    return then != now


def write_report(results: dict[str, Any], folder: Path, title: str) -> Path:
    """Write report.html and figures/NAME.svg and .png into a folder; returns the page's path."""
    seen = Results(results)
    drawn = list(pictures(results))
    for picture in drawn:
        _write_figure(picture, folder / "figures")
    environment = Environment(loader=PackageLoader("opdf.study", "."), autoescape=select_autoescape(["html"]))
    page = environment.get_template("report.html").render(
        title=title, figures=[_on_page(picture) for picture in drawn], baseline=results["plan"]["baseline"],
        scores=score_rows(seen), effects=effect_rows(results), near=near_rows(seen), costs=cost_rows(seen),
        conclusions=conclusions(results), cautions=cautions(results), versions=results.get("versions", {}),
        study=yaml.safe_dump(results.get("study", results["plan"]), sort_keys=False, allow_unicode=True),
        seeds=results["seeds"], units=units(results).replace("%", "percent"),
    )  # fmt: skip
    path = folder / "report.html"
    with replacing(path) as scratch:
        scratch.write_text(page)
    return path


def units(results: dict[str, Any]) -> str:
    """What scores are shown in."""
    seen = Results(results)
    return " or ".join(sorted({"perplexity" if seen.scale(s).of_perplexity else "%" for s in seen.settings}))


def conclusions(results: dict[str, Any]) -> list[str]:
    """One sentence a variant over all settings; where these were not pooled, one on each."""
    best = [e for e in results["effects"] if e["at"] == "best"]
    found = [e for e in best if e["setting"] == POOLED] or best
    return [f"{e['variant']} against {results['plan']['baseline']}, {e['setting']}: {e['verdict']}." for e in found]


def notes(results: dict[str, Any]) -> list[str]:
    """Lines below the table of `summary`: the conclusions where it has no difference over all settings, and what a
    point of perplexity is.
    """
    apart = len(results["rates"]) > 1 and all(e["setting"] != POOLED for e in results["effects"])
    return (conclusions(results) if apart else []) + ([POINT] if "perplexity" in units(results) else [])


def cautions(results: dict[str, Any]) -> list[str]:
    """Warnings about the conclusions: rates at the edge of the grid, several teachers, diverged runs, runs of several
    versions, chance.
    """
    grid = sorted(results["plan"]["rates"])
    chosen = [(f"{v} on {s}", rate) for s, rates in results["rates"].items() for v, rate in rates.items()]
    found = []
    for edge, rate in (("lowest", grid[0]), ("highest", grid[-1])) if len(grid) > 1 else ():
        at = [name for name, best in chosen if best == rate]
        if at:
            who = ", ".join(at) if len(at) <= NAMED else f"{len(at)} of {len(chosen)} variants on a setting"
            found.append(f"The {edge} learning rate was the best of {who}: a better one may lie beyond.")
    seen = Results(results)
    if apart := [s for s in seen.settings if any(len(scores) > 1 for scores in seen.teachers(s))]:
        found.append(f"Variants have different teachers on {', '.join(apart)}, so no teacher's score is shown there.")
    for variant in results["plan"]["variants"]:
        some = [DIVERGED in run["facts"] for run in results["runs"] if run["variant"] == variant]
        if any(some):
            found.append(f"{sum(some)} of {len(some)} runs of {variant} diverged; they count as knowing nothing.")
    if others := _several_versions(results):
        found.append(
            f"Runs were made with several versions: {'; '.join(others)}. A difference between variants may come from "
            "that."
        )
    if "perplexity" in units(results):
        found.append(POINT)
    if len(results["effects"]) > 2:
        found.append(
            f"{len(results['effects'])} comparisons were made. Where nothing differs, one interval in twenty excludes "
            "zero all the same: what is ahead here has to be ahead again on new seeds."
        )
    return found


def _several_versions(results: dict[str, Any]) -> list[str]:
    """Packages of which the runs had several versions, with these; runs of old have none noted."""
    made: dict[str, dict[str, None]] = {}
    for run in results["runs"]:
        for name, version in run["facts"].get("versions", {}).items():
            made.setdefault(name, {})[version] = None
    return [f"{name} {' and '.join(some)}" for name, some in made.items() if len(some) > 1]


def summary(results: dict[str, Any]) -> str:
    """A Markdown table with a line a variant, and one each for the teacher and for chance where they are known.

    Columns: test scores in percent, or perplexity, at the chosen rates (in brackets), the difference to the baseline
    over all settings in points with its 95 % interval, each at its own best rate and both at the baseline's, and the
    time of training over the baseline's.
    """
    seen = Results(results)
    baseline, settings = results["plan"]["baseline"], seen.settings
    corner = "perplexity" if units(results) == "perplexity" else ""
    names = (_head(seen, s) for s in settings)
    heads = (corner, *names, "difference, best rates", f"difference, {baseline}'s rate", "time")
    effects = {(e["setting"], e["variant"], e["at"]): e for e in results["effects"]}
    where = POOLED if len(settings) > 1 else settings[0]
    rows = []
    for cost in cost_rows(seen):
        variant = cost["variant"]
        at = [
            f"{seen.scale(s).text(mean_of(seen.of(s, variant)['test']))} ({seen.rates[s][variant]:g})" for s in settings
        ]
        found = [effects.get((where, variant, rate)) for rate in ("best", "equal")]
        against = ["" if e is None else f"{100 * e['mean']:+.1f} [{_interval(e, ', ')}]" for e in found]
        rows.append((variant, *at, *against, cost["ratio"]))
    for name, score in (("teacher", seen.teacher), ("chance", seen.chance)):
        known = [score(s) for s in settings]
        if any(k is not None for k in known):
            shown = ("" if k is None else seen.scale(s).text(k) for s, k in zip(settings, known, strict=True))
            rows.append((name, *shown, "", "", ""))
    return table(rows, heads)


def rates_table(results: dict[str, Any]) -> str:
    """A Markdown table of mean validation scores: a line a setting and variant, a column a learning rate."""
    seen = Results(results)
    rows = []
    for setting in seen.settings:
        scale = seen.scale(setting)
        for variant in seen.variants:
            some = seen.of(setting, variant, chosen=False)
            means = some[some.seed.isin(seen.seeds[setting])].groupby("rate")["validation"].agg(mean_of)
            rows.append((_head(seen, setting), variant, *(scale.text(means[rate]) for rate in seen.plan["rates"])))
    heads = ("setting", "variant", *(f"{rate:g}" for rate in seen.plan["rates"]))
    return table(rows, heads)


def score_rows(seen: Results) -> list[dict[str, Any]]:
    """By setting: the teacher's score and chance, and for each variant its rate, seeds and scores."""
    groups = []
    for setting in seen.settings:
        rows, scale = [], seen.scale(setting)
        for variant in seen.variants:
            some = seen.of(setting, variant)
            rows.append({
                "variant": variant, "rate": f"{seen.rates[setting][variant]:g}", "seeds": len(some),
                "validation": scale.mean_and_spread(some["validation"]), "test": scale.mean_and_spread(some["test"]),
            })  # fmt: skip
        known = {"teacher": seen.teacher(setting), "chance": seen.chance(setting)}
        beside = ", ".join(f"{name} {scale.text(score)}" for name, score in known.items() if score is not None)
        groups.append({"setting": _head(seen, setting), "beside": beside, "rows": rows})
    return groups


def effect_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """By setting: every variant with the verdicts at the best and at the baseline's rate."""
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for e in results["effects"]:
        row = groups.setdefault(e["setting"], {}).setdefault(e["variant"], {"variant": e["variant"]})
        row[e["at"]] = {"verdict": e["verdict"], "interval": _interval(e, " to ")}
    return [{"setting": setting, "rows": list(rows.values())} for setting, rows in groups.items()]


def near_rows(seen: Results) -> list[dict[str, Any]]:
    """By setting: when the variants were first seen within a point of their teacher, on validation. Medians over seeds.

    Empty where students were not scored on their way.
    """
    groups = []
    for setting in seen.settings:
        rows = []
        for variant in seen.variants:
            runs = [run for run in seen.of(setting, variant).itertuples() if "scores" in run.facts]
            first = [point for run in runs if (point := _first_near(seen, run)) is not None]
            if runs:
                rows.append({
                    "variant": variant, "there": f"{len(first)} of {len(runs)}",
                    "steps": _median([p["steps"] for p in first], "{:.0f}"),
                    "seconds": _median([p["seconds"] for p in first], "{:.1f}"),
                    "share": _median([p["share"] for p in first if p["share"] is not None], "{:.1f} %"),
                })  # fmt: skip
        if rows:
            groups.append({"setting": setting, "rows": rows})
    return groups


def cost_rows(seen: Results) -> list[dict[str, Any]]:
    """Parameters, steps, time of training over the baseline's (median over equal settings, rates and seeds), S2's.

    Runs that diverged ended early: they have no part in the time.
    """
    whole = seen.runs[[DIVERGED not in facts for facts in seen.runs["facts"]]]
    table = whole.pivot_table(index=["setting", "rate", "seed"], columns="variant", values="seconds")
    table = table.reindex(columns=seen.variants)
    rows = []
    for variant in seen.variants:
        some = seen.runs[seen.runs.variant == variant]
        facts = pd.DataFrame(list(some["facts"]))
        ratio = (table[variant] / table[seen.plan["baseline"]]).median()
        rows.append({
            "variant": variant, "train_params": _range(some["train_params"]),
            "inference_params": _range(some["inference_params"]),
            "steps": _range(facts["steps"]) if "steps" in facts else "",
            "ratio": "" if pd.isna(ratio) else f"{ratio:.2f}",
            **{key: _seconds(facts, key) for key in ("decompose_seconds", "contract_seconds")},
        })  # fmt: skip
    return rows


def _head(seen: Results, setting: str) -> str:
    """A setting's name in a table, with what its scores are if those of others are percent."""
    mixed = len({seen.scale(s).of_perplexity for s in seen.settings}) > 1
    return f"{setting}, perplexity" if mixed and seen.scale(setting).of_perplexity else setting


def _first_near(seen: Results, run: Any) -> dict[str, Any] | None:
    """Steps and seconds of the first score near the teacher's; the seconds also in percent of its training."""
    teacher = run.facts["teacher"]
    its_score = seen.scale(run.setting).score(teacher["validation"][seen.metrics[run.setting]])
    wanted = its_score - NEAR - ROUNDED
    for point in seen.way(run):
        if point["validation"] >= wanted:
            whole = teacher.get("train_seconds")
            share = 100 * point["seconds"] / whole if whole else None
            return {"steps": point["step"], "seconds": point["seconds"], "share": share}
    return None


def _interval(effect: dict[str, Any], between: str) -> str:
    return f"{100 * effect['low']:+.1f}{between}{100 * effect['high']:+.1f}"


def _median(values: list[float], form: str) -> str:
    return form.format(float(np.median(values))) if values else ""


def _range(values: Any) -> str:
    low, high = int(min(values)), int(max(values))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _seconds(facts: pd.DataFrame, key: str) -> str:
    return f"{facts[key].median():.2f}" if key in facts and facts[key].notna().any() else ""


def _write_figure(picture: Picture, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figure = picture.whole()
    figure.savefig(folder / f"{picture.name}.png", dpi=150, metadata={"Software": None})
    (folder / f"{picture.name}.svg").write_text(svg(figure))


def _on_page(picture: Picture) -> dict[str, Any]:
    """A figure as the page has it: its panels apart, so that as many stand side by side as fit."""
    panels = [
        Markup(_inline(svg(picture.panel(title)), f"{picture.name}-{k}"))  # noqa: S704 - our own figure
        for k, title in enumerate(picture.panels)
    ]
    legend = [{"label": key.label, "colour": key.colour, "sign": SIGNS[key.marker]} for key in picture.keys]
    detail = picture.name.startswith("spectra")
    return {
        "name": picture.name, "caption": picture.caption, "panels": panels, "legend": legend, "detail": detail
    }  # fmt: skip


def _inline(text: str, name: str) -> str:
    """An SVG file's element, with its internal names made the figure's own so that several can share a page."""
    element = "\n".join(line.lstrip() for line in text[text.index("<svg") :].splitlines())
    for attribute in ('id="', 'href="#', "url(#"):
        element = element.replace(attribute, f"{attribute}{name}-")
    return element
