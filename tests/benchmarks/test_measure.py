"""Timing and rates on a device that works when it is waited for, as a GPU does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import __main__ as command, measure


class Device:
    """Work is queued, and takes its time only when it is waited for."""

    def __init__(self) -> None:
        self.now = self.queued = 0.0

    def launch(self, seconds: float) -> None:
        self.queued += seconds

    def wait(self) -> None:
        self.now, self.queued = self.now + self.queued, 0.0


class Products(TorchDispatchMode):
    """Operations and dtypes of the matrix products inside."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.dtypes = 0, set[torch.dtype]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default:
            (rows, inner), (_, cols) = args[0].shape, args[1].shape
            self.flops += 2 * rows * inner * cols
            self.dtypes.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_a_run_is_timed_to_its_end_and_without_what_was_queued_before(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device()
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: device.now))
    device.launch(100)

    found = measure.alternate(
        {"short": lambda: device.launch(2), "long": lambda: device.launch(3)}, repeats=2, warmup=0, wait=device.wait
    )

    assert found == {"short": measure.Timing(2, 2, 2, 2), "long": measure.Timing(3, 3, 3, 2)}


@pytest.mark.parametrize(("kind", "waits"), [("cuda", 1), ("cpu", 0)])
def test_only_a_gpu_is_waited_for(kind: str, waits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[None] = []
    monkeypatch.setattr(measure, "DEVICE", torch.device(kind))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append(None))

    measure.synchronize()

    assert len(calls) == waits


@pytest.mark.parametrize(
    ("precision", "dtype", "setting"),
    [("float32", torch.float32, "ieee"), ("tf32", torch.float32, "tf32"), ("bf16", torch.bfloat16, "ieee")],
)
def test_the_rate_is_of_all_products_in_the_precision_asked_for(
    precision: str, dtype: torch.dtype, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = Products()

    def half_a_second(contenders: dict[str, Any], *_: Any, **__: Any) -> dict[str, measure.Timing]:
        assert torch.backends.cuda.matmul.fp32_precision == setting
        with products:
            contenders["matmul"]()
        return {"matmul": measure.Timing(0.5, 0.5, 0.5, 1)}

    monkeypatch.setattr(measure, "alternate", half_a_second)
    monkeypatch.setattr(measure, "PRODUCTS", 3)

    rate = measure.matmul_rate(precision, size=8)

    assert (products.flops, products.dtypes) == (3 * 2 * 8**3, {dtype})
    assert rate == products.flops / 0.5


def test_a_table_says_which_gpu_and_a_cpu_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "toy GPU")

    monkeypatch.setattr(measure, "DEVICE", torch.device("cpu"))
    assert "gpu" not in measure.machine()
    monkeypatch.setattr(measure, "DEVICE", torch.device("cuda"))
    assert measure.machine()["gpu"] == "toy GPU"


def test_gpu_benchmarks_run_by_default_only_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "DEVICE", torch.device("cpu"))
    assert command.chosen([]).names == list(command.BENCHMARKS)
    monkeypatch.setattr(command, "DEVICE", torch.device("cuda"))
    assert command.chosen([]).names == [*command.BENCHMARKS, *command.ON_GPU]
    assert command.chosen(["gpu-step", "step"]).names == ["gpu-step", "step"]


def test_naming_a_gpu_benchmark_without_a_gpu_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "DEVICE", torch.device("cpu"))

    with pytest.raises(SystemExit) as stopped:
        command.chosen(["step", "gpu-step"])

    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "gpu-step needs a CUDA GPU" in line
    assert command.chosen(["--toy", "gpu-step"]).names == ["gpu-step"]
