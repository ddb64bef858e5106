"""How exactly matrix products are computed, whatever the process has set for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def matmul_precision(precision: str = "highest") -> Iterator[None]:
    """Inside, no autocast, and float32 products as in `torch.set_float32_matmul_precision`; restored afterwards.

    The setting is the process's, not the thread's: enter it before threads are started.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
