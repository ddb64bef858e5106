"""Single runs with a tiny model: what they leave, what does not disturb them, how long they are."""

from __future__ import annotations

import gc
import signal
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from tests.study.example import OPDF, STUDY, config

from opdf.job import Stopped, UserError, versions
from opdf.job.job import Job
from opdf.job.prepared import prepare_data
from opdf.job.scoring import answers
from opdf.job.student import build_student
from opdf.job.teacher import load_teacher
from opdf.study import Cell, Outcome, Study, runner as runner_module
from opdf.study.pace import Pace
from opdf.study.runner import Runner
from opdf.study.store import InUseError, held
from opdf.study.study import labels_digest


def runner(folder: Path, **changes: Any) -> Runner:
    return Runner(Study(config(folder, **changes)))


def with_training(**training: Any) -> dict[str, Any]:
    return dict(STUDY["common"], training=STUDY["common"]["training"] | training)


def test_a_diverged_student_is_taken_to_answer_zero(tmp_path: Path) -> None:
    made = runner(tmp_path, probe=True)
    outcome = made.run(Cell(0, "digits/64", "OPDF", 1e20))
    assert outcome.facts["diverged_in_step"] == 3
    assert set(outcome.predictions) == {0}
    assert outcome.validation == pytest.approx(0.1, abs=0.05)  # one digit in ten is a 0
    assert [entry["step"] for entry in outcome.facts["spectra"]["steps"]] == [1, 2]  # the first moving step is bounded
    assert "decompose_seconds" not in outcome.facts
    assert outcome.facts["train_examples"] == 64
    assert outcome.facts["versions"] == versions()
    assert outcome.facts["test_labels"] == labels_digest(made.study._labels({}, "digits/64", 0))
    assert 0 < outcome.facts["start_seconds"] < 60


def test_a_teacher_that_another_process_trains_is_not_waited_for(tmp_path: Path) -> None:
    made = runner(tmp_path)
    folder = made.study.folder / "teachers" / made.study.teacher_key(made.study.config("digits/64", "KD"))
    folder.mkdir(parents=True)
    with pytest.raises(InUseError), held(folder / "lock"):
        made.run(Cell(0, "digits/64", "KD", 1e-3))
    made.run(Cell(0, "digits/64", "KD", 1e-3))


def test_a_teacher_that_diverges_is_trained_once(tmp_path: Path) -> None:
    options = STUDY["common"]["teacher"]["training"] | {"learning_rate": 1e20, "logging_steps": 1}
    common = dict(STUDY["common"], teacher=STUDY["common"]["teacher"] | {"training": options})
    made = runner(tmp_path, common=common)
    with pytest.raises(UserError, match=r"the teacher's training diverged: .* in step"):
        made.run(Cell(0, "digits/64", "KD", 1e-3))
    log = next(made.study.folder.glob("teachers/*/teacher.log"))
    log.unlink()
    with pytest.raises(UserError, match="the teacher's training diverged"):
        made.run(Cell(0, "digits/64", "OPDF", 1e-3))
    assert not log.exists()


def test_a_teacher_that_a_signal_stopped_is_not_one_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise Stopped(signal.SIGINT, "step 5 of the teacher is saved")

    made = runner(tmp_path)
    monkeypatch.setattr(made, "_made", stopped)
    with pytest.raises(Stopped):
        made._taught(made.study.config("digits/64", "KD"))
    assert made._failed == {}


@pytest.mark.slow
def test_of_a_regression_that_diverged_nothing_is_correlated(tmp_path: Path) -> None:
    (tmp_path / "scores.csv").write_text("text,label\n" + "".join(f"word {k},{k / 2}\n" for k in range(60)))
    data = {"name": str(tmp_path / "scores.csv")}
    task: dict[str, Any] = {"data": data, "teacher": {"model": "minilm", "config": None}}

    def run() -> Outcome:
        return runner(tmp_path, tasks={"scores": task}, train_sizes=None).run(Cell(0, "scores", "KD", 1e20))

    with pytest.raises(UserError, match="variant 'KD' of 'scores': the student cannot start from its teacher: batches"):
        run()  # 42 short texts; a single run would train it all the same, and say so
    task["student"] = {"start": "copy"}
    outcome = run()
    assert (outcome.validation, set(outcome.predictions)) == (0.0, {0})


@pytest.mark.slow
def test_a_run_leaves_no_student_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    students, made = [], runner_module.student_trainer

    def watched(*given: Any) -> Any:
        trainer = made(*given)
        students.append(weakref.ref(trainer.model))
        return trainer

    monkeypatch.setattr(runner_module, "student_trainer", watched)
    gc.disable()  # so that it is the run that collects, not chance
    try:
        runner(tmp_path, curve=True).run(Cell(0, "digits/64", "OPDF", 1e-3))
    finally:
        gc.enable()
    assert [student() for student in students] == [None]


@pytest.mark.slow
def test_scores_on_the_way_are_those_of_shorter_runs_and_disturb_nothing(tmp_path: Path) -> None:
    teacher = STUDY["common"]["teacher"]
    dropout = {"teacher": teacher | {"config": teacher["config"] | {"hidden_dropout_prob": 0.5}}}

    def study(steps: int, *, curve: bool) -> Study:
        common = with_training(max_steps=steps, lr_scheduler_type="constant", warmup_steps=0) | dropout
        return Study(config(tmp_path, common=common, curve=curve))

    def run(steps: int, *, curve: bool) -> Outcome:
        return Runner(study(steps, curve=curve)).run(Cell(1, "digits/64", "KD", 1e-2))

    long, again, short = run(8, curve=True), run(8, curve=False), run(4, curve=False)
    assert (long.predictions, long.validation) == (again.predictions, again.validation)
    scores = {entry["step"]: entry["validation"] for entry in long.facts["scores"]}
    assert list(scores) == [0, 1, 2, 4]
    assert scores[4] == pytest.approx(short.validation, abs=1e-5)
    seconds = [entry["seconds"] for entry in long.facts["scores"]]
    assert seconds == sorted(seconds)
    assert seconds[0] == 0 < seconds[-1] < long.seconds

    # The first one is the untrained student's.
    options = study(8, curve=True).config("digits/64", "KD")
    prepared = prepare_data(replace(options.data, seed=1), options.teacher)
    (folder,) = (tmp_path / "out" / "teachers").iterdir()
    teacher = load_teacher(Job(options, teachers=folder), prepared.task)
    student = build_student(options.student, teacher, prepared.task)
    right = answers(student, prepared, "validation") == prepared.data["validation"].with_format("numpy")["labels"][:]
    assert scores[0] == pytest.approx(right.mean(), abs=1e-5)


@pytest.mark.slow
def test_a_variant_that_is_given_anothers_time_takes_as_many_steps_as_fit_into_it(tmp_path: Path) -> None:
    slow = {"training": {"gradient_accumulation_steps": 4}}
    variants = {"KD": {}, "slow": slow | {"as_long_as": "KD"}, "OPDF": OPDF | {"as_long_as": "KD"}}
    study = {"common": with_training(max_steps=100), "variants": variants}
    outcome = runner(tmp_path, **study).run(Cell(0, "digits/64", "slow", 1e-3))
    (file,) = (tmp_path / "out" / "times").glob("*.json")
    assert outcome.facts["as_long_as"]["variant"] == "KD"
    steps = outcome.facts["as_long_as"]["steps"]
    assert outcome.facts["steps"] == steps
    assert 10 < steps < 60  # a quarter of 100, were there no overhead
    # Measured once: another seed and rate take as many, also in another process.
    before = file.stat()
    assert runner(tmp_path, **study).run(Cell(1, "digits/64", "slow", 1e-2)).facts["steps"] == steps
    assert file.stat() == before


def test_the_steps_of_a_pace_take_its_time() -> None:
    pace = Pace(first=2.0, later=0.1, steps=101)
    assert pace.seconds == pytest.approx(12.0)
    assert pace.steps_in(pace.seconds) == pace.steps
    assert pace.steps_in(7.0) == 51
    assert pace.steps_in(1.0) == 1
    assert asdict(pace) == {"first": 2.0, "later": 0.1, "steps": 101}
