"""A study's results as one HTML page that needs no network, and as figures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup
from tabulate import tabulate

from opdf.files import replacing
from opdf.study.figures import chosen, figures, frame
from opdf.study.results import DIVERGED, POOLED


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


def write_report(results: dict[str, Any], folder: Path, title: str) -> Path:
    """Write report.html and figures/NAME.svg and .png into a folder; returns the page's path."""
    drawn = []
    pictures = folder / "figures"
    pictures.mkdir(parents=True, exist_ok=True)
    for name, caption, figure in figures(results):
        figure.savefig(pictures / f"{name}.png", dpi=150, metadata={"Software": None})
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
        svg = buffer.getvalue()
        (pictures / f"{name}.svg").write_text(svg)
        drawn.append({"name": name, "caption": caption, "svg": Markup(_inline(svg, name))})  # noqa: S704 - our own figure
    environment = Environment(loader=PackageLoader("opdf.study", "."), autoescape=select_autoescape(["html"]))
    page = environment.get_template("report.html").render(
        title=title, figures=drawn, scores=score_rows(results), effects=effect_rows(results), costs=cost_rows(results),
        baseline=results["plan"]["baseline"], conclusions=conclusions(results), cautions=cautions(results),
        versions=results.get("versions", {}),
        study=yaml.safe_dump(results.get("study", results["plan"]), sort_keys=False, allow_unicode=True),
        seeds=results["seeds"],
    )  # fmt: skip
    path = folder / "report.html"
    with replacing(path) as scratch:
        scratch.write_text(page)
    return path


def conclusions(results: dict[str, Any]) -> list[str]:
    """One sentence a variant: over all settings where there are several, else on the only one."""
    names = {e["setting"] for e in results["effects"]}
    where = POOLED if POOLED in names else next(iter(names), "")
    found = [e for e in results["effects"] if e["setting"] == where and e["at"] == "best"]
    return [f"{e['variant']} against {results['plan']['baseline']}, {where}: {e['verdict']}." for e in found]


def cautions(results: dict[str, Any]) -> list[str]:
    """What to keep in mind with the conclusions: rates at the edge of the grid, diverged runs, chance."""
    grid = sorted(results["plan"]["rates"])
    found = []
    for edge, rate in (("lowest", grid[0]), ("highest", grid[-1])) if len(grid) > 1 else ():
        at = [f"{v} on {s}" for s, rates in results["rates"].items() for v, chosen in rates.items() if chosen == rate]
        if at:
            found.append(f"The {edge} learning rate was the best of {', '.join(at)}: a better one may lie beyond.")
    runs = frame(results)
    for variant in results["plan"]["variants"]:
        some = [DIVERGED in facts for facts in runs[runs.variant == variant]["facts"]]
        if any(some):
            found.append(f"{sum(some)} of {len(some)} runs of {variant} diverged; they count as answering 0.")
    if len(results["effects"]) > 2:
        found.append(
            f"{len(results['effects'])} comparisons were made. Where nothing differs, one interval in twenty excludes "
            "zero all the same: what is ahead here has to be ahead again on new seeds."
        )
    return found


def summary(results: dict[str, Any]) -> str:
    """A Markdown table with a line a variant.

    Columns: test scores in percent at the chosen rates (in brackets), the difference to the baseline over all settings
    in points with its 95 % interval, each at its own best rate and both at the baseline's, and the time of training
    over the baseline's.
    """
    baseline, settings = results["plan"]["baseline"], list(results["rates"])
    heads = ("", *settings, "difference, best rates", f"difference, {baseline}'s rate", "time")
    effects = {(e["setting"], e["variant"], e["at"]): e for e in results["effects"]}
    where = POOLED if len(settings) > 1 else settings[0]
    runs = chosen(results)
    scores = runs.groupby(["variant", "setting"])["test"].mean()
    rows = []
    for cost in cost_rows(results):
        variant = cost["variant"]
        at = [f"{100 * scores[variant, s]:.1f} ({results['rates'][s][variant]:g})" for s in settings]
        found = [effects.get((where, variant, rate)) for rate in ("best", "equal")]
        against = ["" if e is None else f"{100 * e['mean']:+.1f} [{_interval(e, ', ')}]" for e in found]
        rows.append((variant, *at, *against, cost["ratio"]))
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def rates_table(results: dict[str, Any]) -> str:
    """A Markdown table of mean validation scores in percent: a line a setting and variant, a column a learning rate."""
    runs = frame(results)
    runs = runs[[seed in results["seeds"][setting] for setting, seed in zip(runs.setting, runs.seed, strict=True)]]
    means = 100 * runs.groupby(["setting", "variant", "rate"])["validation"].mean()
    plan = results["plan"]
    rows = [
        (setting, variant, *(f"{means[setting, variant, rate]:.1f}" for rate in plan["rates"]))
        for setting in results["rates"] for variant in plan["variants"]
    ]  # fmt: skip
    heads = ("setting", "variant", *(f"{rate:g}" for rate in plan["rates"]))
    return tabulate(rows, heads, tablefmt="github", disable_numparse=True)


def score_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Setting, variant, chosen rate, seeds, validation and test score with spread, in percent."""
    rows = []
    runs = chosen(results)
    for setting, rates in results["rates"].items():
        for variant, rate in rates.items():
            some = runs[(runs.setting == setting) & (runs.variant == variant)]
            rows.append({
                "setting": setting, "variant": variant, "rate": f"{rate:g}", "seeds": len(some),
                "validation": _mean_and_spread(some["validation"]), "test": _mean_and_spread(some["test"]),
            })  # fmt: skip
    return rows


def effect_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Setting and variant with the verdicts at the best and at the baseline's rate."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for e in results["effects"]:
        row = rows.setdefault((e["setting"], e["variant"]), {"setting": e["setting"], "variant": e["variant"]})
        row[e["at"]] = {"verdict": e["verdict"], "interval": _interval(e, " to "), "seeds": e["seeds"]}
    return list(rows.values())


def cost_rows(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Parameters, time of training over the baseline's (median over equal settings, rates and seeds), S2's seconds."""
    runs = frame(results)
    table = runs.pivot_table(index=["setting", "rate", "seed"], columns="variant", values="seconds")
    rows = []
    for variant in results["plan"]["variants"]:
        some = runs[runs.variant == variant]
        facts = pd.DataFrame(list(some["facts"]))
        ratio = (table[variant] / table[results["plan"]["baseline"]]).median()
        rows.append({
            "variant": variant, "train_params": _count(some["train_params"]),
            "inference_params": _count(some["inference_params"]), "ratio": f"{ratio:.2f}",
            **{key: _seconds(facts, key) for key in ("decompose_seconds", "contract_seconds")},
        })  # fmt: skip
    return rows


def _interval(effect: dict[str, Any], between: str) -> str:
    return f"{100 * effect['low']:+.1f}{between}{100 * effect['high']:+.1f}"


def _mean_and_spread(values: pd.Series) -> str:
    percent = 100 * values.astype(float)
    return f"{percent.mean():.2f}" + (f" ± {percent.std():.2f}" if len(percent) > 1 else "")


def _count(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _seconds(facts: pd.DataFrame, key: str) -> str:
    return f"{facts[key].median():.2f}" if key in facts and facts[key].notna().any() else ""


def _inline(svg: str, name: str) -> str:
    """An SVG file's element, with its internal names made the figure's own so that several can share a page."""
    element = "\n".join(line.lstrip() for line in svg[svg.index("<svg") :].splitlines())
    for attribute in ('id="', 'href="#', "url(#"):
        element = element.replace(attribute, f"{attribute}{name}-")
    return element
