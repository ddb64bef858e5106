"""`opdf sweep`: its lines and its exit statuses. What a sweep does is tested in tests/study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.study.example import STUDY, config

from opdf.cli import main
from opdf.job.options import write_yaml
from opdf.study import Study
from opdf.study.runner import Runner


def file(folder: Path, **changes: Any) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"output": str(folder / "out")} | changes))
    return str(path)


@pytest.mark.slow
def test_it_prints_a_verdict_a_variant_and_the_report_says_the_same(tmp_path: Path, capsys: Any) -> None:
    study = Study(config(tmp_path, seeds=[0], learning_rates=[1e-3]))
    study.store.work(Runner(study).run)  # so that the command finds all runs done
    write_yaml(study.options, tmp_path / "out" / "study.yaml")
    assert main(["sweep", file(tmp_path), "--seeds", "[0]", "--learning_rates", "[1e-3]"]) == 0
    verdict, saved = capsys.readouterr().out.splitlines()
    assert verdict.startswith("OPDF on digits/64: no verdict from one seed")
    assert saved == f"saved: {tmp_path}/out/results.json; make a page of it with opdf report {tmp_path}/out"
    write_yaml(config(tmp_path, seeds=[0, 1], learning_rates=[1e-3]), tmp_path / "out" / "study.yaml")  # begun since
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "study.yaml is another study than that of these results" in capsys.readouterr().err
    assert verdict.replace(" on ", " against KD, ") in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {}}, "variants is empty"),
        ({"tasks": {"file": {"data": {"name": "none.csv"}}}}, "none.csv does not exist"),
        ({"variants": {"KD": {}, "odd": {"student": {"layers": 5}}}}, "layers is 5"),
    ],
)
def test_bad_studies_are_one_line(tmp_path: Path, capsys: Any, changes: dict[str, Any], message: str) -> None:
    assert main(["sweep", file(tmp_path, **changes)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
