"""Peak memory and time of a distillation step over tokens of a large vocabulary, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time

import torch

from benchmarks.measure import DEVICE, write
from benchmarks.memory import KIND, peak

VOCABULARY, WIDTH = 150_000, 64


def run(chunks: bool, tokens: int) -> None:
    """One step of a LLaMA of one block that learns from another; prints its seconds and its peak in bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from opdf.distill import LogitsDistillation, chunks as module

    if not chunks:
        module.CHUNK = 2**62  # all logits fit into one
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=WIDTH, num_hidden_layers=1, num_attention_heads=1
    )
    student, teacher = (LlamaForCausalLM(config).to(DEVICE) for _ in range(2))
    ids = torch.randint(VOCABULARY, (max(1, tokens // 512), min(512, tokens)), device=DEVICE)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    began = time.perf_counter()
    loss = LogitsDistillation().losses(student, teacher.eval().requires_grad_(False), batch, torch.tensor(tokens))
    loss.total.backward()
    seconds = time.perf_counter() - began
    print(seconds, peak())


def measured(chunks: bool, tokens: int) -> tuple[float, int]:
    code = f"from benchmarks.tokens import run; run({chunks}, {tokens})"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    return float(out[-2]), int(out[-1])


def main() -> None:
    rows = []
    for tokens, ways in ((512, (False, True)), (1024, (False, True)), (4096, (True,))):
        for chunks in ways:
            seconds, size = measured(chunks, tokens)
            way = "in chunks" if chunks else "whole logits"
            rows.append({"tokens": tokens, "loss": way, "peak MiB": round(size / 2**20), "seconds": seconds})
    write(
        "tokens",
        f"Peak {KIND} of a step over tokens, {VOCABULARY:,} words",
        rows,
        "Whole logits of 4,096 tokens do not fit into this machine. Their peak grows by as much with every 512 tokens.",
    )
