"""What a run reads, and what it leaves, changed or damaged behind its back: the file is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from jobs import WORDS, bert, digits, texts
from opdf.cli import main
from opdf.job import DistillConfig, UserError, run
from opdf.job.options import fill


def config(world: Path, out: Path, **more: Any) -> DistillConfig:
    """A student of its own, which has its teacher's words."""
    return fill(DistillConfig, {
        "data": {"name": str(world / "rows.jsonl")}, "teacher": {"model": str(world / "teacher")},
        "student": {"model": str(world / "pretrained")}, "output": str(out),
        "training": {"max_steps": 1, "use_cpu": True, "save_strategy": "steps", "save_steps": 1}, **more,
    }, "config")  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, data and a finished run of them."""
    folder = tmp_path_factory.mktemp("begun")
    bert(folder / "teacher")
    bert(folder / "pretrained")
    texts(folder / "rows.jsonl")
    run(config(folder, folder / "out"))
    return folder


@pytest.fixture
def world(begun: Path, tmp_path: Path) -> Path:
    """A copy in which everything may be changed; its paths are those of the first."""
    for path in sorted(begun.rglob("*")):
        if path.is_dir():
            (tmp_path / path.relative_to(begun)).mkdir()
        else:
            shutil.copyfile(path, tmp_path / path.relative_to(begun))
    for name in ("config.yaml", "begun.json"):
        file = tmp_path / "out" / name
        file.write_text(file.read_text().replace(str(begun), str(tmp_path)))
    return tmp_path


def swap_words(folder: Path) -> None:
    """Two words in each other's place, in the tokenizer alone."""
    other = [*WORDS[:5], WORDS[6], WORDS[5], *WORDS[7:]]
    bert(folder.with_name("scratch"), other)
    shutil.copyfile(folder.with_name("scratch") / "tokenizer.json", folder / "tokenizer.json")


def scale(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["bert.embeddings.word_embeddings.weight"][7] *= 2  # one word of many
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def drop_more(folder: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_dropout_prob": 0.5}))


CHANGES = [
    (swap_words, "tokenizer.json has changed"), (scale, "model.safetensors has changed"),
    (drop_more, "config.json has changed"), (lambda f: (f / "vocab.txt").unlink(), "vocab.txt is missing"),
    (lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"), "chat_template.jinja is new"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), CHANGES)
@pytest.mark.parametrize(("name", "option"), [("teacher", "teacher.model"), ("pretrained", "student.model")])
def test_a_run_does_not_go_on_with_other_files_of_its_models(
    world: Path, name: str, option: str, change: Any, said: str
) -> None:
    (world / "out" / "metrics.json").unlink()  # as if it had been stopped before the end
    change(world / name)
    with pytest.raises(UserError, match=rf"{option} .*{name} is not what .*out was begun with: {said}"):
        run(config(world, world / "out", resume=True))


@pytest.mark.slow
def test_each_of_several_teachers_is_compared(world: Path) -> None:
    names = [str(world / "teacher"), str(world / "pretrained")]
    several: dict[str, Any] = {"teacher": {"models": names}, "student": {"layers": 1}}
    run(config(world, world / "several", **several))
    (world / "several" / "metrics.json").unlink()
    scale(world / "pretrained")
    said = r"teacher.models\[1\] .*pretrained is not what .*several was begun with: model.safetensors has changed"
    with pytest.raises(UserError, match=said):
        run(config(world, world / "several", resume=True, **several))


def test_a_fine_tuned_teacher_is_compared_too(tmp_path: Path) -> None:
    run(digits(tmp_path / "out"))
    (tmp_path / "out" / "metrics.json").unlink()
    weights = load_file(file := tmp_path / "out" / "teacher" / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"output/teacher is not what .*: model.safetensors has changed"):
        run(digits(tmp_path / "out", resume=True))


@pytest.mark.slow
def test_a_picture_that_was_painted_over_is_noticed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for k in range(40):
        (folder := tmp_path / "pictures" / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    given: dict[str, Any] = {"data": {"name": str(tmp_path / "pictures"), "train_limit": None}}
    run(digits(tmp_path / "out", **given))
    (tmp_path / "out" / "metrics.json").unlink()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "pictures" / "a" / "0.png")
    with pytest.raises(UserError, match=r"split of .*pictures holds other rows"):
        run(digits(tmp_path / "out", resume=True, **given))


def test_a_score_on_data_that_have_changed_is_refused(world: Path, capsys: Any) -> None:
    rows = world / "rows.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[5:] + lines[:5]))
    for command in (["eval"], ["export", "--output", str(world / "exported"), "--format", "torch"]):
        assert main([command[0], str(world / "out"), *command[1:]]) == 2
        assert "holds other rows than" in capsys.readouterr().err
    assert not (world / "exported").exists()
    assert main(["eval", str(world / "out"), "--data.seed", "1"]) == 0  # other data by the user's own word


HOW = {
    "cut": lambda content: content[: len(content) // 2], "empty": lambda content: b"",
    "no JSON": lambda content: b"{nope: [", "no UTF-8": lambda content: b"\xff\xfe\x00nope", "list": lambda _: b"[1]",
}  # fmt: skip
READERS = {
    "resume": ["distill", "{c}", "--resume", "true"], "eval": ["eval", "{out}"],
    "export": ["export", "{out}", "--output", "{exp}"], "compare": ["compare", "{out}", "{out}"],
}  # fmt: skip
SCORED = ("student/model.safetensors", "student/config.json", "student/tokenizer.json")
GRID = [
    (command, file)
    for command in READERS
    for file in ("begun.json", "config.yaml", "metrics.json", *SCORED)
    if file != "metrics.json" or command in ("resume", "compare")
]


@pytest.mark.slow
def test_a_damaged_file_of_a_run_is_named(world: Path, capsys: Any) -> None:
    """Every command that reads a run, with every file of it, cut, emptied, replaced and deleted."""
    (world / "c.yaml").write_text(yaml.safe_dump(yaml.safe_load((world / "out" / "config.yaml").read_text())))
    words = {"c": str(world / "c.yaml"), "out": str(world / "out"), "exp": str(world / "exported")}
    wrong = []
    for command, name in GRID:
        file = world / "out" / name
        whole = file.read_bytes()
        for how, spoil in HOW.items() if command != "export" else [("no JSON", HOW["no JSON"])]:
            if name == "config.yaml" and how == "cut":
                continue  # a YAML file with fewer options, which are compared
            file.write_bytes(spoil(whole))
            status = main([word.format(**words) for word in READERS[command]])
            said = capsys.readouterr().err
            if status != 2 or said.count("\n") != 1 or file.name not in said:
                wrong.append((command, name, how, status, said))
        if command == "export" and name == "begun.json":
            file.write_bytes(whole)
            continue  # it would warn as eval does, and take long
        file.unlink()
        status, said = main([word.format(**words) for word in READERS[command]]), capsys.readouterr().err
        refused = (
            status == 2
            and said.count("\n") == 1
            and any(words_ in said for words_ in (file.name.partition(".")[0], "has no weights", "is not finished"))
        )
        finished_anew = command == "resume" and name == "metrics.json"
        if not (refused or (name == "begun.json" and "warning: " in said) or finished_anew):
            wrong.append((command, name, "deleted", status, said))
        shutil.rmtree(world / "exported", ignore_errors=True)
        file.write_bytes(whole)
    assert wrong == []


def test_a_finished_run_without_its_student_is_not_finished(world: Path, capsys: Any) -> None:
    shutil.rmtree(world / "out" / "student")
    for command in (["compare", str(world / "out")], ["eval"], ["export"]):
        assert main([*command, str(world / "out")]) == 2
        assert "student" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"is finished and .*student is missing; bring it back, or start a new run"):
        run(config(world, world / "out", resume=True))
