"""A saved model as ONNX or as a torch.export program, compared with torch."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch.export import Dim
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils.data import DataLoader
from transformers import AutoProcessor, EvalPrediction
from transformers.trainer_pt_utils import nested_concat, nested_numpify

from opdf.data import Prepared, loading
from opdf.distill import has_no_head, mean_pooled
from opdf.files import check_writable, replacing_folder
from opdf.job.arguments import VOCABULARIES
from opdf.job.config import DataConfig
from opdf.job.errors import UserError, not_installed
from opdf.job.heads import SEQUENCES
from opdf.job.models import load_saved
from opdf.job.progress import counting
from opdf.job.resume import check_rows_of_run, versions
from opdf.job.saved import find_saved
from opdf.job.scoring import data_to_score, pair_cosines, similarity_metrics, tell_of

FORMATS = ("onnx", "torch")
NEEDED = ("onnx", "onnxruntime", "onnxscript")
TOLERANCE = 1e-3
"""Largest difference from torch that is accepted, relative to the largest output: float32 in another order."""

ONE_FILE = 2**31 - 2**20
"""Bytes of weights that fit into one ONNX file; protocol buffers end at 2 GiB."""

Outputs = Callable[[Mapping[str, Any]], Any]
"""Encoded inputs to logits, or to hidden states of a model without a head, as torch tensors."""


def export(
    name: str | Path,
    output: str | Path,
    *,
    format: str = "onnx",
    int8: bool = False,
    data: DataConfig | None = None,
    batch: int = 128,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a saved model into a folder, which is complete or absent, and compare it with torch.

    Args:
        name: output folder of a run, a saved model's folder, or a hub name.
        output: the folder; it gets the model, its configuration and tokenizer, and export.json.
        format: onnx, or torch for torch.export (model.pt2).
        int8: also write a dynamically quantized ONNX model.
        data: score on this data's test split, if it has labels; None does not score.
        batch: examples at a time, in scoring.
        overwrite: replace an earlier export.

    Returns:
        What export.json holds: for each file its size in bytes, the largest difference from torch, and scores.

    Raises:
        UserError: an option or a package is missing or wrong, or the model cannot be read or exported.
        FileExistsError: the output folder holds something that is not an export, or an export is not to be replaced.
        RuntimeError: the exported model does not compute what torch does.
    """
    folder = Path(output)
    check_options(format, int8=int8, batch=batch, data=data)
    check_folder(folder, overwrite=overwrite)
    saved = find_saved(str(name))
    name = saved.model
    model = load_saved(name)
    model.config.use_cache = False
    if format == "torch" and reads_ends(model):
        raise UserError(
            f"format is torch and {name} is a {type(model).__name__}, which looks for the ends of its texts; "
            "torch.export cannot follow that: take format onnx"
        )
    prepared = None
    if data is not None:
        prepared = data_to_score(data, saved)
        if saved.run is not None:
            check_rows_of_run(saved.run, data, prepared.raw)
        tell_of(prepared, data.name)
    with replacing_folder(folder) as scratch:
        report = write(model, name, scratch, format=format, int8=int8, prepared=prepared, batch=batch)
        (scratch / "export.json").write_text(json.dumps(report, indent=2) + "\n")
    return report


def check_options(format: str, *, int8: bool, batch: int, data: DataConfig | None) -> None:
    """Refuse what cannot be done, before anything is loaded.

    Raises:
        UserError: an option or a package is missing or wrong.
    """
    if format not in FORMATS:
        raise UserError(f"format is {format!r}; expected one of {', '.join(FORMATS)}")
    if int8 and format != "onnx":
        raise UserError("int8 is written as ONNX only; leave format or int8 out")
    if batch < 1:
        raise UserError(f"batch is {batch}; it must be at least 1")
    if data is not None and not data.name:
        raise UserError("data has no name; name what to score it on in data.name, or leave data out")
    missing = [name for name in NEEDED if find_spec(name) is None] if format == "onnx" else []
    if missing:
        raise UserError(not_installed(missing[0], "format onnx", "export"))


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be written, or whose content would be lost.

    Raises:
        FileExistsError: it holds something that is not an export, or an export that is not to be replaced.
        PermissionError: it, or the folder that it is in, cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not (folder / "export.json").is_file():
            raise FileExistsError(
                f"output {folder} was not written by opdf export and is not overwritten; choose another"
            )
        if not overwrite:
            raise FileExistsError(f"output {folder} is not empty; choose another, or set overwrite to true")
    check_writable(folder)
    check_writable(folder.resolve().parent)  # where it is written before it gets its name


def write(
    model: Any, name: str, folder: Path, *, format: str, int8: bool, prepared: Prepared | None, batch: int
) -> dict[str, Any]:
    """Export into a folder, with configuration and tokenizer beside it; returns what export.json holds."""
    expected = [(inputs, torch_outputs(model)(inputs)) for inputs in examples(model)]
    if format == "onnx":
        to_onnx(model, folder / "model.onnx")
        runners = {"model.onnx": onnx_outputs(folder / "model.onnx")}
        if int8:
            quantize(folder / "model.onnx", folder / "model.int8.onnx")
            runners["model.int8.onnx"] = onnx_outputs(folder / "model.int8.onnx")
    else:
        runners = {"model.pt2": to_torch(model, folder / "model.pt2")}
    model.config.save_pretrained(folder)
    with suppress(ValueError), loading(name) as source:  # a model without a tokenizer has none to copy
        AutoProcessor.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    files: dict[str, dict[str, Any]] = {}
    for file, outputs in runners.items():
        files[file] = {
            "bytes": sum(p.stat().st_size for p in folder.glob(f"{file}*")),
            "difference": largest([outputs(inputs) - want for inputs, want in expected]),
            **({"test": score(outputs, prepared, batch)} if prepared and not prepared.task.is_unlabelled else {}),
        }
    most = largest([want for _, want in expected])
    first = next(iter(files))
    if not files[first]["difference"] <= TOLERANCE * max(1.0, most):
        raise RuntimeError(
            f"{first} differs from torch by {files[first]['difference']:.1e} where outputs are up to {most:.1e}; "
            "this model is not exported right, please report it"
        )
    return {
        "model": name,
        "class": type(model).__name__,
        "inputs": list(expected[0][0]),
        "output": output_name(model),
        "largest_output": most,
        **({"metric": prepared.task.metric} if prepared else {}),
        "files": files,
        "versions": versions(),
    }


def largest(tensors: Sequence[Tensor]) -> float:
    """The largest absolute entry of all; NaN if there is one."""
    return float(torch.stack([tensor.abs().max() for tensor in tensors]).max())


def examples(model: Any) -> Iterator[dict[str, Any]]:
    """Inputs of several sizes, padded texts or pixels; the first traces the model, the others test its axes."""
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
        if reads_ends(model):
            ids.masked_fill_(ids == config.eos_token_id, (config.eos_token_id + 1) % config.vocab_size)
            ids[range(batch), mask.sum(1) - 1] = config.eos_token_id
        elif config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids[:, : tokens // 2].contiguous()  # torch.export would ask for its strides
        yield inputs


def reads_ends(model: Any) -> bool:
    """Whether a model classifies at the end of its texts, of which there has to be one each: T5 and BART do."""
    return model.config.is_encoder_decoder and type(model).__name__.endswith(SEQUENCES)


def output_name(model: Any) -> str:
    return "last_hidden_state" if has_no_head(model) else "logits"


def plain(model: Any, inputs: Mapping[str, Any]) -> nn.Module:
    """A module with positional inputs and one output; while it is traced, axes of one name have one size."""
    shared: dict[str, list[tuple[int, int]]] = {}
    for position, named in enumerate(axes(model, inputs).values()):
        for axis, name in named.items():
            shared.setdefault(name, []).append((position, axis))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Tensor) -> Any:
            for (first, its_axis), *others in shared.values():
                for other, axis in others:
                    torch._check(given[other].shape[axis] == given[first].shape[its_axis])  # type: ignore[no-untyped-call]
            outputs = self.model(**dict(zip(inputs, given, strict=True)), return_dict=True)
            return getattr(outputs, output_name(model))

    return Plain()


def axes(model: Any, inputs: Mapping[str, Any]) -> dict[str, dict[int, str]]:
    """The axes of each input whose sizes may change. Axes of one name have one size."""
    image = {0: "batch"} if hasattr(model.config, "image_size") else {0: "batch", 2: "height", 3: "width"}
    others = {"pixel_values": image, "decoder_input_ids": {0: "batch", 1: "decoder_tokens"}}
    return {name: others.get(name, {0: "batch", 1: "tokens"}) for name in inputs}


def to_onnx(model: Any, path: Path) -> None:
    """Write a model as ONNX with named inputs and dynamic axes.

    Attention becomes plain matrix products: the exporter cannot decompose torch's fused one in every model.
    """
    inputs = next(examples(model))
    before = model.config._attn_implementation
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    with silence(), following(model):
        model.set_attn_implementation("eager")
        try:
            torch.onnx.export(
                plain(model, inputs), tuple(inputs.values()), path, dynamo=True, verbose=False,
                input_names=list(inputs), output_names=[output_name(model)],
                dynamic_shapes=(tuple(axes(model, inputs).values()),), external_data=weights > ONE_FILE,
            )  # fmt: skip
        finally:
            model.set_attn_implementation(before)


def to_torch(model: Any, path: Path) -> Outputs:
    """Write a model as a torch.export program and read it back."""
    inputs = next(examples(model))
    with silence(), following(model), torch.no_grad():
        dynamic = tuple(dict.fromkeys(named, Dim.DYNAMIC) for named in axes(model, inputs).values())
        program = torch.export.export(plain(model, inputs), tuple(inputs.values()), dynamic_shapes=(dynamic,))
        written = io.BytesIO()
        torch.export.save(program, written)
        path.write_bytes(written.getvalue())  # torch's own file writer ends the process when the disk is full
        again = torch.export.load(path).module()

    def outputs(given: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return again(*(_input(given, name) for name in inputs))

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

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda given: torch.from_numpy(session.run(None, {name: _input(given, name).numpy() for name in names})[0])


def _input(given: Mapping[str, Any], name: str) -> Any:
    """One of a batch; where the tokenizer makes no token types, those that the model takes then."""
    if name == "token_type_ids" and name not in given:
        return torch.zeros_like(given["input_ids"])
    return given[name]


def torch_outputs(model: Any) -> Outputs:
    def outputs(given: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return getattr(model(**given), output_name(model))

    return outputs


def score(outputs: Outputs, prepared: Prepared, batch: int) -> dict[str, Any]:
    """Metrics on the test split."""
    data, task = prepared.data["test"], prepared.task
    if task.kind == "similarity":
        pooled = lambda given: mean_pooled(outputs(given), given["attention_mask"])  # noqa: E731
        return similarity_metrics(prepared, "test", pair_cosines(pooled, data, prepared.collator, batch))
    size = min(batch, VOCABULARIES) if task.kind == "causal-lm" else batch
    found, labels = None, None
    with counting("scoring") as progress:
        for number, some in enumerate(DataLoader(data, batch_size=size, collate_fn=prepared.collator), 1):
            right = some.pop("labels")
            said = task.kept_outputs(outputs(some), right)
            # As the Trainer joins batches: those of shorter texts are padded with -100.
            found = said if found is None else nested_concat(found, said)
            labels = right if labels is None else nested_concat(labels, right)
            progress(min(number * size, len(data)), len(data))
    judge = task.compute_metrics()
    assert judge is not None
    return {**judge(EvalPrediction(nested_numpify(found), nested_numpify(labels))), "examples": len(data)}


@contextmanager
def following(model: Any) -> Iterator[None]:
    """Inside, torch follows what a model computes; where it cannot, nobody here can change that.

    Raises:
        UserError: it cannot.
    """
    try:
        yield
    except (torch.onnx.OnnxExporterError, TorchDynamoException, GuardOnDataDependentSymNode) as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise UserError(
            f"a {type(model).__name__} of this configuration cannot be exported, because torch cannot follow what it "
            f"computes: {reason}"
        ) from error


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
