"""Cores from disk are those that decomposing gives; what is damaged, foreign or half-written is not taken for them."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from tests.spoil import Spoiling, spoilings
from torch import Tensor, nn

from opdf.mpo import MPOShape, decompose, plan_shape
from opdf.overparam import OverParamConfig, overparameterize
from opdf.overparam import cache as module
from opdf.overparam.cache import decompose_cached

SHAPE = plan_shape(24, 18, ones=2)


def matrix(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(24, 18, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many matrices each call has decomposed."""
    counts: list[int] = []
    real = module.decompose_many

    def counting(matrices: Any, *args: Any, **kwargs: Any) -> Any:
        counts.append(len(matrices))
        return real(matrices, *args, **kwargs)

    monkeypatch.setattr(module, "decompose_many", counting)
    return counts


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_second_time_it_is_read(tmp_path: Path, computed: list[int], dtype: torch.dtype) -> None:
    matrices, shapes = [matrix(0, dtype), matrix(1, dtype)], [SHAPE, SHAPE]
    first = decompose_cached(tmp_path / "new" / "folder", matrices, shapes)
    again = decompose_cached(tmp_path / "new" / "folder", [*matrices[::-1], matrix(2, dtype)], [SHAPE] * 3)
    assert computed == [2, 1]
    expected = [decompose(m, SHAPE) for m in (*matrices, matrix(2, dtype))]
    assert all(same(a, b) for a, b in zip([*first, again[2]], expected, strict=True))
    assert same(again[0], expected[1])
    assert same(again[1], expected[0])


@pytest.mark.parametrize(
    ("other", "shape", "gauge"),
    [
        (matrix(), plan_shape(24, 18, ones=1), "symmetric"),
        (matrix(), SHAPE.with_max_bond(7), "symmetric"),
        (matrix(), SHAPE, "left"),
        (matrix(0, torch.float64), SHAPE, "symmetric"),
        (matrix().nextafter(torch.tensor(1.0)), SHAPE, "symmetric"),
    ],
)
def test_everything_that_cores_depend_on_is_in_the_key(
    tmp_path: Path, computed: list[int], other: Tensor, shape: MPOShape, gauge: str
) -> None:
    decompose_cached(tmp_path, [matrix()], [SHAPE])
    found = decompose_cached(tmp_path, [other], [shape], gauge=gauge)
    assert computed == [1, 1]
    assert same(found[0], decompose(other, shape, gauge=gauge))


def test_transposed_views_are_other_matrices(tmp_path: Path, computed: list[int]) -> None:
    square = torch.arange(36.0).reshape(6, 6)
    shapes = [plan_shape(6, 6)] * 2
    found = decompose_cached(tmp_path, [square, square.T], shapes)
    assert not same(found[0], found[1])
    assert same(decompose_cached(tmp_path, [square.T.contiguous()], shapes[:1])[0], found[1])
    assert computed == [2]


class Foreign:
    def __reduce__(self) -> Any:
        return (print, ("unpickled!",))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit_of_a_core(path: Path) -> None:
    held = bytearray(path.read_bytes())
    core = torch.load(path, weights_only=True)["cores"][0]
    place = bytes(held).index(core.numpy().tobytes())
    held[place + 5] ^= 1
    path.write_bytes(held)


def exchange_a_core(change: Any) -> Any:
    def write(path: Path) -> None:
        held = torch.load(path, weights_only=True)
        held["cores"][0] = change(held["cores"][0])
        torch.save(held, path)

    return write


def of_another_key(path: Path) -> None:
    """What a file holds under another name is not what that name asks for."""
    other = path.parent / "other"
    decompose_cached(other, [matrix(1)], [SHAPE])
    (theirs,) = other.iterdir()
    theirs.replace(path)
    other.rmdir()


@pytest.mark.parametrize(
    "damage",
    [
        truncate, flip_a_bit_of_a_core, of_another_key, lambda p: p.write_bytes(b""), lambda p: p.write_text("text"),
        lambda p: p.write_bytes(pickle.dumps(Foreign())), lambda p: torch.save([1], p), lambda p: torch.save({}, p),
        lambda p: torch.save(nn.Linear(1, 1), p), exchange_a_core(lambda c: c[:, :-1]),
        exchange_a_core(lambda c: c.double()), exchange_a_core(lambda c: c * torch.nan), exchange_a_core(lambda c: 1),
    ],
)  # fmt: skip
def test_what_is_damaged_or_foreign_is_decomposed_anew(
    tmp_path: Path, computed: list[int], damage: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    decompose_cached(tmp_path, [matrix()], [SHAPE])
    (path,) = tmp_path.iterdir()
    damage(path)
    computed.clear()
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged or was not written by this cache .* anew"):
        found = decompose_cached(tmp_path, [matrix()], [SHAPE])
    assert same(found[0], decompose(matrix(), SHAPE))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decompose_cached(tmp_path, [matrix()], [SHAPE])
    assert computed == [1]
    assert "unpickled" not in capsys.readouterr().out


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(held: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        decompose_cached(tmp_path, [matrix()], [SHAPE])
    assert list(tmp_path.iterdir()) == []


def test_an_optimizer_starts_from_it(tmp_path: Path, computed: list[int]) -> None:
    trained = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 24), nn.Linear(24, 6))
        config = OverParamConfig(ones=2, targets=["0", "1"], cache=str(tmp_path))
        optimizer = overparameterize(model, config).optimizer(torch.optim.AdamW, lr=1e-2)
        for _ in range(2):
            model(torch.ones(1, 12)).square().sum().backward()
            optimizer.step()
        trained.append([p.detach().clone() for p in model.parameters()])
    assert computed == [2]
    assert same(*trained)


@given(spoiling=spoilings)
@settings(max_examples=150, deadline=None)
def test_a_spoiled_file_gives_the_cores_all_the_same(spoiling: Spoiling) -> None:
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (expected,) = decompose_cached(folder, [matrix()], [SHAPE])
        (path,) = Path(folder).iterdir()
        spoiling.apply(path)
        assert same(decompose_cached(folder, [matrix()], [SHAPE])[0], expected)
