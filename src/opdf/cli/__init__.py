"""The command line: `opdf COMMAND ...`, one file a command."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "distill": "distill a student from a teacher as a YAML file says",
    "plan": "show what over-parameterization would do to a model, before anything runs",
    "cache-teacher": "run the teacher once and keep its outputs, for any number of students",
    "sweep": "compare variants at equal effort: learning rates, seeds, tasks, sizes",
    "report": "make a page of a study's results",
    "eval": "score a saved student on a dataset",
    "demo": "fine-tune a teacher on embedded data and distill it plain, with SVD and with OPDF",
}

USAGE = "usage: opdf [--version] COMMAND ...\n\nOver-parameterized knowledge distillation.\n\ncommands:\n" + "".join(
    f"  {name:<14}{text}\n" for name, text in COMMANDS.items()
)


class UserError(Exception):
    """Something the user can put right: one line on stderr and exit status 2."""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status. Bad input is one line on stderr and status 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE + "\nopdf COMMAND --help shows the options of a command.")
        return 0
    if argv[0] == "--version":
        import opdf

        print(f"opdf {opdf.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        return _refuse(f"unknown command {argv[0]!r}; choose from {', '.join(COMMANDS)}")
    try:
        import_module(f"opdf.cli.{argv[0].replace('-', '_')}").main(argv[1:])
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("opdf"):
            raise
        return _refuse(f"{error.name} is not installed; the command line needs pip install 'opdf[distill]'")
    except (UserError, ValueError, TypeError, FileNotFoundError, FileExistsError) as error:
        return _refuse(str(error))
    except KeyboardInterrupt:
        print("opdf: interrupted", file=sys.stderr)
        return 130
    return 0


def _refuse(message: str) -> int:
    print(f"opdf: error: {' '.join(message.split())}", file=sys.stderr)
    return 2
