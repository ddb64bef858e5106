"""Commands as a user runs them, on real data and small models."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification, BertModel

from opdf.cli import main
from opdf.cli.options import parse
from opdf.data import Task, load_data
from opdf.distill import DistillationArguments
from opdf.job.checks import check_task
from opdf.job.config import DistillConfig, StudentConfig
from opdf.job.demo import TASKS, VARIANTS, judge
from opdf.job.errors import UserError
from opdf.job.job import Job, build_objective
from opdf.job.models import from_config, load_model
from opdf.job.options import fill, read_yaml
from opdf.job.prepared import prepare_data
from opdf.job.student import build_student
from opdf.overparam import OverParamConfig, overparameterize

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
QUICK = ["--data.train_limit", "64", "--training.max_steps", "2", "--teacher.training.max_steps", "2"]
DIGITS = {
    "data": {"name": "digits"},
    "teacher": {"model": None, "finetune": True, "config": {
        "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 4,
        "num_attention_heads": 2, "intermediate_size": 32,
    }, "training": {"max_steps": 3}},
    "student": {"layers": 2},
    "overparam": {"ones": 1},
    "constraint": {"weight": 1.0},
    "training": {"max_steps": 4, "learning_rate": "1e-3", "save_strategy": "steps", "save_steps": 2},
}  # fmt: skip


def configuration(folder: Path, **changes: Any) -> str:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(DIGITS | {"output": str(folder / "out")} | changes))
    return str(path)


def test_distill_leaves_what_a_user_needs(tmp_path: Path, capsys: Any) -> None:
    assert main(["distill", configuration(tmp_path)]) == 0
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["train_params"] > metrics["inference_params"]
    assert 0 <= metrics["student"]["test"]["accuracy"] <= 1
    assert metrics["student"]["test"]["examples"] == 360
    resolved = yaml.safe_load((out / "config.yaml").read_text())
    assert resolved["overparam"]["lr_scaling"] == "match-dense"
    assert resolved["objective"]["options"] == {"temperature": 2.0, "alpha": 0.9}
    assert resolved["training"]["per_device_train_batch_size"] == 32
    assert all(json.loads(line) for line in (out / "train.log").read_text().splitlines())
    assert (out / "student" / "preprocessor_config.json").is_file()
    assert "while training" in capsys.readouterr().out

    # The student loads with plain transformers where opdf cannot be imported.
    code = (
        "import sys; sys.modules['opdf'] = None\n"
        "from transformers import AutoModelForImageClassification as A\n"
        f"print(A.from_pretrained({str(out / 'student')!r}).config.num_hidden_layers)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2"

    assert main(["distill", configuration(tmp_path), "--json", "--output", str(tmp_path / "again")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["student"] == metrics["student"]
    assert printed == json.loads((tmp_path / "again" / "metrics.json").read_text())

    for named, *data in ((out,), (out / "student",), (out / "student", "--data.name", "digits", "--data.seed", "3")):
        assert main(["eval", str(named), "--json", "true", *data]) == 0
        scored = json.loads(capsys.readouterr().out)
        assert (scored["test"] == metrics["student"]["test"]) == (not data)

    assert main(["distill", configuration(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert main(["distill", configuration(tmp_path), "--overwrite", "true"]) == 0


def test_lines_fit_80_columns_and_a_pipe_has_no_colours(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    configuration(tmp_path, training={"max_steps": 1}, output="runs/a-name-of-some-length")
    printed = ""
    for argv in (
        ["distill", "config.yaml"],
        ["eval", "runs/a-name-of-some-length"],
        ["export", "runs/a-name-of-some-length", "--output", "exports/a-name", "--format", "torch"],
    ):
        assert main(argv) == 0
        captured = capsys.readouterr()
        printed += captured.out
        assert "\x1b" not in captured.err
    plan = [sys.executable, "-m", "opdf.cli", "plan", "minilm", "--layers", "1", "--overparam.ones", "5"]
    printed += subprocess.run(plan, capture_output=True, text=True, check=True).stdout
    assert max(map(len, printed.splitlines())) <= 80, printed
    assert "\x1b" not in printed


def test_resume_gives_the_uninterrupted_student(tmp_path: Path) -> None:
    weights = []
    for name, stops in (("whole", [4]), ("halves", [2, 4])):
        for turn, steps in enumerate(stops):
            # The schedule must not depend on where the first part stops.
            training = {"max_steps": steps, "lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 2}
            argv = ["--output", str(tmp_path / name), "--resume", str(turn > 0).lower()]
            assert main(["distill", configuration(tmp_path, training=training), *argv]) == 0
        weights.append(load_file(tmp_path / name / "student" / "model.safetensors"))
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key


def test_checkpoints_are_chosen_by_a_metric_of_the_task(tmp_path: Path) -> None:
    choose = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps",
              "save_steps": 2, "max_steps": 4}  # fmt: skip
    teacher = DIGITS["teacher"] | {"training": choose | {"metric_for_best_model": "matthews"}}
    argv = [configuration(tmp_path, teacher=teacher, training=choose), "--training.metric_for_best_model", "eval_f1"]
    assert main(["distill", *argv]) == 0
    for log in ("teacher.log", "train.log"):
        entries = [json.loads(line) for line in (tmp_path / "out" / log).read_text().splitlines()]
        assert any({"eval_loss", "eval_f1", "eval_matthews"} <= entry.keys() for entry in entries)
    for name in ("loss", "eval_loss", "accuracy", "eval_accuracy", None):
        training = {"metric_for_best_model": name}
        job = Job(DistillConfig(training=training, student=StudentConfig(layers=1)))
        check_task(job, Task("classification", ("text",), "label", ("a", "b")))


@pytest.mark.parametrize("changes", [
    {"data": {"name": "amazon-sentiment", "max_length": 8},
     "objective": {"name": "hidden", "options": {"hidden_weight": 2}}},
    {"data": {"name": "amazon-scores", "max_length": 8}, "overparam": {"ones": 0}, "constraint": None},
])  # fmt: skip
def test_text_tasks(tmp_path: Path, changes: dict[str, Any]) -> None:
    text = {"teacher": {"model": "minilm", "finetune": True}, "training": {}, "student": {"layers": [0]}}
    assert main(["distill", configuration(tmp_path, **(text | changes)), *QUICK]) == 0
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out" / "student")
    assert student.config.num_hidden_layers == 1


def test_embeddings_of_a_file_of_pairs(tmp_path: Path, capsys: Any) -> None:
    pairs = load_data("nyt-pairs")[0]["test"].select([*range(30), *range(900, 930)])
    pairs.to_csv(tmp_path / "pairs.csv")
    changes = {
        "data": {"name": str(tmp_path / "pairs.csv"), "task": "similarity", "max_length": 16},
        "teacher": {"model": "minilm"}, "objective": {"name": "embedding", "options": {"mse_weight": 1.0}},
    }  # fmt: skip
    argv = [configuration(tmp_path, **changes, student={"layers": 1}, constraint=None), "--training.max_steps", "2"]
    assert main(["distill", *argv]) == 0
    assert "teacher: spearman validation" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["student"]["test"].keys() == {"spearman", "examples"}
    assert main(["eval", str(tmp_path / "out"), "--json", "true"]) == 0
    assert json.loads(capsys.readouterr().out) == metrics["student"]
    assert main(["distill", *argv, "--objective", '{"name": "logits"}', "--output", str(tmp_path / "b")]) == 2
    assert "the objective is for classification or regression or image-classification" in capsys.readouterr().err


TEXT = {
    "data": {"name": "amazon-sentiment", "max_length": 8},
    "teacher": {"model": "minilm", "finetune": True},
    "student": {"layers": 1},
    "training": {"per_device_train_batch_size": 8},
    "overparam": None,
    "constraint": None,
}
VARIANT = {
    "kd": {},
    "svd": {"overparam": {"ones": 0}},
    "opdf": {"overparam": {"ones": 1}, "constraint": {"weight": 0.5}},
}


@pytest.mark.parametrize("variant", VARIANT)
@pytest.mark.parametrize("method", ["theseus", "lgtm", "dbkd", "adkd"])
def test_every_method_with_every_variant(tmp_path: Path, method: str, variant: str) -> None:
    changes = TEXT | VARIANT[variant] | {"objective": {"name": method}}
    assert main(["distill", configuration(tmp_path, **changes), *QUICK]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["train_params"] > metrics["inference_params"]) == (variant != "kd")
    assert (tmp_path / "out" / "trained-teacher").is_dir() == (method == "lgtm")
    assert bool(list((tmp_path / "out").glob("decisions-*.safetensors"))) == (method == "dbkd")


@pytest.mark.parametrize("variant", VARIANT)
def test_students_learn_from_a_stored_teacher(tmp_path: Path, variant: str, capsys: Any) -> None:
    options = {"store": str(tmp_path / "store"), "top_k": 4, "noise": True, "epochs": 2}
    changes = VARIANT["kd"] | {"overparam": None, "constraint": None} | VARIANT[variant]
    argv = [configuration(tmp_path, objective={"name": "sparse-logits", "options": options}, **changes)]
    argv += ["--data.train_limit", "48"]
    assert main(["distill", *argv]) == 2
    assert "write them with opdf cache-teacher" in capsys.readouterr().err
    assert main(["cache-teacher", *argv, "--output", str(tmp_path / "unused")]) == 0
    assert "96 outputs (48 examples, 2 epochs)" in capsys.readouterr().out
    assert main(["distill", *argv, "--overwrite", "true"]) == 0
    assert not (tmp_path / "unused").exists()
    assert main(["distill", *argv, "--overwrite", "true", "--data.seed", "3"]) == 2
    assert "has data" in capsys.readouterr().err


def test_a_student_can_be_blocks_of_another_model(tmp_path: Path) -> None:
    changes = TEXT | {"student": {"model": "minilm", "layers": [0]}}
    assert main(["distill", configuration(tmp_path, **changes), *QUICK]) == 0


def test_a_probe_is_fitted_to_frozen_features(tmp_path: Path, capsys: Any) -> None:
    assert main(["distill", configuration(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["eval", str(tmp_path / "out"), "--probe", "true", "--json", "true"]) == 0
    probe = json.loads(capsys.readouterr().out)["linear probe"]
    # An untrained ViT's features tell digits apart far better than chance; its own head does not yet.
    assert 0.3 < probe["top1"] < probe["top5"] <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "its folder in objective.options.store"),
        ({"store": "FOLDER"}, "holds mine.txt, which is not ours"),
        ({"store": "FOLDER/new", "noise": True}, "the objective is for image-classification"),
    ],
)
def test_bad_stores(tmp_path: Path, capsys: Any, options: dict[str, Any], message: str) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    options = {k: v.replace("FOLDER", str(tmp_path)) if isinstance(v, str) else v for k, v in options.items()}
    changes = TEXT | {"objective": {"name": "sparse-logits", "options": options}}
    assert main(["cache-teacher", configuration(tmp_path, **changes), *QUICK]) == 2
    assert message in capsys.readouterr().err


def test_untrained_student_by_configuration(tmp_path: Path) -> None:
    student = {"config": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}}
    argv = [configuration(tmp_path, student=student), "--constraint", "null", "--objective.name", "hidden"]
    assert main(["distill", *argv]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["fly"], "unknown command 'fly'; choose from distill"),
        (["distill", "no.yaml"], "configuration file no.yaml does not exist"),
        (["plan"], "needs MODEL as its first argument"),
        (["plan", "./nowhere"], "model folder ./nowhere does not exist"),
        (["plan", "minilm", "--overparam.ones", "-1"], "ones is -1"),
        (["plan", "minilm", "--layers", "0"], "layers is 0"),
        (["plan", "minilm", "--overparam.targets", '["qery"]'], "did you mean 'query'"),
        (["demo", "--task", "sound"], "task is 'sound'"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"techer": {}}, "no option 'techer'; did you mean 'teacher'"),
        ({"overparam": {"onse": 3}}, "no option 'onse'; did you mean 'ones'"),
        ({"training": {"learning_rat": 1}}, "training has no option 'learning_rat'; did you mean 'learning_rate'"),
        ({"objective": {"name": "logit"}}, "objective.name is 'logit'"),
        ({"objective": {"options": {"temprature": 1}}}, "no option 'temprature'; did you mean 'temperature'"),
        ({"objective": {"options": {"alpha": 2}}}, "alpha is 2"),
        ({"student": {}}, "give exactly one of layers, model, config"),
        ({"student": {"layers": 9}}, "layers is 9; the teacher has 4 blocks"),
        ({"student": {"layers": 3}}, "3 student blocks do not divide the teacher's 4"),
        ({"teacher": {"model": None}}, "teacher has neither model nor config"),
        ({"overparam": None}, "constraint needs overparam"),
        ({"data": {"name": "none.csv"}}, "none.csv does not exist"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_bad_configurations(tmp_path: Path, changes: dict[str, Any], message: str, capsys: Any) -> None:
    assert main(["distill", configuration(tmp_path, **changes)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out" / "student").exists()


def test_the_command_line_overrides_the_file(tmp_path: Path) -> None:
    argv = ["--overparam.lr_scaling", "none", "--overparam.ones=4", "--training.learning_rate", "3e-5", "--overwrite"]
    config = parse([configuration(tmp_path), *argv], DistillConfig, "opdf distill", "")
    assert config.overparam == OverParamConfig(ones=4, lr_scaling="none")
    assert config.training["learning_rate"] == 3e-5
    assert config.training["max_steps"] == 4
    assert config.overwrite
    none = parse([configuration(tmp_path), "--overparam", "null"], DistillConfig, "opdf distill", "")
    assert none.overparam is None


def test_hostile_yaml_is_not_run(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"output: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    assert main(["distill", str(path)]) == 2
    assert "not valid YAML" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_pickled_weights_are_refused(tmp_path: Path, capsys: Any) -> None:
    model = BertForSequenceClassification(
        BertConfig(vocab_size=30522, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    model.config.save_pretrained(tmp_path / "model")
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    assert main(["eval", str(tmp_path / "model"), "--data.name", "amazon-sentiment"]) == 2
    assert "pickled weights are not loaded" in capsys.readouterr().err


def test_a_folder_that_is_not_ours_is_never_overwritten(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert main(["distill", configuration(tmp_path), "--overwrite", "true"]) == 2
    assert "was not written by this command" in capsys.readouterr().err
    assert (tmp_path / "out" / "thesis.txt").exists()


def test_plan(capsys: Any) -> None:
    assert main(["plan", "minilm", "--layers", "3", "--overparam.ones", "3"]) == 0
    table = capsys.readouterr().out
    assert max(map(len, table.splitlines())) <= 80
    (row,) = [line.split() for line in table.splitlines() if line.startswith("0.intermediate.dense")]
    assert row[1:6] == ["48,1,1,1,32", "/", "24,1,1,1,16", "512", "1,638,400"]
    assert row[-1] == "20"  # MB: four bytes, for cores and two moments
    assert main(["plan", "minilm", "--json", "true"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["matrices"]) == 36
    assert report["train_params"] - report["inference_params"] == sum(
        m["params"] - m["rows"] * m["cols"] for m in report["matrices"]
    )
    assert not report["with_teacher"]
    seconds = sum(m["extra_seconds_per_step"] for m in report["matrices"])
    assert seconds == pytest.approx(report["extra_seconds_per_step"])
    assert all(m["extra_megabytes"] == pytest.approx(12e-6 * m["params"]) for m in report["matrices"])


@pytest.mark.parametrize(
    ("ones", "accumulation", "measured"), [(1, 1, 1.59), (3, 1, 1.96), (8, 1, 3.00), (3, 4, 1.27), (8, 16, 1.12)]
)
def test_the_planned_cost_of_a_step_is_near_the_measured_one(
    ones: int, accumulation: int, measured: float, capsys: Any
) -> None:
    """That of benchmarks/results/step.md: three blocks of MiniLM, which is the teacher."""
    argv = ["--layers", "3", "--batch", "16", "--tokens", "32", "--accumulation", str(accumulation), "--json"]
    assert main(["plan", "minilm", "--overparam.ones", str(ones), *argv]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["with_teacher"]
    assert report["expected_step_ratio"] == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize("command", [[], ["distill"], ["plan"], ["eval"], ["demo"]])
def test_help(command: list[str], capsys: Any) -> None:
    try:
        status = main([*command, "--help"])
    except SystemExit as stop:
        status = stop.code  # type: ignore[assignment]
    assert status == 0
    assert "opdf" in capsys.readouterr().out


@pytest.mark.parametrize(("task", "data"), [("images", "digits"), ("text", "amazon-sentiment")])
def test_demo(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, task: str, data: str) -> None:
    short = replace(TASKS[task], data=replace(TASKS[task].data, max_length=8))  # the tests' time is that of scoring
    monkeypatch.setitem(TASKS, task, short)
    argv = ["demo", "--task", task, "--data", data, "--train_limit", "32", "--output", str(tmp_path / "demo")]
    folder = tmp_path / f"demo-{task}"
    folder.mkdir()
    (folder / "demo.yaml").touch()  # one that was stopped: it starts anew
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "Did OPDF gain on plain KD here?" in printed
    assert task == "text" or "the teacher's own blocks" not in printed
    results = json.loads((folder / "results.json").read_text())["results"]
    assert set(results) == {"teacher", *VARIANTS}
    assert results["KD + OPDF"]["train_params"] > results["KD + SVD"]["train_params"] > results["KD"]["train_params"]
    assert all(
        (folder / name / "student" / "model.safetensors").is_file() for name in ("kd", "kd-svd", "kd-mpo", "kd-opdf")
    )
    assert (folder / "results.md").read_text() in printed


@pytest.mark.parametrize(
    ("ours", "plain", "verdict"),
    [
        ([1, 1, 0, 0] * 50, [1, 0, 1, 0] * 50, "No difference found: +0.00 points of accuracy on 200 test examples"),
        ([1, 1, 0, 0] * 50, [1, 0, 0, 0] * 50, "With this seed OPDF's student is ahead: +25.00 points"),
        ([1, 0, 0, 0] * 50, [1, 1, 0, 0] * 50, "With this seed KD's student is ahead: -25.00 points"),
    ],
)
def test_verdict_is_plain(ours: list[int], plain: list[int], verdict: str) -> None:
    found = judge(np.array(ours) == 1, np.array(plain) == 1)
    assert verdict in found
    each = 100 * (np.array(ours) - np.array(plain))
    assert f"standard error {each.std() / 200**0.5:.2f}" in found


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(recipe: Path) -> None:
    config = parse([str(recipe)], DistillConfig, "opdf distill", "")
    build_objective(config)
    for options in (config.training, config.teacher.training):
        fill(DistillationArguments, options | {"bf16": False}, "training", output_dir="unused", use_cpu=True)


@pytest.mark.parametrize("recipe", [p for p in RECIPES if p.parent.name == "glue"], ids=lambda path: path.stem)
def test_glue_recipes_train_the_papers_parameters(recipe: Path) -> None:
    """Base parameters and those of every 1x1 site: OPDF's tables 1 and S3, in millions, without the head."""
    config = parse([str(recipe)], DistillConfig, "opdf distill", "")
    blocks = 4 if config.student.layers == [0, 1, 2, 3] else 6
    with torch.device("meta"):
        student = BertModel(BertConfig(num_hidden_layers=blocks))
    assert config.overparam is not None
    trained = overparameterize(student, config.overparam).train_params / 1e6
    start, each = {4: (68.7, 15.9), 6: (90.8, 23.9)}[blocks]
    assert trained == pytest.approx(start + each * (config.overparam.ones or 0), rel=2e-3)


@pytest.mark.parametrize("recipe", [p for p in RECIPES if p.stem.startswith(("text", "images"))], ids=lambda p: p.stem)
def test_recipes_on_embedded_data_build(recipe: Path) -> None:
    config = parse([str(recipe), "--data.train_limit", "50"], DistillConfig, "opdf distill", "")
    prepared = prepare_data(config.data, config.teacher)
    options = config.teacher
    teacher = from_config(options.config, prepared.task) if options.config else load_model("minilm", prepared.task)[0]
    student = build_student(config.student, teacher, prepared.task)
    build_objective(config).prepare(student, teacher)
    assert config.overparam is not None
    planned = overparameterize(student, config.overparam)
    assert planned.train_params > 1.3 * planned.inference_params
    if config.constraint:
        planned.align(teacher, **vars(config.constraint))


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
