"""Does a narrow student train better through its teacher's width? `python studies/through.py [FOLDER]`

While it trains, each matrix of its blocks is A W B: W is the teacher's own matrix, A and B lead from one width to the
other, and all three are trained. At the start A W B is what `shrink` gave the student, so that both arms start alike.
Teachers, data, sizes and steps are those of start/images.yaml. Rates are chosen on validation.
FOLDER (runs/studies/through) keeps teachers and results; what is there already is not made again.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from opdf.distill import shrink_report
from opdf.files import replacing
from opdf.job.job import Job
from opdf.job.options import fill, read_yaml
from opdf.job.prepared import prepare_data
from opdf.job.run import student_trainer
from opdf.job.scoring import answers
from opdf.job.teacher import ready_teacher
from opdf.study import StudyConfig
from opdf.study.statistics import Pair, differences, effect
from opdf.study.study import Study

SEEDS, WIDE = (0, 1, 2), "through the teacher"
RATES = {"KD": (5e-4, 1.5e-3, 4e-3), WIDE: (5e-5, 1.5e-4, 5e-4, 1.5e-3)}
"""Three factors that move at once move their product further, so lower rates are tried with them."""


class Through(nn.Module):
    """`A W B`, equal to a student's matrix `[out, in]` at the start.

    Args:
        matrix: the student's.
        teacher: W, the teacher's, `[its out, its in]`.
        axes: of the residual stream, `[teacher width, student width]`, with orthonormal columns.
        reads: whether the matrix reads the residual stream; else it writes to it.
    """

    def __init__(self, matrix: Tensor, teacher: Tensor, axes: Tensor, *, reads: bool) -> None:
        super().__init__()
        own, inner, axes = matrix.double(), teacher.double(), axes.double()
        if reads:
            a, b = own @ torch.linalg.pinv(inner @ axes), axes
        else:
            a, b = axes.T, torch.linalg.pinv(axes.T @ inner) @ own
        self.a, self.w, self.b = (nn.Parameter(factor.to(matrix.dtype, copy=True)) for factor in (a, inner, b))

    def forward(self, _: Tensor) -> Tensor:
        return self.a @ self.w @ self.b


def widen(student: nn.Module, teacher: nn.Module) -> None:
    """Write every matrix of a started ViT's blocks as `A W B`."""
    axes, theirs = shrink_report(student).projection, dict(teacher.named_modules())
    for name, module in list(student.named_modules()):
        if isinstance(module, nn.Linear) and name in theirs and "layer" in name:
            matrix, reads = module.weight.detach(), "output" not in name and not name.endswith(("o_proj", "fc2"))
            chain = Through(matrix, theirs[name].weight.detach(), axes, reads=reads)
            error = (chain(matrix) - matrix).norm() / matrix.norm()
            if error > 1e-3:
                raise ArithmeticError(f"{name}: A W B is {error:.1e} away from the student's matrix")
            parametrize.register_parametrization(module, "weight", chain, unsafe=True)
            module.parametrizations["weight"].original.requires_grad_(False)


def run(job: Job, prepared: Any, teacher: Any, arm: str) -> dict[str, Any]:
    """Train a student: its validation score, its answers on the test split, unread, and the seconds that it trained."""
    trainer = student_trainer(job, prepared, teacher, arm)
    if arm != "KD":
        widen(trainer.model, teacher)
    seconds = trainer.train().metrics["train_runtime"]
    labels = np.array(prepared.data["validation"].select_columns("labels")["labels"])
    score = prepared.task.score(answers(trainer.model, prepared, "validation"), labels)
    return {"validation": score, "answers": answers(trainer.model, prepared, "test").tolist(), "seconds": seconds}


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/studies/through")
    study = Study(fill(StudyConfig, read_yaml(str(Path(__file__).parent / "start" / "images.yaml")), "images.yaml"))
    pairs = []
    for setting in study.plan.settings:
        of_setting, found, labels = study.config(setting, "KD"), {}, {}
        for seed in SEEDS:
            config = replace(of_setting, seed=seed, data=replace(of_setting.data, seed=seed))
            prepared = prepare_data(config.data, config.teacher)
            labels[seed] = np.array(prepared.data["test"].select_columns("labels")["labels"])
            place = folder / f"{setting}, seed {seed}"
            place.mkdir(parents=True, exist_ok=True)
            teacher = ready_teacher(Job(config, teachers=place), prepared)
            for arm, rates in RATES.items():
                for rate in rates:
                    file = place / f"{arm}, {rate}.json"
                    if not file.is_file():
                        training = config.training | {"learning_rate": rate, "save_strategy": "no"}
                        job = Job(replace(config, training=training, output=str(place / "run")), teachers=place)
                        with replacing(file) as scratch:
                            scratch.write_text(json.dumps(run(job, prepared, teacher, arm)))
                    found[arm, rate, seed] = json.loads(file.read_text())
        best = {
            arm: max(rates, key=lambda rate: fmean(found[arm, rate, seed]["validation"] for seed in SEEDS))
            for arm, rates in RATES.items()
        }
        times = [found[WIDE, best[WIDE], seed]["seconds"] / found["KD", best["KD"], seed]["seconds"] for seed in SEEDS]
        said = {(arm, seed): np.array(found[arm, best[arm], seed]["answers"]) for arm in RATES for seed in SEEDS}
        gained = differences([Pair(said[WIDE, s], said["KD", s], labels[s]) for s in SEEDS], prepared.task.score)
        pairs.append(gained)
        print(f"{setting}: {effect([gained]).verdict}; rates {best}; time {median(times):.2f}", flush=True)
    print(f"over all: {effect(pairs).verdict}")


if __name__ == "__main__":
    main()
