"""A whole study with its processes: equal effort, resumable, the test split looked at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tests.study.example import OPDF, STUDY, config

from opdf.job.errors import UserError
from opdf.job.options import write_yaml
from opdf.study import Cell, Outcome, Study, sweep, workers
from opdf.study.runner import Runner


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_a_study_is_run_once_and_goes_on_when_its_file_changes(tmp_path: Path, workers: int) -> None:
    options = config(tmp_path, workers=workers)
    study, out = Study(options), tmp_path / "out"
    blocked = out / "teachers" / teacher_of(study, seed=1)
    blocked.parent.mkdir(parents=True)
    (out / "study.yaml").touch()
    blocked.touch()  # a file where the workers want a folder
    with pytest.raises(UserError, match=rf"4 of 8 runs are missing; .*{blocked}.*\.failed\)\. Run again to go on"):
        sweep(options)
    blocked.unlink()
    study.store.retry()
    study.store.work(Runner(study).run)

    results = sweep(options)
    runs = results["runs"]
    assert len(runs) == 2 * 2 * 2
    looked_at = {(r["variant"], r["rate"]) for r in runs if r["test"] is not None}
    chosen = results["rates"]["digits/64"]
    assert looked_at == {(v, rate) for v in chosen for rate in (chosen[v], chosen["KD"])}
    mean = {v: sum(r["test"] for r in runs if (r["variant"], r["rate"]) == (v, chosen[v])) / 2 for v in chosen}
    best = next(e for e in results["effects"] if e["at"] == "best")
    assert best["mean"] == pytest.approx(mean["OPDF"] - mean["KD"])
    assert best["low"] <= best["mean"] <= best["high"]
    over = next(r for r in runs if r["variant"] == "OPDF" and r["seed"] == 0)
    assert over["train_params"] > over["inference_params"]
    assert over["facts"]["spectra"]["steps"][0]["step"] == 1
    assert len(list((out / "teachers").iterdir())) == 2  # one a seed, shared by variants and rates

    # What is there is used under other names, in another order, and in part; the rest is not missed.
    (out / "teachers").rename(tmp_path / "gone")
    names = {"ours": OPDF, "theirs": {}}
    part = sweep(config(tmp_path, variants=names, tasks={"numerals": {}}, seeds=[1], learning_rates=[1e-2, 1e-3]))
    found = {(r["variant"], r["rate"]): (r["validation"], r["facts"]) for r in part["runs"]}
    assert found == {
        ({"KD": "theirs", "OPDF": "ours"}[r["variant"]], r["rate"]): (r["validation"], r["facts"])
        for r in runs if r["seed"] == 1
    }  # fmt: skip
    assert not (out / "teachers").exists()


def teacher_of(study: Study, seed: int) -> str:
    """The name of a teacher's folder."""
    options = study.config("digits/64", "KD")
    return study.teacher_key(replace(options, data=replace(options.data, seed=seed)))


def test_a_task_that_is_taken_out_of_a_stopped_study_is_not_missed(tmp_path: Path) -> None:
    def stop(cell: Cell) -> Outcome:
        raise KeyboardInterrupt

    few: dict[str, Any] = {"seeds": [0], "learning_rates": [1e-3]}
    stopped = Study(config(tmp_path, tasks={"mnist": {"data": {"name": "mnist-5k"}}, "digits": {}}, **few))
    with pytest.raises(KeyboardInterrupt):
        stopped.store.work(stop)
    study = Study(config(tmp_path, **few))
    ran = []

    def run(cell: Cell) -> Outcome:
        ran.append(cell.setting)
        return Outcome(0.5, [0.0] * 360, 1.0, 20, 10)

    study.store.work(run)
    assert ran == ["digits/64", "digits/64"]
    write_yaml(study.options, tmp_path / "out" / "study.yaml")
    assert [run["setting"] for run in sweep(study.options)["runs"]] == ["digits/64", "digits/64"]


def test_a_foreign_folder_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="was not written by opdf sweep"):
        sweep(config(tmp_path))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_file_is_not_taken_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("years of work")
    with pytest.raises(FileExistsError, match="out is a file; choose another"):
        sweep(config(tmp_path))


def test_a_process_that_was_killed_is_not_taken_at_its_last_word(tmp_path: Path) -> None:
    study = Study(config(tmp_path))
    log = workers._log(study.folder, 1)
    log.parent.mkdir(parents=True)
    log.write_text("a note about the data\n")
    assert workers._why(study, [0, 1]) == f"a note about the data (see {log})"
    killed = f"a process was ended by SIGKILL, as systems do when memory runs out (see {log})"
    assert workers._why(study, [0, -signal.SIGKILL]) == killed


# As from a terminal: a process that a script has started in the background ignores SIGINT, and so do its children.
FROM_A_TERMINAL = """
import signal, sys
from opdf.job.options import fill, read_yaml
from opdf.study import StudyConfig, sweep
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        sweep(fill(StudyConfig, read_yaml(sys.argv[1]), "study"))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def children_of(process: psutil.Process) -> list[psutil.Process]:
    """None of one that has just ended."""
    try:
        return process.children()
    except psutil.NoSuchProcess:
        return []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "status", "who"),
    [(signal.SIGINT, 130, "student"), (signal.SIGTERM, -15, "student"), (signal.SIGKILL, -9, "student"),
     (signal.SIGINT, 130, "teacher")],
)  # fmt: skip
def test_workers_end_with_the_sweep(tmp_path: Path, sent: signal.Signals, status: int, who: str) -> None:
    training = {"training": {"max_steps": 100_000, "dataloader_num_workers": 1}}
    common: dict[str, Any] = STUDY["common"]
    endless = common | (training if who == "student" else {"teacher": common["teacher"] | training})
    write_yaml(config(tmp_path, common=endless), tmp_path / "study.yaml")
    script = tmp_path / "script.py"
    script.write_text(FROM_A_TERMINAL)
    started = subprocess.Popen([sys.executable, script, tmp_path / "study.yaml"], stderr=subprocess.DEVNULL)
    begun = psutil.Process(started.pid)
    while not any(children_of(worker) for worker in begun.children()):  # which load the data of what is trained
        assert started.poll() is None
        time.sleep(0.1)
    processes = begun.children(recursive=True)
    started.send_signal(sent)
    assert started.wait(timeout=120) == status
    assert not psutil.wait_procs(processes, timeout=30)[1], "a worker goes on alone"
    missing = Study(config(tmp_path, common=endless)).store.missing()
    assert len(missing) == 8


def test_processes_start_anew_where_a_fork_would_break_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    for accelerated, method in ((False, "forkserver"), (True, "spawn")):
        monkeypatch.setattr(torch.accelerator, "is_available", lambda found=accelerated: found)
        assert workers.forks().get_start_method() == method
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert workers.forks().get_start_method() == "spawn"
