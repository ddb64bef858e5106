"""The distillation methods, one a file, and their names in a configuration."""

from opdf.distill.methods.adkd import AttributionDistillation
from opdf.distill.methods.dbkd import DecisionDistillation, count_decisions, decision_logits
from opdf.distill.methods.embedding import EmbeddingDistillation, mean_pooled
from opdf.distill.methods.hidden import HiddenDistillation
from opdf.distill.methods.lgtm import LGTM
from opdf.distill.methods.logits import LogitsDistillation
from opdf.distill.methods.sparse_logits import SparseLogitsDistillation
from opdf.distill.methods.theseus import Theseus
from opdf.distill.objective import Objective

METHODS: dict[str, type[Objective]] = {
    "logits": LogitsDistillation,
    "hidden": HiddenDistillation,
    "embedding": EmbeddingDistillation,
    "theseus": Theseus,
    "lgtm": LGTM,
    "dbkd": DecisionDistillation,
    "adkd": AttributionDistillation,
    "sparse-logits": SparseLogitsDistillation,
}
"""Classes by the name that a configuration gives them. A new method is a file beside these and a line here."""


def name_of(objective: Objective) -> str:
    """Its name in `METHODS`, or that of its class."""
    return next((name for name, kind in METHODS.items() if kind is type(objective)), type(objective).__name__)


__all__ = [
    "LGTM",
    "METHODS",
    "AttributionDistillation",
    "DecisionDistillation",
    "EmbeddingDistillation",
    "HiddenDistillation",
    "LogitsDistillation",
    "SparseLogitsDistillation",
    "Theseus",
    "count_decisions",
    "decision_logits",
    "mean_pooled",
    "name_of",
]
