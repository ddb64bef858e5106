"""`opdf cache-teacher CONFIG.yaml [--key value ...]`"""

from __future__ import annotations

from opdf.cli.options import parse
from opdf.job import DistillConfig

DESCRIPTION = """Run the teacher once over the training data and keep its outputs.

Takes the file that opdf distill is then run with; its objective is sparse-logits and objective.options.store names
the folder. The same command goes on where an earlier one stopped. The teacher is kept beside its outputs."""


OPTIONS = DistillConfig


def main(argv: list[str]) -> None:
    config = parse(argv, DistillConfig, "opdf cache-teacher", DESCRIPTION)
    from opdf.job import cache_teacher

    store = cache_teacher(config)
    info = store.info
    entries = (info.tokens or info.rows) * info.epochs
    of = f"{info.rows:,} examples, {info.epochs} epochs" if not info.tokens else f"tokens of {info.rows:,} texts"
    print(
        f"stored: {entries:,} outputs ({of}) in "
        f"{store.folder.parent}, {store.nbytes / entries:.0f} bytes each, "
        f"{store.nbytes / entries / 1e3:.2f} GB per million"
    )
