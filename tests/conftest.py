"""What holds for all tests."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Let garbage collection pass over what the imports have made: every training of a Trainer's collects twice."""
    gc.collect()
    gc.freeze()
