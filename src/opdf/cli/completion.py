"""`opdf completion bash|zsh`: completion of commands and their options for a shell, made by shtab."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib import import_module

from opdf.cli import COMMANDS
from opdf.job import UserError, dataclass_of, hints_of

SHELLS = ("bash", "zsh")

HELP = """usage: opdf completion bash|zsh

Print a script with which a shell completes commands and options. Put it where your shell looks:
  opdf completion bash > ~/.local/share/bash-completion/completions/opdf
  opdf completion zsh > DIRECTORY/_opdf        a DIRECTORY of $fpath"""


def main(argv: list[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(HELP)
        return
    if len(argv) != 1 or argv[0] not in SHELLS:
        raise UserError(f"completion takes one of {' and '.join(SHELLS)}, not {' '.join(argv) or 'nothing'}")
    import shtab

    print(shtab.complete(parser(), shell=argv[0]))


def parser() -> argparse.ArgumentParser:
    """Every command with every option, for shtab, which reads argparse's parsers; nothing is parsed with it."""
    import shtab

    top = argparse.ArgumentParser(prog="opdf")
    commands = top.add_subparsers()
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name == "completion":
            command.add_argument("shell", choices=SHELLS)
            continue
        command.add_argument("file").complete = shtab.FILE  # type: ignore[attr-defined]
        for option in options(config_class(name)):
            command.add_argument(f"--{option}")
    return top


def config_class(command: str) -> type:
    """The dataclass whose fields are the options of a command."""
    found: type = import_module(f"opdf.cli.{command.replace('-', '_')}").OPTIONS
    return found


def options(cls: type) -> Iterator[str]:
    """Dotted names of a dataclass's fields; of `training`, those of the training arguments."""
    from opdf.distill import DistillationArguments

    for field, hint in hints_of(cls).items():
        nested = DistillationArguments if field == "training" else dataclass_of(hint)
        yield field
        yield from (f"{field}.{name}" for name in options(nested)) if nested else ()
