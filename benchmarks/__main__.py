"""`python -m benchmarks [NAME ...]`: run benchmarks and write their tables to benchmarks/results/."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from benchmarks import (
    ahead,
    decomposition,
    gpu,
    growth,
    host,
    inference,
    measure,
    memory,
    profile_step,
    pruned,
    rate,
    shrink,
    shrink_time,
    simulation,
    step,
    stored,
    together,
    tokens,
)
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
    "ahead": ahead.main,
    "tokens": tokens.main,
    "shrink": shrink.main,
    "shrink-time": shrink_time.main,
    "pruned": pruned.main,
    "simulation": simulation.main,
}

ON_GPU: dict[str, Callable[[bool], None]] = {
    "gpu-step": gpu.step,
    "gpu-vit": gpu.vit,
    "gpu-decoder": gpu.decoder,
    "gpu-decomposition": gpu.decomposition,
    "gpu-shrink": gpu.shrinking,
    "gpu-study": gpu.study,
    "gpu-profile": profile_step.main,
}
"""Each takes under three minutes on one H100, and whether to run at toy size, on any machine."""


def chosen(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """What is named, or else all that this machine can run; exits with status 2 where it cannot."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    known = (*BENCHMARKS, *ON_GPU)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(known)}; default all that this machine can"
    )
    parser.add_argument("--toy", action="store_true", help="try gpu-... with tiny models, on any machine")
    given = parser.parse_args(arguments)
    for name in given.names:
        if name not in known:
            parser.error(f"{name!r} is no benchmark; choose from {', '.join(known)}")
        if name in ON_GPU and not given.toy and DEVICE.type != "cuda":
            parser.exit(2, f"error: {name} needs a CUDA GPU, and torch finds none; --toy tries it without\n")
    given.names = given.names or [*BENCHMARKS, *(ON_GPU if DEVICE.type == "cuda" else ())]
    return given


def main(arguments: Sequence[str] | None = None) -> None:
    given = chosen(arguments)
    if given.toy:
        measure.RESULTS = measure.RESULTS / "toy"
    for name in given.names:
        if name in ON_GPU:
            ON_GPU[name](given.toy)
        else:
            BENCHMARKS[name]()


if __name__ == "__main__":
    main()
