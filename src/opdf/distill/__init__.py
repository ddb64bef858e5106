"""What a student learns from a teacher, and the trainer that does it."""

from opdf.distill.adkd import AttributionDistillation
from opdf.distill.arguments import DistillationArguments
from opdf.distill.checkpoint import StorageError
from opdf.distill.dbkd import DecisionDistillation, count_decisions, decision_logits
from opdf.distill.embedding import EmbeddingDistillation, mean_pooled
from opdf.distill.hidden import HiddenDistillation
from opdf.distill.lgtm import LGTM
from opdf.distill.logits import LogitsDistillation
from opdf.distill.objective import Batch, Losses, Objective
from opdf.distill.shrink import ShrinkReport, shrink, shrink_report
from opdf.distill.sparse_logits import LogitsStore, SparseLogitsDistillation, StoredDataset
from opdf.distill.students import keep_layers
from opdf.distill.theseus import Theseus
from opdf.distill.trainer import DistillationTrainer, TrainingDiverged
from opdf.overparam import Constraint

__all__ = [
    "LGTM",
    "AttributionDistillation",
    "Batch",
    "Constraint",
    "DecisionDistillation",
    "DistillationArguments",
    "DistillationTrainer",
    "EmbeddingDistillation",
    "HiddenDistillation",
    "LogitsDistillation",
    "LogitsStore",
    "Losses",
    "Objective",
    "ShrinkReport",
    "SparseLogitsDistillation",
    "StorageError",
    "StoredDataset",
    "Theseus",
    "TrainingDiverged",
    "count_decisions",
    "decision_logits",
    "keep_layers",
    "mean_pooled",
    "shrink",
    "shrink_report",
]
