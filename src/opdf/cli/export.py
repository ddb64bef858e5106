"""`opdf export MODEL --output FOLDER`: a saved student as ONNX or as a torch.export program."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from opdf.cli.eval import ScoredData, with_run
from opdf.cli.options import parse

DESCRIPTION = """Write a saved model as ONNX, or as a torch.export program, and compare it with torch.

opdf export RUN takes the student of an output folder of opdf distill and scores what it wrote on the run's test split;
opdf export MODEL takes any saved transformers model, and --data.name DATA scores it too. Batch and sequence are
dynamic axes. A language model is exported without its cache, an encoder-decoder with decoder_input_ids
unless it classifies."""


@dataclass
class ExportConfig:
    """Options.

    Args:
        model: output folder of opdf distill, a saved model's folder, or a hub name.
        output: folder for the export.
        format: onnx, or torch for torch.export (model.pt2).
        int8: also write a dynamically quantized ONNX model.
        data: score on this data's test split; an output folder brings its own.
        batch: examples at a time, in scoring.
        overwrite: replace an earlier export.
        json: print JSON instead of lines.
    """

    model: str
    output: str = "export"
    format: str = "onnx"
    int8: bool = False
    data: ScoredData | None = None
    batch: int = 128
    overwrite: bool = False
    json: bool = False


OPTIONS = ExportConfig


def main(argv: list[str]) -> None:
    config = parse(with_run(argv), ExportConfig, "opdf export", DESCRIPTION, positional="model")
    from opdf.job import export, quiet

    with quiet():
        report = export(
            config.model, config.output, format=config.format, int8=config.int8, data=config.data, batch=config.batch,
            overwrite=config.overwrite,
        )  # fmt: skip
    print(json.dumps(report, indent=2) if config.json else describe(report, config.output))


def describe(report: dict[str, Any], folder: str) -> str:
    lines = [f"{report['class']}: {', '.join(report['inputs'])} -> {report['output']}"]
    for name, file in report["files"].items():
        line = f"{name}: {file['bytes'] / 1e6:.1f} MB, largest difference from torch {file['difference']:.1e}"
        if "test" in file:
            line += f", test {report['metric']} {file['test'][report['metric']]:.4f}"
        lines.append(line)
    return "\n".join([*lines, f"outputs are up to {report['largest_output']:.1f}; saved in {folder}"])
