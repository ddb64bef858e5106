"""From matrices to models: which weights, their cores, the optimizer that trains them, the constraint loss."""

from opdf.overparam.alignment import Alignment
from opdf.overparam.config import OverParamConfig
from opdf.overparam.engine import OverParameterization, TargetMatrix, overparameterize
from opdf.overparam.optimizer import OverParameterizedOptimizer
from opdf.overparam.select import Matrix

__all__ = [
    "Alignment",
    "Matrix",
    "OverParamConfig",
    "OverParameterization",
    "OverParameterizedOptimizer",
    "TargetMatrix",
    "overparameterize",
]
