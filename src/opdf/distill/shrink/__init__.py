"""A student of any size that starts from its teacher, in closed form."""

from opdf.distill.shrink.report import BlockReport, ShrinkReport, shrink_report
from opdf.distill.shrink.start import shrink

__all__ = ["BlockReport", "ShrinkReport", "shrink", "shrink_report"]
