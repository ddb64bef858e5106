"""`opdf sweep STUDY.yaml [--key value ...]`"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from sqlalchemy import make_url

from opdf.cli.options import parse
from opdf.data import Task
from opdf.job.checks import check_models, check_task
from opdf.job.config import DistillConfig
from opdf.job.errors import UserError
from opdf.job.job import Job
from opdf.job.options import fill, merged, plain, write_yaml
from opdf.job.output import write_json
from opdf.job.progress import quiet
from opdf.job.run import versions
from opdf.job.teacher import load_teacher
from opdf.study import Plan, Store, conclude
from opdf.study.runner import Runner, digest

DESCRIPTION = """Compare variants of a distillation at equal effort.

Every variant is trained with every learning rate on every task and seed. Rates are chosen on the validation split; the
test split is looked at once, for the chosen runs. A stopped sweep goes on where it was; nothing is run twice. To share
the work between machines, start the same command on each, with the same --storage (an Optuna database URL).

opdf report FOLDER then makes a page of the results. studies/ has files to start from."""

HIDDEN = "***"
"""What SQLAlchemy shows for a password."""


@dataclass
class StudyConfig:
    """A study.

    Args:
        common: what all runs share: a configuration of opdf distill.
        tasks: by name, what is particular to a task (data, teacher, student): changes to `common`.
        train_sizes: numbers of training examples, each tried on every task; null leaves the tasks' own.
        variants: by name, what is compared: changes to the task's configuration.
        baseline: the variant that the others are compared with; the first when null.
        learning_rates: every variant is trained with each of them.
        seeds: of splits, initialisation and data order. Comparisons are paired by seed.
        probe: judge students by a linear classifier on their frozen features instead of their own head.
        output: folder for the store, the teachers and results.json.
        storage: URL of Optuna's database; null is a SQLite file in the output folder. A password in it is not written
            down: give the URL on the command line to run from study.yaml again.
        workers: processes; each gets its share of the CPU's cores.
    """

    common: dict[str, Any] = field(default_factory=dict)
    tasks: dict[str, Any] = field(default_factory=lambda: {"task": {}})
    train_sizes: list[int] | None = None
    variants: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None
    learning_rates: list[float] = field(default_factory=lambda: [5e-5, 1e-4, 2e-4])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    probe: bool = False
    output: str = "runs/study"
    storage: str | None = None
    workers: int = 1


def main(argv: list[str]) -> None:
    study = parse(argv, StudyConfig, "opdf sweep", DESCRIPTION)
    with quiet():
        compare(study)


def compare(study: StudyConfig) -> None:
    """Run what is missing of a study and write what can be concluded."""
    sweep = Sweep(study)
    folder = Path(study.output)
    if folder.exists() and any(folder.iterdir()) and not (folder / "study.yaml").is_file():
        raise FileExistsError(f"output {folder} was not written by opdf sweep; choose another folder")
    sweep.check_data()
    folder.mkdir(parents=True, exist_ok=True)
    store = sweep.store()
    write_yaml(published(study), folder / "study.yaml")
    store.enqueue()
    _run_workers(study, sweep, store)
    results = sweep.results()
    write_json(results, folder / "results.json")
    for entry in results["effects"]:
        if entry["at"] == "best":
            print(f"{entry['variant']} on {entry['setting']}: {entry['verdict']}")
    print(f"saved: {folder}/results.json; make a page of it with opdf report {folder}")


class Sweep:
    """A study's configuration, resolved: what each of its runs is.

    Raises:
        UserError: something in it is unknown or cannot be.
    """

    def __init__(self, study: StudyConfig) -> None:
        if not study.variants:
            raise UserError("variants is empty; name at least two, e.g. {KD: {}, OPDF: {overparam: {ones: 3}}}")
        if study.workers < 1:
            raise UserError(f"workers is {study.workers}; give at least 1")
        if study.storage and make_url(study.storage).password == HIDDEN:
            raise UserError(f"storage is {study.storage}, without its password; give --storage with the whole URL")
        self.study = study
        self._settings = dict(_settings(study))
        self.plan = Plan(
            tuple(self._settings), tuple(study.variants), tuple(study.learning_rates), tuple(study.seeds),
            study.baseline or next(iter(study.variants)),
        )  # fmt: skip
        self.loaded = lru_cache(self._load)
        for setting in self.plan.settings:
            for variant in self.plan.variants:
                Job(self.config(setting, variant))

    def check_data(self) -> None:
        """Refuse data that cannot be read or judged, and variants whose models, constraint or objective do not fit."""
        teachers: dict[str, Any] = {}
        for setting in self.plan.settings:
            _, task = self.loaded(setting, self.plan.seeds[0])
            for variant in self.plan.variants:
                config = self.config(setting, variant)
                job = Job(config)
                check_task(job, task)
                key = digest([setting, plain(config.teacher)])
                if key not in teachers:
                    teachers[key] = load_teacher(job, task)
                check_models(job, task, teachers[key])
                if task.kind == "similarity":
                    raise UserError(
                        f"{config.data.name} is for similarity, which studies do not know; use opdf distill"
                    )

    def _load(self, setting: str, seed: int) -> tuple[Any, Task]:
        return load(replace(self.config(setting, self.plan.baseline).data, seed=seed))

    def config(self, setting: str, variant: str) -> DistillConfig:
        """What the runs of a variant on a setting have in common."""
        return fill(DistillConfig, self._given(setting, variant), f"variant {variant!r} of {setting!r}")

    def _given(self, setting: str, variant: str) -> dict[str, Any]:
        """The same as far as the study says it: another version's defaults do not make it another variant."""
        where = f"variant {variant!r} of {setting!r}"
        given = merged(self._settings[setting], _mapping(self.study.variants[variant] or {}, where))
        for key in ("output", "overwrite", "resume", "seed"):
            if key in given:
                raise UserError(f"{where}: {key} is set by the study itself; remove it")
        return given

    def store(self) -> Store:
        folder = Path(self.study.output)
        url = self.study.storage or f"sqlite:///{folder / 'study.db'}"
        digests = {
            (setting, variant): digest([self._given(setting, variant), self.study.probe])
            for setting in self.plan.settings
            for variant in self.plan.variants
        }
        return Store(url, folder.name, self.plan, digests)

    def results(self) -> dict[str, Any]:
        """The content of results.json."""

        def labels(setting: str, seed: int) -> Any:
            data, task = self.loaded(setting, seed)
            return data["test"].select_columns(task.label).with_format("numpy")[:][task.label]

        first = self.plan.seeds[0]
        tasks = {setting: self.loaded(setting, first)[1] for setting in self.plan.settings}
        concluded = conclude(
            self.plan, self.store().outcomes(), labels, {setting: task.score for setting, task in tasks.items()}
        )
        return {
            "plan": asdict(self.plan),
            "metrics": {setting: task.metric for setting, task in tasks.items()},
            "study": plain(published(self.study)),
            "versions": versions(),
            **concluded,
        }


def published(study: StudyConfig) -> StudyConfig:
    """The study as it is written down, for all to see: without the password of its database."""
    if study.storage is None:
        return study
    return replace(study, storage=make_url(study.storage).render_as_string(hide_password=True))


def _settings(study: StudyConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and configurations of tasks, one for every size if sizes are given."""
    for name, changes in study.tasks.items():
        given = merged(_mapping(study.common, "common"), _mapping(changes or {}, f"task {name!r}"))
        for size in study.train_sizes or ():
            yield f"{name}/{size}", merged(given, {"data": {"train_limit": size}})
        if not study.train_sizes:
            yield name, given


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {value!r}; expected keys of a configuration such as data: and student:")
    return value


def _run_workers(study: StudyConfig, sweep: Sweep, store: Store) -> None:
    """Processes that work until the queue is empty; this one shows how far they are."""

    total = len(list(sweep.plan.cells()))
    if not store.missing():
        return
    context = multiprocessing.get_context("spawn")
    # Not as daemons: those may have no processes of their own, which dataloader_num_workers asks for.
    workers = [context.Process(target=_worker, args=(study, k), daemon=False) for k in range(study.workers)]
    console = Console(file=sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("runs", total=total, completed=total - store.missing())
        try:
            for worker in workers:
                worker.start()
            while alive := [worker for worker in workers if worker.is_alive()]:
                alive[0].join(5)
                progress.update(bar, completed=total - store.missing())
        finally:  # at its end Python would wait for what they have left to do
            for worker in workers:
                if worker.is_alive():
                    worker.terminate()
    failed = [k for k, worker in enumerate(workers) if worker.exitcode]
    if failed or store.missing():
        log = _worker_log(study, (failed or [0])[0])
        reason = log.read_text().strip().splitlines()[-1:] if log.is_file() else []
        raise UserError(
            f"{store.missing()} of {total} runs are missing; {''.join(reason)} (see {log}). Run again to go on"
        )


def _worker_log(study: StudyConfig, number: int) -> Path:
    return Path(study.output) / f"worker-{number}.log"


def _end_with_parent() -> None:
    """End this process at once when the one that started it is gone, however it ended: its runs are given out again."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _end()


def _end(*_: Any) -> None:
    """End this process and those that load its data, of which one that is about to start would stay forever."""
    for loader in multiprocessing.active_children():
        loader.kill()
    os._exit(1)


def _worker(study: StudyConfig, number: int) -> None:
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with _worker_log(study, number).open("w", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        torch.set_num_threads(max(1, torch.get_num_threads() // study.workers))  # OMP_NUM_THREADS counts
        with quiet():
            sweep = Sweep(study)
            teachers = Path(study.output) / "teachers"
            runner = Runner(sweep.config, teachers, probe=study.probe, spectra_seed=sweep.plan.seeds[0])
            sweep.store().work(runner.run)
