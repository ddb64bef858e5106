"""Commands as a user runs them: what they print, and how they end."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import DIGITS, bert, texts
from opdf.cli import main
from opdf.cli.eval import with_run
from opdf.cli.options import parse
from opdf.job.config import DistillConfig
from opdf.job.options import merged
from opdf.overparam import OverParamConfig


def configuration(folder: Path, **changes: Any) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(merged(DIGITS | {"output": str(folder / "out")}, changes)))
    return str(path)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration and the output of its run."""
    folder = tmp_path_factory.mktemp("digits")
    assert main(["distill", configuration(folder)]) == 0
    return folder


def test_distill_prints_what_it_is_about_to_do_and_what_came_out(tmp_path: Path, capsys: Any) -> None:
    assert main(["distill", configuration(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert all(line.partition(":")[0] in ("fine-tuning the teacher", "distilling") for line in printed.err.splitlines())
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    first, results = printed.out.split(f"output        {tmp_path / 'out'}\n")
    assert first.startswith("data          digits\n")
    assert results.startswith("the student starts with these shares of the variance of its teacher's states:\n| block ")
    lines = results.splitlines()[5:]
    assert [line.partition(":")[0] for line in lines[:3]] == ["teacher", "student before training", "student"]
    assert lines[0] == "teacher: accuracy " + ", ".join(
        f"{part} {metrics['teacher'][part]['accuracy']:.4f}" for part in ("validation", "test")
    )
    assert lines[3].startswith(f"parameters: {metrics['train_params']:,} while training, ")
    assert lines[5] == f"saved in {tmp_path / 'out'}:"
    card = (tmp_path / "out" / "student" / "README.md").read_text()
    assert f"opdf distill {tmp_path / 'config.yaml'}" in card


@pytest.mark.slow
def test_with_json_only_json_is_on_stdout(tmp_path: Path, capsys: Any) -> None:
    assert main(["distill", configuration(tmp_path), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert printed.err.startswith("data          digits\n")


@pytest.mark.slow
@pytest.mark.parametrize("command", [["distill", "CONFIG", "--dry-run"], ["plan", "CONFIG"]])
def test_a_dry_run_prints_what_a_run_prints_first_and_nothing_else(
    command: list[str], tmp_path: Path, capsys: Any
) -> None:
    path = configuration(tmp_path)
    argv = [path if word == "CONFIG" else word for word in command]
    assert main(argv) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]
    assert main([*argv, "--json"]) == 0
    assert ["task", "image-classification: 'image' to 'label'"] in json.loads(capsys.readouterr().out)
    assert main(["distill", path]) == 0
    measured = shown.out.index("cost ")  # which differs a little from time to time
    assert capsys.readouterr().out.startswith(shown.out[:measured])
    assert main([*argv, "--student.layers", "[0, 1, 2]", "--output", str(tmp_path / "other")]) == 2
    assert "3 student blocks do not divide the teacher's 4" in capsys.readouterr().err


def test_eval_scores_a_run_from_any_folder(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    metrics = json.loads((done / "out" / "metrics.json").read_text())
    monkeypatch.chdir(tmp_path)
    for named, *data in (("out",), ("out/student", "--data.name", "digits", "--data.seed", "3")):
        assert main(["eval", str(done / named), "--json", "true", *data]) == 0
        scored = json.loads(capsys.readouterr().out)
        assert (scored["test"] == metrics["student"]["test"]) == (not data)


@pytest.mark.slow
def test_a_file_to_test_on_leaves_the_other_rows_where_the_run_had_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """They were cut anew, in two: the validation rows were the run's test rows, and its training rows all the rest."""
    bert(tmp_path / "teacher")
    run, rows = str(tmp_path / "out"), str(texts(tmp_path / "rows.jsonl"))
    argv = ["--data.name", rows, "--teacher.model", str(tmp_path / "teacher"), "--student.layers", "1",
            "--training.max_steps", "1", "--output", run]  # fmt: skip
    assert main(["distill", *argv]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    capsys.readouterr()
    assert main(["eval", run, "--data.test", rows, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["validation"] == metrics["student"]["validation"]
    assert json.loads(printed.out)["test"]["examples"] == 60
    assert "42 of 60 rows of test are training rows too" in printed.err
    assert main(["eval", run, "--data.seed", "3"]) == 0
    said = f"{rows} is cut otherwise than for {run}"
    assert said in capsys.readouterr().err
    for length, is_told in ((64, False), (3, True)):  # all texts have four tokens
        assert main(["eval", f"{run}/student", "--data.name", rows, "--data.max_length", str(length)]) == 0
        told = f"data.max_length is {length} and {run} was trained with 128; texts that are cut elsewhere score"
        assert (told in capsys.readouterr().err) == is_told
    exported = ["--format", "torch", "--output", str(tmp_path / "export")]
    assert main(["export", run, *exported, "--data.name", rows, "--data.test", "0.4"]) == 0
    assert said in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert main(["eval", "out/student", "--data.name", "rows.jsonl", "--data.seed", "3"]) == 0
    assert f"{rows} is cut otherwise than for out" in capsys.readouterr().err
    texts(tmp_path / "rows.jsonl", [(k + 1) % 2 for k in range(60)])
    assert main(["eval", "out/student", "--data.name", "rows.jsonl"]) == 2
    assert "holds other rows than out was trained with" in capsys.readouterr().err


def test_a_run_finds_its_files_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    bert(here / "teacher")
    texts(here / "rows.jsonl")
    texts(here / "held.jsonl")
    monkeypatch.chdir(here)
    argv = ["--data.name", "rows.jsonl", "--data.validation", "held.jsonl", "--teacher.model", "teacher",
            "--student.layers", "1", "--training.max_steps", "1", "--output", "out"]  # fmt: skip
    assert main(["distill", *argv]) == 0
    written = yaml.safe_load((here / "out" / "config.yaml").read_text())
    assert written["data"]["name"] == str(here / "rows.jsonl")
    assert written["data"]["validation"] == str(here / "held.jsonl")
    assert written["teacher"]["model"] == str(here / "teacher")
    assert str(tmp_path) not in (here / "out" / "student" / "README.md").read_text()
    capsys.readouterr()
    monkeypatch.chdir(there)
    assert main(["eval", str(here / "out"), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored == json.loads((here / "out" / "metrics.json").read_text())["student"]


def test_plan_of_a_run_shows_the_matrices_that_it_trained(done: Path, capsys: Any) -> None:
    assert main(["plan", str(done / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    metrics = json.loads((done / "out" / "metrics.json").read_text())
    shapes = [shape["shape"] for shape in metrics["shapes"] for _ in range(shape["matrices"])]
    assert sorted(matrix["shape"] for matrix in report["matrices"]) == sorted(shapes)


def begun(folder: Path, **config: Any) -> str:
    """The output folder of a run, as far as a command looks before it reads the student."""
    (folder / "run" / "student").mkdir(parents=True)
    (folder / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    return str(folder / "run")


@pytest.mark.parametrize("command", [["eval"], ["export", "--format", "torch"]])
def test_other_data_are_not_scored_on_the_run_s_own_test_file(command: list[str], tmp_path: Path, capsys: Any) -> None:
    """`--data.name new.csv` scored the test file of the run once more, and called it the score on new.csv."""
    name, *options = command
    run = begun(tmp_path, data={"name": "a.csv", "validation": "v.csv", "test": "t.csv"})
    argv = [name, run, *options, "--data.name", "new.csv"]
    assert main(argv) == 2
    said = f"the test split of {run} would still be t.csv; to score the rows of another file name it in --data.test"
    assert said in capsys.readouterr().err
    assert main([*argv, "--data.test=0.2"]) == 2
    assert "the validation split" in capsys.readouterr().err
    assert "--data.name=new.csv" in " ".join(
        with_run([run, "--data.name=new.csv", "--data.test", "0.2", "--data.validation=0.1"])
    )
    with_run([run, "--data.test", "new.csv"])


def test_plan_says_that_a_run_had_no_cores(tmp_path: Path, capsys: Any) -> None:
    run = begun(tmp_path, student={"layers": 1})
    bert(Path(run) / "student")
    assert main(["plan", run, "--tokens", "8", "--batch", "2"]) == 0
    assert f"note: {run} was trained without over-parameterization" in capsys.readouterr().err
    assert main(["plan", run, "--tokens", "8", "--batch", "2", "--overparam.ones", "1"]) == 0
    assert capsys.readouterr().err == ""


def test_a_mapping_that_is_null_is_an_empty_one(tmp_path: Path) -> None:
    """As a file has it where a key is left without anything under it."""
    path = configuration(tmp_path, training=None, objective={"options": None})
    config = parse([path, "--teacher.training", "null"], DistillConfig, "opdf distill", "")
    assert (config.training, config.teacher.training, config.objective.options) == ({}, {}, {})
    assert parse([path, "--teacher.config", "null"], DistillConfig, "opdf distill", "").teacher.config is None


def test_what_is_wrong_in_a_file_is_said_of_the_file(tmp_path: Path, capsys: Any) -> None:
    path = configuration(tmp_path, overparam={"ones": "x"})
    assert main(["distill", path, "--seed", "1"]) == 2
    assert f"error: {path}: overparam: ones is 'x'; expected an integer" in capsys.readouterr().err


@pytest.mark.slow
def test_export_writes_a_run(done: Path, tmp_path: Path, capsys: Any) -> None:
    argv = ["export", str(done / "out"), "--output", str(tmp_path / "exported")]
    assert main(argv) == 0
    metrics = json.loads((done / "out" / "metrics.json").read_text())
    said = capsys.readouterr().out
    assert f"test accuracy {metrics['student']['test']['accuracy']:.4f}" in said
    assert main(argv) == 2
    assert "is not empty" in capsys.readouterr().err


def test_cache_teacher_says_what_it_stored(tmp_path: Path, capsys: Any) -> None:
    options = {"store": str(tmp_path / "store"), "top_k": 4, "noise": True, "epochs": 2}
    argv = [configuration(tmp_path, objective={"name": "sparse-logits", "options": options})]
    assert main(["cache-teacher", *argv]) == 0
    assert f"128 outputs (64 examples, 2 epochs) in {tmp_path / 'store'}, " in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_lines_fit_80_columns_and_a_pipe_has_no_colours(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(done)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    printed = ""
    for argv in (
        ["distill", "config.yaml", "--output", "runs/a-name-of-some-length"],
        ["eval", "runs/a-name-of-some-length"],
        ["export", "runs/a-name-of-some-length", "--output", "exports/a-name", "--format", "torch"],
        ["plan", "minilm", "--layers", "1", "--overparam.ones", "5"],
    ):
        assert main(argv) == 0
        captured = capsys.readouterr()
        printed += captured.out
        assert "\x1b" not in captured.err
    assert max(map(len, printed.splitlines())) <= 80, printed
    assert "\x1b" not in printed


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "opdf.cli", "--help"]
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.slow
def test_plan_shows_every_matrix(capsys: Any) -> None:
    assert main(["plan", "minilm", "--layers", "3", "--overparam.ones", "3"]) == 0
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 80
    (row,) = [line.split() for line in table.splitlines() if line.startswith("0.intermediate.dense")]
    assert row[1:6] == ["48,1,1,1,32", "/", "24,1,1,1,16", "512", "1,638,400"]
    assert row[-1] == "20"  # MB: four bytes, for cores and two moments
    assert re.search(
        r"^teacher     22,713,216 parameters, 90.9 MB; [\d.,]+ ms for 1 example, [\d.,]+ for 32$", table, re.M
    )
    assert re.search(r"^student     17,389,824 parameters, 69.6 MB; ", table, re.M)


def test_plan_says_where_it_counts_a_head(tmp_path: Path, capsys: Any) -> None:
    """One table had two numbers of parameters for one model, and did not say why."""
    bert(tmp_path)
    for argv in (["plan", str(tmp_path)], ["plan", str(tmp_path), "--json", "true"]):
        assert main(argv) == 0
    table, _, report = capsys.readouterr().out.partition("{")
    assert "without a head, which the totals below count" in table
    found = json.loads("{" + report)
    assert found["models"][0]["without_head"]
    assert found["inference_params"] - found["models"][0]["params"] == 2 * 8 + 2  # two classes of width 8


@pytest.mark.slow
def test_plan_of_a_model_alone_as_json(capsys: Any) -> None:
    assert main(["plan", "minilm", "--json", "true", "--batch", "4", "--tokens", "16"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["matrices"]) == 36
    (model,) = report["models"]
    assert model["name"] == "model"
    assert 0 < model["seconds_for_one"] < model["seconds_for_batch"] < 10


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "unknown command 'fly'; choose from distill"),
        (["distill", "no.yaml"], "configuration file no.yaml does not exist"),
        (["plan"], "needs MODEL as its first argument"),
        (["plan", "no.yaml"], "configuration file no.yaml does not exist"),
        (["plan", "minilm", "--overparam.ones", "-1"], "ones is -1"),
        (["plan", "minilm", "--overparam.targets", '["qery"]'], "did you mean 'query'"),
        (["demo", "--seeed", "1"], "no option 'seeed'; did you mean 'seed'"),
        (["demo", "--task", "text", "extra"], "options are written --name value"),
        (["eval", "minilm", "--data.name", "digit"], "did you mean 'digits'"),
        (["eval", "minilm", "--data.name", "amazon-sentiment"], "not trained for this task"),
    ],
)
def test_bad_input_is_one_line_and_status_2(argv: list[str], message: str, capsys: Any) -> None:
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize("value", ["", "0", "1"])
def test_errors_have_their_traceback_where_it_is_asked_for(value: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("OPDF_DEBUG", value)
    if value == "1":
        with pytest.raises(FileNotFoundError, match=r"no\.yaml does not exist"):
            main(["distill", "no.yaml"])
    else:
        assert main(["distill", "no.yaml"]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert main(["--help"]) == 0
    assert "OPDF_DEBUG=1" in capsys.readouterr().out


def test_a_package_that_is_missing_is_named_and_a_part_of_ours_is_a_bug(monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "shtab is not installed; the command line needs pip install" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "opdf.cli.plan", None)
    with pytest.raises(ModuleNotFoundError):
        main(["plan", "minilm"])


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    argv = ["--overparam.lr_scaling", "none", "--overparam.ones=4", "--training.learning_rate", "3e-5", "--overwrite"]
    config = parse([configuration(tmp_path), *argv], DistillConfig, "opdf distill", "")
    assert config.overparam == OverParamConfig(ones=4, lr_scaling="none")
    assert config.training["learning_rate"] == 3e-5
    assert config.training["max_steps"] == 4
    assert config.overwrite
    none = parse([configuration(tmp_path), "--overparam", "null"], DistillConfig, "opdf distill", "")
    assert none.overparam is None
