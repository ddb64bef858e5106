"""Studies: a grid of runs with the same effort for every variant, and what can be concluded from it."""

from typing import TYPE_CHECKING

from opdf.lazy import import_when_used

if TYPE_CHECKING:
    from opdf.study.plan import Cell, Plan
    from opdf.study.recorder import Recorder
    from opdf.study.results import DIVERGED, conclude
    from opdf.study.store import Outcome, Store

__all__ = ["DIVERGED", "Cell", "Outcome", "Plan", "Recorder", "Store", "conclude"]

import_when_used(__name__)
