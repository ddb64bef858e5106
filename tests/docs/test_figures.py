"""The figures and tables of the pages say what the committed results say."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from scripts import ROOT, script

IMAGES = ROOT / "docs" / "images"


figures = script("docs/_figures.py")


@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_committed_figure_has_the_numbers_of_the_results(name: str) -> None:
    _, description = figures.FIGURES[name]()
    committed = re.search(r"<desc>(.*?)</desc>", (IMAGES / f"{name}.svg").read_text(), re.DOTALL)
    assert committed is not None
    assert unescape(committed[1]) == description, "run `make figures`"


def test_the_tables_of_studies_are_those_of_the_results() -> None:
    page = (ROOT / "docs" / "evidence.md").read_text()
    assert page.count("<!-- studies/results/") > 3
    assert figures.with_tables(page) == page, "run `make figures`"
    stale = page.replace(" 67.3 ", " 68.3 ")
    assert figures.with_tables(stale) == page != stale


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.svg")), ids=lambda path: path.stem)
def test_an_image_has_a_dark_form_and_is_used(path: Path) -> None:
    """Outside of its style no colour is fixed, so that the dark form has none of the light one's."""
    drawing = re.sub(r"<style>.*?</style>", "", path.read_text(), flags=re.DOTALL)
    assert "prefers-color-scheme: dark" in path.read_text()
    assert not re.search(r"#[0-9a-fA-F]{6}\b", drawing)
    assert any(f"images/{path.name})" in page.read_text() for page in [*ROOT.glob("docs/*.md"), ROOT / "README.md"])
