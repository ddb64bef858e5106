"""Training to its end: from the newest whole checkpoint if a run goes on, until a signal comes."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from opdf.distill import DistillationTrainer, as_made, newest_whole
from opdf.job.errors import Stopped
from opdf.job.processes import tell
from opdf.job.progress import stopping


class Clock(TrainerCallback, ExportableState):
    """The seconds of a training, from its first part on if it goes on from a checkpoint, where they are kept.

    Attributes:
        before: the seconds of the parts before this one.
    """

    def __init__(self, last: Path | None = None) -> None:
        self.before, self._began = 0.0, time.perf_counter()
        if last is not None:
            kept = json.loads((last / TRAINER_STATE_NAME).read_text())["stateful_callbacks"].get(type(self).__name__)
            self.before = kept["attributes"]["before"] if kept else 0.0  # older checkpoints do not have it

    @property
    def seconds(self) -> float:
        return self.before + time.perf_counter() - self._began

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"before": self.seconds}}

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        # The Trainer fails on saving if a checkpoint that it goes on from does not know a callback.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())


def train(trainer: DistillationTrainer, who: str, *, resume: bool) -> float:
    """Train to the end, from the newest whole checkpoint if a run is resumed.

    Args:
        trainer: what is trained; its checkpoints are in its output folder.
        who: is trained, in messages.
        resume: whether a run goes on.

    Returns:
        The seconds that it took, those until the checkpoint included.

    Raises:
        Stopped: a signal came; the step in which it did is saved.
    """
    folder = Path(trainer.args.output_dir)
    last = newest_whole(folder, lambda text: tell(f"warning: {text}")) if resume else None
    if resume:
        start = f"goes on from {last}" if last else "has no whole checkpoint and starts from the beginning"
        tell(f"{who} {start}")
    clock = Clock(last)
    trainer.add_callback(clock)
    with stopping(trainer) as stop:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    as_made(trainer.model)  # scores and a teacher's answers are those of float32
    if stop.signal is not None:
        raise Stopped(stop.signal, f"stopped; step {trainer.state.global_step} of {who} is saved in {folder}")
    with suppress(OSError):
        folder.rmdir()  # the Trainer has made it, also for a training that saves nothing
    return clock.seconds
