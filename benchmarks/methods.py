"""`python -m benchmarks.methods [METHOD ...]`: every method plain, with SVD and with OPDF, at the same tuning budget.

Each method and variant gets the same learning rates and seeds. The rate is chosen by mean validation score, the test
score is that of the chosen rate. Runs are appended to results/methods.jsonl; those that are there are not run again,
so that several processes can share the work (give each its own methods).
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from benchmarks.measure import RESULTS
from opdf.job import (
    DataConfig,
    DistillConfig,
    Job,
    ObjectiveConfig,
    StudentConfig,
    TeacherConfig,
    linear_probe,
    load_model,
    prepare_data,
    quiet,
    read_yaml,
    ready_teacher,
    scoring,
    train_student,
)
from opdf.overparam import Constraint, OverParamConfig

SEEDS = (0, 1, 2)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "SVD": {"overparam": OverParamConfig(ones=0)},
    "OPDF": {"overparam": OverParamConfig(ones=3), "constraint": Constraint(weight=0.1)},
}
TEXT = DistillConfig(
    data=DataConfig(name="amazon-sentiment", train_limit=800, max_length=32),
    teacher=TeacherConfig(model="minilm", finetune=True, training={"num_train_epochs": 2, "learning_rate": 1e-4}),
    student=StudentConfig(layers=3, start="copy"),
    training={"num_train_epochs": 2},
)
IMAGES = replace(TEXT, **{
    key: kind(**read_yaml(str(Path(__file__).parents[1] / "recipes" / "images-fashion-mnist.yaml"))[key])
    for key, kind in (("data", DataConfig), ("teacher", TeacherConfig))
}, student=StudentConfig(layers=2, start="copy"), training={"num_train_epochs": 3})  # fmt: skip
# The student of DBKD must not be made of the black box's own blocks.
PRETRAINED = StudentConfig(model="minilm", layers=3)
METHODS: dict[str, tuple[DistillConfig, dict[str, Any], tuple[float, ...]]] = {
    "logits": (TEXT, {}, (1e-4, 3e-4)),
    "hidden": (TEXT, {}, (1e-4, 3e-4)),
    "theseus": (TEXT, {"rate": 0.5, "slope": 0.01}, (1e-4, 3e-4)),
    # Nine passes a step instead of two: fewer examples.
    "lgtm": (replace(TEXT, data=replace(TEXT.data, train_limit=320)), {"influence_scale": 0.01}, (1e-4, 3e-4)),
    "dbkd": (replace(TEXT, student=PRETRAINED), {}, (1e-4, 3e-4)),
    "adkd": (TEXT, {}, (1e-4, 3e-4)),
    "sparse-logits": (IMAGES, {"top_k": 5, "noise": True, "epochs": 3}, (3e-4, 1e-3)),
}
RUNS = RESULTS / "methods.jsonl"


def done() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.is_file() else []


def run(method: str, seed: int) -> Iterator[dict[str, Any]]:
    """The runs of a method and a seed that are still missing; they share one teacher."""
    config, options, rates = METHODS[method]
    known = {(r["variant"], r["rate"]) for r in done() if (r["method"], r["seed"]) == (method, seed)}
    todo = [(v, rate) for rate in rates for v in VARIANTS if (v, rate) not in known]
    if not todo:
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = replace(config, seed=seed, objective=ObjectiveConfig(method, options))
        config = replace(config, data=replace(config.data, seed=seed))
        job = Job(replace(config, output=str(folder)))
        prepared = prepare_data(config.data, config.teacher)
        # LGTM's own teacher is not fine-tuned in the paper; here all methods start from the same one.
        teacher = ready_teacher(job, prepared)
        scores = scoring.scores(scoring.evaluator(teacher, prepared), prepared)
        for number, (variant, rate) in enumerate(todo):
            output = folder / str(number)
            training = config.training | {"learning_rate": rate}
            changed = Job(replace(config, output=str(output), training=training, **VARIANTS[variant]), teachers=folder)
            output.mkdir()
            found = train_student(changed, prepared, copy.deepcopy(teacher), f"{method} {variant} {rate}")
            student = found["student"]
            row = {
                "method": method, "variant": variant, "seed": seed, "rate": rate,
                "teacher": scores["test"]["accuracy"], "validation": student["validation"]["accuracy"],
                "test": student["test"]["accuracy"], "examples": student["test"]["examples"],
                "seconds": found["train_seconds"], "train_params": found["train_params"],
                "inference_params": found["inference_params"],
            }  # fmt: skip
            if prepared.task.is_image:
                model = load_model(str(output / "student"), prepared.task)[0]
                row["probe"] = linear_probe(model, prepared.data, prepared.collator)["top1"]
            yield row


def table(rows: list[dict[str, Any]]) -> str:
    """One line a method and variant at its best rate on validation: test mean and spread over the seeds so far."""
    heads = ("method", "variant", "seeds", "rate", "validation", "test", "gain on plain, paired")
    lines = []
    for method, (_, _, rates) in METHODS.items():
        seeds = [seed for seed in SEEDS if sum((r["method"], r["seed"]) == (method, seed) for r in rows)
                 == len(rates) * len(VARIANTS)]  # fmt: skip
        plain: list[float] = []
        for variant in VARIANTS if seeds else ():
            key = {(r["method"], r["variant"], r["rate"], r["seed"]): r for r in rows}
            runs = {rate: [key[method, variant, rate, seed] for seed in seeds] for rate in rates}
            best = max(rates, key=lambda rate: statistics.mean(r["validation"] for r in runs[rate]))
            test = [100 * r["test"] for r in runs[best]]
            plain = test if variant == "plain" else plain
            gains = [a - b for a, b in zip(test, plain, strict=True)]
            gain = "" if variant == "plain" else f"{statistics.mean(gains):+.2f}{_spread(gains)}"
            validation = statistics.mean(100 * r["validation"] for r in runs[best])
            score = f"{statistics.mean(test):.2f}{_spread(test)}"
            lines.append((method, variant, len(seeds), f"{best:g}", f"{validation:.2f}", score, gain))
    return tabulate(lines, heads, tablefmt="github", disable_numparse=True)


def _spread(values: list[float]) -> str:
    return f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""


def main(methods: list[str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    for seed in SEEDS:
        for method in methods or METHODS:
            for row in run(method, seed):
                with RUNS.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    text = table(done())
    (RESULTS / "methods.md").write_text(f"# Methods on embedded data\n\n{text}\n")
    print(text)


if __name__ == "__main__":
    with quiet():
        main(sys.argv[1:])
