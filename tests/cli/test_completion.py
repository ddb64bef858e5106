"""Completion in real shells, as typed by a user, and that every command and option is known to it."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from opdf.cli import COMMANDS, main
from opdf.cli.completion import config_class, options

pytest.importorskip("shtab")


# What a user's start-up file has, and a key that puts the typed line into a file and empties it.
START = {
    "bash": r"""
source %(script)s
show() { printf '%%s' "$READLINE_LINE" > %(line)s.new; mv %(line)s.new %(line)s; READLINE_LINE=; }
bind 'set show-all-if-ambiguous on'
bind -x '"\C-]": show'
""",
    "zsh": r"""
fpath=(%(folder)s $fpath)
autoload -Uz compinit && compinit -D -u
show() { print -rn -- "$BUFFER" > %(line)s.new; mv %(line)s.new %(line)s; BUFFER= }
zle -N show
bindkey '^]' show
""",
}
SCRIPT = {"bash": "opdf.bash", "zsh": "_opdf"}
ARGV = {"bash": "bash --noprofile --rcfile {start} -i", "zsh": "zsh -i"}


class Shell:
    """An interactive shell on a terminal of its own, with opdf's completion as a user installs it."""

    def __init__(self, name: str, folder: Path, script: str) -> None:
        self.line = folder / "line"
        (folder / SCRIPT[name]).write_text(script)
        start = folder / ".zshrc"
        start.write_text(START[name] % {"script": folder / SCRIPT[name], "folder": folder, "line": self.line})
        self.terminal, inside = pty.openpty()
        self.process = subprocess.Popen(
            ARGV[name].format(start=start).split(), stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
            env={"PATH": os.environ["PATH"], "ZDOTDIR": str(folder), "HOME": str(folder), "TERM": "dumb"},
        )  # fmt: skip
        os.close(inside)

    def complete(self, words: str) -> tuple[str, str]:
        """The line after words and the Tab key were typed, and what the terminal showed."""
        self.line.unlink(missing_ok=True)
        os.write(self.terminal, f"{words}\t\x1d".encode())
        shown, deadline = b"", time.monotonic() + 30
        while (waiting := select.select([self.terminal], [], [], 0.05)[0]) or not self.line.is_file():
            assert time.monotonic() < deadline, shown
            shown += os.read(self.terminal, 1 << 16) if waiting else b""
        return self.line.read_text(), shown.decode(errors="replace")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.terminal)


@pytest.fixture(params=["bash", "zsh"])
def shell(request: pytest.FixtureRequest, tmp_path: Path, capsys: Any) -> Iterator[Shell]:
    if shutil.which(request.param) is None:
        pytest.skip(f"needs {request.param}")
    assert main(["completion", request.param]) == 0
    found = Shell(request.param, tmp_path, capsys.readouterr().out)
    yield found
    found.close()


def test_a_real_shell_completes_commands_and_options(shell: Shell) -> None:
    for typed, completed in (
        ("opdf pl", "opdf plan "),
        ("opdf plan --overparam.on", "opdf plan --overparam.ones "),
        ("opdf distill --training.learning_", "opdf distill --training.learning_rate "),
        ("opdf export --in", "opdf export --int8 "),
        ("opdf completion z", "opdf completion zsh "),
        ("opdf nothing-like-it", "opdf nothing-like-it"),
    ):
        assert shell.complete(typed)[0] == completed
    line, shown = shell.complete("opdf ")
    assert line == "opdf "
    assert set(COMMANDS) <= set(re.findall(r"[a-z-]+", shown))


def test_a_real_shell_completes_files(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("")
    assert shell.complete(f"opdf distill {tmp_path}/mi")[0] == f"opdf distill {tmp_path}/mine.yaml "


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
