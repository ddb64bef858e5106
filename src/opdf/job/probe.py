"""Linear probe: how well a linear classifier does on a model's frozen features (the evaluation of OPDF's table 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from opdf.distill import output_layer


def features(model: nn.Module, data: Any, collator: Any, *, batch: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """What the model's output layer is given, `[examples, width]`, and the labels `[examples]`."""
    seen: list[Tensor] = []
    rows: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    device, was = next(model.parameters()).device, model.training
    handle = output_layer(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        model.eval()
        with torch.no_grad():
            for some in DataLoader(data, batch_size=batch, collate_fn=collator):
                inputs = {k: v.to(device) for k, v in some.items() if k != "labels"}
                model(**inputs)
                rows.append(_of_examples(model, seen.pop(), inputs).flatten(1).float().cpu().numpy())
                labels.append(some["labels"].numpy())
    finally:
        handle.remove()
        model.train(was)
    return np.concatenate(rows), np.concatenate(labels)


def _of_examples(model: nn.Module, states: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
    """States by example: of a decoder, whose output layer is given all tokens, those of the token that it classifies.

    That is the last one that is no padding.
    """
    tokens = inputs.get("input_ids")
    if tokens is None or states.shape[:-1] != tokens.shape:
        return states
    places = torch.arange(tokens.shape[1], device=tokens.device)
    last = (places * (tokens != model.config.get_text_config().pad_token_id)).argmax(-1)  # type: ignore[operator, union-attr]
    return states[torch.arange(len(tokens), device=tokens.device), last]


def fit_probe(model: nn.Module, data: Any, collator: Any, *, batch: int = 128) -> Pipeline:
    """A classifier on the model's features of `data`: scikit-learn's logistic regression on standardised features.

    With its defaults, so that nothing is chosen on any split.
    """
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return probe.fit(*features(model, data, collator, batch=batch))


def linear_probe(model: nn.Module, data: Any, collator: Any, *, batch: int = 128) -> dict[str, float]:
    """Top-1 and, from six classes on, top-5 accuracy on data["test"] of a `fit_probe` of data["train"]."""
    probe = fit_probe(model, data["train"], collator, batch=batch)
    inputs, labels = features(model, data["test"], collator, batch=batch)
    result = {"top1": float(probe.score(inputs, labels)), "examples": len(labels)}
    if len(probe.classes_) > 5:
        # Not scikit-learn's own score, which refuses a class that no training example has.
        best = probe.classes_[np.argsort(-probe.predict_proba(inputs), axis=1)[:, :5]]
        result["top5"] = float(np.mean((best == labels[:, None]).any(axis=1)))
    return result
