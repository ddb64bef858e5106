"""A run, usable from Python: configuration, data, teacher, student, training, scores, what it leaves on the disk.

from opdf.job import DataConfig, DistillConfig, StudentConfig, TeacherConfig, run

metrics = run(DistillConfig(data=DataConfig("digits"), student=StudentConfig(layers=2), output="runs/mine"))
"""

from typing import TYPE_CHECKING

from opdf.lazy import import_when_used

if TYPE_CHECKING:
    from opdf.job.config import DataConfig, DistillConfig, ObjectiveConfig, StudentConfig, TeacherConfig
    from opdf.job.errors import Stopped, UserError
    from opdf.job.export import export
    from opdf.job.options import read_config
    from opdf.job.overview import Overview
    from opdf.job.predict import predict
    from opdf.job.run import preview, run
    from opdf.job.scoring import evaluate
    from opdf.job.stored import cache_teacher
    from opdf.overparam.config import Constraint, OverParamConfig

__all__ = [
    "Constraint",
    "DataConfig",
    "DistillConfig",
    "ObjectiveConfig",
    "OverParamConfig",
    "Overview",
    "Stopped",
    "StudentConfig",
    "TeacherConfig",
    "UserError",
    "cache_teacher",
    "evaluate",
    "export",
    "predict",
    "preview",
    "read_config",
    "run",
]

import_when_used(__name__)
