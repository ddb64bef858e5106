"""Decompositions kept on disk by content, so that the same weights are decomposed once for any number of runs."""

from __future__ import annotations

import ctypes
import hashlib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opdf.files import replacing
from opdf.mpo import MPOShape, Progress, decompose_many

FORMAT = 1
"""Version of the files and of what `decompose` returns; part of every key."""


def decompose_cached(
    folder: str | Path | None,
    matrices: Sequence[Tensor],
    shapes: Sequence[MPOShape],
    *,
    gauge: str = "symmetric",
    progress: Progress | None = None,
) -> list[list[Tensor]]:
    """`decompose_many` that reads from `folder` what it holds already and writes what it does not.

    Files are named by a hash of the matrix and everything else that its cores depend on. A file that is damaged or not
    ours is passed over with a warning and written anew.

    Args:
        folder: made if needed; None keeps nothing.
        matrices, shapes, gauge, progress: as for `decompose_many`. Progress counts the matrices that are not known.

    Raises:
        OSError: the folder cannot be written.
    """
    if folder is None:
        return decompose_many(matrices, shapes, gauge=gauge, progress=progress)
    root = Path(folder).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    paths = [root / f"{_key(m, s, gauge)}.pt" for m, s in zip(matrices, shapes, strict=True)]
    found = [_read(path, m, s) for path, m, s in zip(paths, matrices, shapes, strict=True)]
    missing = [k for k, cores in enumerate(found) if cores is None]
    if missing:
        made = decompose_many(
            [matrices[k] for k in missing], [shapes[k] for k in missing], gauge=gauge, progress=progress
        )
        for k, cores in zip(missing, made, strict=True):
            _write(paths[k], cores)
            found[k] = cores
    return [cores for cores in found if cores is not None]


def _key(matrix: Tensor, shape: MPOShape, gauge: str) -> str:
    return _digest((FORMAT, gauge, shape.row_factors, shape.col_factors, shape.bond_dims), [matrix])


def _digest(facts: Any, tensors: Iterable[Tensor]) -> str:
    """SHA-256 of some plain values and of tensors with their shapes and dtypes."""
    digest = hashlib.sha256(repr(facts).encode())
    for tensor in tensors:
        held = tensor.detach().cpu().contiguous()
        digest.update(f"{tuple(held.shape)} {held.dtype}".encode())
        digest.update((ctypes.c_char * held.nbytes).from_address(held.data_ptr()))  # NumPy may be missing
    return digest.hexdigest()


def _read(path: Path, matrix: Tensor, shape: MPOShape) -> list[Tensor] | None:
    if not path.exists():
        return None
    try:
        return _unpacked(torch.load(path, map_location="cpu", weights_only=True), path.stem, matrix, shape)
    except Exception as error:  # torch raises whatever its zip reader and unpickler do
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        warnings.warn(f"{path} is damaged or was not written by this cache ({reason}); decomposing anew", stacklevel=3)
        return None


def _unpacked(held: Any, key: str, matrix: Tensor, shape: MPOShape) -> list[Tensor]:
    """The cores of a file's contents, with the identities at 1x1 sites that it leaves out."""
    kept: dict[int, Tensor] = held["cores"]
    if held["digest"] != _digest((key, *kept), kept.values()):
        raise ValueError("its contents do not have the digest that they were written with")
    dtype = torch.float64 if matrix.dtype == torch.float64 else torch.float32
    return [
        kept[k].to(matrix.device) if k in kept else torch.eye(size[0], dtype=dtype, device=matrix.device).reshape(size)
        for k, size in enumerate(shape.core_shapes)
    ]


def _write(path: Path, cores: Sequence[Tensor]) -> None:
    kept = {k: core.cpu() for k, core in enumerate(cores) if not _is_identity(core)}
    with replacing(path) as scratch:
        torch.save({"digest": _digest((path.stem, *kept), kept.values()), "cores": kept}, scratch)


def _is_identity(core: Tensor) -> bool:
    d_left, i, j, d_right = core.shape
    return i * j == 1 and d_left == d_right and torch.equal(core[:, 0, 0], torch.eye(d_left).to(core))
