"""A Trainer's run as its user follows it: a bar on a terminal, lines in a file or a pipe, the log, and stopping."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
import transformers
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from opdf.distill import DistillationTrainer
from opdf.files import replacing
from opdf.job.processes import is_main

PATIENCE = 2.0
"""Seconds that decomposition may take without a bar of its own."""

PAUSE = 60.0
"""Seconds between two lines of how much is done."""


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, libraries print no bars or notes between a run's own lines."""
    chatter, verbosity, bars = transformers.utils.logging, transformers.utils.logging.get_verbosity(), []
    chatter.set_verbosity_error()
    if chatter.is_progress_bar_enabled():
        chatter.disable_progress_bar()
        bars.append(chatter.enable_progress_bar)
    if not are_progress_bars_disabled():
        disable_progress_bars()
        bars.append(enable_progress_bars)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        yield
    finally:
        chatter.set_verbosity(verbosity)
        for enable in bars:
            enable()


@contextmanager
def loud() -> Iterator[None]:
    """Inside of `quiet`, transformers' bars are shown again: `shrink`'s, which is ours."""
    chatter = transformers.utils.logging
    shown = chatter.is_progress_bar_enabled()
    chatter.enable_progress_bar()
    try:
        yield
    finally:
        if not shown:
            chatter.disable_progress_bar()


@contextmanager
def counting(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar, or in a file or a pipe a line now and then; yields what gets the numbers done and in all.

    The bar appears with the first numbers: there may be nothing to do.
    """
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        yield Spoken(title)
        return
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task(title, total=None)

    def count(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total)
        bar.start()

    try:
        yield count
    finally:
        bar.stop()


class Spoken:
    """How much is done, as a line on stderr when a minute has passed since the last one."""

    def __init__(self, title: str) -> None:
        self.title, self.last = title, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() - self.last >= PAUSE and is_main():
            self.last = time.monotonic()
            print(f"{self.title}: {done:,} of {total:,}", file=sys.stderr, flush=True)


class Scored(TrainerCallback):
    """Tells how many of some examples a Trainer has scored, one split after the other.

    Args:
        progress: gets the numbers done and in all.
        total: of all splits.
    """

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self.progress, self.total, self.done, self.end = progress, total, 0, 0

    def begin(self, examples: int) -> None:
        """A split of so many examples is next."""
        self.done = self.end
        self.end += examples

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.done = min(self.done + args.eval_batch_size * args.world_size, self.end)
        self.progress(self.done, self.total)


class Bar(TrainerCallback):
    """One line: what runs, steps done, time gone and left, last loss."""

    def __init__(self, title: str) -> None:
        console = Console(file=sys.stderr)
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[loss]}"), console=console, disable=not console.is_terminal,
        )  # fmt: skip
        self.task = self.progress.add_task(title, loss="")
        self.matrices: TaskID | None = None
        self.started = 0.0

    def decomposing(self, done: int, total: int) -> None:
        """Shows a second line if decomposing the student's matrices, before the first step, takes seconds."""
        if done == 0:
            self.started = time.monotonic()
        if self.matrices is None and done < total and time.monotonic() - self.started > PATIENCE:
            self.matrices = self.progress.add_task("decomposing", total=total, loss="")
        if self.matrices is not None:
            self.progress.update(self.matrices, completed=done)
            if done == total:
                self.progress.remove_task(self.matrices)
                self.matrices = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            self.progress.start()
            atexit.register(self.progress.stop)  # an error leaves the cursor hidden otherwise
        self.progress.update(self.task, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.progress.update(self.task, loss=f"loss {float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.stop()


class Lines(TrainerCallback):
    """What a bar shows, as a line on stderr for every entry of the log: for a file or a pipe."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.began, self.first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        shown = dict(_shown(logs or {}))
        if not shown or not state.is_world_process_zero:
            return
        said = [f"step {state.global_step:,} of {state.max_steps:,}", *(f"{k} {v:.4g}" for k, v in shown.items())]
        done, left = state.global_step - self.first, state.max_steps - state.global_step
        if done and left:
            said.append(f"{duration(left * (time.monotonic() - self.began) / done)} left")
        print(f"{self.title}: {', '.join(said)}", file=sys.stderr, flush=True)


def _shown(logs: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The part of a log entry that a line shows: loss and rate, or the scores of an evaluation."""
    if "loss" in logs:
        yield "loss", float(logs["loss"])
        if "learning_rate" in logs:
            yield "rate", float(logs["learning_rate"])
    if "eval_loss" in logs:
        yield "validation loss", float(logs["eval_loss"])
        for name, value in logs.items():
            if name.startswith("eval_") and not name.endswith(("_loss", "_runtime", "_per_second")):
                yield name.removeprefix("eval_"), float(value)


def duration(seconds: float) -> str:
    """Seconds in a unit that fits."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class LogFile(TrainerCallback):
    """Writes every log entry of the Trainer as one line of JSON, after a first one about the start.

    A training that goes on from a checkpoint takes the steps after it again, so their lines are dropped.
    """

    def __init__(self, path: Path, start: Mapping[str, Any] | None) -> None:
        self.path, self.start = path, start

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        if self.path.exists():
            self._keep(state.global_step)
        if self.start and state.global_step == 0:
            self._append({"step": 0, **self.start})

    def _keep(self, last: int) -> None:
        """The lines up to a step; none for step 0. A killed run may have left half a line at the end."""
        whole = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        with replacing(self.path) as scratch:
            scratch.write_text("".join(line for line in whole if last and json.loads(line)["step"] <= last))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            self._append({"step": state.global_step, **logs})

    def _append(self, entry: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


class Stop(TrainerCallback):
    """Saves a checkpoint and ends the training after the step in which SIGINT or SIGTERM came.

    Attributes:
        signal: the signal that came, in any process; None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._here: int | None = None
        self._group: Any = None

    def received(self, number: int, frame: FrameType | None = None) -> None:
        if self._here == number:  # a launcher may pass the first on as a signal of another kind
            os._exit(128 + number)
        self._here = number
        name = signal.Signals(number).name
        os.write(2, f"opdf: {name}: a checkpoint is saved after this step; {name} again stops at once\n".encode())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.world_size > 1:
            self._group = dist.new_group(backend="gloo")  # the answer is wanted on the host

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.signal = self._anywhere(self._here)
        if self.signal is not None:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The Trainer takes a stop for the end of the epoch, and early stopping would count an evaluation more."""
        if self.signal is not None and state.epoch % 1 and state.global_step < state.max_steps:
            control.should_log = control.should_evaluate = control.should_save = False

    def _anywhere(self, number: int | None) -> int | None:
        """A signal that some process got: all have to stop after the same step."""
        if self._group is None:
            return number
        found = torch.tensor(number or 0)
        dist.all_reduce(found, dist.ReduceOp.MAX, self._group)
        return int(found) or None


@contextmanager
def stopping(trainer: Trainer) -> Iterator[Stop]:
    """Inside, SIGINT and SIGTERM end the training in an orderly way, and the second of a kind at once."""
    stop = Stop()
    trainer.add_callback(stop)
    if threading.current_thread() is not threading.main_thread():  # where Python takes no signals
        yield stop
        return
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, stop.received) for kind in kinds]
    try:
        yield stop
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def show(trainer: Trainer, title: str, log: Path, start: Mapping[str, Any] | None = None) -> None:
    """Replace the Trainer's own bars and printed dictionaries; `start` becomes the log's first line."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    bar = Bar(title)
    trainer.add_callback(Lines(title) if bar.progress.disable else bar)
    if isinstance(trainer, DistillationTrainer) and trainer.overparameterization is not None:
        trainer.overparameterization.progress = bar.decomposing
    trainer.add_callback(LogFile(log, start))
