"""A student of any size that starts from its teacher, in closed form."""

from opdf.distill.shrink.report import (
    BlockReport,
    ShrinkReport,
    find_report,
    has_another_teacher,
    has_moved,
    paired_blocks,
    shrink_report,
)
from opdf.distill.shrink.sizes import depth_fields
from opdf.distill.shrink.start import blank_student, shrink

__all__ = [
    "BlockReport",
    "ShrinkReport",
    "blank_student",
    "depth_fields",
    "find_report",
    "has_another_teacher",
    "has_moved",
    "paired_blocks",
    "shrink",
    "shrink_report",
]
