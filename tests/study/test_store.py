"""Runs as files: shared by processes, killed, continued, never repeated."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from opdf.job import Stopped
from opdf.study.plan import Cell, Plan
from opdf.study.store import InUseError, Outcome, Store, held
from opdf.study.workers import forks

PLAN = Plan(("a", "b"), ("KD", "OPDF"), (1e-4, 1e-3), (0, 1), "KD")
CELLS = tuple(PLAN.cells())


def open_store(folder: Path, cells: tuple[Cell, ...] = CELLS) -> Store:
    return Store(folder / "runs", {cell: f"{cell.setting}-{cell.variant}-{cell.rate}-{cell.seed}" for cell in cells})


def outcome(cell: Cell) -> Outcome:
    return Outcome(cell.rate * (1 + cell.seed), [0.0, 1.0], 1.5, 20, 10, {"curve": [[1, 0.5]]})


def logging_run(cell: Cell, log: Path, seconds: float = 0.0) -> Outcome:
    with log.open("a") as file:
        file.write(f"{cell}\n")
    time.sleep(seconds)
    return outcome(cell)


# Not forks of this process: a child that inherits a lock from one of its many threads waits for it forever.
SERVER = forks()
PATIENCE = 120
"""Seconds for what takes three on a quiet machine."""


def worker(folder: Path, seconds: float) -> None:
    open_store(folder).work(lambda cell: logging_run(cell, folder / "log", seconds))


def ended(processes: list[Any]) -> list[int | None]:
    """Their exit statuses, None for one that goes on."""
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    return [process.exitcode for process in processes]


def test_every_run_is_made_once_and_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.missing() == list(CELLS)
    store.work(lambda cell: logging_run(cell, tmp_path / "log"))
    store = open_store(tmp_path)
    store.work(lambda cell: pytest.fail(f"{cell} was run twice"))
    assert store.outcomes() == {cell: outcome(cell) for cell in CELLS}
    assert len(set((tmp_path / "log").read_text().splitlines())) == 16


def test_runs_that_are_wanted_no_more_do_no_harm(tmp_path: Path) -> None:
    few = CELLS[5:7]
    open_store(tmp_path, few).work(outcome)
    others = tuple(cell for cell in CELLS if cell.variant == "OPDF")
    store = open_store(tmp_path, others)
    store.work(lambda cell: logging_run(cell, tmp_path / "log"))
    assert len((tmp_path / "log").read_text().splitlines()) == 7  # one of the few is an OPDF
    assert store.outcomes() == {cell: outcome(cell) for cell in others}


def test_runs_with_one_key_are_one_run(tmp_path: Path) -> None:
    store = Store(tmp_path, dict.fromkeys(CELLS, "the same"))
    store.work(lambda cell: logging_run(cell, tmp_path / "log"))
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert list(store.outcomes()) == list(CELLS)


def test_a_failed_run_is_left_and_tried_again_when_that_is_asked(tmp_path: Path) -> None:
    store = open_store(tmp_path)

    def fails(cell: Cell) -> Outcome:
        if cell == CELLS[3]:
            raise RuntimeError("out of memory")
        return outcome(cell)

    store.work(fails)
    assert store.missing() == [CELLS[3]]
    store.work(lambda cell: pytest.fail(f"{cell} was tried again"))
    assert store.failures()[CELLS[3]].read_text().endswith("RuntimeError: out of memory\n")
    store.retry()
    assert store.failures() == {}
    store.work(outcome)
    assert store.missing() == []


def test_a_signal_ends_the_work_and_is_no_failure_of_a_run(tmp_path: Path) -> None:
    def stopped(cell: Cell) -> Outcome:
        raise Stopped(signal.SIGINT, "its teacher is saved")

    store = open_store(tmp_path)
    with pytest.raises(Stopped):
        store.work(stopped)
    assert store.missing() == list(CELLS)
    assert store.failures() == {}


def test_a_run_that_waits_for_another_process_lets_the_others_go_first(tmp_path: Path) -> None:
    with pytest.raises(InUseError), held(tmp_path / "lock"), held(tmp_path / "lock"):
        pass
    tried: list[Cell] = []

    def run(cell: Cell) -> Outcome:
        tried.append(cell)
        if cell == CELLS[0] and len(set(tried)) < len(CELLS):
            raise InUseError
        return outcome(cell)

    store = open_store(tmp_path)
    store.work(run)
    assert [cell for cell in tried if cell != CELLS[0]] == list(CELLS[1:])
    assert tried[-1] == CELLS[0] != tried[-2]  # made when all others were
    assert (store.missing(), store.failures()) == ([], {})


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.work(outcome)
    path = tmp_path / "runs" / "a-KD-0.0001-0.json"
    for content in ("", "[]", "{}"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"a-KD-0\.0001-0\.json is damaged .* delete it"):
            store.outcomes()
    path.unlink()
    assert store.missing() == [CELLS[0]]


def test_processes_share_the_runs_and_a_killed_ones_is_free_at_once(tmp_path: Path) -> None:
    doomed = SERVER.Process(target=worker, args=(tmp_path, 2 * PATIENCE))
    doomed.start()
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    others = [SERVER.Process(target=worker, args=(tmp_path, 0.02)) for _ in range(2)]
    for process in others:
        process.start()
    while len(open_store(tmp_path).missing()) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert doomed.pid is not None
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.join()
    assert ended(others) == [0, 0]
    assert open_store(tmp_path).outcomes() == {cell: outcome(cell) for cell in CELLS}
    runs = (tmp_path / "log").read_text().splitlines()
    assert len(runs) == 17  # only the killed one twice
    assert len(set(runs)) == 16


MANY = tuple(Cell(seed, "a", "KD", 1e-3) for seed in range(60))


def take_all(folder: Path, start: Any) -> None:
    store = open_store(folder, MANY)
    start.wait()
    store.work(lambda cell: logging_run(cell, folder / "log"))


def test_no_run_is_made_by_two_processes(tmp_path: Path) -> None:
    """They all take the next one as fast as they can."""
    start = SERVER.Barrier(3)
    processes = [SERVER.Process(target=take_all, args=(tmp_path, start)) for _ in range(3)]
    for process in processes:
        process.start()
    assert ended(processes) == [0, 0, 0]
    runs = (tmp_path / "log").read_text().splitlines()
    assert len(runs) == len(set(runs)) == len(MANY)
