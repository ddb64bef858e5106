"""The methods by the names that a configuration has for them."""

from __future__ import annotations

from opdf.distill import (
    LGTM,
    AttributionDistillation,
    DecisionDistillation,
    EmbeddingDistillation,
    HiddenDistillation,
    LogitsDistillation,
    Objective,
    SparseLogitsDistillation,
    Theseus,
)

OBJECTIVES: dict[str, type[Objective]] = {
    "logits": LogitsDistillation,
    "hidden": HiddenDistillation,
    "embedding": EmbeddingDistillation,
    "theseus": Theseus,
    "lgtm": LGTM,
    "dbkd": DecisionDistillation,
    "adkd": AttributionDistillation,
    "sparse-logits": SparseLogitsDistillation,
}
