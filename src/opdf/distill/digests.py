"""Digests by which stored answers and checkpoints tell that rows or weights are not those that they were made of."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from torch import Tensor, nn

from opdf.distill.store import Noise, noisy


def fingerprint(examples: Any, noise: Noise | None = None) -> str:
    """A digest of some examples, made noisy with known seeds: it changes with the data, the noise and its libraries.

    Args:
        examples: by row number: mappings, images, texts or numbers. Of a `datasets.Dataset` every row is read, of
            others, and with noise, up to 32 examples.
        noise: makes a noisy copy of one.
    """
    digest = _glance(examples, noise)
    if isinstance(examples, Dataset):
        _add_rows(digest, examples)
    return digest.hexdigest()[:32]


def _glance(examples: Any, noise: Noise | None = None) -> Any:
    digest = hashlib.sha256(f"{len(examples)}".encode())
    for row in np.linspace(0, len(examples) - 1, num=min(len(examples), 32), dtype=int):
        digest.update(_content(noisy(examples[int(row)], int(row), noise)))
    return digest


def _add_rows(digest: Any, rows: Dataset) -> None:
    """Add all rows to a digest as they are stored: images are not decoded."""
    for batch in rows.with_format("arrow").iter(1000):
        for column in sorted(batch.column_names):
            digest.update(column.encode())
            _add_values(digest, batch[column].combine_chunks())


def _add_values(digest: Any, values: Any) -> None:
    """Add an array of Arrow's to a digest: numbers by their bytes, which is fast, all else by Python's values."""
    if isinstance(values, pa.ChunkedArray):  # what combine_chunks makes of arrays of several dimensions
        values = pa.concat_arrays([chunk.storage for chunk in values.chunks])
    values = values.storage if isinstance(values, pa.ExtensionArray) else values
    if pa.types.is_list(values.type):
        digest.update(pc.list_value_length(values).to_numpy(zero_copy_only=False).tobytes())
        _add_values(digest, values.flatten())
    elif pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        digest.update(values.to_numpy(zero_copy_only=False).tobytes())
    else:
        for value in values.to_pylist():
            if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
                value = value["bytes"] or Path(value["path"]).read_bytes()
            digest.update(repr(value).encode())


def rows_glance(rows: Any, without: Collection[str] = ()) -> str | None:
    """A digest of the texts and whole numbers in up to 32 rows of a `datasets.Dataset`; None of other data.

    Fractions (pixels, a teacher's logits) may differ in their last bits on another machine.
    """
    if not isinstance(rows, Dataset):
        return None
    exact = [name for name, feature in rows.features.items() if name not in without and _is_exact(feature)]
    return _glance(rows.select_columns(exact).with_format(None)).hexdigest()[:32] if exact else None


def _is_exact(feature: Any) -> bool:
    while hasattr(feature, "feature"):  # a list
        feature = feature.feature
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint", "bool", "string", "large_string"))


def weights_digest(model: nn.Module) -> str:
    """A digest of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            values = tensor.detach().cpu().contiguous().flatten()
            digest.update(name.encode())
            digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _content(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"".join(key.encode() + _content(value[key]) for key in sorted(value))
    if hasattr(value, "tobytes"):  # an image or an array
        return repr(getattr(value, "size", "")).encode() + value.tobytes()
    return repr(value.tolist() if isinstance(value, Tensor) else value).encode()


def array_digest(values: np.ndarray) -> str:
    """A digest of an array's kind, shape and values: damage to a file's header can leave the bytes of the values."""
    digest = hashlib.sha256(f"{values.dtype} {values.shape}".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
