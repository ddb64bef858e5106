"""Training to its end: from the newest whole checkpoint if a run goes on, until a signal comes."""

from __future__ import annotations

from pathlib import Path

from opdf.distill import DistillationTrainer, newest_whole
from opdf.job.errors import Stopped
from opdf.job.processes import tell
from opdf.job.progress import stopping


def train(trainer: DistillationTrainer, who: str, *, resume: bool) -> None:
    """Train to the end, from the newest whole checkpoint if a run is resumed.

    Args:
        trainer: what is trained; its checkpoints are in its output folder.
        who: is trained, in messages.
        resume: whether a run goes on.

    Raises:
        Stopped: a signal came; the step in which it did is saved.
    """
    folder = Path(trainer.args.output_dir)
    last = newest_whole(folder, lambda text: tell(f"warning: {text}")) if resume else None
    if resume:
        start = f"goes on from {last}" if last else "has no whole checkpoint and starts from the beginning"
        tell(f"{who} {start}")
    with stopping(trainer) as stop:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    if stop.signal is not None:
        raise Stopped(stop.signal, f"stopped; step {trainer.state.global_step} of {who} is saved in {folder}")
