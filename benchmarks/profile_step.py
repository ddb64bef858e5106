"""Where the optimizer's step of the cores spends its time: kernels, torch's calls on the host, Python's functions."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import opdf
from benchmarks.contenders import batch, student
from benchmarks.measure import DEVICE, alternate, synchronize, write

WARMUP, STEPS, SHOWN = 9, 10, 15
"""Steps before the profile and in it. In steps 1, 2, 8 and 32 rates are measured too, so none of them is in it."""


def main(toy: bool = False) -> None:
    """Of a BERT-base student with L = 3 and products in bfloat16."""
    name = "BERT of width 32" if toy else "BERT-base"
    data = batch(name, *(2, 8) if toy else (32, 128), autocast=True)
    model = student(name)
    overparam = opdf.overparameterize(model, opdf.OverParamConfig(ones=3, precision="bf16"))
    optimizer = overparam.optimizer(torch.optim.AdamW, lr=1e-5, fused=True)
    for _ in range(WARMUP):
        optimizer.zero_grad()
        data.loss(lambda inputs: model(**inputs).logits).backward()
        optimizer.step()
    rows = [*_by_torch(optimizer.step), *_by_python(optimizer.step)]
    found = alternate({"step": optimizer.step}, repeats=WARMUP)["step"]
    write(
        "gpu-profile", f"Where a step of the cores of a {name} student spends its time", rows,
        f"The {SHOWN} longest of each kind, in themselves. A step takes {1e3 * found.median:.2f} ms; under a profiler "
        "what the host does takes longer.",
    )  # fmt: skip


Row = dict[str, Any]


def _by_torch(step: Callable[[], Any]) -> Iterator[Row]:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if DEVICE.type == "cuda" else [])]
    with profile(activities=activities) as seen:
        _repeat(step)
    events = seen.key_averages()
    here = [(e.key, e.count, e.self_cpu_time_total / 1e6) for e in events if e.device_type == DeviceType.CPU]
    there = [(e.key, e.count, e.self_device_time_total / 1e6) for e in events if e.device_type != DeviceType.CPU]
    yield from _longest("kernel", there)
    yield from _longest("torch on the host", here)


def _by_python(step: Callable[[], Any]) -> Iterator[Row]:
    seen = cProfile.Profile()
    seen.runcall(_repeat, step)
    table = pstats.Stats(seen).get_stats_profile().func_profiles
    found = [
        (f"{Path(one.file_name).name}:{one.line_number} {name}", int(str(one.ncalls).split("/")[0]), one.tottime)
        for name, one in table.items()
    ]
    yield from _longest("Python", found)


def _longest(kind: str, found: Sequence[tuple[str, int, float]]) -> Iterator[Row]:
    """Rows of the longest; names, calls and seconds are those of all steps."""
    for name, calls, seconds in islice(sorted(found, key=lambda one: -one[2]), SHOWN):
        yield {"kind": kind, "what": name[:80], "calls a step": calls / STEPS, "ms a step": 1e3 * seconds / STEPS}


def _repeat(step: Callable[[], Any]) -> None:
    for _ in range(STEPS):
        step()
    synchronize()
