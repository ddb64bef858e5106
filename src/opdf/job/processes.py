"""The processes of one run: one of them writes and prints, and they end together."""

from __future__ import annotations

import sys
from collections.abc import Callable

from accelerate import PartialState
from accelerate.utils import broadcast_object_list


def is_main() -> bool:
    """Whether this process writes and prints: one of those that torchrun or accelerate started."""
    return bool(PartialState().is_main_process)


def on_main(action: Callable[[], None]) -> None:
    """Do something on the main process, while the others wait; what it raises is raised on all."""
    problem: list[Exception | None] = [None]
    if is_main():
        try:
            action()
        except Exception as error:
            problem = [error]
    broadcast_object_list(problem)
    if problem[0] is not None:
        raise problem[0]


def tell(message: str) -> None:
    """A line on stderr, from one process."""
    if is_main():
        print(f"opdf: {message}", file=sys.stderr)


def leave() -> None:
    """End the connections of several processes. Otherwise gloo's threads sometimes abort the interpreter at its end."""
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
