"""Matrix product operators: tensors in, tensors out. Knows no module and no optimizer."""

from typing import TYPE_CHECKING

from opdf.lazy import import_when_used

if TYPE_CHECKING:
    from opdf.mpo.contract import contract, contract_segments, pullback, shape_of
    from opdf.mpo.decompose import Decomposition, decompose, decompose_many, decompose_with_errors
    from opdf.mpo.factorize import singular_values
    from opdf.mpo.gauge import match_gauge
    from opdf.mpo.precision import factorized_on, matmul_precision
    from opdf.mpo.shape import MPOShape, plan_shape
    from opdf.mpo.threads import Progress, one_a_thread, threads_for

__all__ = [
    "Decomposition",
    "MPOShape",
    "Progress",
    "contract",
    "contract_segments",
    "decompose",
    "decompose_many",
    "decompose_with_errors",
    "factorized_on",
    "match_gauge",
    "matmul_precision",
    "one_a_thread",
    "plan_shape",
    "pullback",
    "shape_of",
    "singular_values",
    "threads_for",
]

import_when_used(__name__)
