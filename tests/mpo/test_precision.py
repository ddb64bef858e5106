"""The precision of products, whichever of torch's two ways the process has set it by."""

from __future__ import annotations

import subprocess
import sys

import pytest

from opdf.mpo import matmul_precision

# One process for each: torch refuses to mix the two ways, and cannot be brought back from the newer one.
SETTINGS = [
    "pass",
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "from transformers.utils import enable_tf32; enable_tf32(True)",
]

CODE = """
import torch
from opdf.mpo import contract, decompose, matmul_precision, plan_shape

{setting}
state = lambda: [b.fp32_precision for b in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)]
before = state()
for inside in ("ieee", "tf32"):
    with matmul_precision(inside):
        assert state() == [inside, inside]
    assert state() == before
if torch.backends.fp32_precision == "tf32":  # and what was inherited is inherited still
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
    torch.backends.fp32_precision = "tf32"
matrix = torch.randn(24, 30)
assert torch.dist(contract(decompose(matrix, plan_shape(24, 30))), matrix) < 1e-5 * matrix.norm()
assert state() == before
"""


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="precision is 'high'; expected 'ieee' or 'tf32'"), matmul_precision("high"):
        pass


@pytest.mark.parametrize("setting", SETTINGS)
def test_it_is_set_inside_and_restored(setting: str) -> None:
    done = subprocess.run([sys.executable, "-c", CODE.format(setting=setting)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
