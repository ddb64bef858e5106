"""The processes of one run: one of them writes and prints, and they part together."""

from __future__ import annotations

import sys

from accelerate import PartialState


def is_main() -> bool:
    """Whether this process writes and prints: one does, of those that torchrun or accelerate started."""
    return bool(PartialState().is_main_process)


def tell(message: str) -> None:
    """A line on stderr, from one process."""
    if is_main():
        print(f"opdf: {message}", file=sys.stderr)


def leave() -> None:
    """End the connections of several processes: left to the interpreter's end, gloo's threads now and then abort it."""
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
