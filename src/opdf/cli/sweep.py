"""`opdf sweep STUDY.yaml [--key value ...]`"""

from __future__ import annotations

from opdf.cli.options import parse
from opdf.study import StudyConfig

DESCRIPTION = """Compare variants of a distillation at equal effort.

Every variant is trained with every learning rate on every task and seed. Rates are chosen on the validation split; the
test split is looked at once, for the chosen runs. A stopped sweep goes on where it was; nothing is run twice. To share
the work between machines, start the same command on each, with an output folder that all of them see.

opdf report FOLDER then makes a page of the results. studies/ has files to start from."""


OPTIONS = StudyConfig


def main(argv: list[str]) -> None:
    config = parse(argv, StudyConfig, "opdf sweep", DESCRIPTION)
    from opdf.study import POINT, sweep

    results = sweep(config)
    for entry in results["effects"]:
        if entry["at"] == "best":
            print(f"{entry['variant']} on {entry['setting']}: {entry['verdict']}")
    if "perplexity" in results["metrics"].values():
        print(POINT)
    print(f"saved: {config.output}/results.json; make a page of it with opdf report {config.output}")
