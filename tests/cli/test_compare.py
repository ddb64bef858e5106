"""`opdf compare`: its arguments and its refusals. What it finds is tested in tests/study."""

from __future__ import annotations

from typing import Any

import pytest

from opdf.cli import main
from opdf.cli.compare import CompareConfig
from opdf.cli.options import parse
from opdf.job import UserError


def test_all_words_before_the_options_are_runs() -> None:
    found = parse(["a", "b c", "--batch", "8"], CompareConfig, "opdf compare", "", positional="runs")
    assert found == CompareConfig(["a", "b c"], batch=8)
    with pytest.raises(UserError, match="opdf compare needs RUNS"):
        parse(["--batch", "8"], CompareConfig, "opdf compare", "", positional="runs")


@pytest.mark.parametrize(
    ("argv", "message"),
    [(["nothing", "here"], "nothing holds no run"), (["a", "b", "--batch", "0"], "batch is 0")],
)
def test_refusals(capsys: Any, argv: list[str], message: str) -> None:
    assert main(["compare", *argv]) == 2
    assert message in capsys.readouterr().err
