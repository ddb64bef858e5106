"""From matrices to models: which weights, their cores, the optimizer that trains them, the constraint loss."""

from typing import TYPE_CHECKING

from opdf.lazy import import_when_used

if TYPE_CHECKING:
    from opdf.overparam.alignment import Alignment
    from opdf.overparam.config import Constraint, OverParamConfig
    from opdf.overparam.optimizer import OverParameterizedOptimizer
    from opdf.overparam.owner import OwnerOptimizer
    from opdf.overparam.plan import OverParameterization, overparameterize
    from opdf.overparam.rollback import rolled_back
    from opdf.overparam.select import Matrix, block_lists, find_matrices, lists_beside
    from opdf.overparam.sharding import gathered, local, scattered, whole

__all__ = [
    "Alignment",
    "Constraint",
    "Matrix",
    "OverParamConfig",
    "OverParameterization",
    "OverParameterizedOptimizer",
    "OwnerOptimizer",
    "block_lists",
    "find_matrices",
    "gathered",
    "lists_beside",
    "local",
    "overparameterize",
    "rolled_back",
    "scattered",
    "whole",
]

import_when_used(__name__)
