"""A report made of known runs: what its tables say, and what a real browser draws of it."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from opdf.cli import main
from opdf.study import Cell, Outcome, Plan, conclude
from opdf.study.report import cautions, read_results, write_report
from opdf.study.results import DIVERGED

PLAN = Plan(("films", "goods"), ("KD", "SVD", "OPDF"), (1e-4, 2e-4, 4e-4), (0, 1, 2), "KD")
SKILL = {"KD": 0.80, "SVD": 0.80, "OPDF": 0.90}
PARAMS = {"KD": 100, "SVD": 150, "OPDF": 320}
EXAMPLES = 500


def labels(setting: str, seed: int) -> np.ndarray:
    return np.random.default_rng(seed + 10 * len(setting)).integers(2, size=EXAMPLES)


def outcome(cell: Cell) -> Outcome:
    """A student that is right with a known probability, best at the middle rate."""
    skill = SKILL[cell.variant] - (0.0 if cell.rate == 2e-4 else 0.1)
    rng = np.random.default_rng([cell.seed, len(cell.variant), round(cell.rate * 1e5)])
    truth = labels(cell.setting, cell.seed)
    answers = np.where(rng.random(EXAMPLES) < skill, truth, 1 - truth)
    facts: dict[str, Any] = {"curve": [{"step": s, "loss": 1 / s} for s in (1, 2, 3)]}
    if cell.variant == "OPDF" and cell.seed == 0:
        cores = [[2.0, 1.0], [1.0, 1.0], [2.0, 1.0]]
        facts["spectra"] = {
            "matrix": "blocks.0.query",
            "steps": [{"step": 1, "cores": cores}, {"step": 9, "cores": cores}],
        }
    return Outcome(skill, answers.tolist(), PARAMS[cell.variant] / 10, PARAMS[cell.variant], 100, facts)


def results() -> dict[str, Any]:
    outcomes = {cell: outcome(cell) for cell in PLAN.cells()}
    metrics = dict.fromkeys(PLAN.settings, lambda answers, truth: float((answers == truth).mean()))
    return {
        "plan": {"settings": list(PLAN.settings), "variants": list(PLAN.variants), "rates": list(PLAN.rates),
                 "seeds": list(PLAN.seeds), "baseline": PLAN.baseline},
        "metrics": dict.fromkeys(PLAN.settings, "accuracy"),
        "versions": {"opdf": "test"},
        **conclude(PLAN, outcomes, labels, metrics),
    }  # fmt: skip


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(results(), tmp_path_factory.mktemp("study"), "films & <goods>")


def test_the_gain_that_was_put_in_is_reported(report: Path) -> None:
    page = report.read_text()
    verdict = re.search(r"OPDF against KD, all settings: gain of (\d+\.\d) ± (\d\.\d)\.", page)
    assert verdict is not None
    assert abs(float(verdict[1]) - 10) < float(verdict[2]) < 5
    assert "SVD against KD, all settings: no difference found" in page
    assert "films &amp; &lt;goods&gt;" in page
    assert "<td>3.20</td>" in page  # OPDF's time over KD's


def test_the_table_says_what_the_runs_do(tmp_path: Path, capsys: Any) -> None:
    found = results()
    (tmp_path / "results.json").write_text(json.dumps(found))
    assert main(["report", str(tmp_path)]) == 0
    head, _, *lines = capsys.readouterr().out.split("\n\n")[0].splitlines()
    rows = {row[0]: row[1:] for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}
    assert [cell.strip() for cell in head.split("|")[2:4]] == ["films", "goods"]
    assert list(rows) == list(PLAN.variants)
    for row, variant in ((rows[v], v) for v in PLAN.variants):
        for cell, setting in zip(row, PLAN.settings, strict=False):
            right = [outcome_score(Cell(seed, setting, variant, 2e-4)) for seed in PLAN.seeds]
            assert cell == f"{100 * np.mean(right):.1f} (0.0002)"
    pooled = next(e for e in found["effects"] if (e["setting"], e["variant"]) == ("all settings", "OPDF"))
    assert rows["OPDF"][2] == f"{100 * pooled['mean']:+.1f} [{100 * pooled['low']:+.1f}, {100 * pooled['high']:+.1f}]"
    assert rows["KD"][2:] == ["", "", "1.00"]
    assert rows["OPDF"][4] == "3.20"


def test_the_table_of_rates_has_the_validation_scores(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results()))
    assert main(["report", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.split("\n\n")[2].splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == ["setting", "variant", "0.0001", "0.0002", "0.0004"]
    assert ["goods", "OPDF", "80.0", "90.0", "80.0"] in cells
    assert len(cells) == 2 + 2 * 3


def outcome_score(cell: Cell) -> float:
    return float((np.asarray(outcome(cell).predictions) == labels(cell.setting, cell.seed)).mean())


def test_the_page_needs_nothing_else(report: Path) -> None:
    page = report.read_text()
    assert not re.search(r"<(script|link|img|iframe)|@import|url\(\s*['\"]?http|src=", page)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) <= set(ids)


def test_every_figure_is_a_file_too(report: Path) -> None:
    names = {"gains", "scores", "rates", "scale", "curves", "spectra-1"}
    for ending in ("svg", "png"):
        assert {p.stem for p in (report.parent / "figures").glob(f"*.{ending}")} == names


def test_runs_that_diverged_early_have_no_curve(tmp_path: Path) -> None:
    found = results()
    for run in found["runs"]:
        if (run["setting"], run["variant"]) == ("films", "KD"):
            run["facts"]["curve"] = []
        if run["variant"] == "SVD":
            run["facts"] = {}
    write_report(found, tmp_path / "some", "some")
    drawn = (tmp_path / "some" / "figures" / "curves.svg").read_text()
    assert [name for name in PLAN.variants if f">{name}<" in drawn] == ["KD", "OPDF"]
    for run in found["runs"]:
        run["facts"]["curve"] = []
    write_report(found, tmp_path / "none", "none")
    assert not (tmp_path / "none" / "figures" / "curves.svg").exists()


def test_only_chosen_runs_have_a_test_score() -> None:
    found = results()
    assert set(found["rates"]["films"].values()) == {2e-4}
    assert {r["rate"] for r in found["runs"] if r["test"] is not None} == {2e-4}


def test_bad_folders(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(FileNotFoundError, match="opdf sweep writes it"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text("{}")
    assert main(["report", str(tmp_path)]) == 2
    assert "was not written by opdf sweep" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{")
    assert main(["report", str(tmp_path)]) == 2
    assert "is not JSON" in capsys.readouterr().err


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
        "return [...document.querySelectorAll('figure svg')].map(s => {const b = s.getBoundingClientRect();"
        "return [b.width, b.height, s.querySelectorAll('path').length]})"
    )
    assert len(drawn) == 6
    for shown_width, shown_height, paths in drawn:
        assert 0.8 * min(width, 900) < shown_width <= width
        assert shown_height > 50
        assert paths > 20
    figure = browser.find_element("id", "figure-scores")
    browser.execute_script("arguments[0].scrollIntoView()", figure)
    pixels = np.asarray(Image.open(io.BytesIO(figure.screenshot_as_png)).convert("RGB")).reshape(-1, 3)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)):  # the bars of SVD and OPDF
        assert (np.abs(pixels.astype(int) - colour).max(axis=1) < 8).sum() > 200
    rows = browser.find_elements("css selector", "#scores tr")
    assert len(rows) == 1 + 2 * 3


def test_cautions_name_edges_divergence_and_chance() -> None:
    found = results()
    lines = cautions(found)
    assert not any("learning rate" in line for line in lines)  # the middle one of three was chosen
    found["rates"]["films"]["OPDF"] = 4e-4
    assert "The highest learning rate was the best of OPDF on films: a better one may lie beyond." in cautions(found)
    assert any("comparisons were made" in line for line in lines)
    assert not any("diverged" in line for line in lines)
    next(run for run in found["runs"] if run["variant"] == "SVD")["facts"][DIVERGED] = 3
    assert any(line.endswith("runs of SVD diverged; they count as answering 0.") for line in cautions(found))
