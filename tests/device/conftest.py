"""The GPU that this folder's tests train on, or what stands in for one (standin.cpp)."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
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
    """The first GPU, or the stand-in, which stays registered: from then on torch says that there is an accelerator."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if torch.backends.mps.is_available():
        pytest.skip("the Trainer takes Apple's GPU, whatever else there is")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a GPU, or g++ for its stand-in")
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


class Backend:
    """What torch and accelerate ask of a device's module. Random numbers are the CPU's."""

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

    def manual_seed_all(self, seed: int) -> None:
        pass

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def _is_in_bad_fork(self) -> bool:
        return False

    @contextmanager
    def device(self, index: Any) -> Iterator[None]:
        yield


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch has TF32 off for products and on for convolutions."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def count_waits(device: torch.device) -> Callable[[], AbstractContextManager[list[int]]]:
    """A context that puts into a list how often Python waited for the device in it."""

    @contextmanager
    def count() -> Iterator[list[int]]:
        found: list[int] = []
        if device.type == NAME:
            before = torch.ops.standin.waits()
            yield found
            found.append(torch.ops.standin.waits() - before)
            return
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.append(sum("synchronizing CUDA operation" in str(warning.message) for warning in seen))

    return count


@pytest.fixture
def single_only(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Makes the stand-in one without float64 and without factorizations, as Apple's GPUs are."""
    if device.type != NAME:
        pytest.skip("only the stand-in can do without float64")
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", {device.type})
    torch.ops.standin.single_only(True)
    yield
    torch.ops.standin.single_only(False)


@pytest.fixture
def train_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[torch.device], None]]:
    """Chooses the device that the next trainer finds."""

    def choose(device: torch.device) -> None:
        monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", str(device))
        AcceleratorState._reset_state(reset_partial_state=True)

    # A model that is moved to CUDA keeps its parameters, and so what is tied or held by an optimizer; here only thus.
    torch.__future__.set_swap_module_params_on_conversion(not torch.cuda.is_available())
    yield choose
    torch.__future__.set_swap_module_params_on_conversion(False)
    AcceleratorState._reset_state(reset_partial_state=True)
