"""Single runs of a study: data and teacher made once, a student trained, its answers kept."""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from opdf.data import Prepared
from opdf.distill import TrainingDiverged
from opdf.job.checks import check_fit
from opdf.job.config import DistillConfig
from opdf.job.job import Job
from opdf.job.options import plain
from opdf.job.output import write_json
from opdf.job.prepared import prepare_data
from opdf.job.probe import features, fit_probe
from opdf.job.run import parameters, student_trainer
from opdf.job.scoring import answers, evaluator, scores
from opdf.job.teacher import ready_teacher
from opdf.study import DIVERGED, Cell, Outcome, Recorder

JUDGED = ("validation", "test")
"""Splits of which a student's answers are kept."""


class Runner:
    """Trains the students of a study, one after the other; a teacher and what it says are made once for all.

    Args:
        configuration: of a setting and a variant.
        folder: for teachers; several processes may share it.
        probe: judge students by a linear classifier on their frozen features instead of their own head.
        spectra_seed: with this seed, the cores' singular values are recorded.
    """

    def __init__(
        self, configuration: Callable[[str, str], DistillConfig], folder: Path, *, probe: bool, spectra_seed: int
    ) -> None:
        self.configuration = configuration
        self.folder = folder
        self.probe = probe
        self.spectra_seed = spectra_seed
        self._ready: tuple[str, Taught] | None = None
        self._checked: set[tuple[str, str]] = set()

    def run(self, cell: Cell) -> Outcome:
        """One run: its validation score, its answers on the test split, and what it cost."""
        config = self._configured(cell)
        taught = self._taught(config)
        if (cell.setting, cell.variant) not in self._checked:
            check_fit(Job(config), taught.prepared, taught.teacher)
            self._checked.add((cell.setting, cell.variant))
        outcome = self._trained(config, taught, cell)
        gc.collect()  # trainer and callbacks refer to each other, and would keep the student's memory on a GPU
        return outcome

    def _trained(self, config: DistillConfig, taught: Taught, cell: Cell) -> Outcome:
        """What a new student is worth after its training, and what that took."""
        prepared = taught.prepared
        with tempfile.TemporaryDirectory() as scratch:
            teacher = copy.deepcopy(taught.teacher)  # some methods train it
            job = Job(replace(config, output=scratch), teachers=taught.folder)
            with FileLock(taught.folder / "lock"):  # what the teacher says is kept there, by one process
                trainer = student_trainer(job, prepared, teacher, str(cell))
            recorder = Recorder(spectra=cell.seed == self.spectra_seed)
            recorder.attach(trainer)
            diverged, start = {}, time.perf_counter()
            try:
                trainer.train()
            except TrainingDiverged as stop:  # too high a rate is a result like others
                diverged = {DIVERGED: stop.step}
            seconds = time.perf_counter() - start
            recorder.finish()
        answers = self._answers(trainer.model, prepared) if not diverged else no_answers(prepared)
        labels = prepared.data["validation"].with_format("numpy").select_columns("labels")[:]["labels"]
        return Outcome(
            validation=prepared.task.score(answers["validation"], labels),
            predictions=answers["test"].tolist(),
            seconds=round(seconds, 2),
            **parameters(trainer),
            facts={"teacher": taught.scores, "steps": trainer.state.global_step, **recorder.facts, **diverged},
        )

    def _configured(self, cell: Cell) -> DistillConfig:
        config = self.configuration(cell.setting, cell.variant)
        training = config.training | {"learning_rate": cell.rate, "save_strategy": "no"}
        return replace(config, seed=cell.seed, data=replace(config.data, seed=cell.seed), training=training)

    def _taught(self, config: DistillConfig) -> Taught:
        """Data and teacher of a run, shared with all that agree in these; a teacher is trained by one process."""
        key = digest([plain(config.data), plain(config.teacher)])
        if self._ready is None or self._ready[0] != key:
            folder = self.folder / key
            folder.mkdir(parents=True, exist_ok=True)
            prepared, scored = prepare_data(config.data, config.teacher), folder / "scores.json"
            with FileLock(folder / "lock"):
                teacher = ready_teacher(Job(config, teachers=folder), prepared)
                if not scored.is_file():
                    write_json(scores(evaluator(teacher, prepared), prepared), scored)
            gc.collect()  # the teacher's trainer and its optimizer, as in run
            self._ready = key, Taught(prepared, teacher, json.loads(scored.read_text()), folder)
        return self._ready[1]

    def _answers(self, student: Any, prepared: Prepared) -> dict[str, np.ndarray]:
        """Class numbers or values on the judged splits."""
        if self.probe:
            probe = fit_probe(student, prepared.data["train"], prepared.collator)
            return {p: probe.predict(features(student, prepared.data[p], prepared.collator)[0]) for p in JUDGED}
        return {p: answers(student, prepared, p) for p in JUDGED}


@dataclass(frozen=True)
class Taught:
    """Data and a teacher that is ready, with its scores, and the folder that is theirs."""

    prepared: Prepared
    teacher: Any
    scores: dict[str, Any]
    folder: Path


def no_answers(prepared: Prepared) -> dict[str, np.ndarray]:
    """What a diverged student is taken to answer: class 0 or the value 0 to everything.

    Its own outputs are NaN, which no probe can be fitted to and no value be correlated with.
    """
    return {part: np.zeros(len(prepared.data[part]), int) for part in JUDGED}


def digest(content: Any) -> str:
    """A short name for JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
