"""The benchmark of a GPU's host steps as many matrices at a time as a GPU does with the full-sized student."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import opdf
from benchmarks import contenders, host, measure
from opdf.overparam import cores


@pytest.mark.slow
def test_stacks_are_those_of_the_full_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = cores.Stack.pull_back

    def watched(self: cores.Stack, dense: Any) -> None:
        sizes.append(len(dense))
        real(self, dense)

    monkeypatch.setattr(cores.Stack, "pull_back", watched)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    host.main(repeats=1)

    matrices = opdf.overparameterize(contenders.student("BERT-base"), opdf.OverParamConfig(ones=host.ONES)).matrices
    full = []
    for shape in {matrix.shape for matrix in matrices}:
        alike = sum(matrix.shape == shape for matrix in matrices)
        most = cores.STACK_ENTRIES["cuda"] // shape.num_params
        full += [most] * (alike // most) + [alike % most]
    assert sorted(sizes[: len(full)]) == sorted(full)
    (row,) = json.loads((tmp_path / "host.json").read_text())["rows"]
    assert row["opdf / plain"] == row["opdf"]["median"] / row["plain"]["median"] > 0
    assert row["opdf"]["repeats"] == row["plain"]["repeats"] == 1  # which of the two is slower is chance
