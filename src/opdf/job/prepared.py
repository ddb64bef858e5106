"""Data of a command, ready for the Trainer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from datasets import DatasetDict

from opdf.data import Task


@dataclass
class Prepared:
    """Data as it is and as the Trainer takes it, and what encodes it."""

    raw: DatasetDict
    data: DatasetDict
    task: Task
    processor: Any
    collator: Any
