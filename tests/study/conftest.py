"""What tests of studies share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def quick_collections() -> Iterator[None]:
    """Let collections pass by what is imported, as a study's workers do: every run makes some, of 0.2 s each else."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
