"""Texts, pairs and conversations as a language model learns them, against tokens that are put together by hand."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoTokenizer,
    EvalPrediction,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from opdf.data import Prepared, Task, describe, encode, encode_language, load_data, minilm, right_padded

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} [SEP] {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGETFUL = "{% for m in messages %}{% if loop.last %}last: {% endif %}{{ m['content'] }} {% endfor %}"
TALKS = [
    [
        {"role": "user", "content": f"how many are {k}"},
        {"role": "assistant", "content": f"they are {k}"},
        {"role": "user", "content": "sure"},
        {"role": "assistant", "content": "yes"},
    ]
    for k in range(40)
]


@pytest.fixture(scope="module")
def loaded() -> Any:
    return AutoTokenizer.from_pretrained(minilm())


@pytest.fixture
def tokenizer(loaded: Any) -> Any:
    """A tokenizer that a test may change."""
    return copy.deepcopy(loaded)


def training(*name: str, **options: Any) -> tuple[DatasetDict, Task]:
    """The training split alone, since every split takes its time."""
    data, task = load_data(*name, task="causal-lm", **options)
    return DatasetDict(train=data["train"]), task


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_paragraphs_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\none\ntwo\n \n\nthree\n\n" + "\n\n".join(f"p{k}" for k in range(30)))
    data, task = load_data(str(tmp_path / "a.txt"), task="causal-lm")
    assert (task.kind, task.inputs, task.label, task.metric) == ("causal-lm", ("text",), None, "perplexity")
    assert {"one\ntwo", "three"} < {text for rows in data.values() for text in rows["text"]}
    (tmp_path / "b.txt").write_text("\n".join(f"line {k}" for k in range(30)))
    assert sum(map(len, load_data(str(tmp_path / "b.txt"), task="causal-lm")[0].values())) == 30


def test_texts_are_packed_one_behind_the_other(tokenizer: Any) -> None:
    data, task = training("movie-scores", train_limit=1500)
    assert data["train"].column_names == ["text"]
    encoded, collate = encode(data, task, tokenizer, max_length=32)
    expected = [token for text in data["train"]["text"] for token in tokenizer(text)["input_ids"]]
    blocks = encoded["train"]["input_ids"][:]
    assert [token for block in blocks for token in block] == expected
    assert all(len(block) == 32 for block in blocks[:20])
    assert encoded["train"]["labels"][:] == blocks
    batch = collate([encoded["train"][0], {k: v[:5] for k, v in encoded["train"][1].items()}])
    assert batch["labels"][1, 5:].eq(-100).all()
    assert batch["attention_mask"][1, 5:].eq(0).all()
    found = describe(Prepared(data, encoded, task, tokenizer, collate, 32), "movie-scores")
    assert found.tokens["train"] == len(expected)
    assert found.truncated == {}


def test_texts_that_are_not_packed_are_cut(tokenizer: Any) -> None:
    data, task = training("movie-scores", train_limit=300)
    encoded, collate = encode(data, task, tokenizer, max_length=16, pack=False)
    whole = [tokenizer(text)["input_ids"] for text in data["train"]["text"]]
    assert encoded["train"]["input_ids"][:] == [ids[:16] for ids in whole]
    found = describe(Prepared(data, encoded, task, tokenizer, collate, 16), "movie-scores")
    assert found.truncated["train"] == sum(len(ids) > 16 for ids in whole)


def test_texts_end_with_the_end_of_text(tokenizer: Any) -> None:
    tokenizer.eos_token = "[unused1]"
    tokenizer.backend_tokenizer.post_processor = None
    data, task = training("movie-scores", train_limit=5)
    encoded, _ = encode(data, task, tokenizer, pack=False)
    text = data["train"]["text"][0]
    assert encoded["train"][0]["input_ids"] == tokenizer.convert_tokens_to_ids([*tokenizer.tokenize(text), "[unused1]"])


def test_a_tokenizer_that_pads_with_nothing(tokenizer: Any) -> None:
    tokenizer.pad_token = None
    tokenizer.eos_token = "[SEP]"
    data, task = training("movie-scores", train_limit=5)
    encoded, collate = encode(data, task, tokenizer, pack=False)
    batch = collate([encoded["train"][k] for k in range(5)])
    assert (batch["labels"] == -100).equal(batch["attention_mask"] == 0)
    assert tokenizer.pad_token is None


def test_a_tokenizer_that_cannot_pad_is_refused_where_padding_decides(tokenizer: Any) -> None:
    """A decoder classifies at the last token that is no padding, as its configuration knows it."""
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match=r"no token for padding.*model\.config\.pad_token_id"):
        encode(*load_data("movie-sentiment", train_limit=8), tokenizer)


def test_conversations(tmp_path: Path, tokenizer: Any) -> None:
    file = lines(tmp_path / "talks.jsonl", [{"messages": talk} for talk in TALKS])
    data, task = training(file)
    assert task.inputs == ("messages",)
    with pytest.raises(ValueError, match="'messages' holds conversations and the tokenizer has no chat template"):
        encode(data, task, tokenizer)
    tokenizer.chat_template = TEMPLATE
    encoded, _ = encode(data, task, tokenizer, pack=False)
    number = data["train"]["messages"][0][0]["content"].split()[-1]
    said = f"<user> how many are {number} [SEP] <assistant> they are {number} [SEP] "
    said += "<user> sure [SEP] <assistant> yes [SEP] "
    assert encoded["train"][0]["input_ids"] == tokenizer(said, add_special_tokens=False)["input_ids"]
    answers, _ = encode(data, task, tokenizer, pack=False, answers_only=True)
    row = answers["train"][0]
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
    assert tokenizer.decode(learned) == f"they are {number} [SEP] yes [SEP]"
    assert all(label in (token, -100) for token, label in zip(row["input_ids"], row["labels"], strict=True))
    together, _ = encode(data, task, tokenizer, answers_only=True, max_length=64)
    assert sum(map(len, together["train"]["labels"])) == sum(map(len, answers["train"]["labels"]))


def test_a_tool_call_has_its_own_arguments_alone(tmp_path: Path, tokenizer: Any) -> None:
    """A table gives all calls the arguments of all others: their names were learned, with null."""
    given: list[dict[str, Any]] = [{"city": "paris"}, {"sum": 5, "unit": "euro"}, {}]
    talks = [
        [
            {"role": "user", "content": f"number {k}"},
            {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": given[k % 3]}]},
        ]
        for k in range(30)
    ]
    data, task = training(lines(tmp_path / "talks.jsonl", [{"messages": talk} for talk in talks]))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content or m.tool_calls | tojson }} {% endfor %}"
    encoded, _ = encode(data, task, tokenizer, pack=False)
    asked = [talk[0]["content"] for talk in data["train"]["messages"]]
    for ids, question in zip(encoded["train"]["input_ids"], asked, strict=True):
        talk = next(talk for talk in talks if talk[0]["content"] == question)
        said = tokenizer.apply_chat_template(talk, tokenize=False)
        assert ids == tokenizer(said, add_special_tokens=False)["input_ids"]


def test_a_conversation_that_begins_with_an_answer(tmp_path: Path, tokenizer: Any) -> None:
    data, task = training(lines(tmp_path / "talks.jsonl", [{"messages": talk[1:]} for talk in TALKS]))
    tokenizer.chat_template = TEMPLATE
    with pytest.raises(ValueError, match="of the train split cannot be read: it begins with an answer, and what"):
        encode(data, task, tokenizer, answers_only=True)
    assert len(encode(data, task, tokenizer)[0]["train"])


def test_conversations_that_were_written_as_texts_are_refused(tmp_path: Path) -> None:
    """As pandas writes them into a csv file: they were learned with their brackets."""
    rows = [str([{"role": "user", "content": f"one {k}"}]) for k in range(30)]
    Dataset.from_dict({"messages": rows}).to_csv(str(tmp_path / "data.csv"))
    with pytest.raises(
        ValueError, match=r"'messages' of .* holds lists that were written as texts, such as .*; write lis"
    ):
        load_data(str(tmp_path / "data.csv"), task="causal-lm")


def test_a_template_that_rewrites_earlier_messages(tmp_path: Path, tokenizer: Any) -> None:
    data, task = training(lines(tmp_path / "talks.jsonl", [{"messages": talk} for talk in TALKS]))
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(ValueError, match="of the train split cannot be read: the tokenizer's chat template writes"):
        encode(data, task, tokenizer, answers_only=True)
    assert len(encode(data, task, tokenizer)[0]["train"])


def test_prompts_and_answers(tmp_path: Path, tokenizer: Any) -> None:
    rows = [{"prompt": f"how many are {k}?", "answer": f" they are {k}"} for k in range(40)]
    file = lines(tmp_path / "pairs.jsonl", rows)
    data, task = training(file, inputs=["prompt", "answer"])
    encoded, _ = encode(data, task, tokenizer, pack=False, answers_only=True)
    row, raw = encoded["train"][0], data["train"][0]
    assert row["input_ids"] == tokenizer(raw["prompt"] + raw["answer"])["input_ids"]
    learned = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(learned) == f"{raw['answer'].strip()} [SEP]"
    with pytest.raises(ValueError, match=r"no token is left to predict in the train split, .* raise max_length"):
        encode(data, task, tokenizer, pack=False, answers_only=True, max_length=5)


@pytest.mark.parametrize("chat", [False, True])
def test_an_answer_behind_a_blank_is_learned_from_its_first_word_on(chat: bool) -> None:
    """Byte-level tokenizers join a word with the blank before it. If a prompt ended with that, it was left out."""
    made = Tokenizer(BPE())
    made.pre_tokenizer = ByteLevel(add_prefix_space=False)
    made.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(special_tokens=["</s>"], initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    made.train_from_iterator(["mood: fine day"] * 9, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}"
        "{% if m.role == 'user' %}\nmood: {% else %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    talk = [{"role": "user", "content": "day"}, {"role": "assistant", "content": "fine day"}]
    columns = [[talk]] if chat else [["day\nmood: "], ["fine day"]]
    found = encode_language(columns, tokenizer, None, answers_only=True)
    learned = [label for label in found["labels"][0] if label != -100]
    assert tokenizer.decode(learned) == " fine day</s>"
    assert found["labels"][0][:2] == [-100, -100]


def test_texts_of_one_token_have_none_to_predict(tmp_path: Path) -> None:
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"[UNK]": 0}, "[UNK]")), unk_token="[UNK]")
    data, task = training(lines(tmp_path / "words.jsonl", [{"text": f"word{k}"} for k in range(40)]))
    with pytest.raises(ValueError, match="cut at 128 tokens and the first of each is not predicted"):
        encode(data, task, bare, pack=False)
    assert len(encode(data, task, bare)[0]["train"]) == 1


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"messages": [{"from": "a", "value": "b"}]}] * 9, {}, "holds lists of dict; task causal-lm needs one text"),
        ([{"messages": [{"role": "a", "content": [{"text": "b"}]}]}] * 9, {}, "messages, each with texts as role and"),
        ([{"text": 3}] * 9, {}, "column 'text' of .* holds int64; task causal-lm needs one"),
        ([{"text": "a", "label": 1}] * 9, {"label": "label"}, "label is 'label'; a causal-lm learns its own text"),
        ([{"text": "a"}] * 9, {"labels": ["a"]}, "labels names classes and the task is causal-lm"),
    ],
)  # fmt: skip
def test_texts_that_are_none(tmp_path: Path, rows: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_data(lines(tmp_path / "data.jsonl", rows), task="causal-lm", **options)


def test_answers_of_texts(tokenizer: Any) -> None:
    data, task = training("movie-scores", train_limit=5)
    with pytest.raises(ValueError, match=r"data.answers_only is true and texts have no answers; set data.inputs"):
        encode(data, task, tokenizer, answers_only=True, where="data.")
    data, task = load_data("movie-scores", train_limit=5)
    with pytest.raises(ValueError, match="answers_only is true and the task is regression"):
        encode(data, task, tokenizer, answers_only=True)


def test_a_text_that_ends_with_an_unknown_word_has_an_end() -> None:
    """It had none: an unknown word's token is one of a tokenizer's special ones."""
    plain = Tokenizer(WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}, unk_token="<unk>"))
    plain.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, **marks)
    found = encode_language([["a", "§", ""]], tokenizer, None, answers_only=False)
    assert found["input_ids"] == [[1, 3, 2], [1, 0, 2], [1, 2]]
    found = encode_language([["a"], ["§"]], tokenizer, None, answers_only=True)
    assert found["labels"] == [[-100, -100, 2]]  # one word for WordLevel: "a§", which is unknown


@pytest.mark.parametrize(("template", "side"), [("$A [CLS]", "left"), ("[CLS] $A", "right"), ("$A", "right")])
def test_texts_are_padded_on_the_right_unless_their_last_token_says_the_class(template: str, side: str) -> None:
    """XLNet reads the class at the last place of a row."""
    plain = Tokenizer(WordLevel({"[CLS]": 0, "[PAD]": 1, "a": 2}, unk_token="a"))
    plain.post_processor = TemplateProcessing(single=template, special_tokens=[("[CLS]", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="a", cls_token="[CLS]", pad_token="[PAD]", padding_side="left"
    )
    assert right_padded(tokenizer).padding_side == side
    assert tokenizer.padding_side == "left"


@pytest.mark.parametrize("side", ["right", "left"])
def test_perplexity_is_that_of_all_tokens_together(tmp_path: Path, tokenizer: Any, side: str) -> None:
    torch.manual_seed(0)
    tokenizer.padding_side = side
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).eval()
    data, task = training("movie-scores", train_limit=7)
    encoded, collate = encode(data, task, tokenizer, pack=False)
    trainer = Trainer(
        model, TrainingArguments(str(tmp_path), per_device_eval_batch_size=3, use_cpu=True, report_to=[]),
        data_collator=collate, compute_metrics=task.compute_metrics(), preprocess_logits_for_metrics=task.kept_outputs,
    )  # fmt: skip
    found = trainer.evaluate(encoded["train"])["eval_perplexity"]
    losses, right = [], []
    for row in encoded["train"]:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits.double()
        losses += torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="none").tolist()
        right.append(logits[0, :-1].argmax(-1))
    assert found == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    assert tokenizer.padding_side == side
    predictions = trainer.predict(encoded["train"])
    answers = task.answers(predictions.predictions)
    for said, expected in zip(answers, right, strict=True):
        assert said[: len(expected)].tolist() == expected.tolist()
    assert task.compute_metrics()(EvalPrediction(predictions.predictions, predictions.label_ids)) == pytest.approx(
        {"perplexity": found}
    )
