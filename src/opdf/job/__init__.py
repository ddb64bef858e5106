"""A run, usable from Python: configuration, data, teacher, student, training, scores and output.

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
    from opdf.overparam import Constraint, OverParamConfig

# What studies and the command line need beyond the reference.
if TYPE_CHECKING:
    from opdf.job.checks import (
        Fit as Fit,
        check_fit as check_fit,
        check_models as check_models,
        check_task as check_task,
    )
    from opdf.job.cost import plan_model as plan_model
    from opdf.job.demo import demo as demo
    from opdf.job.errors import not_installed as not_installed
    from opdf.job.job import Job as Job, build_objective as build_objective
    from opdf.job.latency import latencies as latencies, now as now, split_inputs as split_inputs
    from opdf.job.models import file_digests as file_digests, load_model as load_model
    from opdf.job.options import (
        dataclass_of as dataclass_of,
        fill as fill,
        hints_of as hints_of,
        load_yaml as load_yaml,
        merged as merged,
        plain as plain,
        read_yaml as read_yaml,
        write_yaml as write_yaml,
    )
    from opdf.job.output import (
        CONFIG as CONFIG,
        METRICS as METRICS,
        STUDENT as STUDENT,
        going_on as going_on,
        read_metrics as read_metrics,
        write_json as write_json,
    )
    from opdf.job.prepared import load as load, prepare_data as prepare_data
    from opdf.job.probe import features as features, fit_probe as fit_probe, linear_probe as linear_probe
    from opdf.job.processes import is_main as is_main, leave as leave, tell as tell
    from opdf.job.processors import load_processor as load_processor
    from opdf.job.progress import counting as counting, quiet as quiet
    from opdf.job.resume import (
        begun_config as begun_config,
        begun_with as begun_with,
        check_student as check_student,
        named_models as named_models,
        rows_digest as rows_digest,
        versions as versions,
    )
    from opdf.job.run import (
        parameters as parameters,
        student_trainer as student_trainer,
        train_student as train_student,
    )
    from opdf.job.saved import find_saved as find_saved
    from opdf.job.scoring import (
        answers as answers,
        embedder as embedder,
        evaluator as evaluator,
        pair_cosines as pair_cosines,
        scores as scores,
    )
    from opdf.job.teacher import load_teacher as load_teacher, ready_teacher as ready_teacher

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
