"""The simulation's arithmetic against one case computed by hand, and what must hold for any rates."""

from __future__ import annotations

import pytest
from transformers import BertConfig, BertForSequenceClassification

import opdf
from benchmarks import simulation

LINKS = simulation.Links("toy", within=50.0, between=25.0, hop=1.0, node=2)
# 4x4 as T(2,1,2 / 2,1,2): bonds 1, 4, 4, 1; 16 + 16 + 16 core entries; two products of 2 * 4 * 4 * 4 operations.
SHAPE = opdf.MPOShape((2, 1, 2), (2, 1, 2))
JOB = simulation.Job(
    "toy", tokens=10, params=40, multiplied=32, teacher_params=70, teacher_multiplied=64, shapes=(SHAPE, SHAPE)
)


@pytest.fixture(autouse=True)
def rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "MODEL_RATE", 64.0)
    monkeypatch.setattr(simulation, "MEMORY_BANDWIDTH", 28.0)


def test_owner_computes_under_fsdp2_by_hand() -> None:
    cost = simulation.step(JOB, "owner", 4, LINKS, sharded=True, core_rate=256.0)

    # Of 4 GPUs two have a matrix. Teacher 2*64*10/64 = 20 s, forward 10 s, backward 20 s. The update: 3 contractions of
    # 256 operations, AdamW on 48 core entries and on a quarter of 40 - 32: 3 + 48 + 2 s.
    assert cost.arithmetic == 20 + 10 + 20 + 53
    # 25 bytes a second, 3 hops a ring. All weights in bfloat16: 3/4 * 80/25 + 3 = 5.4 s, for both passes; gradients in
    # float32 scattered: 3/4 * 160/25 + 3 = 7.8 s. Of each of 2 matrices of 64 bytes, the gradient gathered: 3/4 * 64/25
    # + 3 = 4.92 s, and the weight broadcast: 64/25 + 3 = 5.56 s. One round of "who moved": 6 hops.
    assert cost.communication == pytest.approx(2 * 5.4 + 7.8 + 2 * (4.92 + 5.56) + 6)
    # Both passes take longer than the communication beside them.
    assert cost.seconds == pytest.approx(20 + 10 + 20 + 53 + 2 * (4.92 + 5.56) + 6)
    # Weights and gradients of 40 and moments of 8 parameters over 4 GPUs; cores with moments; the gradients of one
    # matrix's cores and of the matrix; the teacher in bfloat16.
    assert cost.memory == (8 * 40 + 8 * 8) / 4 + 12 * 48 + 4 * (48 + 16) + 2 * 70


def test_plain_under_ddp_by_hand() -> None:
    cost = simulation.step(JOB, None, 2, LINKS, sharded=False, core_rate=1.0)

    # 2 GPUs of one node: 50 bytes a second. All-reduce of 160 bytes: 2 * (80/50 + 1) = 5.2 s, beside the backward pass.
    assert (cost.communication, cost.arithmetic) == (pytest.approx(5.2), 20 + 10 + 20 + 40)
    assert (cost.seconds, cost.memory) == (90, 16 * 40 + 2 * 70)


def test_one_gpu_has_nothing_to_send_and_no_placement() -> None:
    replicate, owner = (simulation.step(JOB, p, 1, LINKS, sharded=True, core_rate=1.0) for p in ("replicate", "owner"))

    assert replicate == owner
    assert owner.communication == 0


def test_the_busiest_gpu_holds_less_until_every_matrix_has_its_own() -> None:
    assert [len(simulation.dearest((SHAPE,) * 6, gpus)) for gpus in (1, 2, 3, 6, 100)] == [6, 3, 2, 1, 1]


def test_a_job_counts_its_models() -> None:
    def make(blocks: int) -> BertForSequenceClassification:
        return BertForSequenceClassification(BertConfig(
            vocab_size=5, hidden_size=8, num_hidden_layers=blocks, num_attention_heads=2, intermediate_size=16,
        ))  # fmt: skip

    counted = simulation.job("toy", make, 2, 7)
    block = 4 * 8 * 8 + 2 * 8 * 16
    heads = 8 * 8 + 2 * 8
    assert counted.dense == 2 * block
    assert (counted.multiplied, counted.teacher_multiplied) == (2 * block + heads, 4 * block + heads)
    assert counted.params == sum(p.numel() for p in make(2).parameters())
    assert counted.teacher_params > counted.params
