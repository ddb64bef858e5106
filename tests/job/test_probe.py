"""The linear classifier on known features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import top_k_accuracy_score
from torch import nn
from transformers import GPT2Config, GPT2ForSequenceClassification

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


def test_a_decoder_is_probed_at_the_token_that_it_classifies() -> None:
    """Its output layer is given all tokens, those of padding too."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 8, "num_labels": 3}
    model = GPT2ForSequenceClassification(GPT2Config(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=1)).eval()
    texts = [[3, 4, 5], [6, 7, 8, 9, 10], [11]]
    longest = max(map(len, texts))
    rows = [
        {
            "input_ids": t + [0] * (longest - len(t)),
            "attention_mask": [1] * len(t) + [0] * (longest - len(t)),
            "labels": k,
        }
        for k, t in enumerate(texts)
    ]
    found, labels = probe.features(model, rows, lambda some: {k: torch.tensor([r[k] for r in some]) for k in some[0]})
    assert found.shape == (3, 16)
    assert labels.tolist() == [0, 1, 2]
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor([text])).logits for text in texts])
        torch.testing.assert_close(model.score(torch.from_numpy(found)), alone)
