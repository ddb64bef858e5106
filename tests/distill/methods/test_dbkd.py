"""DBKD: the inversion of decisions against closed forms, Monte Carlo and the released table; black boxes."""

from __future__ import annotations

import dataclasses
import json
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from scipy.stats import norm
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from opdf.data import Prepared, Task, TextNoise, encode, load_data, minilm
from opdf.distill import BeforeTraining, DecisionDistillation
from opdf.distill.losses import soft_loss
from opdf.distill.methods.dbkd import _row_noise, count_decisions, decision_logits, decision_probabilities
from opdf.job.export import to_onnx


def centred(rng: np.random.Generator, classes: int) -> np.ndarray:
    z = rng.uniform(-1.5, 1.5, size=classes)
    return z - z.mean()


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_probabilities_against_monte_carlo(classes: int) -> None:
    rng = np.random.default_rng(classes)
    z, draws = centred(rng, classes), 1_000_000
    found = decision_probabilities(z)
    assert found.sum() == pytest.approx(1, abs=1e-8)
    np.testing.assert_allclose(decision_probabilities(z + 3), found, atol=1e-12)
    seen = np.bincount((z + rng.standard_normal((draws, classes))).argmax(1), minlength=classes) / draws
    assert (np.abs(seen - found) < 4 * np.sqrt(found * (1 - found) / draws)).all()


def test_two_classes_have_a_closed_form() -> None:
    z = np.array([0.7, -0.4])
    assert decision_probabilities(z)[0] == pytest.approx(norm.cdf(1.1 / np.sqrt(2)), abs=1e-10)
    p = np.array([[73.0, 27.0]]) * 1e9
    gap = np.sqrt(2) * norm.ppf(0.73)
    np.testing.assert_allclose(decision_logits(p), [[gap / 2, -gap / 2]], atol=1e-7)


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_known_logits_are_recovered(classes: int) -> None:
    z = centred(np.random.default_rng(classes), classes)
    found = decision_logits(decision_probabilities(z)[None] * 1e15, pseudo_count=1e-3)
    np.testing.assert_allclose(found[0], z, atol=1e-6)


# Counts and the logits of the released table script (10 queries, 20 rounds), before centring.
TABLE = [
    ([10, 0], [2.0502, -1.0502]), ([10, 0, 0], [2.5204, -0.7602, -0.7602]), ([9, 1, 0], [1.8989, 0.0407, -0.9396]),
    ([8, 1, 1], [1.434, -0.217, -0.217]), ([7, 2, 1], [1.1798, 0.1401, -0.3199]),
    ([5, 5, 0], [1.0521, 1.0521, -1.1043]),
    ([10, 0, 0, 0], [2.804, -0.6013, -0.6013, -0.6013]), ([7, 1, 1, 1], [1.3694, -0.1231, -0.1231, -0.1231]),
    ([4, 3, 2, 1], [0.6802, 0.4530, 0.1566, -0.2897]),
]  # fmt: skip


@pytest.mark.parametrize(("counts", "expected"), TABLE)
def test_the_released_iteration(counts: list[int], expected: list[float]) -> None:
    z = np.array(expected)
    found = decision_logits(np.array([counts, counts[::-1]]), solver="iterate")
    np.testing.assert_allclose(found[0], z - z.mean(), atol=2e-3)
    np.testing.assert_allclose(found[1], found[0][::-1])


def test_a_unanimous_teacher_stays_so_however_many_classes_there_are() -> None:
    """Near the released iteration, of which the shares of other classes fall with their number too."""
    gaps = []
    for classes in (2, 10, 52, 500):
        counts = np.zeros((1, classes), dtype=int)
        counts[0, 3 % classes] = 10
        exact, released = (decision_logits(counts, solver=solver)[0] for solver in ("root", "iterate"))
        shares = [np.exp(z).max() / np.exp(z).sum() for z in (exact, released)]
        assert shares[0] == pytest.approx(shares[1], rel=0.2)
        gaps.append(exact.max() - exact.min())
        wanted = np.where(counts[0] > 0, 10 + 0.5 / classes, 0.5 / classes) / 10.5
        np.testing.assert_allclose(decision_probabilities(exact), wanted, rtol=1e-4)
    assert gaps == sorted(gaps)  # it wins against all others together


@pytest.mark.parametrize(("classes", "share"), [(2, 0.943), (10, 0.787), (52, 0.6), (1000, 0.6), (10_000, 0.6)])
def test_the_targets_of_a_unanimous_teacher_do_not_become_uniform(classes: int, share: float) -> None:
    """Read off the loss: a student that says the targets is at its minimum, where the gradient is none.

    The released iteration gives 0.96, 0.83, 0.61, 0.16 and 0.03.
    """
    counts = np.zeros((1, classes), dtype=int)
    counts[0, classes // 2] = 10
    targets = torch.full((1, classes), (1 - share) / (classes - 1), dtype=torch.float64)
    targets[0, classes // 2] = share
    student = Says(targets.log())
    batch = {"decision_logits": torch.from_numpy(decision_logits(counts)), "labels": torch.tensor([0])}
    objective = DecisionDistillation(alpha=1.0)
    loss = objective.losses(student, None, batch, torch.tensor([1, 1]))
    assert float(loss.parts["distillation"]) == pytest.approx(0, abs=1e-5)
    if classes == 52:  # where the share is the least one, however often the teacher was asked
        batch["decision_logits"] = torch.from_numpy(decision_logits(counts // 5))
        loss = DecisionDistillation(alpha=1.0, copies=2).losses(student, None, batch, torch.tensor([1, 1]))
        assert float(loss.parts["distillation"]) == pytest.approx(0, abs=1e-5)
    with_scale = DecisionDistillation(alpha=1.0, scale=0.5).losses(student, None, batch, torch.tensor([1, 1]))
    assert float(with_scale.parts["distillation"]) > 0.01


class Says(torch.nn.Module):
    """Always the same logits."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


def test_decisions_are_learned_in_float32_from_logits_in_half_precision() -> None:
    said, z = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).bfloat16(), torch.randn(40, 5)
    batch, losses = {"decision_logits": z, "labels": torch.arange(40) % 5}, []
    for logits in (said, said.float()):
        losses.append(DecisionDistillation().losses(Says(logits), None, batch, torch.tensor([40, 40])).total)
    assert torch.equal(*losses)


def test_each_text_of_a_pair_is_made_noisy() -> None:
    raw = DatasetDict(train=Dataset.from_dict({"one": ["a b c d"] * 2, "two": ["e f g h"] * 2}))
    task = Task("classification", ("one", "two"), None, ("no", "yes"))
    change = _row_noise(Prepared(raw, raw, task, None, dict), 1.0)
    row = raw["train"][0]
    changed = change(row, np.random.default_rng(0))
    assert all(changed[name] != row[name] for name in task.inputs)


def test_equal_counts_have_equal_logits_and_order_does_not_matter() -> None:
    found = decision_logits(np.array([[4, 4, 4], [0, 2, 10], [10, 0, 2]]))
    np.testing.assert_allclose(found[0], 0, atol=1e-9)
    np.testing.assert_allclose(found[1][[2, 0, 1]], found[2])


def test_a_noisy_teacher_is_recovered_from_its_decisions() -> None:
    z, rng = np.array([0.9, 0.1, -1.0]), np.random.default_rng(0)
    counts = count_decisions(
        lambda asked: np.array(asked).argmax(1), [z], 3, lambda x, r: x + r.standard_normal(3), copies=40_000, seed=1
    )
    assert rng is not None
    np.testing.assert_allclose(decision_logits(counts)[0], z, atol=0.05)


TEXTS = ["a film that works", "dull", "not one good line in it", ""]


def by_length(texts: list[str]) -> list[int]:
    return [min(2, len(text.split()) // 2) for text in texts]


class Endpoint(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        texts = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(by_length(texts)).encode())

    def log_message(self, *_: Any) -> None:
        pass


def test_an_http_endpoint_and_a_function_are_counted_alike() -> None:
    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(texts: list[str]) -> list[int]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.server_port}", json.dumps(texts).encode(), method="POST"
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    noise = TextNoise(TEXTS, rate=0.3)
    try:
        counted = [count_decisions(teacher, TEXTS, 3, noise, seed=4) for teacher in (by_length, ask)]
    finally:
        server.shutdown()
        server.server_close()
    np.testing.assert_array_equal(*counted)
    assert (counted[0].sum(1) == 10).all()
    assert len({tuple(row) for row in counted[0]}) > 1


@pytest.mark.slow
def test_an_onnx_session_is_a_teacher(tmp_path: Path) -> None:
    """The session's decisions are the model's, and nothing but decisions is asked of it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    teacher = BertForSequenceClassification(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                   num_labels=3, initializer_range=0.6)
    ).eval()  # fmt: skip
    to_onnx(teacher, tmp_path / "teacher.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "teacher.onnx", providers=["CPUExecutionProvider"])

    def ask(examples: list[np.ndarray]) -> np.ndarray:
        ids = np.stack(examples)
        return session.run(None, {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0})[
            0
        ].argmax(-1)

    def ask_torch(examples: list[np.ndarray]) -> np.ndarray:
        with torch.no_grad():
            return teacher(input_ids=torch.from_numpy(np.stack(examples))).logits.argmax(-1).numpy()

    def replace(example: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.where(rng.random(len(example)) < 0.3, rng.integers(1, 30, len(example)), example)

    examples = list(np.random.default_rng(0).integers(1, 30, (20, 6)))
    counted = [count_decisions(decide, examples, 3, replace) for decide in (ask, ask_torch)]
    np.testing.assert_array_equal(*counted)
    assert len({tuple(row) for row in counted[0]}) > 3
    assert np.isfinite(decision_logits(counted[0])).all()


def test_the_counts_do_not_depend_on_the_batch() -> None:
    noise = TextNoise(TEXTS, rate=0.3)
    one, all_ = (count_decisions(by_length, TEXTS, 3, noise, batch=b) for b in (1, 1000))
    np.testing.assert_array_equal(one, all_)


@pytest.mark.parametrize(("answers", "message"), [([0], "answers of shape"), ([5] * 40, "chose class 5")])
def test_wrong_answers_are_refused(answers: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        count_decisions(lambda texts: answers, TEXTS, 3, TextNoise(TEXTS))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: decision_logits(np.ones((2, 3)), solver="x"), "solver is 'x'"),
        (lambda: decision_logits(np.ones((2, 3)), pseudo_count=0), "pseudo_count is 0"),
        (lambda: decision_logits(np.zeros((2, 3))), "rows not all 0"),
        (lambda: DecisionDistillation(temperature=0), "temperature is 0"),
        (lambda: DecisionDistillation(scale=0), "scale is 0"),
        (lambda: DecisionDistillation(alpha=-1), "alpha is -1"),
        (lambda: DecisionDistillation(copies=0), "copies is 0"),
        (lambda: DecisionDistillation(solver="x"), "solver is 'x'"),
        (lambda: count_decisions(by_length, TEXTS, 3, TextNoise(TEXTS), copies=0), "copies is 0"),
    ],
)
def test_bad_options(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def student() -> BertForSequenceClassification:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).eval()


def test_the_loss_is_plain_distillation_from_the_recovered_logits() -> None:
    model, objective = student(), DecisionDistillation(temperature=2.0, alpha=0.5, scale=3.0)
    z = torch.randn(3, 2)
    batch = {"input_ids": torch.arange(1, 10).reshape(3, 3), "labels": torch.tensor([0, 1, -100]), "decision_logits": z}
    objective.prepare(model, None)
    losses = objective.losses(model, None, batch, objective.count_items(model, batch))
    plain = {k: v for k, v in batch.items() if k != "decision_logits"}
    output = model(**plain)
    expected = output.loss + 0.5 * soft_loss(output.logits, 3 * z, 2.0) / 3
    torch.testing.assert_close(losses.total, expected)
    with pytest.raises(ValueError, match=r"are of shape \(3, 2\) and the teacher's \(3, 1\)"):
        objective.losses(model, None, batch | {"decision_logits": z[:, :1]}, torch.tensor(3))
    del batch["decision_logits"]
    with pytest.raises(ValueError, match="no 'decision_logits'"):
        objective.losses(model, None, batch, torch.tensor(3))


def test_a_regression_is_refused() -> None:
    model = BertForSequenceClassification(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                   num_labels=1)
    )  # fmt: skip
    with pytest.raises(ValueError, match="regression has no decisions"):
        DecisionDistillation().prepare(model, None)


def test_decisions_are_counted_once_for_the_same_data_teacher_and_options(tmp_path: Path) -> None:
    raw, task = load_data("movie-sentiment", train_limit=16)
    tokenizer = AutoTokenizer.from_pretrained(minilm())
    encoded, collator = encode(raw, task, tokenizer, max_length=16)
    data = Prepared(raw, encoded, task, tokenizer, collator, 16)
    config = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    teacher = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **config)).eval()
    asked: list[int] = []
    teacher.register_forward_hook(lambda *_: asked.append(1))

    def made(**options: Any) -> tuple[int, Any]:
        before = len(asked)
        rows = DecisionDistillation(**options).prepare_data(BeforeTraining(data, teacher, tmp_path))
        return len(asked) - before, np.asarray(rows["decision_logits"])

    first, logits = made()
    assert first > 0
    assert logits.shape == (16, 2)
    again, same = made()
    assert again == 0
    np.testing.assert_array_equal(logits, same)
    again, released = made(solver="iterate")
    assert again == 0  # of the same counts
    assert np.abs(released - logits).min() > 1e-3
    for changed in ({"seed": 7}, {"noise": 0.5}, {"copies": 3}):
        assert made(**changed)[0] > 0
    shorter = BeforeTraining(dataclasses.replace(data, max_length=8), teacher, tmp_path)
    before = len(asked)
    DecisionDistillation().prepare_data(shorter)
    assert len(asked) > before
    for spoil in (lambda content: content[:99], lambda content: content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]):
        for kept in tmp_path.glob("decisions-*"):
            kept.write_bytes(spoil(kept.read_bytes()))
        counted, same = made()
        assert counted > 0  # a damaged file is counted again
        np.testing.assert_array_equal(logits, same)
