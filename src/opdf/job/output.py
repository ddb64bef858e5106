"""What commands leave on the disk: output folders, models, JSON."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState

from opdf.distill import writing
from opdf.files import replacing, replacing_folder
from opdf.job.errors import UserError

REMEDY = "free some space and run it again"


def free(folder: Path, *, overwrite: bool, resume: bool, marker: str = "config.yaml") -> None:
    """Refuse an output folder that cannot be made, or not without a loss; nothing is changed yet.

    Args:
        folder: for output.
        overwrite: whether an earlier run of the command may be replaced.
        resume: whether a run in it goes on.
        marker: the file by which a run of the command is known.

    Raises:
        FileExistsError: it holds something and neither `overwrite` nor `resume` was asked for, or it is a file.
        FileNotFoundError: there is no run to resume in it.
    """
    try:
        blocking = next((p for p in (folder, *folder.parents) if p.exists()), folder)
    except OSError as error:
        raise UserError(f"output {str(folder)[:60]}... cannot be a folder: {error.strerror}") from error
    if blocking.exists() and not blocking.is_dir():
        raise FileExistsError(f"output {folder} cannot be made: {blocking} is a file; choose another")
    if folder.is_symlink() and overwrite:
        raise FileExistsError(f"output {folder} is a link and is not overwritten; name the folder itself")
    if resume and not (folder / marker).is_file():
        raise FileNotFoundError(f"{folder} holds no run to resume; start without resume")
    if folder.exists() and any(folder.iterdir()) and not resume:
        if not overwrite:
            raise FileExistsError(
                f"output {folder} is not empty; choose another, or set --resume true or --overwrite true"
            )
        if not (folder / marker).is_file():
            raise FileExistsError(
                f"output {folder} was not written by this command and is not overwritten; choose another"
            )


def claim(folder: Path, *, overwrite: bool, resume: bool, marker: str = "config.yaml") -> None:
    """Make the output folder, or empty it unless a run is resumed.

    Raises:
        FileExistsError: as `free`.
    """
    free(folder, overwrite=overwrite, resume=resume, marker=marker)
    state = PartialState()
    state.wait_for_everyone()  # all have seen the folder as it was
    if state.is_main_process:
        if folder.exists() and not resume:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
    state.wait_for_everyone()


def save(model: Any, processor: Any, folder: Path, weights: dict[str, Any] | None = None) -> None:
    """A plain transformers folder, complete or absent; `weights` are the whole ones of a sharded model."""
    with writing(str(folder), REMEDY), replacing_folder(folder) as scratch:
        model.save_pretrained(scratch, state_dict=weights)
        processor.save_pretrained(scratch)


def write_json(content: Any, path: Path) -> None:
    with writing(str(path), REMEDY), replacing(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n")
