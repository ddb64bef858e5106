"""Saved models by what a user calls them: the output folder of a run, a model in it, or any other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdf.job.errors import UserError
from opdf.job.output import CONFIG, METRICS, STUDENT, going_on, read_metrics

OF_A_RUN = {STUDENT: CONFIG, "teacher": METRICS, "trained-teacher": METRICS}
"""Folders of models that a run has trained, on its columns and lengths, and the file that a run of them has.

A folder called teacher beside some config.yaml may be no run's.
"""


@dataclass(frozen=True)
class Saved:
    """A saved model.

    Attributes:
        model: its folder, or a hub name.
        run: the output folder of the run that trained it; None for other models.
    """

    model: str
    run: Path | None

    @property
    def metrics(self) -> dict[str, Any]:
        """What the run's metrics.json holds; nothing without a finished run.

        Raises:
            UserError: it is damaged.
        """
        return read_metrics(self.run) if self.run and (self.run / METRICS).is_file() else {}


def find_saved(name: str) -> Saved:
    """The model that a name means.

    Raises:
        UserError: it is a run without a student yet.
        FileNotFoundError: it is a path to nothing, or to a folder of something else.
    """
    folder = Path(name)
    if (folder / CONFIG).is_file():
        if not (folder / STUDENT).is_dir():
            raise UserError(f"{name} is a run without a student yet; {going_on(folder)} goes on with it")
        return Saved(str(folder / STUDENT), folder)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{name} holds no run and no model (neither {CONFIG} nor config.json); give an output folder of opdf "
            "distill, or a model's"
        )
    mark = OF_A_RUN.get(folder.name)
    is_of_run = mark is not None and all((folder.parent / file).is_file() for file in (CONFIG, mark))
    return Saved(name, folder.parent if is_of_run else None)
