"""What a user sees of a run: one line on a terminal, and while matrices are decomposed a second if it takes long."""

from __future__ import annotations

import io
import json
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from tests.distill.small import arguments, bert, sentences
from transformers import TrainerCallback

from jobs import digits
from opdf.distill import DistillationTrainer, keep_layers
from opdf.job import progress as module, run
from opdf.job.progress import Bar, counting, stopping


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def lines(bar: Any) -> list[tuple[str, float, float | None]]:
    return [(task.description, task.completed, task.total) for task in bar.progress.tasks[1:]]


def test_quick_decompositions_show_nothing(clock: list[float]) -> None:
    bar = Bar("distilling")
    for done in range(4):
        clock[0] += 0.5
        bar.decomposing(done, 3)
        assert lines(bar) == []


def test_slow_ones_get_a_line_until_they_are_done(clock: list[float]) -> None:
    bar = Bar("distilling")
    seen = []
    for _ in range(2):
        for done in range(4):
            bar.decomposing(done, 3)
            seen.append(lines(bar))
            clock[0] += 2.5
    assert seen == 2 * [[], [("decomposing", 1, 3)], [("decomposing", 2, 3)], []]


def test_on_a_terminal_a_line_of_80_columns_has_steps_time_gone_and_left_and_the_loss(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # a terminal, as rich sees it
    monkeypatch.setenv("COLUMNS", "80")
    bar = Bar("fine-tuning the teacher")
    state = SimpleNamespace(is_world_process_zero=True, max_steps=4000, global_step=0)
    bar.on_train_begin(None, state, None)
    for step in range(1, 11):
        time.sleep(0.01)
        state.global_step = step
        bar.on_step_end(None, state, None)
    bar.on_log(None, state, None, {"loss": 0.5})
    bar.on_train_end(None, state, None)
    last = capsys.readouterr().err.rpartition("\x1b[2K")[2]  # the line is drawn over itself
    line = re.sub(r"\x1b\[[0-9;?]*[a-z]", "", last).strip()
    steps, gone, left = r"10/4000", r"0:00:0\d", r"0:0\d:\d\d"
    assert re.fullmatch(rf"fine-tuning the teacher \S+ +{steps} {gone} {left} loss 0\.500", line), line
    assert len(line) <= 80


def test_outside_the_main_thread_a_run_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def train() -> None:
        with stopping(SimpleNamespace(add_callback=seen.append)):  # type: ignore[arg-type]
            seen.append(signal.getsignal(signal.SIGINT))

    thread = Thread(target=train)
    thread.start()
    thread.join()
    assert seen[1] is before


class At(TrainerCallback):
    """Does something in a step."""

    def __init__(self, step: int, action: Callable[[], None]) -> None:
        self.step, self.action = step, action

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            self.action()


@pytest.mark.parametrize(("stop", "saves"), [(6, "epoch"), (8, "no")])
def test_a_run_that_a_signal_stops_has_the_evaluations_of_one_that_goes_on(
    tmp_path: Path, stop: int, saves: str
) -> None:
    """Four steps an epoch. In the middle of one the student was scored once more, at its end it was not at all."""
    options = {"eval_strategy": "epoch", "save_strategy": saves, "max_steps": 12, "per_device_train_batch_size": 6}

    def trainer() -> DistillationTrainer:
        return DistillationTrainer(
            keep_layers(bert(), 2), arguments(tmp_path, **options), teacher=bert(), train_dataset=sentences(),
            eval_dataset=sentences(8),
        )  # fmt: skip

    first = trainer()
    with stopping(first) as stopped:
        first.add_callback(At(stop, lambda: stopped.received(signal.SIGTERM)))
        first.train()
    assert stopped.signal == signal.SIGTERM
    again = trainer()
    again.train(resume_from_checkpoint=True)
    assert [log["step"] for log in again.state.log_history if "eval_loss" in log] == [4, 8, 12]


def test_a_bar_appears_with_the_first_numbers(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with counting("asking"):
        pass
    assert "asking" not in capsys.readouterr().err
    with counting("asking") as progress:
        progress(0, 8)
    assert re.search(r"asking.*0/8", capsys.readouterr().err)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.slow
def test_a_run_shows_how_far_the_start_of_the_student_and_the_scores_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both can take minutes, in which nothing was seen to happen."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    metrics = run(digits(tmp_path / "out", overparam=None, constraint=None))
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert re.search(r"starting the student: 100%\S* 3/3", shown)
    scored = sum(metrics["student"][part]["examples"] for part in ("validation", "test"))
    assert len(re.findall(rf"scoring +\S+ +{scored}/{scored}", shown)) >= 3  # the teacher, the student before and after
    assert "Loading weights" not in shown


def test_in_a_pipe_it_is_said_once_a_minute_how_much_is_done(clock: list[float], capsys: Any) -> None:
    with counting("runs") as progress:
        for done in range(10):
            progress(done, 1000)
            clock[0] += 25.0
    assert capsys.readouterr().err == "runs: 3 of 1,000\nruns: 6 of 1,000\nruns: 9 of 1,000\n"


def test_in_a_pipe_there_is_a_line_for_every_entry_of_the_log(tmp_path: Path, capsys: Any) -> None:
    """As a user sees it who writes into a file; the numbers are those of train.log."""
    run(
        digits(
            tmp_path / "out", training={"max_steps": 6, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 4}
        )
    )
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("distilling: ")]
    entries = [json.loads(line) for line in (tmp_path / "out" / "train.log").read_text().splitlines()]
    expected = []
    for entry in entries:
        start = f"distilling: step {entry['step']} of 6, "
        if "loss" in entry:
            expected.append(f"{start}loss {entry['loss']:.4g}, rate {entry['learning_rate']:.4g}")
        elif "eval_loss" in entry:
            expected.append(f"{start}validation loss {entry['eval_loss']:.4g}, accuracy ")
    assert len(lines) == len(expected) == 5
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start), line
    assert re.search(r", \d+ s left$", lines[0])
    assert "left" not in lines[-1]
    assert "distilling: " not in printed.out
