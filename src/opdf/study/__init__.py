"""Studies: a grid of runs with the same effort for every variant, and what can be concluded from it."""

from typing import TYPE_CHECKING

from opdf.lazy import import_when_used

if TYPE_CHECKING:
    from opdf.study.compare import compare
    from opdf.study.config import StudyConfig
    from opdf.study.judge import Judge
    from opdf.study.plan import Cell, Plan
    from opdf.study.results import conclude
    from opdf.study.store import Outcome, Store
    from opdf.study.study import Study
    from opdf.study.workers import sweep

# What the command line and scripts need beyond the reference.
if TYPE_CHECKING:
    from opdf.study.compare import remarks as remarks, table as table
    from opdf.study.judge import POINT as POINT
    from opdf.study.report import (
        is_superseded as is_superseded,
        notes as notes,
        rates_table as rates_table,
        read_results as read_results,
        summary as summary,
        units as units,
        write_report as write_report,
    )
    from opdf.study.results import conclude_again as conclude_again

__all__ = ["Cell", "Judge", "Outcome", "Plan", "Store", "Study", "StudyConfig", "compare", "conclude", "sweep"]

import_when_used(__name__)
