"""`opdf sweep` on real data with a tiny model: equal effort, resumable, the test split looked at once."""

from __future__ import annotations

import gc
import json
import re
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from opdf.cli import main
from opdf.cli.sweep import StudyConfig, Sweep
from opdf.job.options import fill, read_yaml
from opdf.study import Cell, Outcome, Store, runner
from opdf.study.runner import Runner

STUDIES = sorted((Path(__file__).parents[2] / "studies").rglob("*.yaml"))

STUDY: dict[str, Any] = {
    "common": {
        "teacher": {"model": None, "finetune": True, "training": {"max_steps": 6, "learning_rate": 1e-3}, "config": {
            "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 32,
        }},
        "student": {"layers": 1},
        "training": {"max_steps": 4},
    },
    "tasks": {"digits": {"data": {"name": "digits"}}},
    "train_sizes": [64],
    "variants": {
        "KD": {},
        "OPDF": {"overparam": {"ones": 1}, "constraint": {"weight": 0.1}},
    },
    "learning_rates": [1e-3, 1e-2],
    "seeds": [0, 1],
}  # fmt: skip
PAIRS = {"digits": {"data": {"name": "digits"}}, "pairs": {"data": {"name": "nyt-pairs"}}}


def study(folder: Path, **changes: Any) -> str:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | {"output": str(folder / "out")} | changes))
    return str(path)


def sweep_of(folder: Path, **changes: Any) -> Sweep:
    return Sweep(fill(StudyConfig, STUDY | {"output": str(folder / "out")} | changes, "study"))


def test_a_study_from_one_file(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["sweep", study(tmp_path), "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert "OPDF on digits/64: " in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    runs = results["runs"]
    assert len(runs) == 2 * 2 * 2
    looked_at = {(r["variant"], r["rate"]) for r in runs if r["test"] is not None}
    chosen = results["rates"]["digits/64"]
    assert looked_at == {(v, rate) for v in chosen for rate in (chosen[v], chosen["KD"])}
    mean = {v: sum(r["test"] for r in runs if (r["variant"], r["rate"]) == (v, chosen[v])) / 2 for v in chosen}
    best = next(e for e in results["effects"] if e["at"] == "best")
    assert best["mean"] == pytest.approx(mean["OPDF"] - mean["KD"])
    assert best["low"] <= best["mean"] <= best["high"]
    over = next(r for r in runs if r["variant"] == "OPDF" and r["seed"] == 0)
    assert over["train_params"] > over["inference_params"]
    assert over["facts"]["spectra"]["steps"][0]["step"] == 1
    assert len(list((tmp_path / "out" / "teachers").iterdir())) == 2  # one a seed, shared by variants and rates

    # A larger study adds to what is there; a finished one is not run again.
    monkeypatch.setattr(Store, "work", lambda *_: pytest.fail("something was run twice"))
    assert main(["sweep", study(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {}}, "variants is empty"),
        ({"variants": {"KD": {"overparm": None}}}, "variant 'KD' of 'digits/64' has no option 'overparm'"),
        ({"variants": {"KD": {"seed": 3}}}, "seed is set by the study itself"),
        ({"variants": {"KD": 3}}, "expected keys of a configuration"),
        ({"baseline": "kd"}, "baseline is 'kd'"),
        ({"seeds": []}, "seeds is empty"),
        ({"learning_rates": [-1.0]}, "rates holds -1.0"),
        ({"workers": 0}, "workers is 0"),
        ({"sizes": [3]}, "no option 'sizes'"),
        ({"tasks": {"file": {"data": {"name": "none.csv"}}}}, "none.csv does not exist"),
        ({"tasks": PAIRS}, "objective.name is 'logits' and the task of nyt-pairs is 'similarity'"),
        (
            {
                "tasks": {"pairs": PAIRS["pairs"]},
                "common": {"student": {"layers": 1}, "objective": {"name": "embedding"}},
            },
            "nyt-pairs is for similarity, which studies do not know; use opdf distill",
        ),
        ({"variants": {"KD": {}, "odd": {"overparam": {"targets": ["nothing"]}}}}, "matches no matrix"),
        (
            {"variants": {"KD": {}, "odd": {"student": {"layers": 5}}}},
            "layers is 5",
        ),
    ],
)
def test_bad_studies(tmp_path: Path, capsys: Any, changes: dict[str, Any], message: str) -> None:
    assert main(["sweep", study(tmp_path, **changes)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_rate_at_which_training_diverges_is_a_result_like_others(tmp_path: Path, capsys: Any) -> None:
    assert main(["sweep", study(tmp_path, seeds=[0], learning_rates=[1e20])]) == 0
    runs = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert [run["variant"] for run in runs] == ["KD", "OPDF"]
    assert all(run["facts"]["diverged_in_step"] == 3 for run in runs)
    facts = runs[1]["facts"]
    assert [entry["step"] for entry in facts["spectra"]["steps"]] == [1]  # with the rate 0 of a warmup
    assert "decompose_seconds" not in facts
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "OPDF against KD, digits/64: no verdict from one seed" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("task", "probe", "score"),
    [("digits", True, pytest.approx(0.1, abs=0.05)), ("scores", False, 0.0)],  # one digit in ten is a 0
    ids=["probe", "regression"],
)
def test_a_diverged_student_is_taken_to_answer_zero(tmp_path: Path, task: str, probe: bool, score: Any) -> None:
    (tmp_path / "scores.csv").write_text("text,label\n" + "".join(f"word {k},{k / 2}\n" for k in range(60)))
    scores = {"data": {"name": str(tmp_path / "scores.csv")}, "teacher": {"model": "minilm", "config": None}}
    sweep = sweep_of(tmp_path, tasks={"digits": {"data": {"name": "digits"}}, "scores": scores}, train_sizes=None)
    runner = Runner(sweep.config, tmp_path / "teachers", probe=probe, spectra_seed=0)
    outcome = runner.run(Cell(0, task, "KD", 1e20))
    assert "diverged_in_step" in outcome.facts
    assert set(outcome.predictions) == {0}
    assert outcome.validation == score


def test_a_run_leaves_no_student_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    students, made = [], runner.student_trainer

    def watched(*given: Any) -> Any:
        trainer = made(*given)
        students.append(weakref.ref(trainer.model))
        return trainer

    monkeypatch.setattr(runner, "student_trainer", watched)
    trains = Runner(sweep_of(tmp_path).config, tmp_path / "teachers", probe=False, spectra_seed=0)
    gc.disable()  # so that it is the run that collects, not chance
    try:
        trains.run(Cell(0, "digits/64", "OPDF", 1e-3))
    finally:
        gc.enable()
    assert [student() for student in students] == [None]


def test_the_password_of_a_database_is_not_written_down(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, url = [], "postgresql://me:secret@server/studies"

    def stand_in(url: str, *rest: Any) -> Store:
        opened.append(url)
        return Store(f"sqlite:///{tmp_path}/server.db", *rest)

    monkeypatch.setattr("opdf.cli.sweep.Store", stand_in)
    sweep, out = sweep_of(tmp_path), tmp_path / "out"
    (store := sweep.store()).enqueue()
    answers = [0.0] * len(sweep.loaded("digits/64", 0)[0]["test"])
    store.work(lambda cell: Outcome(0.5, answers, 1.0, 20, 10))  # so that the command finds all runs done

    assert main(["sweep", study(tmp_path), "--storage", url]) == 0
    assert opened[-1] == url
    assert main(["report", str(out)]) == 0
    printed = "".join(capsys.readouterr())
    assert "secret" not in printed
    for name in ("study.yaml", "results.json", "report.html"):
        text = (out / name).read_text()
        assert "postgresql://me:***@server/studies" in text
        assert "secret" not in text

    assert main(["sweep", str(out / "study.yaml")]) == 2
    assert "without its password; give --storage" in capsys.readouterr().err
    assert main(["sweep", str(out / "study.yaml"), "--storage", url]) == 0


def test_a_failing_run_is_told_and_the_rest_goes_on_later(tmp_path: Path, capsys: Any) -> None:
    blocked = tmp_path / "out" / "teachers"
    blocked.parent.mkdir()
    (blocked.parent / "study.yaml").touch()
    blocked.touch()  # a file where the worker wants a folder
    argv = ["sweep", study(tmp_path, seeds=[0], learning_rates=[1e-3])]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "2 of 2 runs are missing" in error
    assert str(blocked) in error
    assert "Run again to go on" in error
    blocked.unlink()
    assert main(argv) == 0


def test_a_foreign_folder_is_not_written_to(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert main(["sweep", study(tmp_path)]) == 2
    assert "was not written by opdf sweep" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


# As from a terminal: a process that a script has started in the background ignores SIGINT, and so do its children.
FROM_A_TERMINAL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from opdf.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("sent", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, -15, marks=pytest.mark.slow), (signal.SIGKILL, -9)],
)
def test_workers_end_with_the_sweep(tmp_path: Path, sent: signal.Signals, status: int) -> None:
    path = study(tmp_path, common=STUDY["common"] | {"training": {"max_steps": 100_000, "dataloader_num_workers": 1}})
    sweep = subprocess.Popen([sys.executable, "-c", FROM_A_TERMINAL, "sweep", path])
    begun = psutil.Process(sweep.pid)
    while not any(worker.children() for worker in begun.children()):  # which load the student's data
        assert sweep.poll() is None
        time.sleep(0.1)
    processes = begun.children(recursive=True)
    sweep.send_signal(sent)
    assert sweep.wait(timeout=120) == status
    assert not psutil.wait_procs(processes, timeout=30)[1], "a worker goes on alone"


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_committed_studies_are_as_large_as_their_first_lines_say(path: Path) -> None:
    given = read_yaml(str(path))
    given["common"]["training"].pop("bf16", None)  # which a CPU may not have
    given["common"]["teacher"]["training"].pop("bf16", None)
    sweep = Sweep(fill(StudyConfig, given, path.name))
    said = re.search(r"(\d+) runs", path.read_text())
    assert said is not None
    assert len(list(sweep.plan.cells())) == int(said[1])
