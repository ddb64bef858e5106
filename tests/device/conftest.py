"""A stand-in for a GPU (standin.cpp), compiled and registered once, and what counts its memory and waits."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.utils import cpp_extension

from opdf.mpo import precision

SOURCE = Path(__file__).with_name("standin.cpp")
NAME = "standin"


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> torch.device:
    """The device. It stays registered in this process, and torch says from then on that there is an accelerator."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp(NAME) / "standin.so"
    paths = [f"-I{path}" for path in cpp_extension.include_paths()]
    paths += [f"-L{path}" for path in cpp_extension.library_paths()]
    subprocess.run(
        [compiler, "-O1", "-std=c++20", "-shared", "-fPIC", *paths, str(SOURCE), "-o", str(library), "-ltorch_cpu",
         "-lc10"], check=True,
    )  # fmt: skip
    torch.ops.load_library(str(library))
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, Backend())
    torch.utils.generate_methods_for_privateuse1_backend()
    return torch.device(NAME, 0)


class Backend(SimpleNamespace):
    """What torch and accelerate ask of a device's module."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def set_device(self, device: Any) -> None:
        pass

    def synchronize(self, *device: Any) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers are the CPU's."""

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    class device:  # noqa: N801 - as in torch.cuda
        def __init__(self, index: Any) -> None:
            pass

        def __enter__(self) -> None:
            pass

        def __exit__(self, *exception: Any) -> None:
            pass


@pytest.fixture
def single_only(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the device one without float64 and without factorizations, as Apple's GPUs are."""
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", {device.type})
    torch.ops.standin.single_only(True)
    yield
    torch.ops.standin.single_only(False)


@pytest.fixture
def train_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[torch.device], None]]:
    """Chooses the device that the next trainer finds, as it would find a GPU."""

    def choose(device: torch.device) -> None:
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", str(device))
        AcceleratorState._reset_state(reset_partial_state=True)

    # A model that is moved to CUDA keeps its parameters, and so what is tied or held by an optimizer; here only thus.
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield choose
    torch.__future__.set_swap_module_params_on_conversion(False)
    AcceleratorState._reset_state(reset_partial_state=True)
