"""Studies: a grid of runs with the same effort for every variant, and what can be concluded from it."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opdf.study.config import StudyConfig
    from opdf.study.plan import Cell, Plan
    from opdf.study.results import conclude
    from opdf.study.store import Outcome, Store
    from opdf.study.study import Study
    from opdf.study.workers import sweep

HOMES = {
    "Cell": "plan", "Outcome": "store", "Plan": "plan", "Store": "store", "Study": "study", "StudyConfig": "config",
    "conclude": "results", "sweep": "workers",
}  # fmt: skip

__all__ = ["Cell", "Outcome", "Plan", "Store", "Study", "StudyConfig", "conclude", "sweep"]


def __getattr__(name: str) -> Any:
    """Loaded when it is asked for: options are explained without torch."""
    if name in HOMES:
        return getattr(import_module(f"opdf.study.{HOMES[name]}"), name)
    raise AttributeError(f"module 'opdf.study' has no attribute {name!r}")
