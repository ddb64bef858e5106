"""Help and version, which nobody should have to wait for."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from opdf.cli import COMMANDS

CODE = """
import sys
from opdf.cli import main
try:
    main({argv})
finally:
    print("imported:", *{{"torch", "transformers", "numpy", "datasets", "matplotlib"}} & sys.modules.keys())
"""


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_is_quick_and_imports_nothing_heavy(argv: list[str]) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", CODE.format(argv=argv)], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    said, _, imported = done.stdout.rpartition("imported:")
    assert "opdf" in said
    assert imported.strip() == ""
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_the_readme_lists_every_command() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    table = readme.partition("## Commands\n")[2].partition("\n## ")[0]
    assert sorted(re.findall(r"^\| `opdf ([\w-]+)", table, re.MULTILINE)) == sorted(COMMANDS)
