"""`opdf compare`: its arguments and its refusals. What it finds is tested in tests/study."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from jobs import digits
from opdf.cli import main
from opdf.cli.compare import CompareConfig
from opdf.cli.options import parse
from opdf.job import DistillConfig, UserError
from opdf.job.options import write_yaml


def test_all_words_before_the_options_are_runs() -> None:
    found = parse(["a", "b c", "--batch", "8"], CompareConfig, "opdf compare", "", positional="runs")
    assert found == CompareConfig(["a", "b c"], batch=8)
    with pytest.raises(UserError, match="opdf compare needs RUNS"):
        parse(["--batch", "8"], CompareConfig, "opdf compare", "", positional="runs")


@pytest.mark.parametrize(
    ("argv", "message"), [(["nothing", "here"], "nothing holds no run"), (["a", "b", "--batch", "0"], "batch is 0")]
)
def test_refusals(capsys: Any, argv: list[str], message: str) -> None:
    assert main(["compare", *argv]) == 2
    assert message in capsys.readouterr().err


def test_an_unfinished_run_goes_on_where_it_is_now(capsys: Any, tmp_path: Path) -> None:
    """Its config.yaml names the folder in which it was begun, which is another one if it was moved or copied."""
    write_yaml(digits(Path("begun/here")), tmp_path / "config.yaml")
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    command = capsys.readouterr().err.partition("; opdf distill ")[2].partition(" goes on")[0]
    found = parse(shlex.split(command), DistillConfig, "opdf distill", "")
    assert (found.output, found.resume) == (str(tmp_path), True)
