"""Runs in a real SQLite storage: shared by processes, killed, continued, never repeated."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from opdf.study import store as store_module
from opdf.study.plan import Cell, Plan
from opdf.study.store import Outcome, Store

PLAN = Plan(("a", "b"), ("KD", "OPDF"), (1e-4, 1e-3), (0, 1), "KD")
DIGESTS = {(s, v): f"{s} {v}" for s in PLAN.settings for v in PLAN.variants}


def open_store(folder: Path, plan: Plan = PLAN, digests: dict[tuple[str, str], str] = DIGESTS) -> Store:
    return Store(f"sqlite:///{folder}/study.db", "test", plan, digests)


def outcome(cell: Cell) -> Outcome:
    return Outcome(cell.rate * (1 + cell.seed), [0.0, 1.0], 1.5, 20, 10, {"curve": [[1, 0.5]]})


def logging_run(cell: Cell, log: Path, seconds: float = 0.0) -> Outcome:
    with log.open("a") as file:
        file.write(f"{cell}\n")
    time.sleep(seconds)
    return outcome(cell)


# Not forks of this process: a child that inherits a lock from one of its many threads waits for it forever.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["opdf.study.store"])
PATIENCE = 200
"""Seconds for what takes three on a quiet machine: a run commits ten times, and some disks need a second for each."""


def worker(folder: Path, seconds: float) -> None:
    store_module.HEARTBEAT, store_module.GRACE = 1, 5
    open_store(folder).work(lambda cell: logging_run(cell, folder / "log", seconds))


def ended(processes: list[Any]) -> list[int | None]:
    """Their exit statuses, None for one that goes on."""
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    return [process.exitcode for process in processes]


def test_every_cell_is_run_once_and_kept(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    assert store.missing() == len(list(PLAN.cells())) == 16
    store.enqueue()
    store.work(lambda cell: logging_run(cell, tmp_path / "log"))
    store = open_store(tmp_path)
    store.enqueue()
    store.work(lambda cell: pytest.fail(f"{cell} was run twice"))
    assert store.outcomes() == {cell: outcome(cell) for cell in PLAN.cells()}
    assert len(set((tmp_path / "log").read_text().splitlines())) == 16


def test_a_larger_plan_adds_to_what_is_there(tmp_path: Path) -> None:
    small = Plan(("a",), ("KD",), (1e-4,), (0,), "KD")
    store = open_store(tmp_path, small)
    store.enqueue()
    store.work(outcome)
    store = open_store(tmp_path)
    store.enqueue()
    store.work(lambda cell: logging_run(cell, tmp_path / "log"))
    assert len((tmp_path / "log").read_text().splitlines()) == 15
    assert len(store.outcomes()) == 16


def test_a_changed_variant_is_refused(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.enqueue()
    with pytest.raises(ValueError, match="'OPDF' on 'a' was run with another configuration"):
        open_store(tmp_path, digests=DIGESTS | {("a", "OPDF"): "new"})


def test_a_failed_run_ends_the_work_and_is_tried_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.enqueue()

    def fails(cell: Cell) -> Outcome:
        if cell.rate == 1e-3:
            raise RuntimeError("out of memory")
        return outcome(cell)

    with pytest.raises(RuntimeError, match="out of memory"):
        store.work(fails)
    assert 0 < store.missing() < 16
    store.enqueue()
    store.work(outcome)
    assert store.missing() == 0


def test_a_run_killed_before_its_first_sign_of_life_is_given_out_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "HEARTBEAT", 1)
    monkeypatch.setattr(store_module, "GRACE", 1)
    store = open_store(tmp_path)
    store.enqueue()
    with pytest.warns(UserWarning, match="Heartbeat"):
        taken = store.study.ask()  # and nothing more
    store.work(outcome)
    assert store.outcomes() == {cell: outcome(cell) for cell in PLAN.cells()}
    states = [trial.state.name for trial in store.study.trials]
    assert (states[taken.number], states.count("COMPLETE"), len(states)) == ("FAIL", 16, 17)


def test_a_process_that_was_taken_for_dead_goes_on_with_another_run(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.enqueue()
    first: list[Cell] = []

    def sleepy(cell: Cell) -> Outcome:
        if not first:
            first.append(cell)
            (running,) = (trial for trial in store.study.trials if trial.state.name == "RUNNING")
            store.study.tell(running.number, state=TrialState.FAIL)  # as another process would
            store.enqueue()
        return outcome(cell)

    store.work(sleepy)
    assert store.outcomes() == {cell: outcome(cell) for cell in PLAN.cells()}


def test_processes_share_the_queue_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    open_store(tmp_path).enqueue()
    doomed = SERVER.Process(target=worker, args=(tmp_path, 2 * PATIENCE))
    doomed.start()
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert doomed.pid is not None
    os.kill(doomed.pid, signal.SIGKILL)
    doomed.join()
    others = [SERVER.Process(target=worker, args=(tmp_path, 0.02)) for _ in range(2)]
    for process in others:
        process.start()
    assert ended(others) == [0, 0]
    assert open_store(tmp_path).outcomes() == {cell: outcome(cell) for cell in PLAN.cells()}
    runs = (tmp_path / "log").read_text().splitlines()
    assert len(runs) == 17  # only the killed one twice
    assert len(set(runs)) == 16


MANY = Plan(("a",), ("KD",), (1e-3,), tuple(range(40)), "KD")


def take_all(folder: Path, start: Any, taken: Any) -> None:
    study, mine = open_store(folder, MANY, {}).study, []
    start.wait()
    while "cell" in (trial := study.ask()).user_attrs:
        mine.append(trial.number)
    taken.put(mine)


def test_no_run_is_taken_by_two_processes(tmp_path: Path) -> None:
    """They all take the next waiting one as fast as they can; left to SQLite's defaults one or two were taken twice."""
    open_store(tmp_path, MANY, {}).enqueue()
    start, taken = SERVER.Barrier(3), SERVER.Queue()
    processes = [SERVER.Process(target=take_all, args=(tmp_path, start, taken)) for _ in range(3)]
    for process in processes:
        process.start()
    numbers = [number for _ in processes for number in taken.get(timeout=PATIENCE)]
    assert ended(processes) == [0, 0, 0]
    assert sorted(numbers) == list(range(40))
