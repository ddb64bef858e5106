"""What holds for all tests."""

from __future__ import annotations

import gc

from hypothesis import settings

settings.register_profile("opdf", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("opdf")


def pytest_collection_finish() -> None:
    """Let garbage collection pass over what the imports have made: every training of a Trainer's collects twice."""
    gc.collect()
    gc.freeze()
