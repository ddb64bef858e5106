"""Progress of a Trainer's run on stderr: a bar with time left that vanishes in a pipe, and the log as a file."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

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

PATIENCE = 2.0
"""Seconds that decomposition may take without a bar of its own."""


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
        """A second line while the student's matrices are decomposed, before the first step; if that takes seconds."""
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
        self.progress.update(self.task, total=state.max_steps, completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.update(self.task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.progress.update(self.task, loss=f"loss {float(logs['loss']):.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress.stop()


class LogFile(TrainerCallback):
    """Every log entry of the Trainer as one line of JSON."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": state.global_step, **logs}) + "\n")


def show(trainer: Trainer, title: str, log: Path) -> None:
    """Replace the Trainer's own bars and printed dictionaries."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    bar = Bar(title)
    trainer.add_callback(bar)
    if isinstance(trainer, DistillationTrainer) and trainer.overparameterization is not None:
        trainer.overparameterization.progress = bar.decomposing
    trainer.add_callback(LogFile(log))
