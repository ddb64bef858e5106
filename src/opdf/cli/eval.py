"""`opdf eval MODEL --data.name DATA`: score a saved student."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from opdf.cli.options import at_least_one, parse
from opdf.job import DataConfig, UserError, fill, read_yaml

DESCRIPTION = """Score a model on a dataset.

opdf eval RUN scores the student of an output folder of opdf distill on the data that it was distilled with, and with
--data.test FILE on all rows of another file; opdf eval MODEL --data.name DATA scores any saved model on the validation
and test splits of some data."""


@dataclass
class ScoredData(DataConfig):
    __doc__ = DataConfig.__doc__

    name: str = ""  # no data unless they are named


@dataclass
class EvalConfig:
    """Options.

    Args:
        model: output folder of opdf distill, a saved model's folder, or a hub name.
        data: the data; an output folder brings its own.
        batch: examples at a time.
        probe: also train a linear classifier on the frozen features and score it on the test split.
        json: print JSON instead of lines.
    """

    model: str
    data: ScoredData = field(default_factory=ScoredData)
    batch: int = 128
    probe: bool = False
    json: bool = False


def with_run(argv: list[str]) -> list[str]:
    """Replace an output folder of opdf distill by the student's folder and the data's options."""
    run = Path(argv[0]) if argv else Path()
    file = str(run / "config.yaml")
    if not Path(file).is_file():
        if (run / "begun.json").is_file():
            raise UserError(f"{file} is missing; give {run / 'student'} with --data.name and what else the data need")
        return argv
    if not (run / "student").is_dir():
        from opdf.job import going_on  # loads torch, which the help does without

        raise UserError(f"{run} has no folder student: if it is not finished, {going_on(run)} goes on with it")
    try:
        data = fill(DataConfig, read_yaml(file).get("data", {}), f"{file}: data")
    except ValueError as error:
        raise UserError(
            f"{error}. Bring back what it was, or give {run / 'student'} with --data.name and what else the data need"
        ) from error
    _check_other_data(run, data, argv[1:])
    return [str(run / "student"), *(f"--data.{k}={json.dumps(v)}" for k, v in vars(data).items()), *argv[1:]]


def _check_other_data(run: Path, data: DataConfig, argv: list[str]) -> None:
    """Refuse other data beside which a file of the run's would still be what is scored.

    Raises:
        UserError: validation or test is a file, and the name of the data alone is another one.
    """
    named = {word.partition("=")[0] for word in argv}
    kept = {part: file for part in ("validation", "test") if isinstance(file := getattr(data, part), str)}
    left = next((part for part in reversed(kept) if f"--data.{part}" not in named), None)
    if "--data.name" in named and left is not None:
        raise UserError(
            f"--data.name is given, and the {left} split of {run} would still be {kept[left]}; to score the rows of "
            f"another file name it in --data.test instead, or give --data.{left} as well"
        )


def of_student(argv: list[str]) -> list[str]:
    """Replace a run's student folder by the run, unless other data are named."""
    folder = Path(argv[0]) if argv else Path()
    if folder.name == "student" and not any(argument.startswith("--data") for argument in argv):
        return [str(folder.parent), *argv[1:]] if (folder.parent / "config.yaml").is_file() else argv
    return argv


OPTIONS = EvalConfig


def main(argv: list[str]) -> None:
    config = parse(with_run(of_student(argv)), EvalConfig, "opdf eval", DESCRIPTION, positional="model")
    at_least_one(config, "batch")
    if not config.data.name and not Path(config.model).exists() and config.model != "minilm":
        raise FileNotFoundError(
            f"{config.model} does not exist; give an output folder of opdf distill, or a model with --data.name DATA"
        )
    if not config.data.name:
        raise UserError(
            f"{config.model} comes without data; say what to score it on with --data.name, or give an output folder of "
            "opdf distill"
        )
    from opdf.job import evaluate, quiet

    with quiet():
        result = evaluate(config.model, config.data, batch=config.batch, probe=config.probe)
    if config.json:
        print(json.dumps(result, indent=2))
        return
    for part, metrics in result.items():
        shown = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if name != "examples")
        print(f"{part} ({metrics['examples']} examples): {shown}")
