"""A configuration checks itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from opdf.overparam import OverParamConfig


def test_defaults_are_the_papers_shape() -> None:
    assert str(OverParamConfig().plan(3072, 768)) == "T(64,1,1,1,48 / 32,1,1,1,24)"


def test_svd_has_two_cores() -> None:
    assert OverParamConfig(ones=0).plan(768, 768).sites == 2


def test_scale() -> None:
    assert OverParamConfig(scale=2.0).plan(768, 768).scale == pytest.approx(2.0)


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        OverParamConfig().ones = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"lr_scaling": "auto"}, ValueError, "lr_scaling is 'auto'"),
        ({"precision": "fp8"}, ValueError, "precision is 'fp8'; expected one of 'float32', 'tf32', 'bf16'"),
        ({"targets": "linear"}, ValueError, "targets is 'linear'.*list of name patterns"),
        ({"exclude": "head"}, TypeError, "exclude is 'head'; give a list"),
        ({"ones": 1, "scale": 2.0}, ValueError, "give one of them"),
        ({"ones": -1}, ValueError, "ones is -1"),
        ({"ones": 1.5}, TypeError, "ones is 1.5"),
        ({"scale": 0.5}, ValueError, "scale is 0.5"),
        ({"shapes": {"x": ((2, 3),)}}, ValueError, r"shapes\['x'\]"),
        ({"shapes": {"x": ((2, 3), (2,))}}, ValueError, "row_factors has 2 entries"),
    ],
)
def test_errors(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OverParamConfig(**options)
