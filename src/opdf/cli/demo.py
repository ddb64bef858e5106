"""`opdf demo`: a teacher fine-tuned on embedded data, and students of half its size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from opdf.cli.options import at_least_one, parse

DESCRIPTION = """Fine-tune a teacher on embedded data and make students of half its size: half as wide, fitted to the
teacher and not trained, distilled plain (KD), and distilled with over-parameterization and the constraint loss
(OPDF); and half of the teacher's blocks. All have the same data, seed, steps and learning rate. The demo prints each
student's score when it is done, then a comparison with parameters and latency, and leaves the students on disk. It
takes minutes on two CPU cores. The same command goes on with a demo that was stopped."""


@dataclass
class DemoConfig:
    """Options.

    Args:
        task: text (MiniLM on movie sentiment) or images (a ViT on Fashion-MNIST).
        output: folder for the teacher, the students and the results, to which -text or -images is added.
        overwrite: replace an earlier demo's folder, if that is finished or of another configuration.
        data: another embedded dataset of the same kind.
        train_limit: training examples.
        seed: of initialisation and data order.
    """

    task: str = "text"
    output: str = "runs/demo"
    overwrite: bool = True
    data: str | None = None
    train_limit: int | None = None
    seed: int = 0


OPTIONS = DemoConfig


def main(argv: list[str]) -> None:
    options = parse(argv, DemoConfig, "opdf demo", DESCRIPTION)
    at_least_one(options, "train_limit")
    from opdf.job import demo

    demo(
        options.task, Path(f"{options.output}-{options.task}"), data=options.data, train_limit=options.train_limit,
        seed=options.seed, overwrite=options.overwrite, say=partial(print, flush=True),
    )  # fmt: skip
