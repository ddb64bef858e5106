"""Many matrices on a CPU at the same time, one on each thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""A callback that gets the numbers of matrices done and in all."""


def threads_for(devices: Iterable[torch.device]) -> int:
    """How many matrices to work on at a time: torch's number of threads on a CPU, one on other devices."""
    return torch.get_num_threads() if all(device.type == "cpu" for device in devices) else 1


def one_a_thread(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    costs: Sequence[float],
    *,
    threads: int,
    progress: Progress | None = None,
) -> list[Result]:
    """`[work(item) for item in items]`, `threads` of them at a time, each on one thread, the most costly first.

    Small products and eigenproblems are faster at the same time than with several threads each. With one thread each,
    rounding does not depend on the number of threads either.

    Autograd modes hold for one thread, so `work` has to set those that it needs, such as `torch.no_grad`.
    """
    order = sorted(range(len(items)), key=lambda k: -costs[k])
    results: dict[int, Result] = {}
    tell = progress or (lambda done, total: None)
    tell(0, len(items))
    before = torch.get_num_threads()
    # Every thread has its own setting of torch's number of threads, and starts with the one that was set last.
    torch.set_num_threads(1)
    try:
        if min(threads, len(items)) < 2:
            for k in order:
                results[k] = work(items[k])
                tell(len(results), len(items))
        else:
            pool = ThreadPoolExecutor(min(threads, len(items)), initializer=torch.set_num_threads, initargs=(1,))
            try:
                futures = {pool.submit(work, items[k]): k for k in order}
                for future in as_completed(futures):
                    results[futures[future]] = future.result()
                    tell(len(results), len(items))
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        torch.set_num_threads(before)
    return [results[k] for k in range(len(items))]
