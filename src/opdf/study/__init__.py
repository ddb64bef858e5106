"""Studies: a grid of runs with the same effort for every variant, and what can be concluded from it."""

from typing import TYPE_CHECKING

from opdf.lazy import import_when_used

if TYPE_CHECKING:
    from opdf.study.compare import compare
    from opdf.study.config import StudyConfig
    from opdf.study.plan import Cell, Plan
    from opdf.study.results import conclude
    from opdf.study.store import Outcome, Store
    from opdf.study.study import Study
    from opdf.study.workers import sweep

__all__ = ["Cell", "Outcome", "Plan", "Store", "Study", "StudyConfig", "compare", "conclude", "sweep"]

import_when_used(__name__)
