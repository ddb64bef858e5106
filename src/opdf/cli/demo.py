"""`opdf demo`: a teacher fine-tuned on embedded data, and the same student distilled plain, with SVD and with OPDF."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from opdf.cli.options import at_least_one, parse

DESCRIPTION = """Fine-tune a teacher on embedded data, then distill the same student four ways: plain (KD), with two
cores per matrix (SVD), with five (MPO), and with five and the constraint loss (OPDF). Same data, seed,
steps and learning rate. Prints a comparison and leaves the students on disk. Minutes on two CPU cores."""


@dataclass
class DemoConfig:
    """Options.

    Args:
        task: text (MiniLM on movie sentiment; the student starts as three of its teacher's blocks) or images (a ViT on
            Fashion-MNIST; the student is half as wide as its teacher and starts untrained).
        output: folder for the teacher, the students and the results, to which -text or -images is added.
        overwrite: replace an earlier demo's folder.
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
    from opdf.job.demo import compare

    compare(
        options.task, Path(f"{options.output}-{options.task}"), data=options.data, train_limit=options.train_limit,
        seed=options.seed, overwrite=options.overwrite, say=partial(print, flush=True),
    )  # fmt: skip
