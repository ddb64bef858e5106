"""What a run leaves on the disk: output folders, models, JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from opdf.distill import writing
from opdf.files import LOCK, check_writable, empty, is_empty, owned, replacing, replacing_folder
from opdf.job.errors import UserError
from opdf.job.processes import on_main

REMEDY = "free some space and run it again"


CONFIG, METRICS, BEGUN, STUDENT = "config.yaml", "metrics.json", "begun.json", "student"
"""Of a run: its configuration, the last file that it writes, what it began with, and the folder of its student."""


def check_free(folder: Path, *, overwrite: bool, resume: bool, marker: str = CONFIG) -> None:
    """Refuse an output folder that cannot be made, or whose content would be lost; nothing is changed yet.

    Args:
        folder: for output.
        overwrite: whether an earlier run of the command may be replaced.
        resume: whether a run in it goes on.
        marker: the file by which a run of the command is known.

    Raises:
        FileExistsError: it holds something and neither `overwrite` nor `resume` was asked for, it is a file, or another
            process owns it.
        FileNotFoundError: there is no run to resume in it.
        PermissionError: it cannot be written.
    """
    on_main(lambda: _check_free(folder, overwrite=overwrite, resume=resume, marker=marker))


def _check_free(folder: Path, *, overwrite: bool, resume: bool, marker: str) -> None:
    check_writable(folder)
    if resume and not (folder / marker).is_file():
        raise FileNotFoundError(f"{folder} holds no run to resume: {marker} is missing; start without resume")
    if not folder.exists():
        return
    with owned(folder) if (folder / LOCK).exists() else nullcontext():
        pass
    if not is_empty(folder, marker) and not resume:
        if not (folder / marker).is_file():
            raise FileExistsError(f"output {folder} is not empty and was not written by this command; choose another")
        if not overwrite:
            again = "resume or overwrite" if marker == CONFIG else "overwrite"  # a demo goes on by itself
            raise FileExistsError(f"output {folder} is not empty; choose another, or set {again} to true")
        if folder.is_symlink():
            raise FileExistsError(f"output {folder} is a link and is not overwritten; name the folder itself")


@contextmanager
def claimed(folder: Path, *, overwrite: bool, resume: bool, marker: str = CONFIG) -> Iterator[None]:
    """Inside, the output folder is there, emptied unless a run is resumed, and this run's alone.

    Raises:
        FileExistsError, FileNotFoundError, PermissionError: as `check_free`.
    """
    check_free(folder, overwrite=overwrite, resume=resume, marker=marker)
    with owned_together(folder):
        if not resume:
            on_main(lambda: empty(folder, last=marker))
        yield


@contextmanager
def owned_together(folder: Path) -> Iterator[None]:
    """A folder that the processes of this run own, and no others, see `opdf.files.owned`."""
    with ExitStack() as stack:
        on_main(lambda: stack.enter_context(owned(folder)))
        yield


def save(model: Any, processor: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """A plain transformers folder, complete or absent; `weights` are the whole ones of a sharded model."""
    with writing(str(folder), REMEDY), replacing_folder(folder) as scratch, _caching(model.config):
        model.save_pretrained(scratch, state_dict=weights)
        processor.save_pretrained(scratch)


@contextmanager
def _caching(config: Any) -> Iterator[None]:
    """Inside, a decoder keeps what it has computed when it writes a text. The Trainer turns that off, for training."""
    was = getattr(config, "use_cache", None)
    if was is False:
        config.use_cache = True
    try:
        yield
    finally:
        if was is False:
            config.use_cache = False


def going_on(folder: Path) -> str:
    """The command by which a run goes on where it is now: its configuration says where it was begun."""
    return shlex.join(["opdf", "distill", str(folder / CONFIG), "--resume", "true", "--output", str(folder)])


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """What `write_json` wrote; `remedy` ends the message if it cannot be read.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("it holds no mapping")
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {remedy}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}); {remedy}") from error
    return content


def read_metrics(folder: Path) -> dict[str, Any]:
    """What a finished run's metrics.json holds.

    Raises:
        UserError: the file is missing or damaged.
    """
    path, remedy = folder / METRICS, f"delete it, and {going_on(folder)} makes it again"
    metrics = read_json(path, remedy)
    try:
        for who in ("teacher", "student before training", "student"):
            for part in ("validation", "test"):
                float(metrics[who][part][metrics["metric"]])
        for name in ("train_params", "inference_params", "steps", "train_seconds"):
            float(metrics[name])
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged (it lacks {error}); {remedy}") from error
    return metrics


def write_json(content: Any, path: Path) -> None:
    with writing(str(path), REMEDY), replacing(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n")
