"""The runs of a study in an Optuna storage: who runs what, what was seen; killed and continued, on several machines."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from opdf.study.plan import Cell, Plan

HEARTBEAT, GRACE = 10, 40
"""Seconds between two signs of life of a run, and after how many without one it is given to someone else."""

BUSY = 60
"""Seconds to wait for another process's hold on a SQLite file."""

SIGNS_OF_LIFE = sqlalchemy.text(
    "SELECT number FROM trials JOIN trial_heartbeats USING (trial_id) JOIN studies USING (study_id) "
    "WHERE study_name = :study"
)
"""Numbers of the runs that have ever given one."""


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        validation: score on the validation split, by which rates are chosen.
        predictions: on the test split, class numbers or values. They are compared with the labels only if this run's
            rate is chosen, so that the test split decides nothing.
        seconds: of training.
        train_params, inference_params: of the student.
        facts: anything else worth keeping: curves, spectra, the teacher's scores. JSON.
    """

    validation: float
    predictions: list[float]
    seconds: float
    train_params: int
    inference_params: int
    facts: dict[str, Any] = field(default_factory=dict)


class Store:
    """A study's runs.

    Args:
        url: of the database: sqlite:///FILE, or a server's for several machines.
        name: of the study in it.
        plan: what is to be run; runs that are there already are not repeated.
        digests: by setting and variant a digest of their configuration.

    Raises:
        ValueError: the store holds runs of a setting and variant that were configured in another way.
    """

    def __init__(self, url: str, name: str, plan: Plan, digests: Mapping[tuple[str, str], str]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        is_file = url.startswith("sqlite:")
        self._storage = storage = RDBStorage(
            url,
            engine_kwargs={"connect_args": {"timeout": BUSY}} if is_file else None,
            heartbeat_interval=HEARTBEAT,
            grace_period=GRACE,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
        )
        if is_file:
            _lock_at_begin(storage.engine)
        self.study = optuna.create_study(storage=storage, study_name=name, direction="maximize", load_if_exists=True)
        self.plan = plan
        self.digests = digests
        self._check_configurations()

    def enqueue(self) -> None:
        """Put what is missing into the queue; called by one process before the work begins."""
        self.study.set_user_attr("digests", self._known_digests() | {"\n".join(k): v for k, v in self.digests.items()})
        there = {_cell(t) for t in self._trials() if t.state != TrialState.FAIL}
        for cell in self.plan.cells():
            if cell not in there:
                self._queue(asdict(cell))

    def work(self, run: Callable[[Cell], Outcome]) -> None:
        """Run what is queued, until all is done or what is left has failed; several processes share the queue.

        An exception in `run` ends the work; `enqueue` queues that run again the next time. A process that was silent
        for so long (a laptop that slept) that its run was given to someone else drops it and goes on.
        """
        given_away = False

        def objective(trial: optuna.Trial) -> float:
            if "cell" not in trial.user_attrs:  # someone else took the last one of the queue, and this is a new one
                raise optuna.TrialPruned
            outcome = run(Cell(**trial.user_attrs["cell"]))
            try:
                trial.set_user_attr("outcome", asdict(outcome))
            except UpdateFinishedTrialError:
                nonlocal given_away
                given_away = True
                raise
            return outcome.validation

        while self.missing():
            states = {t.state for t in self._trials()}
            if TrialState.WAITING in states:
                try:
                    self.study.optimize(objective, n_trials=1)
                except ValueError:  # so Optuna says that the run is finished already
                    if not given_away:
                        raise
                    given_away = False
            elif TrialState.RUNNING in states:
                time.sleep(HEARTBEAT / 4)
                self._give_out_again()
            else:
                return

    def outcomes(self) -> dict[Cell, Outcome]:
        """Everything that has been run of the plan."""
        done = {_cell(t): t for t in self._trials() if t.state == TrialState.COMPLETE}
        return {cell: Outcome(**done[cell].user_attrs["outcome"]) for cell in self.plan.cells() if cell in done}

    def missing(self) -> int:
        """How many runs are not done yet."""
        done = {_cell(t) for t in self._trials() if t.state == TrialState.COMPLETE}
        return sum(cell not in done for cell in self.plan.cells())

    def _queue(self, cell: dict[str, Any]) -> None:
        self.study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={"cell": cell}))

    def _give_out_again(self) -> None:
        """Queue the runs of processes that have ended without a word."""
        optuna.storages.fail_stale_trials(self.study)
        for trial in self._silent():
            with suppress(UpdateFinishedTrialError, ValueError):  # another process was faster
                self.study.tell(trial.number, state=TrialState.FAIL)
                self._queue(trial.user_attrs["cell"])

    def _silent(self) -> Iterator[FrozenTrial]:
        """Runs that were killed before their first sign of life; Optuna would take them for running forever."""
        with self._storage.engine.connect() as connection:
            heard = set(connection.execute(SIGNS_OF_LIFE, {"study": self.study.study_name}).scalars())
        long_ago = datetime.now() - timedelta(seconds=GRACE)
        for trial in self._trials():
            begun = trial.datetime_start
            if trial.state == TrialState.RUNNING and trial.number not in heard and begun and begun < long_ago:
                yield trial

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _known_digests(self) -> dict[str, str]:
        return dict(self.study.user_attrs.get("digests", {}))

    def _check_configurations(self) -> None:
        known = self._known_digests()
        for (setting, variant), digest in self.digests.items():
            if known.get(f"{setting}\n{variant}", digest) != digest:
                raise ValueError(
                    f"variant {variant!r} on {setting!r} was run with another configuration in this store; rename it, "
                    "or give the study another output folder"
                )


def _lock_at_begin(engine: sqlalchemy.Engine) -> None:
    """Let a transaction on a SQLite file have the file to itself.

    Optuna asks for the row of a waiting run to be locked before it takes it. SQLite has no such locks, and by default
    locks nothing until something is written, so that now and then two processes took the same run.
    """
    engine.dispose()  # connections from before
    sqlalchemy.event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    sqlalchemy.event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))


def _cell(trial: FrozenTrial) -> Cell | None:
    return Cell(**trial.user_attrs["cell"]) if "cell" in trial.user_attrs else None
