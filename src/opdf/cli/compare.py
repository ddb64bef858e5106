"""`opdf compare RUN...`"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from opdf.cli.options import at_least_one, parse

DESCRIPTION = """Put finished runs side by side.

opdf compare RUN RUN ... takes output folders of opdf distill and prints a Markdown table: test scores with the
difference to the first run's and its 95 % interval, sizes, latency on this machine, steps and time of training.

An interval says how the difference would move with other test examples. With another seed it can move further: opdf
sweep compares over several."""


@dataclass
class CompareConfig:
    """Options.

    Args:
        runs: output folders of opdf distill.
        batch: examples of the larger batch that latency is measured with.
        json: print JSON instead of a table.
    """

    runs: list[str]
    batch: int = 32
    json: bool = False


OPTIONS = CompareConfig


def main(argv: list[str]) -> None:
    config = parse(argv, CompareConfig, "opdf compare", DESCRIPTION, positional="runs")
    at_least_one(config, "batch")
    from opdf.job import quiet
    from opdf.study import compare, remarks, table

    with quiet():
        rows = compare([Path(run) for run in config.runs], batch=config.batch)
    if config.json:
        print(json.dumps(rows, indent=2))
        return
    print(table(rows, config.batch), *remarks(rows), sep="\n\n")
