"""`python -m benchmarks [NAME ...]`: run benchmarks and write their tables to benchmarks/results/."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from benchmarks import decomposition, gpu, growth, host, inference, memory, rate, simulation, step, stored, together
from benchmarks.measure import DEVICE

BENCHMARKS: dict[str, Callable[[], None]] = {
    "decomposition": decomposition.main,
    "step": step.main,
    "step-large": lambda: step.main(large=True),
    "memory": memory.main,
    "inference": inference.main,
    "growth": growth.main,
    "together": together.main,
    "rate": rate.main,
    "host": host.main,
    "stored": stored.main,
    "gpu": gpu.main,
    "simulation": simulation.main,
}


def chosen(arguments: Sequence[str] | None = None) -> list[str]:
    """The benchmarks that are named, or else all that this machine can run; exits with status 2 where it cannot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME",
        help=f"one or more of {', '.join(BENCHMARKS)}; default all, without a GPU all but gpu",
    )  # fmt: skip
    names: list[str] = parser.parse_args(arguments).names
    for name in names:
        if name not in BENCHMARKS:
            parser.error(f"{name!r} is no benchmark; choose from {', '.join(BENCHMARKS)}")
    if "gpu" in names and DEVICE.type != "cuda":
        parser.exit(2, "error: the benchmark 'gpu' needs a CUDA GPU, and torch finds none on this machine\n")
    return names or [name for name in BENCHMARKS if name != "gpu" or DEVICE.type == "cuda"]


if __name__ == "__main__":
    for name in chosen():
        BENCHMARKS[name]()
