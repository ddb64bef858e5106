"""The command line: `opdf COMMAND ...`, one file a command.

Exit statuses: 0 done; 2 the user has to put something right first; 3 the run stopped because memory or disk space ran
out, training diverged or another process was lost; 130 and 143 SIGINT and SIGTERM stopped it. Anything else is a bug of
ours.

A mistake of ours, a ValueError deep in a run, say, can look like one of the user's. With OPDF_DEBUG=1 in the
environment an error comes with its traceback instead of the one line.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from opdf.job import Stopped, UserError, not_installed

COMMANDS = {
    "distill": "distill a student from a teacher as a YAML file says",
    "plan": "show what over-parameterization would do to a model, before anything runs",
    "cache-teacher": "run the teacher once and keep its outputs, for any number of students",
    "sweep": "compare variants at equal effort: learning rates, seeds, tasks, sizes",
    "report": "make a page of a study's results",
    "compare": "put finished runs side by side: scores, sizes, latency, cost",
    "eval": "score a saved student on a dataset",
    "predict": "print the predictions of a saved student for a file or a pipe",
    "export": "write a saved student as ONNX or as a torch.export program, and check it",
    "completion": "print the completion of commands and options for bash or zsh",
    "demo": "fine-tune a teacher on embedded data and make students of half its size",
}

USAGE = "usage: opdf [--version] COMMAND ...\n\nOver-parameterized knowledge distillation.\n\ncommands:\n" + "".join(
    f"  {name:<14}{text}\n" for name, text in COMMANDS.items()
)


NEEDS_LESS_MEMORY = (
    "out of memory; these need less: a smaller training.per_device_train_batch_size with more "
    "training.gradient_accumulation_steps, a smaller training.per_device_eval_batch_size, a smaller data.max_length, "
    "fewer overparam.ones, overparam.keep_products false, overparam.placement owner on several processes"
)


REFUSED = (
    UserError, ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, PermissionError,
    ConnectionError,
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run a command and return the exit status. Bad input is one line on stderr and status 2.

    Raises:
        Exception: a bug of ours; with OPDF_DEBUG=1 in the environment, any error.
    """
    try:
        with _warnings_in_one_line():
            status = _status(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        if not _has_lost_its_reader(sys.stdout.fileno()):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Inside, warnings come without the line of code that they stem from, which tells a user nothing."""

    def one_line(message: Warning | str, *_: Any, **__: Any) -> str:
        return f"opdf: warning: {' '.join(str(message).split())}\n"

    usual, warnings.formatwarning = warnings.formatwarning, one_line
    try:
        yield
    finally:
        warnings.formatwarning = usual


def _has_lost_its_reader(pipe: int) -> bool:
    """Whether the reader of a pipe (head, say) is gone."""
    waiting = select.poll()
    waiting.register(pipe, select.POLLOUT)
    return any(event & select.POLLERR for _, event in waiting.poll(0))


def _status(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE + "\nopdf COMMAND --help shows the options of a command.")
        print("OPDF_DEBUG=1 in the environment shows where an error comes from.")
        return 0
    if argv[0] == "--version":
        import opdf

        print(f"opdf {opdf.__version__}")
        return 0
    if argv[0] not in COMMANDS:
        return _refuse(f"unknown command {argv[0]!r}; choose from {', '.join(COMMANDS)}")
    try:
        import_module(f"opdf.cli.{argv[0].replace('-', '_')}").main(argv[1:])
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print("opdf: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Stopped as stop:
        print(f"opdf: {stop}", file=sys.stderr)
        return 128 + stop.number
    except Exception as error:
        reason, status = _mistake(error), 2
        if reason is None:
            reason, status = _adversity(error), 3
        if reason is None or os.environ.get("OPDF_DEBUG") == "1":
            raise
        return _refuse(reason, status)
    return 0


def _refuse(message: str, status: int = 2) -> int:
    print(f"opdf: error: {' '.join(message.split())}", file=sys.stderr)
    return status


def _mistake(error: Exception) -> str | None:
    """A message for an error that the user can put right; None for all others."""
    if isinstance(error, ImportError):
        if error.name is None:  # a library's own words for a package that it misses
            return str(error)
        missing = isinstance(error, ModuleNotFoundError) and not error.name.startswith("opdf")
        return not_installed(error.name, "the command line", "distill") if missing else None
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{error.filename or 'a file'} cannot be written: its file system is read-only; choose another place"
    return str(error) if isinstance(error, REFUSED) else None


def _adversity(error: Exception) -> str | None:
    """A message for an error that is nobody's mistake, such as a full disk; None for all others."""
    import torch

    from opdf.distill import StorageError, TrainingDiverged, storage_problem

    if isinstance(error, TrainingDiverged | StorageError):
        return str(error)
    if problem := storage_problem(error):
        return f"{getattr(error, 'filename', None) or 'a file'} could not be written: {problem}; free some space"
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if memory or any(words in str(error) for words in ("not enough memory", "can't allocate memory")):
        return NEEDS_LESS_MEMORY
    if _lost_process(error):
        return (
            f"another process of this run has ended or is out of reach ({str(error).partition('. ')[0]}); its lines "
            "and the launcher's say why. --resume true goes on from the newest checkpoint"
        )
    return None


def _lost_process(error: Exception) -> bool:
    """Whether a collective failed because a process is gone. nccl raises its own exceptions, gloo only words."""
    from torch import distributed as dist

    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    words = ("Connection reset by peer", "Connection closed by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)
