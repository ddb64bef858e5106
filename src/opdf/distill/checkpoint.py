"""Checkpoints that are complete or absent, that notice damage, and that hold no pickled objects of ours.

A checkpoint is written into a folder beside, its files are flushed to the disk, and one rename gives it its name:

    checkpoint-40/manifest.json                   size and SHA-256 of every file below
                  optimizer-00000.json            what process 0 wrote, tensors by name; one file a writing process
                  optimizer-00000-00000.safetensors   these tensors, in files of bounded size
                  ...                             and the Trainer's files

A process writes only what it owns. Any number of processes can read it, because names do not tell who wrote them.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from opdf.files import digest_of

FORMAT = 2
MANIFEST = "manifest.json"
SCRATCH = "_partial"
"""Folder for a checkpoint that is being written, beside finished ones. Uploads to a hub leave such names out."""

SHARD_BYTES = 2**30
"""Tensors of a file, at most; a single larger tensor has a file to itself."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StorageError(OSError):
    """Something could not be written: the disk, the quota or a file size limit is exhausted."""


def write_state(folder: Path, name: str, state: dict[str, Any], process: int = 0) -> None:
    """Write one process's part of a state: dicts, lists and tuples of tensors and plain values.

    Raises:
        TypeError: the state holds something else.
    """
    tensors: dict[str, Tensor] = {}
    structure = json.dumps(_packed(state, "", tensors))
    for number, shard in enumerate(_shards(tensors)):
        # Copied because safetensors refuses tensors that share memory; one file's worth at a time.
        own = {key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for key, tensor in shard.items()}
        save_file(own, folder / f"{name}-{process:05d}-{number:05d}.safetensors")
    (folder / f"{name}-{process:05d}.json").write_text(structure)


def read_state(folder: Path, name: str) -> list[dict[str, Any]]:
    """The parts of a state, one for each process that wrote one, on the CPU; empty if there are none."""
    tensors: dict[str, Tensor] = {}
    for path in folder.glob(f"{name}-*.safetensors"):
        prefix = path.name[len(name) + 1 :].partition("-")[0]
        tensors.update({f"{prefix}{key}": tensor for key, tensor in load_file(path).items()})
    parts = sorted(folder.glob(f"{name}-*.json"))
    return [_unpacked(json.loads(path.read_text()), path.stem[len(name) + 1 :], tensors) for path in parts]


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A value as JSON, with its tensors put aside under their path."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _packed(item, f"{name}.{key}", tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        items = [_packed(item, f"{name}.{k}", tensors) for k, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    return value


def _unpacked(value: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[f"{prefix}{content}"]
    if kind == "dict":
        return {key: _unpacked(item, prefix, tensors) for key, item in content}
    return {"list": list, "tuple": tuple}[kind](_unpacked(item, prefix, tensors) for item in content)


def _shards(tensors: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    if shard:
        yield shard


def publish(scratch: Path, final: Path) -> None:
    """Give a complete checkpoint its name: from then on it is there, whatever happens to the machine."""
    names = sorted(path.relative_to(scratch) for path in scratch.rglob("*") if path.is_file())
    files = {}
    for name in names:
        _flush(scratch / name)
        files[name.as_posix()] = {"bytes": (scratch / name).stat().st_size, "sha256": digest_of(scratch / name)}
    (scratch / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1))
    _flush(scratch / MANIFEST)
    for folder in {scratch, *((scratch / name).parent for name in names)}:
        _flush(folder)
    if final.exists():  # the same step again, or a damaged one
        final.rename(scratch.with_name(f"{final.name}.replaced"))
    scratch.rename(final)
    _flush(final.parent)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, naming the file, or None. Reads it all."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return f"it has format {manifest['format']}, and this version reads {FORMAT}"
        files = manifest["files"]
        for name in (TRAINER_STATE_NAME, *files):
            path, expected = checkpoint / name, files[name]
            if not path.is_file():
                return f"it is incomplete: {name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} is damaged: it has {path.stat().st_size} bytes instead of {expected['bytes']}"
            if digest_of(path) != expected["sha256"]:
                return f"{name} is damaged: it is not what was written"
    except FileNotFoundError:
        if not checkpoint.exists():
            return "it does not exist"
        return f"it is incomplete: {MANIFEST} is missing"
    except (ValueError, TypeError, LookupError, OSError, RecursionError) as error:
        return f"{MANIFEST} is damaged ({type(error).__name__}: {error})"
    return None


def newest_whole(folder: Path, warn: Callable[[str], Any] = warnings.warn) -> Path | None:
    """The checkpoint of the highest step that is whole, or None; `warn` is told about newer ones that are not."""
    for _, path in sorted(_by_step(folder).items(), reverse=True):
        problem = damage(path)
        if problem is None:
            return path
        warn(f"{path} is not used: {problem}")
    return None


def rotate(folder: Path, limit: int | None, keep: set[Path]) -> None:
    """Remove the oldest checkpoints until `limit` are left, but none of `keep`; None and 0 remove nothing.

    They are renamed before their files are removed, because a run can be killed in between.
    """
    if not limit or limit < 0:
        return
    oldest = sorted(_by_step(folder).values(), key=lambda path: path.stat().st_mtime_ns)
    surplus = len(oldest) - max(limit, len(keep))
    scratch, kept = folder / SCRATCH, {path.resolve() for path in keep}  # a path may be relative
    for path in [path for path in oldest if path.resolve() not in kept][: max(0, surplus)]:
        scratch.mkdir(exist_ok=True)
        path.rename(scratch / path.name)
    shutil.rmtree(scratch, ignore_errors=True)


def _by_step(folder: Path) -> dict[int, Path]:
    found = {p: p.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for p in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")}
    return {int(step): path for path, step in found.items() if step.isdecimal()}


@contextmanager
def writing(what: str, remedy: str = "free some space") -> Iterator[None]:
    """Inside, a full disk raises a `StorageError` that names `what`, whichever library notices it.

    safetensors and torch have exceptions of their own for what the system reports as an OSError.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = storage_problem(error)
        if reason is None:
            raise
        raise StorageError(f"{what} could not be written: {reason}; {remedy}") from error


def storage_problem(error: BaseException) -> str | None:
    """The reason in words, if something could not be written because the disk is full; None for all other errors."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in FULL else None
    # "I/O error: ... (os error 28)" of safetensors; torch's zip writer keeps the error code to itself.
    text = str(error)
    code = next((code for code in FULL if f"(os error {code})" in text), None)
    if code is not None:
        return os.strerror(code)
    if "PytorchStreamWriter failed writing" in text or "inline_container" in text:
        return "the system refused to write more, as it does when a disk is full"
    return None


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def changes(before: Any, now: Any, name: str = "") -> list[str]:
    """The differences of two records of a run in words: names with both values.

    Args:
        before, now: mappings of sections, which are mappings of options. An option that only one of them has belongs to
            another version and is skipped.
        name: of what the two are, empty for whole records.
    """
    if before == now:
        return []
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [f"{name} was {json.dumps(before)} and is {json.dumps(now)}"]
    is_section = bool(name) and "." not in name
    keys = before.keys() & now.keys() if is_section else before.keys() | now.keys()
    return [
        change for key in sorted(keys) for change in changes(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))
    ]
