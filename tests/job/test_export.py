"""Exports in onnxruntime and torch.export against torch: on a real run, every family, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    T5Config,
    T5ForSequenceClassification,
    Wav2Vec2Config,
    Wav2Vec2ForSequenceClassification,
)

from families import FAMILIES, batch, build
from jobs import full_disk
from opdf import DistillationArguments, DistillationTrainer, OverParamConfig
from opdf.distill import keep_layers
from opdf.job import DataConfig, DistillConfig, UserError, export, run
from opdf.job.export import NEEDED, examples, largest, onnx_outputs, to_onnx, to_torch, torch_outputs
from opdf.job.options import fill

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def distilled(folder: Path, *, over: bool = True) -> Any:
    """A student of two steps, saved."""
    data = Dataset.from_dict({k: v.tolist() for k, v in batch("bert", 8).items()})
    teacher = build("bert", 2)
    student = keep_layers(teacher, 1)
    arguments = DistillationArguments(
        str(folder / "training"), max_steps=2, learning_rate=1e-2, save_strategy="no", disable_tqdm=True, use_cpu=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    options = OverParamConfig(ones=2) if over else None
    DistillationTrainer(student, arguments, teacher=teacher, train_dataset=data, overparam=options).train()
    student.save_pretrained(folder / "student")
    return student.eval()


def session_outputs(path: Path, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {k.name: inputs[k.name].numpy() for k in session.get_inputs()})[0]


@pytest.mark.slow
def test_a_run_is_exported_and_scored(tmp_path: Path) -> None:
    config = {
        "data": {"name": "digits"},
        "teacher": {"model": None, "finetune": True, "training": {"max_steps": 2}, "config": {
            "model_type": "vit", "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "intermediate_size": 32}},
        "student": {"layers": 1}, "overparam": {"ones": 1}, "output": str(tmp_path / "run"),
        "training": {"max_steps": 10, "learning_rate": 3e-3},
    }  # fmt: skip
    metrics = run(fill(DistillConfig, config, "config"))
    report = export(str(tmp_path / "run" / "student"), tmp_path / "out", int8=True, data=DataConfig("digits"))
    assert report["files"]["model.onnx"]["test"]["accuracy"] == metrics["student"]["test"]["accuracy"]
    assert report["files"]["model.onnx"]["difference"] < 1e-5
    assert abs(report["files"]["model.int8.onnx"]["test"]["accuracy"] - metrics["student"]["test"]["accuracy"]) < 0.1
    assert report["files"]["model.int8.onnx"]["test"]["examples"] == 360
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"model.onnx", "model.int8.onnx", "config.json", "preprocessor_config.json", "export.json"}
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "out" / "model.int8.onnx").graph.node)
    assert nodes["MatMulInteger"] > 0


@pytest.mark.slow
def test_size_and_graph_are_those_of_a_plain_student(tmp_path: Path) -> None:
    made = []
    for name, over in (("over", True), ("plain", False)):
        student = distilled(tmp_path / name, over=over)
        to_onnx(student, tmp_path / name / "model.onnx")
        graph = onnx.load(tmp_path / name / "model.onnx").graph
        sizes = [(tmp_path / name / file).stat().st_size for file in ("model.onnx", "student/model.safetensors")]
        made.append(
            (sizes, Counter(node.op_type for node in graph.node), sorted(tuple(t.dims) for t in graph.initializer))
        )
    assert made[0] == made[1]
    weights = [AutoModelForSequenceClassification.from_pretrained(tmp_path / n / "student") for n in ("over", "plain")]
    assert any(not torch.equal(a, b) for a, b in zip(*(w.parameters() for w in weights), strict=True))


@pytest.mark.parametrize("family", [f if f == "bert" else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES])
def test_every_family_in_onnxruntime(family: str, tmp_path: Path) -> None:
    """Sizes that the graph was not traced with, padding included."""
    model = build(family)
    model.config.use_cache = False
    to_onnx(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    sizes = {entry.name: [axis.dim_param for axis in entry.type.tensor_type.shape.dim] for entry in graph.input}
    assert {named[0] for named in sizes.values()} == {"batch"}  # one size for all, which servers batch by
    assert {sizes[name][1] for name in ("input_ids", "attention_mask") if name in sizes} <= {"tokens"}
    inputs = {k: v for k, v in batch(family, 5).items() if k != "labels"}
    if family in ("bert", "roberta"):
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if family == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :3]
    with torch.no_grad():
        expected = model(**inputs).logits.numpy()
    np.testing.assert_allclose(session_outputs(tmp_path / "model.onnx", inputs), expected, atol=2e-6)


@pytest.mark.slow
def test_a_batch_may_lack_the_token_types_that_its_tokenizer_does_not_make(tmp_path: Path) -> None:
    model, given = build("bert"), batch("bert", 3)
    assert "token_type_ids" not in given
    expected = torch_outputs(model)(given)
    to_onnx(model, tmp_path / "model.onnx")
    torch.testing.assert_close(onnx_outputs(tmp_path / "model.onnx")(given), expected)
    torch.testing.assert_close(to_torch(model, tmp_path / "model.pt2")(given), expected)


@pytest.mark.parametrize("written", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_classifier_of_whole_texts_with_a_decoder(written: bool, tmp_path: Path) -> None:
    """T5 classifies at the end of its texts and makes its decoder's inputs; it was given others, which is an error."""
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    model = T5ForSequenceClassification(T5Config(vocab_size=40, decoder_start_token_id=0, **sizes)).eval()
    given = list(examples(model))
    assert all(list(inputs) == ["input_ids", "attention_mask"] for inputs in given)
    expected = [torch_outputs(model)(inputs) for inputs in given]
    if written:
        to_onnx(model, tmp_path / "model.onnx")
        outputs = onnx_outputs(tmp_path / "model.onnx")
        for inputs, logits in zip(given, expected, strict=True):
            torch.testing.assert_close(outputs(inputs), logits, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "t5")
    with pytest.raises(UserError, match=r"looks for the ends of its texts; .* take format onnx"):
        export(tmp_path / "t5", tmp_path / "out", format="torch")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_model_that_torch_cannot_follow_is_told_of(form: str, tmp_path: Path) -> None:
    """Its positions depend on the values of its inputs."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    build("llama", rope_parameters=rope).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"^a LlamaForCausalLM of this configuration cannot be exported, because torch"):
        export(tmp_path / "model", tmp_path / "out", format=form)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_torch_export_runs_where_opdf_is_not_installed(tmp_path: Path) -> None:
    student = distilled(tmp_path)
    report = export(str(tmp_path / "student"), tmp_path / "out", format="torch")
    assert 0 <= report["files"]["model.pt2"]["difference"] < 1e-5
    inputs = {k: v for k, v in batch("bert", 3).items() if k != "labels"}
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    torch.save(tuple(inputs.values()), tmp_path / "inputs.pt")
    code = (
        "import sys; sys.modules['opdf'] = sys.modules['transformers'] = None\nimport torch\n"
        f"inputs = torch.load({str(tmp_path / 'inputs.pt')!r})\n"
        f"output = torch.export.load({str(tmp_path / 'out' / 'model.pt2')!r}).module()(*inputs)\n"
        f"torch.save(output, {str(tmp_path / 'output.pt')!r})\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.load(tmp_path / "output.pt"), student(**inputs).logits)


@pytest.mark.slow
def test_a_model_without_a_head_gives_hidden_states(tmp_path: Path) -> None:
    AutoModel.from_config(build("bert").config).save_pretrained(tmp_path / "model")
    assert export(str(tmp_path / "model"), tmp_path / "out", format="torch")["output"] == "last_hidden_state"


@pytest.mark.slow
def test_a_decoder_is_traced_with_tokens_as_a_tokenizer_gives_them() -> None:
    """A program of torch.export that was traced with a part of a tensor took nothing else."""
    assert all(value.is_contiguous() for inputs in examples(build("t5")) for value in inputs.values())


def test_an_export_is_whole_or_absent(tmp_path: Path) -> None:
    distilled(tmp_path)
    name, out = str(tmp_path / "student"), tmp_path / "out"
    with full_disk(5000), pytest.raises(OSError, match="File too large"):
        export(name, out, format="torch")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["student", "training"]
    export(name, out, format="torch")
    before = (out / "model.pt2").read_bytes()
    with pytest.raises(FileExistsError, match="is not empty"):
        export(name, out, format="torch")
    with full_disk(5000), pytest.raises(OSError, match="File too large"):
        export(name, out, format="torch", overwrite=True)
    assert (out / "model.pt2").read_bytes() == before


@pytest.mark.slow
def test_an_export_goes_where_a_link_leads(tmp_path: Path) -> None:
    distilled(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for overwrite in (False, True):
        export(str(tmp_path / "student"), tmp_path / "out", format="torch", overwrite=overwrite)
        assert (tmp_path / "out").is_symlink()
        assert (tmp_path / "disk" / "model.pt2").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "tflite"}, "format is 'tflite'; expected one of onnx, torch"),
        ({"int8": True, "format": "torch"}, "int8 is written as ONNX only"),
        ({"batch": 0}, "batch is 0"),
        ({"data": DataConfig("")}, "data has no name"),
        ({"output": "mine"}, "was not written by opdf export"),
        ({"output": "mine/thesis.txt"}, "was not written by opdf export"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises((UserError, FileExistsError), match=message):
        export("minilm", tmp_path / options.pop("output", "out"), **options)
    assert [p.name for p in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_a_difference_that_is_not_a_number_is_the_largest() -> None:
    assert largest([torch.tensor([1.0, -3.0]), torch.tensor([2.0])]) == 3.0
    assert np.isnan(largest([torch.tensor([1.0]), torch.tensor([np.nan])]))


@pytest.mark.parametrize("package", NEEDED)
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package} is not installed; format onnx needs pip install 'opdf\[export\]'"):
        export("minilm", tmp_path / "out")


def test_models_that_cannot_be_read(tmp_path: Path) -> None:
    build("bert").config.save_pretrained(tmp_path / "empty")
    build("bert").save_pretrained(tmp_path / "custom")
    config = json.loads((tmp_path / "custom" / "config.json").read_text()) | {"architectures": ["MyBert"]}
    (tmp_path / "custom" / "config.json").write_text(json.dumps(config))
    for name, message in (
        ("empty", "it has no weights"),
        ("custom", "class MyBert"),
        ("none/at/all", "does not exist"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            export(str(tmp_path / name), tmp_path / "out", format="torch")
    assert not (tmp_path / "out").exists()


def test_models_of_other_inputs(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = sizes | {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    pictures = CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 8, "patch_size": 4})
    sounds = Wav2Vec2Config(
        **sizes, conv_dim=(8,), conv_kernel=(3,), conv_stride=(2,), num_feat_extract_layers=1,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    for model, message in (
        (CLIPModel(pictures), "is a CLIPModel, which reads input_ids and has no vocab_size"),
        (Wav2Vec2ForSequenceClassification(sounds), "is a Wav2Vec2ForSequenceClassification, which reads input_values"),
    ):
        model.save_pretrained(tmp_path / "model")
        with pytest.raises(UserError, match=message):
            export(str(tmp_path / "model"), tmp_path / "out", format="torch")
        assert [p.name for p in tmp_path.iterdir()] == ["model"]
