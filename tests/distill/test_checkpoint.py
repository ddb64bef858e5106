"""Checkpoints: what is written is what is read, nothing half-written has a name, and every alteration is noticed."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from safetensors.torch import save_file
from tests.spoil import Spoiling, spoilings
from transformers import BertConfig, BertForSequenceClassification

from opdf import OverParamConfig
from opdf.distill import DistillationArguments, DistillationTrainer, LogitsDistillation, StorageError, checkpoint
from opdf.distill.checkpoint import MANIFEST, damage, newest_whole, publish, read_state, rotate, write_state, writing

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
TENSORS = st.sampled_from(
    [torch.arange(6.0).view(2, 3).t(), torch.tensor(3.5), torch.zeros(0, 2), torch.tensor([True]), torch.ones(2).half()]
)
KEYS = st.integers(0, 9) | st.text("ab.", max_size=3)
STATES = st.recursive(
    PLAIN | TENSORS,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@given(st.lists(st.dictionaries(st.integers(0, 3), STATES, max_size=3), min_size=1, max_size=3))
@settings(max_examples=40)
def test_a_state_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, parts: list[dict[Any, Any]]) -> None:
    folder = tmp_path_factory.mktemp("state")
    for process, part in enumerate(parts):
        write_state(folder, "optimizer", part, process)
    assert same(read_state(folder, "optimizer"), parts)


def test_large_states_are_cut_into_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 100)
    base = torch.arange(200.0)
    state = {"views": [base[k : k + 20] for k in range(0, 100, 10)], "large": base}  # overlapping, 80 bytes; 800 bytes
    write_state(tmp_path, "s", state)
    assert sorted(p.stat().st_size > 800 for p in tmp_path.glob("*.safetensors")) == [False] * 10 + [True]
    assert same(read_state(tmp_path, "s"), [state])


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_state(tmp_path, "s", {"x": object()})
    assert not list(tmp_path.iterdir())


def made(folder: Path, step: int) -> Path:
    """A published checkpoint."""
    scratch = folder / "_partial" / f"checkpoint-{step}"
    (scratch / "inner").mkdir(parents=True)
    write_state(scratch, "optimizer", {"a": torch.full((9,), float(step))})
    (scratch / "trainer_state.json").write_text("{}")
    (scratch / "inner" / "more.bin").write_bytes(b"1234")
    publish(scratch, folder / scratch.name)
    return folder / scratch.name


def test_all_of_a_checkpoint_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[Path] = []
    real = os.fsync

    def noted(descriptor: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    final = made(tmp_path, 3)
    scratch = tmp_path / "_partial" / "checkpoint-3"
    assert set(flushed[:-1]) == {scratch, *(scratch / path.relative_to(final) for path in final.rglob("*"))}
    assert flushed[-1] == tmp_path  # which has the new name in it


def test_a_published_checkpoint_is_whole_and_replaces_one_of_its_step(tmp_path: Path) -> None:
    first = made(tmp_path, 5)
    assert damage(first) is None
    (first / "stray.txt").write_text("notes of a user do not matter")
    assert damage(first) is None
    assert damage(tmp_path / "checkpoint-6") == "it does not exist"
    assert made(tmp_path, 5) == first
    assert not (first / "stray.txt").exists()
    assert damage(first) is None


@pytest.mark.parametrize(
    "name", [MANIFEST, "trainer_state.json", "optimizer-00000-00000.safetensors", "inner/more.bin"]
)
def test_every_alteration_is_noticed_and_named(tmp_path: Path, name: str) -> None:
    whole = made(tmp_path, 7)
    content = (whole / name).read_bytes()
    random.seed(0)
    for kind in ("bit", "cut", "longer", "empty", "gone"):
        if kind == "bit":
            spot = random.randrange(len(content))
            changed = content[:spot] + bytes([content[spot] ^ (1 << random.randrange(8))]) + content[spot + 1 :]
        else:
            changed = {"cut": content[:-1], "longer": content + b"x", "empty": b"", "gone": b""}[kind]
        (whole / name).write_bytes(changed)
        if kind == "gone":
            (whole / name).unlink()
        problem = damage(whole)
        assert problem is not None, kind
        if name != MANIFEST:  # an altered manifest can name any file
            assert name in problem
        (whole / name).write_bytes(content)
    assert damage(whole) is None


@given(
    st.binary(max_size=40) | st.sampled_from([b"[]", b"3", b'{"format":1}', b'{"format":1,"files":[]}', b"[" * 9999])
)
@settings(max_examples=100)
def test_no_manifest_makes_the_reader_fail(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / MANIFEST).write_bytes(content)
    assert damage(folder) is not None


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as a run leaves it."""
    folder = tmp_path_factory.mktemp("real")
    torch.manual_seed(0)
    student = BertForSequenceClassification(
        BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    )
    arguments = DistillationArguments(str(folder), max_steps=1, save_steps=1, use_cpu=True, disable_tqdm=True)
    rows = [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [3, 4], "labels": 1}]
    DistillationTrainer(
        student, arguments, objective=LogitsDistillation(alpha=0), overparam=OverParamConfig(ones=1), train_dataset=rows
    ).train()
    return folder / "checkpoint-1"


@given(draw=st.integers(0, 1000), spoiling=spoilings)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_spoiled_checkpoint_is_named_or_reads_as_it_was(real: Path, draw: int, spoiling: Spoiling) -> None:
    assert damage(real) is None
    with TemporaryDirectory() as folder:
        copy = Path(folder, real.name)
        shutil.copytree(real, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        spoiling.apply(files[draw % len(files)])
        if damage(copy) is None:
            assert same(read_state(copy, "optimizer"), read_state(real, "optimizer"))
            assert (copy / "trainer_state.json").read_text() == (real / "trainer_state.json").read_text()
        else:
            assert newest_whole(Path(folder), lambda _: None) is None


def test_the_newest_whole_checkpoint_is_found_by_its_step(tmp_path: Path) -> None:
    told: list[str] = []
    assert newest_whole(tmp_path, told.append) is None
    for step in (9, 10, 100):
        made(tmp_path, step)
    (tmp_path / "checkpoint-final").mkdir()
    (tmp_path / "checkpoint-100" / "optimizer-00000.json").unlink()
    assert newest_whole(tmp_path, told.append) == tmp_path / "checkpoint-10"
    (line,) = told
    assert f"{tmp_path / 'checkpoint-100'} is not used: it is incomplete: optimizer-00000.json is missing" == line


def test_old_checkpoints_go_in_the_order_of_their_writing_and_never_the_new_and_the_best(tmp_path: Path) -> None:
    for step in (30, 10, 11, 12):  # 30 was there when the run went back to 10
        made(tmp_path, step)
    names = lambda: sorted(int(p.name[11:]) for p in tmp_path.glob("checkpoint-*"))  # noqa: E731
    for limit, best, left in ((None, 30, [10, 11, 12, 30]), (3, 30, [11, 12, 30]), (1, 30, [12, 30]), (1, 12, [12])):
        rotate(tmp_path, limit, {tmp_path / "checkpoint-12", tmp_path / f"checkpoint-{best}"})
        assert names() == left
    assert not (tmp_path / "_partial").exists()


def test_a_full_disk_is_one_error_for_every_library(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk's: the system refuses the write in the same way."""
    big, path = torch.zeros(1 << 16), tmp_path / "big"
    writers = [
        lambda: save_file({"big": big}, path), lambda: torch.save(big, path), lambda: path.write_bytes(bytes(9999))
    ]  # fmt: skip
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in writers:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with (
                pytest.raises(StorageError, match=r"^the file could not be written: .*; free some$"),
                writing("the file", "free some"),
            ):
                write()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_file_system(tmp_path: Path) -> None:
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path]).returncode:
        pytest.skip("cannot mount a tmpfs here")
    try:
        with (
            pytest.raises(StorageError, match="optimizer could not be written: No space left on device"),
            writing("optimizer"),
        ):
            save_file({"big": torch.zeros(1 << 16)}, tmp_path / "big")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_other_errors_pass_through_unchanged() -> None:
    with pytest.raises(FileNotFoundError), writing("x"):
        Path("/nowhere/x").read_text()
    with pytest.raises(RuntimeError, match="shape"), writing("x"):
        raise RuntimeError("shape mismatch")
