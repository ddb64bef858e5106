"""The command line under torchrun and accelerate: real processes, one killed, and runs continued by another number.

Tests that launch are slow. tests/distill/test_processes.py makes a run in two processes among the fast ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import jobs
from opdf.cli import main

CONFIG = jobs.DIGITS | {
    "data": {"name": "digits", "train_limit": 256},
    "teacher": jobs.DIGITS["teacher"] | {"training": {"max_steps": 3}},
    "training": {
        "max_steps": 40, "learning_rate": 1e-3, "save_strategy": "steps", "save_steps": 20,
        "per_device_train_batch_size": 8,
    },
}  # fmt: skip


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc-per-node"],
    # Its --cpu starts a single process, whatever --num_processes says; --multi_gpu starts them all, also without a GPU.
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0", "--num_processes"],
}


def command(folder: Path, processes: int, *more: str, launcher: str = "torchrun", **changes: Any) -> list[str]:
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG | {"output": str(folder / "out")} | changes))
    return [sys.executable, "-m", *LAUNCHERS[launcher], str(processes), "-m", "opdf.cli", "distill", str(path), *more]


def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=200)


def student(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "student" / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["replicate", "owner"])
def test_two_processes_distill_and_one_goes_on(tmp_path: Path, placement: str) -> None:
    over = {"ones": 1, "placement": placement}
    done = run(command(tmp_path, 2, overparam=over))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("steps: 40 in") == 1  # one process talks
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["steps"] == 40
    assert metrics["student"]["test"]["examples"] == 360
    log = [json.loads(line) for line in (tmp_path / "out" / "train.log").read_text().splitlines()]
    assert all("constraint_grad_ratio" in entry for entry in log if "constraint_loss" in entry)
    before = student(tmp_path)
    (tmp_path / "out" / "metrics.json").unlink()  # as if it had been stopped before the end
    # One process takes the checkpoint of two; there is nothing left to do, and nothing changes.
    done = run(command(tmp_path, 1, "--resume", "true", overparam=over))
    assert done.returncode != 0
    assert (
        "a step had 16 examples and has 8 now (processes: 1). Set training.per_device_train_batch_size" in done.stderr
    )
    training = CONFIG["training"] | {"gradient_accumulation_steps": 2}
    done = run(command(tmp_path, 1, "--resume", "true", overparam=over, training=training))
    assert done.returncode == 0, done.stderr
    after = student(tmp_path)
    assert all(torch.equal(before[name], value) for name, value in after.items())


@pytest.mark.slow
def test_accelerate_launches_what_one_process_gives(tmp_path: Path) -> None:
    def sized(batch: int) -> dict[str, Any]:
        # Adam would divide the rounding of gradients near 0 by itself.
        shared = {"per_device_train_batch_size": batch, "optim": "sgd"}
        teacher = CONFIG["teacher"] | {"training": {"max_steps": 3} | shared}
        # Copied, because a fit to this hardly trained teacher makes much of the rounding by which the two differ.
        start = {"student": {"layers": 2, "start": "copy"}}
        return start | {"teacher": teacher, "training": {"max_steps": 10, "learning_rate": 0.1} | shared}

    done = run(command(tmp_path / "two", 2, launcher="accelerate", **sized(8)))
    assert done.returncode == 0, done.stderr
    assert main(command(tmp_path / "one", 1, **sized(16))[-2:]) == 0
    expected, found = student(tmp_path / "one"), student(tmp_path / "two")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_resuming_completes_it(tmp_path: Path) -> None:
    training = CONFIG["training"] | {"max_steps": 100, "save_steps": 20}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(command(whole, 2, training=training)).returncode == 0
    argv = command(killed, 2, training=training)
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 200
        while not (killed / "out" / "checkpoints" / "checkpoint-40" / "trainer_state.json").is_file():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        start = time.monotonic()
        _, messages = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert time.monotonic() - start < 60
    assert "SIGKILL" in messages or "exitcode: -9" in messages
    # The one that is left says so in a line, unless the launcher ends it while it does.
    assert "opdf: error: another process of this run has ended" in messages or "(SIGTERM)" in messages
    assert messages.count("Traceback (most recent call last)") == 1  # torchrun's own
    assert not (killed / "out" / "metrics.json").exists()
    done = run(command(killed, 2, "--resume", "true", training=training))
    assert done.returncode == 0, done.stderr
    expected, found = student(whole), student(killed)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def flip(path: Path) -> None:
    """Alter one bit, which no reader of the format would notice."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", ["altered", *(pytest.param(d, marks=pytest.mark.slow) for d in ("no state", "half a file"))]
)
@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str, capsys: Any) -> None:
    argv = command(tmp_path, 1)[-2:]
    assert main(argv) == 0
    before = student(tmp_path)
    last = tmp_path / "out" / "checkpoints" / "checkpoint-40"
    if damage == "no state":
        (last / "trainer_state.json").unlink()
    elif damage == "half a file":
        content = (last / "model.safetensors").read_bytes()
        (last / "model.safetensors").write_bytes(content[: len(content) // 2])
    else:
        flip(last / "optimizer-00000-00000.safetensors")
    capsys.readouterr()
    (tmp_path / "out" / "metrics.json").unlink()
    assert main([*argv, "--resume", "true"]) == 0
    assert f"{last} is not used" in capsys.readouterr().err
    assert all(torch.equal(before[name], value) for name, value in student(tmp_path).items())
