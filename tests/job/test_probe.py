"""The linear classifier on known features."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import top_k_accuracy_score
from torch import nn

from opdf.job import probe


@pytest.mark.parametrize("classes", [7, 8])
def test_the_first_five_guesses_also_where_a_class_is_tested_on_alone(
    classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    train, test = ((rng.normal(size=(60, 8)), np.arange(60) % some) for some in (7, classes))
    monkeypatch.setattr(probe, "features", lambda model, data, collator, *, batch: data)
    found = probe.linear_probe(nn.Module(), {"train": train, "test": test}, None)
    sure, right = probe.fit_probe(nn.Module(), train, None).predict_proba(test[0]), test[1]
    known = right < 7
    share = top_k_accuracy_score(right[known], sure[known], k=5, labels=range(7)) * known.mean()
    assert found == {"top1": found["top1"], "examples": 60, "top5": pytest.approx(share)}
