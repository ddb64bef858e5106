"""The precision of matrix products, and the device on which matrices are factorized."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

BACKENDS = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]

WITHOUT_FLOAT64 = {"mps"}
"""Types of devices without float64 and without some factorizations (Apple's)."""


def factorized_on(device: torch.device) -> torch.device:
    """The device on which to factorize a tensor of `device`: the same one, or the CPU if it has no float64."""
    return torch.device("cpu") if device.type in WITHOUT_FLOAT64 else device


@contextmanager
def matmul_precision(precision: str = "ieee") -> Iterator[None]:
    """Inside, multiply float32 tensors in float32 ("ieee") or "tf32", without autocast; restored afterwards.

    The setting holds for the whole process, so enter it before you start threads. It is read from torch's backends:
    torch.get_float32_matmul_precision() raises once torch's newer setting was used, as transformers does.

    Raises:
        ValueError: `precision` is another one.
    """
    if precision not in ("ieee", "tf32"):
        raise ValueError(f"precision is {precision!r}; expected 'ieee' or 'tf32'")
    # A backend without a setting of its own shows the general one. It is restored to having none.
    general = torch.backends.fp32_precision  # type: ignore[attr-defined]
    before = ["none" if backend.fp32_precision == general else backend.fp32_precision for backend in BACKENDS]
    try:
        for backend in BACKENDS:
            backend.fp32_precision = precision
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        for backend, setting in zip(BACKENDS, before, strict=True):
            backend.fp32_precision = setting
