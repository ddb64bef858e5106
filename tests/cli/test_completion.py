"""Completion in a real bash, and that every command and option is known to it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from opdf.cli import COMMANDS, main
from opdf.cli.completion import config_class, options

pytest.importorskip("shtab")


def complete(script: Path, words: str) -> set[str]:
    """What bash offers for the last word, as programmable completion asks for it."""
    code = f"""
source {script}
COMP_WORDS=({words} '')
COMP_WORDS[${{#COMP_WORDS[@]}}-1]="$1"
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_shtab_opdf
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    *before, last = words.split(" ")
    code = code.replace(f"({words} '')", f"({' '.join(before)} '')")
    done = subprocess.run(["bash", "-c", code, "bash", last], capture_output=True, text=True, check=True)
    return {word.strip() for word in done.stdout.split()}


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_options(tmp_path: Path, capsys: Any) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "opdf.bash"
    script.write_text(capsys.readouterr().out)
    assert set(COMMANDS) <= complete(script, "opdf ")
    assert complete(script, "opdf pl") == {"plan"}
    assert complete(script, "opdf plan --overparam.on") == {"--overparam.ones"}
    assert complete(script, "opdf distill --training.learning_") == {"--training.learning_rate"}
    assert complete(script, "opdf export --in") == {"--int8"}
    assert complete(script, "opdf completion z") == {"zsh"}


def test_zsh_is_told_the_commands(capsys: Any) -> None:
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef opdf")
    assert all(name in script for name in COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "completion"])
def test_the_options_are_those_that_the_command_takes(command: str, capsys: Any) -> None:
    known = set(options(config_class(command)))
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = set(re.findall(r"^ +--([a-z_0-9]+)", capsys.readouterr().out, re.MULTILINE))
    assert shown - {"model"} <= known  # a model is given without its name


@pytest.mark.parametrize("argv", [[], ["fish"], ["bash", "zsh"]])
def test_other_shells_are_refused(argv: list[str], capsys: Any) -> None:
    assert main(["completion", *argv]) == 2
    assert "completion takes one of bash and zsh" in capsys.readouterr().err
