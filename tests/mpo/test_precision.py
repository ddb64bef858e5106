"""The precision of products, whichever of torch's two ways the process has set it by."""

from __future__ import annotations

import subprocess
import sys

import pytest

from opdf.mpo import matmul_precision

SETTINGS = [
    "pass",
    "torch.set_float32_matmul_precision('medium')",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "from transformers.utils import enable_tf32; enable_tf32(True)",
]

# A process for each setting: torch refuses to mix the two ways, and cannot be brought back from the newer one.
CODE = """
import os, sys, torch
from opdf.mpo import contract, decompose, matmul_precision, plan_shape

def state():
    return [b.fp32_precision for b in (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)]

def check(setting):
    exec(setting)
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
    cores = [core.double() for core in decompose(matrix, plan_shape(24, 30))]  # which the setting leaves alone
    assert torch.dist(contract(cores), matrix.double()) < 1e-5 * matrix.norm()
    assert state() == before

for setting in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        check(setting)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, setting
"""


def test_other_words_are_refused() -> None:
    with pytest.raises(ValueError, match="precision is 'high'; expected 'ieee' or 'tf32'"), matmul_precision("high"):
        pass


@pytest.mark.slow  # a process that imports torch
def test_it_is_set_inside_and_restored() -> None:
    done = subprocess.run([sys.executable, "-c", CODE, *SETTINGS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
