"""Runs that are stopped, killed or run out of something: real processes, and what they leave behind."""

from __future__ import annotations

import gc
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import jobs
from opdf.cli import main
from opdf.distill.checkpoint import damage
from opdf.study.workers import forks

VIT = jobs.VIT | {"hidden_dropout_prob": 0.1}
CONFIG: dict[str, Any] = jobs.DIGITS | {
    "data": {"name": "digits", "train_limit": 200},
    "teacher": jobs.DIGITS["teacher"] | {"config": VIT},
}
TRAINING = {
    "max_steps": 24, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 3, "use_cpu": True, "bf16": True,
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "logging_steps": 1,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "logits": {"overparam": None, "constraint": None},
    "hidden": {"objective": {"name": "hidden"}, "constraint": None},
    "constraint": {},
}
SERVER = forks()


def configuration(folder: Path, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    content = CONFIG | {"output": str(folder / "out")} | changes
    content["training"] = TRAINING | changes.get("training", {})
    path.write_text(yaml.safe_dump(content))
    return str(path)


def enter(argv: list[str], limit: str, errors: str) -> None:
    """In the process of a run: limits and messages as asked for, then the command."""
    torch.set_num_threads(1)
    gc.freeze()  # what the server has imported is looked through at every collection else
    with Path(errors).open("a") as file:
        os.dup2(file.fileno(), 2)
    if limit:
        kind, size = limit.split()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if kind == "AS" else 0
        resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (used + int(size), used + int(size)))
    sys.exit(main(argv))


class Run:
    """A command in a process of its own."""

    def __init__(self, config: str, *more: str, limit: str = "", command: str = "distill") -> None:
        self.folder = Path(config).parent
        self.errors = self.folder / "errors.txt"
        self.errors.write_text("")
        argv = [command, config, *more]
        self.process = SERVER.Process(target=enter, args=(argv, limit, str(self.errors)), daemon=True)
        self.process.start()

    def reach(self, step: int, log_name: str = "train.log") -> None:
        """Wait until a log entry of this step or a later one is there."""
        log, deadline = self.folder / "out" / log_name, time.monotonic() + 100
        while not (log.is_file() and any(json.loads(line)["step"] >= step for line in log.read_text().splitlines())):
            assert time.monotonic() < deadline, self.errors.read_text()
            assert self.process.is_alive(), self.errors.read_text()
            time.sleep(0.002)

    def reach_saving(self) -> None:
        """Wait until a checkpoint is being written, or the end."""
        while self.process.is_alive() and not (self.folder / "out" / "checkpoints" / "_partial").exists():
            time.sleep(0.0005)

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        with suppress(ProcessLookupError):  # it has ended
            os.kill(self.process.pid, number)

    def end(self) -> int:
        self.process.join(100)
        assert self.process.exitcode is not None, self.errors.read_text()
        return self.process.exitcode


def weights(folder: Path, who: str = "student") -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / who / "model.safetensors")


def check_checkpoints(folder: Path, name: str = "checkpoints") -> list[int]:
    """All that has a checkpoint's name is whole; the steps that are there."""
    found = sorted((folder / "out" / name).glob("checkpoint-*"))
    assert {path.name: damage(path) for path in found if damage(path)} == {}
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in found)


def kill_and_resume(folder: Path, kind: str, kills: int, seed: int) -> int:
    """Kill running processes so many times, half of them while they save, and go on each time.

    Whenever a run comes to its end it has the weights of one that was never stopped; it is then begun anew. Returns how
    many kills left a checkpoint half-written.
    """
    draw, total = random.Random(seed), TRAINING["max_steps"]
    assert Run(configuration(folder / "whole", **KINDS[kind])).end() == 0
    killed, out = configuration(folder / "killed", **KINDS[kind]), folder / "killed" / "out"
    done = struck = saving = 0
    while True:
        (out / "train.log").unlink(missing_ok=True)
        run = Run(killed, "--resume", str(out.exists()).lower())
        if struck < kills:
            run.reach(draw.randint(min(done + 1, total), total))
            if draw.random() < 0.5:
                run.reach_saving()
            time.sleep(draw.uniform(0, 0.05))
            run.signal(signal.SIGKILL)
        ended = run.end()
        if ended == -signal.SIGKILL:
            struck += 1
            saving += (out / "checkpoints" / "_partial").exists()
            done = max([0, *check_checkpoints(folder / "killed")])
            continue
        assert ended == 0
        expected, found = weights(folder / "whole"), weights(folder / "killed")
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
        assert not (out / "checkpoints" / "_partial").exists()
        if struck == kills:
            return saving
        shutil.rmtree(out)
        done = 0


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", [kind if kind == "constraint" else pytest.param(kind, marks=SLOW) for kind in KINDS])
@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_exactly(tmp_path: Path, kind: str) -> None:
    kill_and_resume(tmp_path, kind, kills=1, seed=sum(map(ord, kind)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_many_moments_goes_on_exactly(tmp_path: Path, kind: str) -> None:
    """27 kills over the three kinds."""
    assert kill_and_resume(tmp_path, kind, kills=9, seed=0) > 0


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=SLOW), signal.SIGTERM])
@pytest.mark.slow
def test_a_signal_saves_and_ends_with_its_status(tmp_path: Path, number: signal.Signals) -> None:
    config = configuration(tmp_path, training={"max_steps": 80, "save_steps": 10**6})
    run = Run(config)
    run.reach(5)
    run.signal(number)
    assert run.end() == 128 + number
    (step,) = check_checkpoints(tmp_path)
    told, checkpoints = run.errors.read_text().splitlines(), tmp_path / "out" / "checkpoints"
    assert f"opdf: {number.name}: a checkpoint is saved after this step; {number.name} again stops at once" in told
    assert told[-1] == f"opdf: stopped; step {step} of the student is saved in {checkpoints}"
    assert not (tmp_path / "out" / "metrics.json").exists()
    again = Run(config, "--resume", "true")
    assert again.end() == 0
    assert f"the student goes on from {checkpoints / f'checkpoint-{step}'}" in again.errors.read_text()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["steps"] == 80


@SLOW
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_teacher_that_was_stopped_goes_on_exactly(tmp_path: Path, number: signal.Signals) -> None:
    """Stopped by Ctrl-C it saves although its save_strategy is no; killed it goes on from its last checkpoint."""
    saving = {"save_strategy": "steps", "save_steps": 5} if number == signal.SIGKILL else {}
    steps = {"max_steps": 60, "logging_steps": 1, "use_cpu": True, "per_device_train_batch_size": 4} | saving
    changes = {"teacher": CONFIG["teacher"] | {"training": steps}, "training": {"max_steps": 2}}
    assert Run(configuration(tmp_path / "whole", **changes)).end() == 0
    stopped, folder = configuration(tmp_path / "stopped", **changes), tmp_path / "stopped"
    run = Run(stopped)
    run.reach(12, "teacher.log")
    run.signal(number)
    assert run.end() == (128 + number if number == signal.SIGINT else -number)
    step = max(check_checkpoints(folder, "teacher-checkpoints"))
    assert 10 <= step < 60
    place = folder / "out" / "teacher-checkpoints"
    if number == signal.SIGINT:
        assert run.errors.read_text().endswith(f"opdf: stopped; step {step} of the teacher is saved in {place}\n")
    assert not (folder / "out" / "teacher").exists()
    again = Run(stopped, "--resume", "true")
    assert again.end() == 0
    assert f"the teacher goes on from {place / f'checkpoint-{step}'}" in again.errors.read_text()
    assert not place.exists()
    for who in ("teacher", "student"):
        expected, found = weights(tmp_path / "whole", who), weights(folder, who)
        assert expected.keys() == found.keys()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())


@SLOW
def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    run = Run(configuration(tmp_path, training={"save_steps": 10**6, "max_steps": 10**6}))
    run.reach(5)
    run.signal(signal.SIGSTOP)  # both come in the same step
    run.signal(signal.SIGTERM)
    run.signal(signal.SIGCONT)
    while "SIGTERM" not in run.errors.read_text():
        time.sleep(0.0005)
    run.signal(signal.SIGTERM)
    assert run.end() == 143


@pytest.mark.slow
def test_stopped_before_its_first_checkpoint_a_run_starts_again(tmp_path: Path) -> None:
    config = configuration(tmp_path, training={"max_steps": 5, "save_steps": 10**6})
    assert main(["distill", config]) == 0
    expected = weights(tmp_path)
    shutil.rmtree(tmp_path / "out" / "checkpoints")
    (tmp_path / "out" / "metrics.json").unlink()
    run = Run(config, "--resume", "true")
    assert run.end() == 0
    assert "the student has no whole checkpoint and starts from the beginning" in run.errors.read_text()
    assert all(torch.equal(value, weights(tmp_path)[name]) for name, value in expected.items())


@SLOW
def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_whole(tmp_path: Path) -> None:
    """The system refuses files above a limit: the student's weights are below it, its optimizer's state is not."""
    run = Run(configuration(tmp_path, training={"max_steps": 4, "save_steps": 4}))
    assert run.end() == 0
    assert check_checkpoints(tmp_path) == [4]
    config = configuration(tmp_path, training={"max_steps": 8, "save_steps": 4})
    run = Run(config, "--resume", "true", limit="FSIZE 60000")
    assert run.end() == 3
    line = run.errors.read_text().splitlines()[-1]
    assert line.startswith(f"opdf: error: {tmp_path}/out/checkpoints/checkpoint-8 could not be written: File too large")
    assert "the checkpoints before it are whole. Free space, or lower save_total_limit, and resume" in line
    assert check_checkpoints(tmp_path) == [4]
    assert not (tmp_path / "out" / "checkpoints" / "_partial").exists()
    assert Run(config, "--resume", "true").end() == 0


@pytest.mark.slow
def test_a_full_disk_is_one_line_where_a_teacher_is_cached_or_a_student_exported(tmp_path: Path) -> None:
    objective = {"name": "sparse-logits", "options": {"store": str(tmp_path / "store")}}
    config = configuration(tmp_path, objective=objective, overparam=None, constraint=None)
    assert Run(config, command="cache-teacher").end() == 0
    shutil.rmtree(tmp_path / "store" / "logits")
    run = Run(config, command="cache-teacher", limit="FSIZE 3000")
    assert run.end() == 3
    assert "could not be written: File too large; free some space" in run.errors.read_text().splitlines()[-1]
    export = [str(tmp_path / "store" / "teacher"), "--output", str(tmp_path / "export"), "--format", "torch"]
    run = Run(*export, command="export", limit="FSIZE 20000")
    assert run.end() == 3
    assert "could not be written: File too large" in run.errors.read_text().splitlines()[-1]
    assert not (tmp_path / "export").exists()


def test_a_full_device_is_told_what_needs_less(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("opdf.cli.distill.main", full)
    assert main(["distill", "any.yaml"]) == 3
    assert "out of memory; these need less: a smaller training.per_device_train_batch_size" in capsys.readouterr().err


@pytest.mark.slow
def test_exhausted_memory_is_one_line_with_what_needs_less(tmp_path: Path) -> None:
    teacher = CONFIG["teacher"] | {
        "config": VIT | {"patch_size": 1, "hidden_size": 32, "intermediate_size": 2048, "num_hidden_layers": 2},
        "training": {"max_steps": 1, "per_device_train_batch_size": 4, "use_cpu": True},
    }
    training = {"per_device_train_batch_size": 1200, "gradient_accumulation_steps": 1, "bf16": False}
    config = configuration(tmp_path, teacher=teacher, student={"layers": 1}, data={"name": "digits"}, training=training)
    run = Run(config, limit=f"AS {1200 * 2**20}")
    assert run.end() == 3, run.errors.read_text()
    line = run.errors.read_text().splitlines()[-1]
    assert line.startswith("opdf: error: out of memory; these need less: a smaller training.per_device_train_batch")


def test_divergence_is_one_line(tmp_path: Path, capsys: Any) -> None:
    training = {"learning_rate": 1e30, "optim": "sgd", "save_steps": 1, "lr_scheduler_type": "constant", "bf16": False}
    assert main(["distill", configuration(tmp_path, training=training, **KINDS["logits"])]) == 3
    *before, line = capsys.readouterr().err.splitlines()
    assert not any("error" in other or "Traceback" in other for other in before)
    assert "opdf: error: training diverged" in line
    assert "start anew with a lower learning_rate" in line


def test_a_run_to_resume_has_to_be_there(tmp_path: Path, capsys: Any) -> None:
    assert main(["distill", configuration(tmp_path), "--resume", "true"]) == 2
    assert "holds no run to resume: config.yaml is missing; start without resume" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_stop_after_the_same_step(tmp_path: Path) -> None:
    config = configuration(tmp_path, training={"max_steps": 10**6, "save_steps": 10**6})
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "opdf.cli"]
    process = subprocess.Popen(
        [*launch, "distill", config], stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        deadline, log = time.monotonic() + 120, tmp_path / "out" / "train.log"
        while not log.is_file():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGTERM)  # one of the two only
        _, messages = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "exitcode: 143" in messages or "exitcode  : 143" in messages, messages
    (step,) = check_checkpoints(tmp_path)
    assert {p.name for p in (tmp_path / "out/checkpoints" / f"checkpoint-{step}").glob("rng_state*")} == {
        "rng_state_0.pth", "rng_state_1.pth"
    }  # fmt: skip
