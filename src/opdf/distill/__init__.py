"""What a student learns from a teacher, and the trainer that does it."""

from typing import TYPE_CHECKING

from opdf.lazy import import_when_used

if TYPE_CHECKING:
    from opdf.distill.arguments import DistillationArguments
    from opdf.distill.checkpoint import StorageError, newest_whole, storage_problem, writing
    from opdf.distill.divergence import TrainingDiverged
    from opdf.distill.ensemble import Ensemble, check_weights, like, members
    from opdf.distill.losses import Batch
    from opdf.distill.methods import (
        LGTM,
        METHODS,
        AttributionDistillation,
        DecisionDistillation,
        EmbeddingDistillation,
        HiddenDistillation,
        LogitsDistillation,
        SparseLogitsDistillation,
        Theseus,
        count_decisions,
        decision_logits,
        mean_pooled,
    )
    from opdf.distill.models import has_no_head, labels_in_place, output_layer
    from opdf.distill.objective import Losses, Objective, model_inputs
    from opdf.distill.outputs import BeforeTraining
    from opdf.distill.planning import plan_student
    from opdf.distill.shrink import ShrinkReport, blank_student, shrink, shrink_report
    from opdf.distill.store import LogitsStore, StoredDataset, StoreInfo
    from opdf.distill.students import keep_layers
    from opdf.distill.trainer import DistillationTrainer
    from opdf.overparam import Constraint

# What opdf.job needs beyond the reference.
if TYPE_CHECKING:
    from opdf.distill.arguments import (
        examples_per_step as examples_per_step,
        may_change as may_change,
        planned_steps as planned_steps,
    )
    from opdf.distill.models import as_made as as_made, label_names as label_names
    from opdf.distill.precision import (
        SLOWER as SLOWER,
        half_precision as half_precision,
        product_rate as product_rate,
        slowdown as slowdown,
    )
    from opdf.distill.shrink import depth_fields as depth_fields, find_report as find_report
    from opdf.distill.students import fields_of_fewer as fields_of_fewer, generate_alike as generate_alike

__all__ = [
    "LGTM",
    "METHODS",
    "AttributionDistillation",
    "Batch",
    "BeforeTraining",
    "Constraint",
    "DecisionDistillation",
    "DistillationArguments",
    "DistillationTrainer",
    "EmbeddingDistillation",
    "Ensemble",
    "HiddenDistillation",
    "LogitsDistillation",
    "LogitsStore",
    "Losses",
    "Objective",
    "ShrinkReport",
    "SparseLogitsDistillation",
    "StorageError",
    "StoreInfo",
    "StoredDataset",
    "Theseus",
    "TrainingDiverged",
    "blank_student",
    "check_weights",
    "count_decisions",
    "decision_logits",
    "has_no_head",
    "keep_layers",
    "labels_in_place",
    "like",
    "mean_pooled",
    "members",
    "model_inputs",
    "newest_whole",
    "output_layer",
    "plan_student",
    "shrink",
    "shrink_report",
    "storage_problem",
    "writing",
]

import_when_used(__name__)
