"""What a student learns from a teacher, and the trainer that does it."""

from opdf.distill.adkd import AttributionDistillation
from opdf.distill.arguments import DistillationArguments
from opdf.distill.checkpoint import StorageError
from opdf.distill.dbkd import DecisionDistillation
from opdf.distill.embedding import EmbeddingDistillation
from opdf.distill.hidden import HiddenDistillation
from opdf.distill.lgtm import LGTM
from opdf.distill.logits import LogitsDistillation
from opdf.distill.objective import Losses, Objective
from opdf.distill.sparse_logits import SparseLogitsDistillation
from opdf.distill.students import keep_layers
from opdf.distill.theseus import Theseus
from opdf.distill.trainer import DistillationTrainer, TrainingDiverged
from opdf.overparam import Constraint

__all__ = [
    "LGTM",
    "AttributionDistillation",
    "Constraint",
    "DecisionDistillation",
    "DistillationArguments",
    "DistillationTrainer",
    "EmbeddingDistillation",
    "HiddenDistillation",
    "LogitsDistillation",
    "Losses",
    "Objective",
    "SparseLogitsDistillation",
    "StorageError",
    "Theseus",
    "TrainingDiverged",
    "keep_layers",
]
