"""A study of tiny models on real data, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opdf.job.options import fill
from opdf.study import StudyConfig

STUDY: dict[str, Any] = {
    "common": {
        "teacher": {"model": None, "finetune": True, "training": {"max_steps": 6, "learning_rate": 1e-3}, "config": {
            "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 32,
        }},
        "student": {"layers": 1},
        "data": {"name": "digits"},
        "training": {"max_steps": 4, "per_device_train_batch_size": 16},
    },
    "tasks": {"digits": {}},
    "train_sizes": [64],
    "variants": {
        "KD": {},
        "OPDF": {"overparam": {"ones": 1}, "constraint": {"weight": 0.1}},
    },
    "learning_rates": [1e-3, 1e-2],
    "seeds": [0, 1],
}  # fmt: skip
OPDF = STUDY["variants"]["OPDF"]


def config(folder: Path, **changes: Any) -> StudyConfig:
    filled: StudyConfig = fill(StudyConfig, STUDY | {"output": str(folder / "out")} | changes, "study")
    return filled
