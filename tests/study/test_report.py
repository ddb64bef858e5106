"""A report made of known runs: what its tables say, and what a real browser draws of it."""

from __future__ import annotations

import copy
import io
import json
import math
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opdf.data import Task
from opdf.job.options import yaml_of
from opdf.study import Cell, Outcome, Plan, conclude
from opdf.study.figures import Results, pictures, svg
from opdf.study.judge import POINT, Judge
from opdf.study.report import (
    cautions,
    conclusions,
    cost_rows,
    is_superseded,
    near_rows,
    notes,
    rates_table,
    read_results,
    score_rows,
    summary,
    units,
    write_report,
)
from opdf.study.results import DIVERGED, POOLED
from opdf.study.scale import WORST, Scale

PLAN = Plan(("films", "goods"), ("KD", "SVD", "OPDF"), (1e-4, 2e-4, 4e-4), (0, 1, 2), "KD")
SKILL = {"KD": 0.80, "SVD": 0.80, "OPDF": 0.90}
PARAMS = {"KD": 100, "SVD": 150, "OPDF": 320}
TEACHER = 0.905
EXAMPLES = 500


def labels(setting: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed + 10 * len(setting)).integers(2, size=EXAMPLES)


def outcome(cell: Cell) -> Outcome:
    """A student that is right with a known probability, best at the middle rate."""
    skill = SKILL[cell.variant] - (0.0 if cell.rate == 2e-4 else 0.1)
    rng = np.random.default_rng([cell.seed, len(cell.variant), round(cell.rate * 1e5)])
    truth = labels(cell.setting, cell.seed)
    answers = np.where(rng.random(EXAMPLES) < skill, truth, 1 - truth)
    teacher = {part: {"accuracy": TEACHER} for part in ("validation", "test")}
    facts: dict[str, Any] = {
        "teacher": teacher | {"train_seconds": 40.0}, "steps": 320,
        "curve": [{"step": s, "loss": 1 / s} for s in (1, 2, 3)],
        "scores": [
            {"step": step, "seconds": PARAMS[cell.variant] / 10 * step / 320, "validation": skill - 0.02 * rest}
            for step, rest in ((0, 20), (10, 5), (80, 2), (160, 0.1 * (cell.seed + 1)))
        ],
    }  # fmt: skip
    if cell.variant == "OPDF" and cell.seed == 0:
        cores = [[2.0, 1.0], [1.0, 1.0], [2.0, 1.0]]
        facts["spectra"] = {
            "matrix": "blocks.0.query",
            "steps": [{"step": 1, "cores": cores}, {"step": 9, "cores": cores}],
        }
    return Outcome(skill, answers.tolist(), PARAMS[cell.variant] / 10, PARAMS[cell.variant], 100, facts)


@cache
def concluded() -> dict[str, Any]:
    outcomes = {cell: outcome(cell) for cell in PLAN.cells()}
    judge = Judge(Task("classification", ("text",), "label", ("no", "yes")))
    return {
        "plan": {"settings": list(PLAN.settings), "variants": list(PLAN.variants), "rates": list(PLAN.rates),
                 "seeds": list(PLAN.seeds), "baseline": PLAN.baseline},
        "metrics": dict.fromkeys(PLAN.settings, "accuracy"),
        "versions": {"opdf": "test"},
        **conclude(PLAN, outcomes, labels, dict.fromkeys(PLAN.settings, judge)),
    }  # fmt: skip


def results() -> dict[str, Any]:
    return copy.deepcopy(concluded())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(results(), tmp_path_factory.mktemp("study"), "films & <goods>")


@pytest.mark.slow
def test_the_gain_that_was_put_in_is_reported(report: Path) -> None:
    page = report.read_text()
    verdict = re.search(r"OPDF against KD, all settings: gain of (\d+\.\d) ± (\d\.\d)\.", page)
    assert verdict is not None
    assert abs(float(verdict[1]) - 10) < float(verdict[2]) < 5
    assert "SVD against KD, all settings: no difference found" in page
    assert "films &amp; &lt;goods&gt;" in page
    assert "<td>3.20</td>" in page  # OPDF's time over KD's


def test_the_table_says_what_the_runs_do() -> None:
    found = results()
    head, _, *lines = summary(found).splitlines()
    rows = {row[0]: row[1:] for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}
    assert [cell.strip() for cell in head.split("|")[2:4]] == ["films", "goods"]
    assert list(rows) == [*PLAN.variants, "teacher", "chance"]
    assert rows["teacher"][:2] == ["90.5", "90.5"]
    for cell, setting in zip(rows["chance"], PLAN.settings, strict=False):
        shares = [np.bincount(labels(setting, seed)).max() / EXAMPLES for seed in PLAN.seeds]
        assert cell == f"{100 * np.mean(shares):.1f}"
    for row, variant in ((rows[v], v) for v in PLAN.variants):
        for cell, setting in zip(row, PLAN.settings, strict=False):
            right = [outcome_score(Cell(seed, setting, variant, 2e-4)) for seed in PLAN.seeds]
            assert cell == f"{100 * np.mean(right):.1f} (0.0002)"
    pooled = next(e for e in found["effects"] if (e["setting"], e["variant"]) == ("all settings", "OPDF"))
    assert rows["OPDF"][2] == f"{100 * pooled['mean']:+.1f} [{100 * pooled['low']:+.1f}, {100 * pooled['high']:+.1f}]"
    assert rows["KD"][2:] == ["", "", "1.00"]
    assert rows["OPDF"][4] == "3.20"


def test_the_table_of_rates_has_the_validation_scores() -> None:
    lines = rates_table(results()).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["setting", "variant", "0.0001", "0.0002", "0.0004"]
    assert ["goods", "OPDF", "80.0", "90.0", "80.0"] in cells
    assert len(cells) == 2 + 2 * 3


def outcome_score(cell: Cell) -> float:
    return float((np.asarray(outcome(cell).predictions) == labels(cell.setting, cell.seed)).mean())


def test_a_mean_of_scores_of_which_one_is_none_is_none() -> None:
    """As in the differences and verdicts; pandas would take the mean of the others."""
    found = results()
    run = next(r for r in found["runs"] if (r["setting"], r["variant"], r["rate"]) == ("goods", "OPDF", 2e-4))
    run["test"] = run["validation"] = math.nan
    rows = {line.split("|")[1].strip(): line.split("|") for line in summary(found).splitlines()}
    assert [cell.strip() for cell in rows["OPDF"][2:4]] == [rows["OPDF"][2].strip(), "nan (0.0002)"]
    assert "nan" not in rows["OPDF"][2]
    assert [cell.strip() for cell in rates_table(found).splitlines()[-1].split("|")[3:-1]] == ["80.0", "nan", "80.0"]
    shown = {row["variant"]: row for row in score_rows(Results(found))[1]["rows"]}
    assert shown["OPDF"]["test"] == shown["OPDF"]["validation"] == "nan ± nan"
    assert "nan" not in shown["KD"]["test"]


def test_the_way_is_a_mean_of_all_seeds_where_their_steps_differ() -> None:
    """As where epochs are counted and a seed's split has other rows."""
    found = results()
    for run in found["runs"]:
        more = run["seed"]  # seed 2 has 2 steps more than seed 0
        run["facts"]["steps"] = 66 + more
        run["facts"]["scores"] = [
            {"step": round((66 + more) / 2**k) if k else 0, "seconds": 0.1 * k, "validation": 0.1 * run["seed"]}
            for k in (0, 5, 4, 3, 2, 1)
        ]
        run["validation"] = 0.1 * run["seed"]
    way = next(picture for picture in pictures(found) if picture.name == "way")
    for line in way.panel("films").axes[0].get_lines()[: len(PLAN.variants)]:
        assert np.asarray(line.get_ydata()) == pytest.approx([10.0] * 7)


def test_the_loss_is_a_mean_of_all_seeds_where_their_curves_were_thinned_otherwise() -> None:
    found = results()
    for run in found["runs"]:
        every = 1 if run["seed"] == 0 else 2  # as of 40 and of 41 losses
        run["facts"]["curve"] = [{"step": step, "loss": float(run["seed"])} for step in range(1, 9, every)]
    curves = next(picture for picture in pictures(found) if picture.name == "curves")
    for line in curves.panel("films").axes[0].get_lines():
        assert list(line.get_xdata()) == [1, 3, 5, 7]
        assert set(line.get_ydata()) == {1.0}


def test_the_page_needs_nothing_else(report: Path) -> None:
    page = report.read_text()
    assert not re.search(r"<(script|link|img|iframe)|@import|url\(\s*['\"]?http|src=", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_every_figure_is_a_file_too(report: Path) -> None:
    names = {"gains", "scores", "way", "rates", "scale", "curves", "spectra-1"}
    for ending in ("svg", "png"):
        assert {p.stem for p in (report.parent / "figures").glob(f"*.{ending}")} == names


def test_runs_that_diverged_early_have_no_curve() -> None:
    found = results()
    for run in found["runs"]:
        if (run["setting"], run["variant"]) == ("films", "KD"):
            run["facts"]["curve"] = []
        if run["variant"] == "SVD":
            run["facts"] = {}
    curves = next(picture for picture in pictures(found) if picture.name == "curves")
    assert [len(curves.panel(title).axes[0].lines) for title in curves.panels] == [1, 2]
    assert [key.label for key in curves.keys] == ["KD", "OPDF"]
    for run in found["runs"]:
        run["facts"].pop("curve", None)
    assert "curves" not in {picture.name for picture in pictures(found)}


def test_conclusions_are_over_all_settings_or_on_each() -> None:
    found = results()
    assert [line.split(":")[0] for line in conclusions(found)] == [f"{v} against KD, {POOLED}" for v in ("SVD", "OPDF")]
    found["effects"] = [e for e in found["effects"] if e["setting"] != POOLED]  # as of settings with other seeds
    on_each = {f"{variant} against KD, {setting}" for variant in ("SVD", "OPDF") for setting in PLAN.settings}
    assert {line.split(":")[0] for line in conclusions(found)} == on_each


def test_runs_that_diverged_early_have_no_part_in_the_time() -> None:
    found = results()
    for run in found["runs"]:
        if run["variant"] == "SVD" or (run["variant"], run["rate"]) == ("OPDF", 4e-4):
            run["seconds"] = 0.01
            run["facts"][DIVERGED] = 1
    assert [row["ratio"] for row in cost_rows(Results(found))] == ["1.00", "", "3.20"]


def test_only_chosen_runs_have_a_test_score() -> None:
    found = results()
    assert set(found["rates"]["films"].values()) == {2e-4}
    assert {r["rate"] for r in found["runs"] if r["test"] is not None} == {2e-4}


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="opdf sweep writes it"):
        read_results(tmp_path)
    for content, message in (("{}", "was not written by opdf sweep"), ("{", "is not JSON")):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_results(tmp_path)


def test_results_are_superseded_when_a_sweep_of_another_study_has_begun(tmp_path: Path) -> None:
    study = {"seeds": [0, 1], "variants": {"KD": {"data": {"class_weights": {0: 2.0}}}}, "workers": 1, "output": "here"}
    found = json.loads(json.dumps(results() | {"study": study}))
    assert not is_superseded(found, tmp_path)
    for changes, changed in ({"workers": 2, "output": "there"}, False), ({"seeds": [0, 1, 2]}, True):
        (tmp_path / "study.yaml").write_text(yaml_of(study | changes))
        assert is_superseded(found, tmp_path) == changed


def of_perplexity() -> dict[str, Any]:
    """The same study with perplexities: the score 0.9 is one of exp(-0.9) = 0.407."""
    found = results() | {"metrics": {"films": "accuracy", "goods": "perplexity"}}
    found["effects"] = [e for e in found["effects"] if e["setting"] != POOLED]
    for run in found["runs"]:
        if run["setting"] == "goods":
            run["facts"]["teacher"] |= {part: {"perplexity": math.exp(-TEACHER)} for part in ("validation", "test")}
    return found


def test_perplexities_are_shown_as_they_are() -> None:
    found = of_perplexity()
    before, after = ([line.split("|") for line in summary(some).splitlines()] for some in (results(), found))
    shown = {line[1].strip(): (float(line[3].split()[0]), float(old[3].split()[0]))
             for line, old in zip(after[2:], before[2:], strict=True)}  # fmt: skip
    assert shown.pop("teacher")[0] == pytest.approx(math.exp(-TEACHER), abs=0.05)
    for perplexity, percent in shown.values():
        assert perplexity == pytest.approx(math.exp(-percent / 100), abs=0.05)
    assert [line[2] for line in after] == [line[2] for line in before]
    assert after[0][3].strip() == "goods, perplexity"
    alone = summary(found | {"metrics": dict.fromkeys(PLAN.settings, "perplexity")}).splitlines()[0].split("|")
    assert [cell.strip() for cell in alone[1:4]] == ["perplexity", *PLAN.settings]
    assert rates_table(found).splitlines()[-1].startswith("| goods, perplexity | OPDF")
    assert "hundredth of its logarithm" in cautions(found)[-2]
    assert not any("hundredth" in line for line in cautions(results()))
    assert near_rows(Results(found))[1]["rows"] == near_rows(Results(results()))[1]["rows"]


def test_perplexities_near_one_another_are_told_apart() -> None:
    shown = [Scale("perplexity").text(-math.log(perplexity)) for perplexity in (1.04, 9.96, 20.04, 1e7)]
    assert shown == ["1.04", "9.96", "20.0", "> 1,000,000"]
    assert Scale("accuracy").text(0.0512) == "5.1"


def test_lower_perplexities_are_further_on_the_bars() -> None:
    drawn = next(p for p in pictures(of_perplexity()) if p.name == "scores")
    (films,), (goods,) = (drawn.panel(name).axes for name in ("films", "goods"))
    assert films.get_xlim()[0] < films.get_xlim()[1]
    assert goods.get_xlim()[0] > goods.get_xlim()[1]
    assert goods.get_xlabel().startswith("test perplexity\n")
    ends = {name: bar.get_x() + bar.get_width() for name, bar in zip(PLAN.variants, goods.patches, strict=True)}
    assert ends["OPDF"] == pytest.approx(math.exp(-SKILL["OPDF"]), abs=0.02)


def test_units_are_told_apart() -> None:
    found = of_perplexity()
    for effect in found["effects"]:
        if effect["setting"] == "goods":
            effect |= {key: 50 * effect[key] for key in ("low", "mean", "high")}
    (drawn,) = (picture for picture in pictures(found) if picture.name == "gains")
    films, goods = (drawn.panel(name).axes[0] for name in ("films", "goods"))
    assert max(map(abs, films.get_xlim())) < 30 < max(map(abs, goods.get_xlim()))
    assert (films.get_xlabel(), goods.get_xlabel()) == ("points", "points of perplexity")
    assert (units(found), units(results())) == ("% or perplexity", "%")
    assert notes(found) == [*conclusions(found), POINT]  # the table has no difference over both
    assert notes(results()) == []


def test_perplexities_far_apart_are_drawn() -> None:
    """Untrained ones, and those of students that know less than nothing."""
    found = of_perplexity()
    for run in found["runs"]:
        run["facts"]["scores"][0]["validation"] = -9.0
        if run["rate"] == 4e-4:
            run["validation"] = -5000.0
    drawn = {p.name: p.panel("goods").axes[0] for p in pictures(found) if "goods" in p.panels}
    for name, most in (("way", math.exp(9)), ("rates", WORST)):
        low, high = drawn[name].get_ylim()
        assert low < math.exp(-TEACHER) < most == pytest.approx(high, rel=2)
        assert sum(low < tick < high for tick in drawn[name].get_yticks()) >= 3
    cells = [cell.strip() for cell in rates_table(found).splitlines()[-1].split("|")]
    assert cells[-3:-1] == ["0.41", "> 1,000,000"]


def test_when_students_were_near_their_teacher() -> None:
    """The teacher has 90.5; OPDF's have 90.0 in the end, and half-way 89.8, 89.6 and 89.4."""
    films, _ = near_rows(Results(results()))
    rows = {row["variant"]: row for row in films["rows"]}
    assert films["setting"] == "films"
    assert (rows["KD"]["there"], rows["KD"]["steps"]) == ("0 of 3", "")
    assert rows["OPDF"] == {"variant": "OPDF", "there": "3 of 3", "steps": "160", "seconds": "16.0", "share": "40.0 %"}
    last = next(r for r in results()["runs"] if (r["variant"], r["seed"], r["rate"]) == ("OPDF", 2, 2e-4))
    assert last["facts"]["scores"][-1]["validation"] < TEACHER - 0.01 < last["validation"]  # of which 160 is the median
    without = results()
    for run in without["runs"]:
        del run["facts"]["scores"]
    assert near_rows(Results(without)) == []


@pytest.mark.parametrize(("right", "rows"), [(7, 100), (280, 300)])
def test_a_point_below_the_teacher_is_near_it(right: int, rows: int) -> None:
    """Also where a float is a little more than that, or the fifth digit was rounded down."""
    found, below = results(), (right - rows // 100) / rows
    for run in found["runs"]:
        run["facts"]["teacher"]["validation"] = {"accuracy": right / rows}
        run["facts"]["scores"] = [{"step": 80, "seconds": 1.0, "validation": round(below, 5)}]
        run["validation"] = below - 1 / rows
    films, _ = near_rows(Results(found))
    assert {(row["there"], row["steps"]) for row in films["rows"]} == {("3 of 3", "80")}


def test_variants_with_different_teachers_have_none_in_common() -> None:
    found = results()
    for run in found["runs"]:
        if (run["setting"], run["variant"]) == ("films", "OPDF"):
            run["facts"]["teacher"]["test"] = {"accuracy": 0.95}
    (line,) = [line for line in summary(found).splitlines() if line.startswith("| teacher")]
    assert [cell.strip() for cell in line.split("|")[2:4]] == ["", "90.5"]
    assert any(line.startswith("Variants have different teachers on films, so") for line in cautions(found))
    assert not any("teachers" in line for line in cautions(results()))


def test_a_difference_without_an_interval_is_not_drawn() -> None:
    found = results()
    for gone, drawn in (("OPDF", ["SVD"]), ("SVD", [])):
        for effect in found["effects"]:
            if effect["variant"] == gone:
                effect["low"] = effect["high"] = float("nan")
        panels = [picture.panel("films").axes[0] for picture in pictures(found) if picture.name == "gains"]
        assert [label.get_text() for axis in panels for label in axis.get_yticklabels()] == drawn


def test_names_are_no_formulas() -> None:
    found = json.loads(json.dumps(results()).replace("OPDF", "$x^ {$ more"))
    assert "$x^ {$ more" in svg(next(pictures(found)).panel("films"))


def test_axes_begin_where_they_do_not_mislead() -> None:
    drawn = {picture.name: picture.panel(picture.panels[0]).axes[0] for picture in pictures(results())}
    base = 100 * results()["chance"]["films"]
    assert all(bar.get_x() == pytest.approx(base) for bar in drawn["scores"].patches)
    assert drawn["scores"].get_xlim()[0] == pytest.approx(base)
    assert drawn["curves"].get_ylim()[0] == drawn["spectra-1"].get_ylim()[0] == 0
    low, high = drawn["gains"].get_xlim()
    assert low < 0 < high
    for name in ("way", "rates", "scale"):
        low, high = drawn[name].get_ylim()
        assert high - low >= 5
        assert low < 100 * TEACHER < high
    marked = [line.get_marker() for line in drawn["curves"].lines]
    assert len(marked) == 3  # of three points, which a line alone would hardly show
    assert "None" not in marked


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update", "--disable-sync"):  # fmt: skip
        options.add_argument(flag)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as chrome:
        chrome.execute_cdp_cmd("Network.enable", {})
        chrome.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["http://*", "https://*"]})
        yield chrome


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 844)], ids=["desktop", "phone"])
def test_what_a_browser_draws(report: Path, browser: Any, width: int, height: int) -> None:
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(report.as_uri())
    assert browser.title == "films & <goods>"
    # The page does not scroll sideways; wide tables do so in their own box.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    drawn = browser.execute_script(
        "document.querySelectorAll('details').forEach(d => {d.open = true});"
        "return [...document.querySelectorAll('figure svg')].map(s => {const b = s.getBoundingClientRect();"
        "return [b.width, b.height, b.left, s.querySelectorAll('path').length]})"
    )
    assert len(drawn) == 3 + 5 * 2 + 3  # gains are over all settings too; two settings; three cores
    for shown_width, shown_height, _, paths in drawn:
        assert 300 < shown_width <= width
        assert shown_height > 50
        assert paths > 10
    assert len({left for _, _, left, _ in drawn}) == (1 if width < 600 else 4)  # two or three side by side
    figure = browser.find_element("id", "figure-scores")
    browser.execute_script("arguments[0].scrollIntoView()", figure)
    pixels = np.asarray(Image.open(io.BytesIO(figure.screenshot_as_png)).convert("RGB")).reshape(-1, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # the bars of SVD and OPDF
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 8).sum() > 200
    rows = browser.find_elements("css selector", "#scores tr")
    assert len(rows) == 1 + 2 * (1 + 3)
    # A table that is cut off says that it scrolls, and keeps its rows' names in sight.
    cut_off = browser.execute_script(
        "return [...document.querySelectorAll('.wide')].map(box => {box.scrollLeft = 1000;"
        "const cell = box.querySelector('td').getBoundingClientRect(), hint = box.previousElementSibling;"
        "return [box.scrollWidth > box.clientWidth, hint.offsetHeight > 0, cell.left >= 0]})"
    )
    assert all(hint or not scrolls for scrolls, hint, _ in cut_off)
    assert all(named for _, _, named in cut_off)
    assert any(scrolls for scrolls, _, _ in cut_off) == (width < 600)


def test_cautions_name_edges_divergence_and_chance() -> None:
    found = results()
    lines = cautions(found)
    assert not any("learning rate" in line for line in lines)  # the middle one of three was chosen
    found["rates"]["films"]["OPDF"] = 4e-4
    assert "The highest learning rate was the best of OPDF on films: a better one may lie beyond." in cautions(found)
    assert any("comparisons were made" in line for line in lines)
    assert not any("diverged" in line for line in lines)
    next(run for run in found["runs"] if run["variant"] == "SVD")["facts"][DIVERGED] = 3
    assert any(line.endswith("runs of SVD diverged; they count as knowing nothing.") for line in cautions(found))


def test_runs_of_several_versions_are_named() -> None:
    """A study that goes on with another version keeps the runs that it has."""
    found = results()
    for run in found["runs"]:
        run["facts"]["versions"] = {"opdf": "0.1.0", "torch": "2.13.0"}
    assert not any("versions" in line for line in cautions(found))
    next(run for run in found["runs"] if run["variant"] == "OPDF")["facts"]["versions"]["opdf"] = "0.2.0"
    (line,) = [line for line in cautions(found) if "versions" in line]
    assert line.startswith("Runs were made with several versions: opdf 0.1.0 and 0.2.0. ")
