"""Chains of cores for tests."""

from __future__ import annotations

from opdf.mpo import MPOShape


def truncated(shape: MPOShape, most: int) -> MPOShape:
    """The same factors with no bond dimension above `most`."""
    assert shape.bond_dims is not None
    return MPOShape(shape.row_factors, shape.col_factors, tuple(min(d, most) for d in shape.bond_dims))
