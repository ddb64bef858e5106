"""The processes that make a study's runs."""

from __future__ import annotations

import gc
import multiprocessing
import os
import platform
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from opdf.files import check_writable
from opdf.job import Stopped, UserError, counting, quiet, write_json, write_yaml
from opdf.study.config import StudyConfig
from opdf.study.runner import Runner
from opdf.study.study import Study

LOOK = 2.0
"""Seconds between two looks at the runs."""

IMPORTED = ["opdf.study.runner", "opdf.job.run", "transformers.trainer", "sklearn.metrics"]
"""What every run needs. To import it takes five to twelve seconds."""


def forks() -> Any:
    """Processes that are forked from a server, which imports everything once for all of them.

    They start anew with an accelerator, which an import may have begun to use and a fork may not, and elsewhere than on
    Linux, where libraries of the system do not survive a fork.
    """
    if sys.platform != "linux" or torch.accelerator.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def sweep(config: StudyConfig) -> dict[str, Any]:
    """Make what is missing of a study's runs and conclude, as `opdf sweep` does.

    Several processes, on several machines, may do so at a time with the same file and output folder.

    Returns:
        What results.json holds, see `conclude`.

    Raises:
        UserError: something in the configuration is wrong, or runs ended in an error.
        FileExistsError: the output folder holds something else.
        FileNotFoundError: data or a model does not exist.
    """
    with quiet():
        study = Study(config)
        folder = study.folder
        check_writable(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / "study.yaml").is_file():
            raise FileExistsError(f"output {folder} was not written by opdf sweep; choose another folder")
        study.check()
        folder.mkdir(parents=True, exist_ok=True)
        write_yaml(config, folder / "study.yaml")
        study.store.retry()
        if study.store.missing():
            _run_workers(study)
        results = study.results()
        write_json(results, folder / "results.json")
        return results


def _run_workers(study: Study) -> None:
    """Start the processes and show how far the study is until all have ended."""
    total, store = len(study.store.keys), study.store
    context, environment = forks(), dict(os.environ)
    # Not as daemons, which may not start the processes that dataloader_num_workers asks for.
    workers = [
        context.Process(target=_worker, args=(study.options, number, environment), daemon=False)
        for number in range(study.options.workers)
    ]
    with counting("runs") as progress:
        try:
            progress(total - len(store.missing()), total)
            for worker in workers:
                worker.start()
            while alive := [worker for worker in workers if worker.is_alive()]:
                alive[0].join(LOOK)
                progress(total - len(store.missing()), total)
        finally:  # at its end Python would wait for what they have left to do
            for worker in workers:
                if worker.is_alive():
                    worker.terminate()
    if missing := len(store.missing()):
        why = _why(study, [worker.exitcode or 0 for worker in workers])
        raise UserError(f"{missing} of {total} runs are missing; {why}. Run again to go on")


def _why(study: Study, exits: Sequence[int]) -> str:
    """Why runs are missing: the error of one of them, or else how the first process that failed has ended."""
    failed = next(iter(study.store.failures().values()), None)
    number = next((k for k, status in enumerate(exits) if status), 0)
    log = failed or _log(study.folder, number)
    lines = log.read_text().strip().splitlines() if log.is_file() else []
    said = "".join(lines[-1:])
    if failed is None and exits[number] < 0:  # then it could say nothing
        memory = ", as systems do when memory runs out" if exits[number] == -signal.SIGKILL else ""
        said = f"a process was ended by {signal.Signals(-exits[number]).name}{memory}"
    return f"{said} (see {log})"


def _log(folder: Path, number: int) -> Path:
    return folder / "logs" / f"{platform.node()}-{number}.log"


def _worker(config: StudyConfig, number: int, environment: dict[str, str]) -> None:
    os.environ.update(environment)  # a server's is that of the first study
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = _log(Path(config.output), number)
    log.parent.mkdir(exist_ok=True)
    with log.open("a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        torch.set_num_threads(max(1, torch.get_num_threads() // config.workers))  # OMP_NUM_THREADS counts
        gc.freeze()  # collections after a run need not look through what was imported
        with quiet():
            study = Study(config)
            try:
                study.store.work(Runner(study).run, study.plan.cells(number / config.workers))
            except Stopped:  # a teacher takes the signal itself, and saves where it is
                _end()


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, so that others can take its run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _end()


def _end(*_: Any) -> None:
    """End this process and those that load its data: one that is just starting would stay forever."""
    for loader in multiprocessing.active_children():
        loader.kill()
    os._exit(1)
