"""The recipes: their options are known, and those on embedded data fit together."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from opdf.data import load_data
from opdf.job import DistillConfig, read_config, run
from opdf.job.checks import check_models, check_task
from opdf.job.job import Job
from opdf.job.models import from_config, load_model
from opdf.overparam import overparameterize

RECIPES = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


def on_a_cpu(recipe: Path) -> DistillConfig:
    config = read_config(str(recipe))
    cpu = {"bf16": False, "use_cpu": True}
    config.training |= cpu
    config.teacher.training |= cpu
    return config


@cache
def data(name: str, **options: Any) -> Any:
    return load_data(name, **options)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid(recipe: Path) -> None:
    Job(on_a_cpu(recipe))


@pytest.mark.parametrize("recipe", [p for p in RECIPES if p.parent.name == "glue"], ids=lambda path: path.stem)
def test_glue_recipes_train_the_papers_parameters(recipe: Path) -> None:
    """Base parameters and those of every 1x1 site: OPDF's tables 1 and S3, in millions, without the head."""
    config = read_config(str(recipe))
    blocks = 4 if config.student.layers == [0, 1, 2, 3] else 6
    with torch.device("meta"):
        student = BertModel(BertConfig(num_hidden_layers=blocks))
    assert config.overparam is not None
    trained = overparameterize(student, config.overparam).train_params / 1e6
    start, each = {4: (68.7, 15.9), 6: (90.8, 23.9)}[blocks]
    assert trained == pytest.approx(start + each * (config.overparam.ones or 0), rel=2e-3)


EMBEDDED = [p for p in RECIPES if p.stem.startswith(("text", "images")) or p.stem == "language-movie"]
OFTEN = ("text-half-width", "text-embedding-128", "language-movie")


@pytest.mark.parametrize(
    "recipe", [pytest.param(p, id=p.stem, marks=[] if p.stem in OFTEN else [pytest.mark.slow]) for p in EMBEDDED]
)
def test_recipes_on_embedded_data_fit_together(recipe: Path) -> None:
    job = Job(on_a_cpu(recipe))
    task = data(job.config.data.name, task=job.config.data.task)[1]
    check_task(job, task)
    teacher = job.config.teacher
    model = from_config(teacher.config, task) if teacher.config else load_model("minilm", task)[0]
    over = check_models(job, task, model).over
    assert (over is None) == (job.config.overparam is None)
    if over is None:
        return
    matrices = sum(matrix.shape.rows * matrix.shape.cols for matrix in over.matrices)
    assert over.train_params - over.inference_params > 0.3 * matrices


@pytest.mark.slow
def test_the_recipe_of_a_large_decoder_fits_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With models of its family in place of the hub's, smaller only in width and depth, and its kind of data."""
    words = {word: k for k, word in enumerate(("<unk>", "<|im_end|>", "user", "assistant", "yes", "no"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|im_end|>")
    fast.chat_template = "{% for m in messages %}{{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1,
             "head_dim": 4, "vocab_size": 151_936}  # fmt: skip
    for name, layers in (("Qwen/Qwen3-1.7B", 2), ("Qwen/Qwen3-0.6B", 1)):
        Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=layers, **sizes)).save_pretrained(tmp_path / name)
        fast.save_pretrained(tmp_path / name)
    talk = [{"role": "user", "content": "yes no"}, {"role": "assistant", "content": "no yes"}]
    rows = "\n".join(json.dumps({"messages": [talk[0] | {"content": "yes " * k}, talk[1]]}) for k in range(1, 21))
    (tmp_path / "talks.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)
    config = on_a_cpu(next(p for p in RECIPES if p.stem == "language-qwen3"))
    assert (config.teacher.model, config.student.model) == ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-0.6B")
    config.data.name = str(tmp_path / "talks.jsonl")
    config.training |= {"max_steps": 1, "gradient_accumulation_steps": 1, "save_strategy": "no"}
    found = run(config)
    assert found["class"] == "Qwen3ForCausalLM"
    assert 0 <= found["student"]["test"]["agreement"] <= 1
