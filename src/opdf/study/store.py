"""The runs of a study as files, shared by processes and by machines with a common folder."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from opdf.files import replacing
from opdf.job import Stopped
from opdf.study.plan import Cell

PAUSE = 2.0
"""Seconds between two looks at the runs of other processes."""


class InUseError(Exception):
    """What a run needs is being made by another process."""


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Inside, this process has a lock.

    Raises:
        InUseError: another process has it.
    """
    try:
        mine = FileLock(lock).acquire(blocking=False)
    except Timeout:
        raise InUseError(lock) from None
    with mine:
        yield


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        validation: score on the validation split, by which rates are chosen.
        predictions: on the test split: class numbers, values, or the losses of a language model's texts. They are
            compared with the labels only if this run's rate is chosen, so that the test split decides nothing.
        seconds: of training.
        train_params, inference_params: of the student.
        facts: anything else worth keeping: curves, spectra, the teacher's scores. JSON.
    """

    validation: float
    predictions: list[Any]
    seconds: float
    train_params: int
    inference_params: int
    facts: dict[str, Any] = field(default_factory=dict)


class Store:
    """A folder with up to three files a run: KEY.json, its outcome; KEY.claim, locked by the process that makes it;
    KEY.failed, the traceback of the error that ended it.

    A key stands for all that determines a run. So names, their order, and what else the study holds can change without
    touching runs that are done. A run whose configuration changes is a new one. The lock of a process is free when it
    has ended, however it ended.

    Args:
        folder: of the files; made when the first run begins.
        keys: of the runs that are wanted.
    """

    def __init__(self, folder: Path, keys: dict[Cell, str]) -> None:
        self.folder = folder
        self.keys = keys

    def missing(self) -> list[Cell]:
        """The runs that are not done."""
        done = self._there("json")
        return [cell for cell, key in self.keys.items() if key not in done]

    def outcomes(self) -> dict[Cell, Outcome]:
        """Of the runs that are done.

        Raises:
            ValueError: a file is damaged.
        """
        done = self._there("json")
        return {cell: self._read(key) for cell, key in self.keys.items() if key in done}

    def failures(self) -> dict[Cell, Path]:
        """Tracebacks of the runs that ended in an error."""
        failed = self._there("failed")
        return {cell: self._path(cell, "failed") for cell in self.missing() if self.keys[cell] in failed}

    def retry(self) -> None:
        """Let runs that ended in an error be tried again."""
        for path in self.failures().values():
            path.unlink(missing_ok=True)

    def work(self, run: Callable[[Cell], Outcome], order: Iterable[Cell] | None = None) -> None:
        """Run what is missing, until every run is done or has failed; any number of processes may do so at a time.

        A run that ends in an error is left with its traceback, and the work goes on: the next may have another teacher.

        Args:
            run: makes a run; one that raises `InUseError` is tried again after the others.
            order: all runs, those first that this process begins with; the keys' order if None.

        Raises:
            Stopped: a signal came.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        cells = list(order or self.keys)
        while wanted := [cell for cell in cells if not self._settled(cell)]:
            if not any(self._tried(cell, run) for cell in wanted):
                time.sleep(PAUSE)  # others are making them, and may be killed

    def _tried(self, cell: Cell, run: Callable[[Cell], Outcome]) -> bool:
        """Whether the run is done or has failed; False while another process makes it, or what it needs."""
        try:
            with held(self._path(cell, "claim")):
                if not self._settled(cell):
                    self._make(cell, run)
        except InUseError:
            return False
        return True

    def _make(self, cell: Cell, run: Callable[[Cell], Outcome]) -> None:
        try:
            self._write(cell, run(cell))
        except (InUseError, Stopped):
            raise
        except Exception:
            self._path(cell, "failed").write_text(f"{cell}\n{traceback.format_exc()}")
            traceback.print_exc()

    def _settled(self, cell: Cell) -> bool:
        """Whether it is done or has failed."""
        return any(self._path(cell, kind).exists() for kind in ("json", "failed"))

    def _there(self, kind: str) -> set[str]:
        return {path.stem for path in self.folder.glob(f"*.{kind}")}

    def _path(self, cell: Cell, kind: str) -> Path:
        return self.folder / f"{self.keys[cell]}.{kind}"

    def _write(self, cell: Cell, outcome: Outcome) -> None:
        with replacing(self._path(cell, "json")) as scratch:
            scratch.write_text(json.dumps({"run": asdict(cell), **asdict(outcome)}))

    def _read(self, key: str) -> Outcome:
        path = self.folder / f"{key}.json"
        try:
            content = json.loads(path.read_text())
            return Outcome(**{name: value for name, value in content.items() if name != "run"})
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it, and the run is made again") from error
