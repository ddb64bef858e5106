"""`opdf export MODEL --output FOLDER`: a saved student as ONNX or as a torch.export program."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

from opdf.cli import not_installed
from opdf.cli.eval import ScoredData, with_run
from opdf.cli.options import parse
from opdf.files import replacing_folder
from opdf.job.config import DistillConfig, TeacherConfig
from opdf.job.errors import UserError

DESCRIPTION = """Write a saved model as ONNX, or as a torch.export program, and compare it with torch.

opdf export RUN takes the student of an output folder of opdf distill and scores what it wrote on the run's test split;
opdf export MODEL takes any saved transformers model, and --data.name DATA scores it too. Batch and sequence are
dynamic axes. A language model is exported without its cache, an encoder-decoder with decoder_input_ids."""

FORMATS = ("onnx", "torch")
NEEDED = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-3
"""Largest difference from torch that is accepted, relative to the largest output: float32 in another order."""

ONE_FILE = 2**31 - 2**20
"""Bytes of weights that fit into one ONNX file; protocol buffers end at 2 GiB."""

Outputs = Callable[[Mapping[str, Any]], Any]
"""Encoded inputs to logits, or to hidden states of a model without a head, as torch tensors."""


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


def main(argv: list[str]) -> None:
    config = parse(with_run(argv), ExportConfig, "opdf export", DESCRIPTION, positional="model")
    check(config)
    from opdf.job import run as job

    job.quiet()
    model = load(config.model)
    folder = Path(config.output)
    with replacing_folder(folder) as scratch:
        report = write(model, config, scratch)
        (scratch / "export.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2) if config.json else describe(report, folder))


def check(config: ExportConfig) -> None:
    """Refuse what cannot be done, before anything is loaded.

    Raises:
        UserError: an option or a package is missing or wrong.
        FileExistsError: the output folder holds something that is not an export, or an export is not to be replaced.
    """
    if config.format not in FORMATS:
        raise UserError(f"format is {config.format!r}; expected one of {', '.join(FORMATS)}")
    if config.int8 and config.format != "onnx":
        raise UserError("int8 is written as ONNX only; leave --format out, or --int8")
    if config.batch < 1:
        raise UserError(f"batch is {config.batch}; it must be at least 1")
    if config.data is not None and not config.data.name:
        raise UserError("data has no name; say what to score it on with --data.name, or leave data out")
    missing = [name for name in NEEDED if find_spec(name) is None] if config.format == "onnx" else []
    if missing:
        raise UserError(not_installed(missing[0], "format onnx", "export"))
    folder = Path(config.output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / "export.json").is_file():
            raise FileExistsError(f"output {folder} was not written by opdf export and is not overwritten")
        if not config.overwrite:
            raise FileExistsError(f"output {folder} is not empty; choose another, or set --overwrite")


def load(name: str) -> Any:
    """A saved model by the class that its configuration names, in eval mode and float32.

    Raises:
        UserError: it cannot be read, is no transformers class, or reads neither texts alone nor images alone.
    """
    import torch
    import transformers

    from opdf.job.models import load_config, loading

    with loading(name) as folder:
        config = load_config(name, folder)
        kind = (config.architectures or ["none"])[0]
        if not hasattr(transformers, kind):
            raise UserError(f"{name} is saved from class {kind}, which transformers does not have")
        cls = getattr(transformers, kind)
        check_inputs(name, cls, config)
        model = cls.from_pretrained(folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32)
    model.config.use_cache = False
    return model.eval()


def check_inputs(name: str, cls: Any, config: Any) -> None:
    """Refuse a model of other inputs than `examples` makes.

    Raises:
        UserError: it is one, of sounds or of texts with images, say.
    """
    main = cls.main_input_name
    if main == "pixel_values" or (main == "input_ids" and hasattr(config, "vocab_size")):
        return
    reads = "input_ids and has no vocab_size, as models of texts with images" if main == "input_ids" else main
    raise UserError(
        f"{name} is a {cls.__name__}, which reads {reads}; give a model of texts (input_ids) or images (pixel_values)"
    )


def write(model: Any, config: ExportConfig, folder: Path) -> dict[str, Any]:
    """Export into a folder, with configuration and tokenizer beside it; returns what export.json holds."""
    from transformers import AutoProcessor

    from opdf.job import run as job
    from opdf.job.models import loading

    expected = [(inputs, torch_outputs(model)(inputs)) for inputs in examples(model)]
    if config.format == "onnx":
        to_onnx(model, folder / "model.onnx")
        runners = {"model.onnx": onnx_outputs(folder / "model.onnx")}
        if config.int8:
            quantize(folder / "model.onnx", folder / "model.int8.onnx")
            runners["model.int8.onnx"] = onnx_outputs(folder / "model.int8.onnx")
    else:
        runners = {"model.pt2": to_torch(model, folder / "model.pt2")}
    model.config.save_pretrained(folder)
    with suppress(UserError), loading(config.model) as source:  # saved without a tokenizer: there is none to copy
        AutoProcessor.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    prepared = None
    if config.data is not None:
        prepared = job.prepare_data(DistillConfig(data=config.data, teacher=TeacherConfig(model=config.model)))
    files: dict[str, dict[str, Any]] = {}
    for name, outputs in runners.items():
        files[name] = {
            "bytes": sum(p.stat().st_size for p in folder.glob(f"{name}*")),
            "difference": max(float((outputs(inputs) - want).abs().max()) for inputs, want in expected),
            **({"test": score(outputs, prepared, config.batch)} if prepared else {}),
        }
    largest = max(float(want.abs().max()) for _, want in expected)
    first = next(iter(files))
    if not files[first]["difference"] <= TOLERANCE * max(1.0, largest):
        raise RuntimeError(
            f"{first} differs from torch by {files[first]['difference']:.1e} where outputs are up to {largest:.1e}; "
            "this model is not exported right, please report it"
        )
    return {
        "model": config.model,
        "class": type(model).__name__,
        "inputs": list(expected[0][0]),
        "output": output_name(model),
        "largest_output": largest,
        **({"metric": prepared.task.metric} if prepared else {}),
        "files": files,
        "versions": job.versions(),
    }


def examples(model: Any) -> Iterator[dict[str, Any]]:
    """Inputs of several sizes, padded texts or pixels; the first traces the model, the others test its axes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    config, known = model.config, signature(model.forward).parameters
    for batch, tokens in ((2, 8), (1, 5), (3, 11)):
        if model.main_input_name == "pixel_values":
            size = getattr(config, "image_size", 32 * (batch + 1))
            height, width = size if isinstance(size, list | tuple) else (size, size)
            channels = getattr(config, "num_channels", 3)
            yield {"pixel_values": torch.randn(batch, channels, height, width, generator=generator)}
            continue
        ids = torch.randint(1, config.vocab_size, (batch, tokens), generator=generator)
        mask = (torch.arange(tokens) < tokens - 2 * torch.arange(batch)[:, None]).long()
        inputs = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in known and getattr(config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = torch.zeros_like(ids)
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids[:, : tokens // 2]
        yield inputs


def output_name(model: Any) -> str:
    from opdf.distill import has_no_head

    return "last_hidden_state" if has_no_head(model) else "logits"


def plain(model: Any, names: list[str]) -> Any:
    """A module of positional inputs and one output."""
    from torch import Tensor, nn

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *inputs: Tensor) -> Any:
            return getattr(self.model(**dict(zip(names, inputs, strict=True)), return_dict=True), output_name(model))

    return Plain()


def dynamic_axes(model: Any, inputs: Mapping[str, Any]) -> tuple[tuple[dict[int, Any], ...]]:
    """Batch, a text's tokens, and height and width where a model takes any, as torch.export's dynamic_shapes."""
    from torch.export import Dim

    image = (0,) if hasattr(model.config, "image_size") else (0, 2, 3)
    axes = {name: image if name == "pixel_values" else (0, 1) for name in inputs}
    return (tuple(dict.fromkeys(axes[name], Dim.DYNAMIC) for name in inputs),)


def to_onnx(model: Any, path: Path) -> None:
    """Write a model as ONNX with named inputs and dynamic axes.

    Attention becomes plain matrix products: the exporter cannot decompose torch's fused one in every model.
    """
    import torch

    inputs = next(examples(model))
    before = model.config._attn_implementation
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    with silence():
        model.set_attn_implementation("eager")
        try:
            torch.onnx.export(
                plain(model, list(inputs)), tuple(inputs.values()), path, dynamo=True, verbose=False,
                input_names=list(inputs), output_names=[output_name(model)], dynamic_shapes=dynamic_axes(model, inputs),
                external_data=weights > ONE_FILE,
            )  # fmt: skip
        finally:
            model.set_attn_implementation(before)


def to_torch(model: Any, path: Path) -> Outputs:
    """Write a model as a torch.export program and read it back."""
    import torch

    inputs = next(examples(model))
    with silence(), torch.no_grad():
        module = plain(model, list(inputs))
        program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=dynamic_axes(model, inputs))
        written = io.BytesIO()
        torch.export.save(program, written)
        path.write_bytes(written.getvalue())  # torch's own file writer ends the process where a disk is full
        again = torch.export.load(path).module()

    def outputs(given: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return again(*(given[name] for name in inputs))

    return outputs


def quantize(source: Path, target: Path) -> None:
    """Weights in int8, activations quantized as they come."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with silence():
        quantize_dynamic(
            source, target, weight_type=QuantType.QInt8, use_external_data_format=source.stat().st_size > ONE_FILE
        )


def onnx_outputs(path: Path) -> Outputs:
    """An ONNX file run by onnxruntime."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda given: torch.from_numpy(session.run(None, {name: given[name].numpy() for name in names})[0])


def torch_outputs(model: Any) -> Outputs:
    import torch

    def outputs(given: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return getattr(model(**given), output_name(model))

    return outputs


def score(outputs: Outputs, prepared: Any, batch: int) -> dict[str, Any]:
    """Metrics on the test split."""
    import numpy as np
    from torch.utils.data import DataLoader

    from opdf.distill import mean_pooled
    from opdf.job.scoring import pair_cosines, similarity_metrics

    data, task = prepared.data["test"], prepared.task
    if task.kind == "similarity":
        pooled = lambda given: mean_pooled(outputs(given), given["attention_mask"])  # noqa: E731
        return similarity_metrics(prepared, "test", pair_cosines(pooled, data, prepared.collator, batch))
    found, labels = [], []
    for some in DataLoader(data, batch_size=batch, collate_fn=prepared.collator):
        labels.append(some.pop("labels").numpy())
        found.append(outputs(some).numpy())
    metrics = task.metrics(task.answers(np.concatenate(found)), np.concatenate(labels))
    return {**metrics, "examples": len(data)}


def describe(report: dict[str, Any], folder: Path) -> str:
    lines = [f"{report['class']}: {', '.join(report['inputs'])} -> {report['output']}"]
    for name, file in report["files"].items():
        line = f"{name}: {file['bytes'] / 1e6:.1f} MB, largest difference from torch {file['difference']:.1e}"
        if "test" in file:
            line += f", test {report['metric']} {file['test'][report['metric']]:.4f}"
        lines.append(line)
    return "\n".join([*lines, f"outputs are up to {report['largest_output']:.1f}; saved in {folder}"])


@contextmanager
def silence() -> Iterator[None]:
    """The exporters warn of their own parts, which nobody here can change."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "root")]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
