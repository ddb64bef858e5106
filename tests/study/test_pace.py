"""What is timed on a device that works on its own: no time ends before the device has done its part."""

from __future__ import annotations

import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from opdf import OverParamConfig, overparameterize
from opdf.distill import TrainingDiverged
from opdf.study import recorder
from opdf.study.pace import Watch, measured

WORK = 0.03


class Device:
    """Work that is given to it takes time where it is waited for, as a GPU's does."""

    def __init__(self) -> None:
        self.given = 0

    def work(self, *_: object) -> None:
        self.given += 1

    def synchronize(self) -> None:
        time.sleep(self.given * WORK)
        self.given = 0


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "synchronize", found.synchronize)
    return found


def test_the_steps_of_a_pace(device: Device) -> None:
    watch, control = Watch(), SimpleNamespace()
    for _ in range(2):
        device.work()
        watch.on_step_end(None, SimpleNamespace(max_steps=2), control)
    begun, first, second = watch.ends
    assert min(first - begun, second - first) >= WORK


class Diverging:
    """A training of ten steps, whose third has no finite loss. That is noticed after the fifth."""

    def add_callback(self, watch: Watch) -> None:
        self.watch = watch

    def train(self) -> None:
        for _ in range(5):
            self.watch.on_step_end(None, SimpleNamespace(max_steps=10), SimpleNamespace())
        raise TrainingDiverged("the loss", 3, None)


def test_a_training_that_diverges_has_a_pace() -> None:
    opened: Any = lambda: nullcontext(Diverging())  # noqa: E731
    (pace,) = measured([opened])
    assert pace.steps == pace.steps_in(pace.seconds) == 10


def test_the_training_until_a_score(device: Device) -> None:
    trainer = SimpleNamespace(
        add_callback=lambda _: None, train=device.work, model=nn.Module(), overparameterization=None
    )
    seen = recorder.Recorder(trainer, spectra=False, score=lambda _: 0.0)
    seen.train()
    assert seen.seconds >= WORK
    for step in (1, 2):
        device.work()
        seen.on_step_end(None, SimpleNamespace(global_step=step, max_steps=2), None)
    assert seen.seconds >= 3 * WORK


def test_contraction(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "contract", device.work)
    over = overparameterize(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), OverParamConfig(targets="all-linear"))
    assert recorder._times(over)["contract_seconds"] >= 2 * WORK
