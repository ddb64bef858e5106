"""Peak memory of one training step, every contender in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys

import torch

from benchmarks.contenders import CONTENDERS, batch, student
from benchmarks.measure import DEVICE, write

KIND = "GPU memory allocated by torch" if DEVICE.type == "cuda" else "resident memory"


def peak_of(contender: str, name: str, ones: int, steps: int = 2) -> int:
    """Bytes at the peak of a fresh process that takes `steps` steps: see `KIND`."""
    code = f"from benchmarks.memory import run; run({contender!r}, {name!r}, {ones}, {steps})"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return int(out.split()[-1])


def run(contender: str, name: str, ones: int, steps: int) -> None:
    step = CONTENDERS[contender](student(name), batch(name), ones)
    for _ in range(steps):
        step(1)
    print(peak())


def peak() -> int:
    """Bytes at the peak of this process so far: see `KIND`."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    rows = []
    for name in ("MiniLM", "BERT-base"):
        for ones in (1, 3, 8):
            peaks = {c: peak_of(c, name, ones) / 2**20 for c in ("plain", "rebuild", "parametrize", "opdf")}
            rows.append({"model": name, "L": ones, **{f"{c} MiB": round(v) for c, v in peaks.items()}})
    write("memory", f"Peak {KIND} of a distillation step, 16x32 tokens", rows)
