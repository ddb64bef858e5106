"""Over-parameterized knowledge distillation: train a student as matrix product operators, deploy it unchanged."""

from typing import TYPE_CHECKING, Any

from opdf.mpo import MPOShape, contract, decompose, plan_shape, pullback
from opdf.overparam import (
    OverParamConfig,
    OverParameterization,
    OverParameterizedOptimizer,
    overparameterize,
)

if TYPE_CHECKING:
    from opdf.distill import DistillationArguments, DistillationTrainer

__version__ = "0.1.0"

__all__ = [
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


def __getattr__(name: str) -> Any:
    """The trainer needs transformers, which `import opdf` must not."""
    if name in ("DistillationArguments", "DistillationTrainer"):
        from opdf import distill

        return getattr(distill, name)
    raise AttributeError(f"module 'opdf' has no attribute {name!r}")
