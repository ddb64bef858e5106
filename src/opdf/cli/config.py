"""What `opdf distill` can be told, as dataclasses; a YAML file fills them in and `--a.b value` overrides it."""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from opdf.cli import UserError
from opdf.overparam import OverParamConfig


@dataclass
class DataConfig:
    """The data.

    Args:
        name: embedded set, file (csv, tsv, json, jsonl, parquet), image folder, or hub name[:configuration].
        task: classification, regression, image-classification or similarity; inferred when null.
        inputs: one or two text columns, or the image column; inferred when null.
        label: the label column; "label" or "labels" when null.
        validation: fraction of rows to validate on, where the dataset has no such split.
        test: fraction of rows to test on, where the dataset has no such split.
        train_limit: use this many training rows.
        max_length: of a text, in tokens.
        seed: of the splits.
    """

    name: str = "movie-sentiment"
    task: str | None = None
    inputs: list[str] | None = None
    label: str | None = None
    validation: float = 0.1
    test: float = 0.2
    train_limit: int | None = None
    max_length: int = 128
    seed: int = 0


@dataclass
class TeacherConfig:
    """The teacher.

    Args:
        model: hub name, local folder (safetensors), or "minilm", the embedded all-MiniLM-L6-v2; null with `config`.
        config: build the teacher from this transformers configuration (model_type and its fields) instead.
        finetune: train the teacher on the task first; needed when it has no head for the task.
        training: options of transformers.TrainingArguments for that.
    """

    model: str | None = "minilm"
    config: dict[str, Any] | None = None
    finetune: bool = False
    training: dict[str, Any] = field(default_factory=dict)


@dataclass
class StudentConfig:
    """The student: layers, model or config.

    Args:
        layers: keep blocks of the teacher, or of `model` if that is given too: how many, or which.
        model: hub name or local folder of a pretrained student, or "minilm".
        config: fields of the teacher's configuration to change; the student starts untrained.
    """

    layers: int | list[int] | None = None
    model: str | None = None
    config: dict[str, Any] | None = None


@dataclass
class ObjectiveConfig:
    """What the student learns.

    Args:
        name: logits, hidden, embedding, theseus, lgtm, dbkd, adkd or sparse-logits.
        options: of the objective, e.g. temperature and alpha.
    """

    name: str = "logits"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class ConstraintConfig:
    """The constraint loss.

    Args:
        weight: factor of the loss.
        layer_map: last, first, or {student block: teacher block}.
        gauge: matched or raw.
        normalize: relative or mse.
    """

    weight: float = 0.1
    layer_map: str | dict[int, int] = "last"
    gauge: str = "matched"
    normalize: str = "relative"


@dataclass
class DistillConfig:
    """A whole distillation.

    Args:
        data: the data.
        teacher: the teacher.
        student: the student.
        objective: what the student learns.
        overparam: over-parameterization; null trains the student as it is.
        constraint: pull the student's auxiliary cores to the teacher's; null leaves it out.
        training: options of transformers.TrainingArguments (learning_rate, num_train_epochs, bf16, ...).
        output: folder for student, metrics.json, config.yaml and train.log.
        overwrite: replace an output folder that is not empty.
        resume: continue from the last checkpoint in the output folder.
        seed: of initialisation and data order.
        json: print what metrics.json holds instead of lines.
    """

    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    overparam: OverParamConfig | None = None
    constraint: ConstraintConfig | None = None
    training: dict[str, Any] = field(default_factory=dict)
    output: str = "runs/distill"
    overwrite: bool = False
    resume: bool = False
    seed: int = 0
    json: bool = False


Config = typing.TypeVar("Config")


def parse(argv: list[str], cls: type[Config], prog: str, description: str, positional: str | None = None) -> Config:
    """Options of a command as a dataclass; a first bare argument is the YAML file, or the field `positional`.

    Raises:
        UserError: an option is unknown or has the wrong type.
        FileNotFoundError: the YAML file does not exist.
    """
    parser = jsonargparse.ArgumentParser(prog=prog, description=description, exit_on_error=False)
    parser.add_class_arguments(cls)
    leading = argv[0] if argv and not argv[0].startswith("-") else None
    if leading is None and positional is not None and not {"-h", "--help"} & set(argv):
        raise UserError(f"{prog} needs {positional.upper()} as its first argument; see {prog} --help")
    if {"-h", "--help"} & set(argv):
        parser.print_help()
        raise SystemExit(0)
    given: dict[str, Any] = {}
    if leading is not None and positional is not None:
        given = {positional: leading}
    elif leading is not None:
        given = read_yaml(leading)
    _override(given, argv[1:] if leading is not None else argv)
    return build(given, cls, leading or prog, parser)


def build(
    given: dict[str, Any], cls: type[Config], where: str, parser: jsonargparse.ArgumentParser | None = None
) -> Config:
    """A mapping as a dataclass, its types checked.

    Args:
        given: nested mappings.
        cls: of the result.
        where: the mapping comes from, for messages.
        parser: one that has the arguments of `cls` already.

    Raises:
        UserError: a key is unknown, or a value has the wrong type.
    """
    if parser is None:
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls)
    _check_keys(given, cls, where)
    try:
        return cls(**vars(parser.instantiate(parser.parse_object(given))))
    except jsonargparse.ArgumentError as error:
        raise UserError(_short(str(error))) from error


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML mapping, read without any of YAML's object tags, over the file that its key `base` names, if any."""
    content = _read_mapping(path)
    seen = [Path(path).resolve()]
    while (base := content.pop("base", None)) is not None:
        file = seen[-1].parent / str(base)
        if file.resolve() in seen:
            raise UserError(f"{path}: base {base} leads back to itself")
        seen.append(file.resolve())
        content = merged(_read_mapping(str(file)), content)
    return content


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`; mappings in both are merged, so that a file says only what it changes."""
    both = {k: merged(under[k], v) for k, v in over.items() if isinstance(v, dict) and isinstance(under.get(k), dict)}
    return under | over | both


def _read_mapping(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise FileNotFoundError(f"configuration file {path} does not exist")
    try:
        content = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__}; expected keys such as data: and student:")
    return content


def _override(given: dict[str, Any], argv: list[str]) -> None:
    """Put `--a.b value`, `--a.b=value` and the switch `--a.b` into nested mappings; values are read as YAML."""
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"{word!r} is no option; options are written --name value")
        name, equals, text = word[2:].partition("=")
        if not equals:
            text = words.pop(0) if words and not words[0].startswith("--") else "true"
        *parents, last = name.split(".")
        place = given
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                place[parent] = {}
            place = place[parent]
        place[last] = _value(text)


def _value(text: str) -> Any:
    try:
        return json.loads(text)  # reads 3e-5 as a number, which YAML does not
    except json.JSONDecodeError:
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text


def write_yaml(config: Any, path: Path) -> None:
    """The resolved configuration, every default written out."""
    path.write_text(yaml.safe_dump(plain(config), sort_keys=False))


def fill(cls: type, options: dict[str, Any], where: str, **fixed: Any) -> Any:
    """An instance of a class from a user's options, with numbers that YAML reads as text repaired."""
    known = typing.get_type_hints(cls if dataclasses.is_dataclass(cls) else vars(cls)["__init__"])
    for key in options:
        if key not in known or key == "return":
            raise UserError(f"{where} has no option {key!r}{_suggest(key, known)}")
    values = {k: _number(v, known[k]) for k, v in options.items()}
    return cls(**(fixed | values))


def _number(value: Any, wanted: Any) -> Any:
    """YAML reads 3e-5 as text."""
    if isinstance(value, str) and (wanted is float or float in typing.get_args(wanted)):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _check_keys(given: dict[str, Any], cls: type, where: str) -> None:
    hints = typing.get_type_hints(cls)
    for key, value in given.items():
        if key not in hints:
            raise UserError(f"{where} has no option {key!r}{_suggest(key, hints)}")
        for candidate in (hints[key], *typing.get_args(hints[key])):
            if dataclasses.is_dataclass(candidate) and isinstance(candidate, type) and isinstance(value, dict):
                _check_keys(value, candidate, f"{where}: {key}")


def _suggest(key: str, known: Any) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}" if len(known) < 15 else f"; {len(known)} are known, see the documentation"


def plain(value: Any) -> Any:
    """A configuration as mappings, lists and plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _short(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines)[:400]
