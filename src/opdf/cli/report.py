"""`opdf report FOLDER`"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from opdf.cli.options import parse

DESCRIPTION = """Make a page of a study's results.

opdf report FOLDER reads FOLDER/results.json, which opdf sweep wrote, and writes FOLDER/report.html (one file, no
network needed) and FOLDER/figures/ (SVG and PNG). It prints two Markdown tables: test scores, in percent or perplexity,
at the chosen rates, differences to the baseline over all settings in points with 95 % intervals, and the time of
training; and validation scores by learning rate."""


@dataclass
class ReportConfig:
    """Options.

    Args:
        folder: output folder of opdf sweep.
        title: of the page; the folder's name when null.
    """

    folder: str
    title: str | None = None


OPTIONS = ReportConfig


def main(argv: list[str]) -> None:
    options = parse(argv, ReportConfig, "opdf report", DESCRIPTION, positional="folder")
    from opdf.study import is_superseded, notes, rates_table, read_results, summary, units, write_report

    folder = Path(options.folder)
    results = read_results(folder)
    if is_superseded(results, folder):
        note = "is another study than that of these results; opdf sweep has not ended since"
        print(f"opdf: note: {folder}/study.yaml {note}", file=sys.stderr)
    path = write_report(results, folder, options.title or folder.resolve().name)
    print(summary(results), *notes(results), f"validation by learning rate, {units(results)}", sep="\n\n")
    print(f"\n{rates_table(results)}\n")
    print(f"saved: {path}, {folder}/figures")
