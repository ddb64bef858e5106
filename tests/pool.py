"""Processes that work together over gloo, started once for a module's tests."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from opdf.study.workers import forks


class Pool:
    """Two or more processes that do one thing after the other, each with its rank."""

    def __init__(self, pipes: list[Any]) -> None:
        self.pipes = pipes

    def run(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        """What `work(rank, *args)` returns in every process.

        Raises:
            AssertionError: it failed in one, whose traceback this has.
        """
        for pipe in self.pipes:
            pipe.send((work, args))
        found = [pipe.recv() for pipe in self.pipes]
        problems = [text for text, _ in found if text is not None]
        assert not problems, "\n".join(problems)
        return [value for _, value in found]


@contextmanager
def pool(size: int = 2) -> Iterator[Pool]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = forks()
    pairs = [context.Pipe() for _ in range(size)]
    processes = [
        context.Process(target=_serve, args=(rank, size, port, theirs), daemon=True)
        for rank, (_, theirs) in enumerate(pairs)
    ]
    for process in processes:
        process.start()
    try:
        yield Pool([ours for ours, _ in pairs])
    finally:
        for ours, _ in pairs:
            ours.send(None)
        for process in processes:
            process.join(20)
            process.kill()


def _serve(rank: int, size: int, port: int, pipe: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    torch.set_num_threads(1)
    environment = dict(os.environ)
    while (task := pipe.recv()) is not None:
        from accelerate.state import AcceleratorState, GradientState

        # The last task's engine stays otherwise, in accelerate and in the environment.
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        os.environ.clear()
        os.environ.update(environment)
        work, args = task
        try:
            pipe.send((None, work(rank, *args)))
        except BaseException:
            pipe.send((traceback.format_exc(), None))
    os._exit(0)  # gloo's threads may still be ending, and now and then abort the interpreter's own teardown
