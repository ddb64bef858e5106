"""From matrices to models: which weights, their cores, the optimizer that trains them, the constraint loss."""

from typing import TYPE_CHECKING

from opdf.lazy import import_when_used

if TYPE_CHECKING:
    from opdf.overparam.alignment import Alignment
    from opdf.overparam.config import Constraint, OverParamConfig
    from opdf.overparam.engine import OverParameterization, TargetMatrix, overparameterize
    from opdf.overparam.optimizer import OverParameterizedOptimizer, rolled_back
    from opdf.overparam.select import Matrix, block_stacks

__all__ = [
    "Alignment",
    "Constraint",
    "Matrix",
    "OverParamConfig",
    "OverParameterization",
    "OverParameterizedOptimizer",
    "TargetMatrix",
    "block_stacks",
    "overparameterize",
    "rolled_back",
]

import_when_used(__name__)
