"""Files and folders that are complete or absent, what tells files apart, and folders that one process owns."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
"""The file by which an owned folder is locked. It stays there unlocked afterwards."""


def check_writable(folder: Path, what: str = "output") -> None:
    """Refuse a folder that cannot be made or written into; nothing is changed yet.

    Raises:
        FileExistsError: it or a folder above it is a file, or a link that leads nowhere.
        PermissionError: it may not be written, or is on a read-only file system.
        ValueError: its name cannot be a folder's.
    """
    try:
        blocking = next((p for p in (folder, *folder.parents) if p.is_symlink() or p.exists()), folder)
    except OSError as error:
        raise ValueError(f"{what} {str(folder)[:60]}... cannot be a folder: {error.strerror}") from error
    if blocking.is_symlink() and not blocking.exists():
        raise FileExistsError(f"{what} {folder} cannot be made: {blocking} is a link that leads nowhere")
    if blocking.exists() and not blocking.is_dir():
        raise FileExistsError(f"{what} {folder} cannot be made: {blocking} is a file; choose another")
    if not os.access(blocking, os.W_OK | os.X_OK):
        raise PermissionError(f"{what} {folder} cannot be written: {blocking} is read-only for you; choose another")


def digest_of(file: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path`: the file written there takes its place at the end of the block, or is removed.

    Several processes may write the same file; the last one's stays.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder, which takes the place of `folder` at the end of the block, or is removed.

    Its name is always the same, so that the next process removes what a killed one left.

    Raises:
        FileExistsError: another process is writing it.
    """
    folder = folder.resolve()
    scratch = folder.with_name(f".{folder.name}.partial")
    with owned(scratch):
        empty(scratch)
        try:
            yield scratch
            (scratch / LOCK).unlink()
            shutil.rmtree(folder, ignore_errors=True)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """A folder, made if need be, that no other process can own before the end of the block.

    It uses the system's lock, which ends with its process, however that ends.

    Raises:
        FileExistsError: another process, or another part of this one, owns it; the message says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, file = FileLock(folder / LOCK, thread_local=False), folder / LOCK
    owner = file.read_text() if file.is_file() else ""
    try:
        held = lock.acquire(blocking=False)
    except Timeout as error:
        raise FileExistsError(
            f"{folder} is in use by {owner or 'another process'}; wait until that is done, or choose another folder"
        ) from error
    with held:
        file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        yield


def is_empty(folder: Path, *files: str) -> bool:
    """Whether a folder holds nothing but the lock of an owner, and what a killed process left of some files."""
    return all(path.name == LOCK or is_half_written(path, *files) for path in folder.iterdir())


def is_half_written(path: Path, *files: str) -> bool:
    """Whether a process that was killed in `replacing` left it: it was to become one of these files."""
    name, _, process = path.name.rpartition(".")
    return process.isdecimal() and name in [f".{file}" for file in files]


def empty(folder: Path, last: str = "") -> None:
    """Remove what an owned folder holds. The folder stays: it may be a link, or where a disk is mounted.

    Args:
        folder: to empty.
        last: the file that goes after all others, so that a folder is known that a killed process left half full.
    """
    for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
