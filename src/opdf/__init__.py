"""Over-parameterized knowledge distillation: train a student as matrix product operators, deploy it unchanged."""

from typing import TYPE_CHECKING

from opdf.lazy import import_when_used

if TYPE_CHECKING:
    from opdf.distill import DistillationArguments, DistillationTrainer
    from opdf.mpo import MPOShape, contract, decompose, plan_shape, pullback
    from opdf.overparam import (
        Constraint,
        OverParamConfig,
        OverParameterization,
        OverParameterizedOptimizer,
        overparameterize,
    )

__version__ = "0.1.0"

__all__ = [
    "Constraint",
    "DistillationArguments",
    "DistillationTrainer",
    "MPOShape",
    "OverParamConfig",
    "OverParameterization",
    "OverParameterizedOptimizer",
    "contract",
    "decompose",
    "overparameterize",
    "plan_shape",
    "pullback",
]

import_when_used(__name__)
