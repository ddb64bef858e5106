"""The reader of configurations: what it reads, that nothing makes it crash, and how its help looks."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings, strategies as st

from opdf.cli import COMMANDS, main
from opdf.cli.options import parse
from opdf.distill import DistillationArguments, LogitsDistillation
from opdf.job.config import DistillConfig
from opdf.job.errors import UserError
from opdf.job.options import fill, read_yaml, suggest, write_yaml

QUICK = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
READABLE = (UserError, FileNotFoundError, ValueError, TypeError)
"""What the command line turns into one line."""

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates()
NAMES = "data teacher student overparam constraint training output seed name layers config shapes layer_map base"
keys = st.sampled_from(NAMES.split()) | st.text(max_size=4) | st.integers()
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-5", 3e-5), ("1E+3", 1000.0), ("-2.e3", -2000.0), ("5e5x", "5e5x"), ("1.5", 1.5), ("7", 7), ("null", None),
        ("true", True), ("false", False), ("no", "no"), ("on", "on"), ("e5", "e5"), ("'3e-5'", "3e-5"),
    ],
)  # fmt: skip
def test_numbers(tmp_path: Path, text: str, value: Any) -> None:
    (tmp_path / "a.yaml").write_text(f"seed: {text}\n")
    assert read_yaml(str(tmp_path / "a.yaml")) == {"seed": value}
    options = parse(["--training.x", text, "--output", "o"], DistillConfig, "opdf distill", "").training
    assert options == {"x": value}


@pytest.mark.parametrize("name", ["null", "~", "#1 String", "Review #1", "[a]", "- a", "5", "a: b", "auto", '"x"'])
def test_a_column_has_the_name_that_it_is_given(tmp_path: Path, name: str) -> None:
    """A quoted "null" was null, so that other columns were read; "#1 String" on the command line as well."""
    write_yaml({"data": {"inputs": name, "label": name}}, tmp_path / "run.yaml")
    config = parse([str(tmp_path / "run.yaml")], DistillConfig, "opdf distill", "")
    assert (config.data.inputs, config.data.label) == (name, name)
    config = parse(
        ["--data.inputs", json.dumps(name), f"--data.label={json.dumps(name)}"], DistillConfig, "opdf distill", ""
    )
    assert (config.data.inputs, config.data.label) == (name, name)
    if "#" in name:
        assert parse(["--data.inputs", name], DistillConfig, "opdf distill", "").data.inputs == name


@given(texts=st.lists(st.text(max_size=6) | st.from_regex(r"[-+]?[0-9]{1,3}\.?[eE][-+]?[0-9]", fullmatch=True)))
@example(texts=["3e-5", "1E5", "no", "null", "1.5", "2020-01-01", "~", ""])
@QUICK
def test_a_text_that_is_written_is_read_as_that_text(tmp_path: Path, texts: list[str]) -> None:
    path = tmp_path / "written.yaml"
    write_yaml({"labels": texts, "output": "3e-5"}, path)
    assert read_yaml(str(path)) == {"labels": texts, "output": "3e-5"}


@given(content=st.dictionaries(keys, values, max_size=5))
@QUICK
def test_any_mapping_is_read_or_refused(tmp_path: Path, content: dict[Any, Any]) -> None:
    path = tmp_path / "any.yaml"
    path.write_text(yaml.dump(content, Dumper=NoAliases))
    try:
        config = parse([str(path)], DistillConfig, "opdf distill", "")
    except READABLE:
        return
    assert isinstance(config, DistillConfig)
    written = tmp_path / "again.yaml"
    write_yaml(config, written)
    assert repr(parse([str(written)], DistillConfig, "opdf distill", "")) == repr(config)


@given(noise=st.binary(max_size=200) | st.text("{}[]:-,&*!'\"|>\n ab1#%@`?", max_size=80).map(str.encode))
@QUICK
def test_any_bytes_are_read_or_refused(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "noise.yaml"
    path.write_bytes(noise)
    with suppress(*READABLE):
        assert isinstance(read_yaml(str(path)), dict)


@given(words=st.lists(st.text(max_size=12).map(lambda w: f"--{w}") | st.text(max_size=12), max_size=5))
@QUICK
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    words = [word for word in words if word not in ("-h", "--help")]
    with suppress(*READABLE):
        assert isinstance(parse(words, DistillConfig, "opdf distill", ""), DistillConfig)


class NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def test_a_filled_class_is_the_class_itself() -> None:
    made = fill(LogitsDistillation, {"temperature": "4e0", "alpha": 0.5}, "objective")
    assert (made.temperature, made.alpha) == (4.0, 0.5)
    arguments = fill(DistillationArguments, {"learning_rate": 1, "output_dir": "unused", "use_cpu": True}, "training")
    assert arguments.learning_rate == 1.0
    assert math.isclose(arguments.weight_decay, 0.0)


@pytest.mark.parametrize(
    ("key", "end"), [("alhpa", "; did you mean 'alpha'?"), ("zzz", "; known are temperature, alpha")]
)
def test_suggestions(key: str, end: str) -> None:
    assert suggest(key, ["temperature", "alpha"]) == end


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "completion"])  # which has no options
def test_help_fits_80_columns_and_explains_every_option(command: str, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    options = [k for k, line in enumerate(lines) if line.startswith("  --")]
    assert options
    for k in options:
        _, _, text = lines[k].strip().partition(" ")
        assert text.strip() or lines[k + 1].startswith(" " * 10), lines[k]


def test_help_names_what_is_nested(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["distill", "--help"])
    shown = capsys.readouterr().out
    for option in ("--overparam.ones", "--constraint.weight", "--data.max_length", "--training"):
        assert option in shown
    assert "(default 128)" in shown
    assert "<class" not in shown


def test_help_shows_no_default_where_there_is_none(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    shown = capsys.readouterr().out
    assert "embedded set, file" in shown  # the words of DataConfig
    assert 'default ""' not in shown
    assert "movie-sentiment" not in shown


def test_a_message_is_short_whatever_the_value(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "long.yaml"
    path.write_text(json.dumps({"seed": "x" * 10_000}))
    assert main(["distill", str(path)]) == 2
    assert len(capsys.readouterr().err) < 300


def test_files_build_on_files(tmp_path: Path) -> None:
    (tmp_path / "under").mkdir()
    (tmp_path / "under" / "a.yaml").write_text("seed: 1\nstudent: {layers: 2}\ntraining: {max_steps: 5, bf16: true}\n")
    (tmp_path / "b.yaml").write_text("base: under/a.yaml\ntraining: {max_steps: 6}\noutput: x\n")
    (tmp_path / "c.yaml").write_text("base: b.yaml\nseed: 2\n")
    assert read_yaml(str(tmp_path / "c.yaml")) == {
        "seed": 2, "student": {"layers": 2}, "training": {"max_steps": 6, "bf16": True}, "output": "x"
    }  # fmt: skip
    (tmp_path / "under" / "a.yaml").write_text("base: ../c.yaml\n")
    with pytest.raises(UserError, match="leads back to itself"):
        read_yaml(str(tmp_path / "c.yaml"))
    (tmp_path / "b.yaml").write_text("base: none.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"none\.yaml does not exist"):
        read_yaml(str(tmp_path / "c.yaml"))


def test_data_in_place_of_a_configuration_is_told_where_to_go(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.csv").write_text("text,label\ngood,1\n")
    Path("quoted.csv").write_text('text,label\n"good, really",1\n')
    Path("rows.jsonl").write_text('{"text": "good"}\n{"text": "bad"}\n')
    for name in ("plain.csv", "quoted.csv", "rows.jsonl"):
        with pytest.raises(UserError, match=rf"^{name} .*; if it holds data, give it as data.name$"):
            read_yaml(name)
    Path("list.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match=r"^list.yaml holds no options; .* student$"):
        read_yaml("list.yaml")
    Path("photos").mkdir()
    with pytest.raises(UserError, match=r"photos is a folder .*; if it holds data, give it as data.name"):
        read_yaml("photos")
    Path("photos/config.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"photos is a folder .*; name photos/config.yaml"):
        read_yaml("photos")


@pytest.mark.parametrize(
    ("command", "content", "message"),
    [
        ("distill", {"common": {}, "tasks": {}}, "is a file for opdf sweep, and opdf distill has no common, tasks"),
        ("plan", {"tasks": {}}, "is a file for opdf sweep, and opdf plan has no tasks"),
        ("sweep", {"data": {}, "output": "out"}, "is a file for opdf distill, and opdf sweep has no data"),
    ],
)
def test_a_file_of_another_command_is_called_that(
    tmp_path: Path, command: str, content: dict[str, Any], message: str, capsys: Any
) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump(content))
    assert main([command, str(file)]) == 2
    assert f"{file} {message}" in capsys.readouterr().err


def test_several_teachers() -> None:
    words = ["--teacher.models", '["a", "b"]', "--teacher.weights", "[2, 1]"]
    teacher = parse(words, DistillConfig, "opdf distill", "").teacher
    assert (teacher.models, teacher.weights) == (["a", "b"], [2, 1])
