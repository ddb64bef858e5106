"""Single runs of a study: data and teacher made once, a student trained, its answers kept."""

from __future__ import annotations

import copy
import gc
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from opdf.data import Prepared
from opdf.distill import DistillationTrainer, TrainingDiverged
from opdf.job import (
    DistillConfig,
    Job,
    Stopped,
    UserError,
    check_fit,
    evaluator,
    features,
    fit_probe,
    now,
    parameters,
    prepare_data,
    ready_teacher,
    scores,
    student_trainer,
    versions,
    write_json,
)
from opdf.study.judge import Judge, answers_of, labels_of
from opdf.study.pace import measured
from opdf.study.plan import Cell
from opdf.study.recorder import Recorder
from opdf.study.results import DIVERGED
from opdf.study.store import InUseError, Outcome, held
from opdf.study.study import TEST_LABELS, Study, check_start, labels_digest

JUDGED = ("validation", "test")
"""Splits of which a student's answers are kept."""


class Runner:
    """Trains the students of a study, one after the other; a teacher and its outputs are made once for all.

    Teachers and measured times are files in the study's folder, which several processes may share.

    Args:
        study: whose runs they are. With its first seed, the cores' singular values are recorded.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        self._ready: tuple[str, Taught] | None = None
        self._failed: dict[str, str] = {}  # why teachers could not be made; an error itself would hold their memory
        self._checked: set[tuple[str, str]] = set()
        self._start_seconds = 0.0  # of the newest student, made and fitted to its teacher

    def run(self, cell: Cell) -> Outcome:
        """One run: its validation score, its answers on the test split, and what it cost.

        Raises:
            InUseError: another process trains its teacher.
            UserError: files that it reads have changed since the study was resolved.
        """
        self.study.check_files(cell.setting, cell.variant)
        config = self._configured(cell)
        taught = self._taught(config)
        if (cell.setting, cell.variant) not in self._checked:
            check_start(cell.setting, cell.variant, check_fit(Job(config), taught.prepared, taught.teacher))
            self._checked.add((cell.setting, cell.variant))
        outcome = self._trained(config, taught, cell)
        gc.collect()  # trainer and callbacks refer to each other, and would keep the student's memory on a GPU
        return outcome

    def _trained(self, config: DistillConfig, taught: Taught, cell: Cell) -> Outcome:
        """A new student's scores after its training, and the facts of that."""
        prepared = taught.prepared
        facts: dict[str, Any] = {"teacher": taught.scores, "train_examples": len(prepared.data["train"])}
        facts["versions"] = versions()
        if timed := self._timed(cell, taught):
            config = replace(config, training=config.training | {"max_steps": timed["steps"]})
            facts["as_long_as"] = timed
        judge, labels = Judge(prepared.task), {part: labels_of(prepared, part) for part in JUDGED}
        facts[TEST_LABELS] = labels_digest(labels["test"])

        def score(student: Any) -> float:
            return judge.score(self._answers(student, prepared, "validation"), labels["validation"])

        with self._trainer(config, taught, str(cell)) as trainer:
            facts["start_seconds"] = self._start_seconds
            recorder = Recorder(
                trainer,
                spectra=cell.seed == self.study.plan.seeds[0],
                score=score if self.study.options.curve else None,
            )
            try:
                recorder.train()
            except TrainingDiverged as stop:  # a rate that is too high is a result too
                facts[DIVERGED] = stop.step
        said = {
            part: judge.no_answers(labels[part], prepared.processor)
            if DIVERGED in facts
            else self._answers(trainer.model, prepared, part)
            for part in JUDGED
        }
        return Outcome(
            validation=judge.score(said["validation"], labels["validation"]),
            predictions=said["test"].tolist(),
            seconds=round(recorder.seconds, 2),
            **parameters(trainer),
            facts=facts | {"steps": trainer.state.global_step} | recorder.facts(),
        )

    @contextmanager
    def _trainer(self, config: DistillConfig, taught: Taught, title: str) -> Iterator[DistillationTrainer]:
        with tempfile.TemporaryDirectory() as scratch:
            teacher = copy.deepcopy(taught.teacher)  # some methods train it
            job = Job(replace(config, output=scratch), teachers=taught.folder)
            with FileLock(taught.folder / "lock"):  # one process writes the teacher's outputs there
                begun = now()
                trainer = student_trainer(job, taught.prepared, teacher, title)
                self._start_seconds = round(now() - begun, 2)
            yield trainer

    def _timed(self, cell: Cell, taught: Taught) -> dict[str, Any] | None:
        """How many steps of a variant fit into another's time, if it asks for that; measured once a setting."""
        other = self.study.as_long_as(cell.variant)
        if other is None:
            return None
        names = (cell.variant, other)
        file = self.study.folder / "times" / f"{self.study.time_key(cell.setting, names)}.json"
        file.parent.mkdir(exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                configs = [
                    self._configured(replace(cell, variant=name, rate=self.study.plan.rates[0])) for name in names
                ]
                mine, theirs = measured(
                    [partial(self._trainer, c, taught, "measuring the time of a step") for c in configs]
                )
                write_json(
                    {
                        "variant": other,
                        "steps": mine.steps_in(theirs.seconds),
                        "mine": asdict(mine),
                        "theirs": asdict(theirs),
                    },
                    file,
                )
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def _configured(self, cell: Cell) -> DistillConfig:
        config = self.study.config(cell.setting, cell.variant)
        training = config.training | {"learning_rate": cell.rate, "save_strategy": "no"}
        return replace(config, seed=cell.seed, data=replace(config.data, seed=cell.seed), training=training)

    def _taught(self, config: DistillConfig) -> Taught:
        """Data and teacher of a run, shared with all that agree in these.

        Raises:
            InUseError: another process trains this teacher.
            Stopped: a signal came while it trained.
            UserError: its training diverged, or it could not be made before.
        """
        key = self.study.teacher_key(config)
        if key in self._failed:
            raise UserError(self._failed[key])
        try:
            return self._made(key, config)
        except (InUseError, Stopped):
            raise
        except TrainingDiverged as error:
            self._failed[key] = f"the teacher's {error}"
            raise UserError(self._failed[key]) from error
        except Exception as error:
            self._failed[key] = f"the teacher could not be made: {error}"
            raise

    def _made(self, key: str, config: DistillConfig) -> Taught:
        """The same; made unless the last run had them."""
        if self._ready is None or self._ready[0] != key:
            folder = self.study.folder / "teachers" / key
            folder.mkdir(parents=True, exist_ok=True)
            scored = folder / "scores.json"
            with held(folder / "lock"):
                prepared = prepare_data(config.data, config.teacher)
                untrained, start = not any(folder.glob("teacher*")), now()
                teacher = ready_teacher(Job(config, teachers=folder), prepared)
                seconds = round(now() - start, 2) if config.teacher.finetune and untrained else None
                if not scored.is_file():
                    write_json(scores(evaluator(teacher, prepared), prepared) | {"train_seconds": seconds}, scored)
            gc.collect()  # the teacher's trainer and its optimizer, as in run
            self._ready = key, Taught(prepared, teacher, json.loads(scored.read_text()), folder)
        return self._ready[1]

    def _answers(self, student: Any, prepared: Prepared, part: str) -> np.ndarray:
        """See `answers_of`; of a probe class numbers."""
        if not self.study.options.probe:
            return answers_of(student, prepared, part)
        probe = fit_probe(student, prepared.data["train"], prepared.collator)
        found: np.ndarray = probe.predict(features(student, prepared.data[part], prepared.collator)[0])
        return found


@dataclass(frozen=True)
class Taught:
    """Data and a teacher that is ready, with its scores, and the folder that is theirs."""

    prepared: Prepared
    teacher: Any
    scores: dict[str, Any]
    folder: Path
