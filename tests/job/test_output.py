"""Output folders: one process at a time owns one, links and read-only places."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig

from families import build
from jobs import bert, digits, read_only_folder, texts
from opdf.files import owned
from opdf.job import UserError, run
from opdf.job.output import check_free, claimed, save
from opdf.job.resume import begun_with

FORKS = multiprocessing.get_context("fork")


def own(folder: Path, ready: Any) -> None:
    """In another process: own a folder until the end."""
    with owned(folder):
        ready.set()
        signal.pause()


@pytest.fixture
def owner(tmp_path: Path) -> Any:
    """Another process, which owns the folder `out`."""
    ready = FORKS.Event()
    process = FORKS.Process(target=own, args=(tmp_path / "out", ready), daemon=True)
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_folder_in_use_is_refused_and_the_message_says_by_whom(owner: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / "config.yaml").write_text("seed: 0\n")
    said = rf"out is in use by process {owner.pid} on \S+ since \d+-\d+-\d+ \d+:\d+:\d+; wait until that is done"
    with pytest.raises(FileExistsError, match=said):
        run(digits(folder, resume=True))
    with pytest.raises(FileExistsError, match=said):
        run(digits(folder, overwrite=True))
    assert (folder / "config.yaml").read_text() == "seed: 0\n"


def test_a_folder_is_not_emptied_of_what_a_run_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A teacher in the output folder was deleted, and the run ended as it was missing; data were deleted too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("seed: 0\n")
    bert(tmp_path / "out" / "teacher")
    rows = texts(tmp_path / "out" / "rows.jsonl").read_text()
    for option, name, changes in (
        ("teacher.model", "teacher", {"teacher": {"model": "out/teacher", "config": None}}),
        ("student.model", "teacher", {"student": {"model": "out/teacher", "layers": None}}),
        ("data.name", "rows.jsonl", {"data": {"name": "out/rows.jsonl"}}),
        ("data.test", "rows.jsonl", {"data": {"test": "out/rows.jsonl"}}),
        (
            "objective.options.store",
            "teacher",
            {"objective": {"name": "sparse-logits", "options": {"store": "out/teacher"}}},
        ),
    ):
        with pytest.raises(UserError, match=f"{option} .*/out/{name} is in out, which overwrite empties; move it"):
            run(digits(Path("out"), overwrite=True, **changes))
    assert (tmp_path / "out" / "rows.jsonl").read_text() == rows
    assert (tmp_path / "out" / "teacher" / "model.safetensors").is_file()


def test_a_saved_decoder_keeps_what_it_has_computed(tmp_path: Path) -> None:
    """The Trainer turns the cache off in the configuration, and generation took a pass over the whole text a token."""
    model = build("llama")
    model.config.use_cache = False
    save(model, SimpleNamespace(save_pretrained=lambda folder: None), tmp_path / "student")
    assert AutoConfig.from_pretrained(tmp_path / "student").use_cache
    assert not model.config.use_cache


def test_the_lock_of_a_killed_process_keeps_nobody_out(owner: Any, tmp_path: Path) -> None:
    owner.kill()
    owner.join()
    assert (tmp_path / "out" / ".lock").read_text().startswith(f"process {owner.pid} ")
    check_free(tmp_path / "out", overwrite=False, resume=False)
    with claimed(tmp_path / "out", overwrite=False, resume=False):
        assert (tmp_path / "out" / ".lock").read_text().startswith(f"process {os.getpid()} ")


def test_a_run_that_was_killed_in_its_first_file_begins_again(tmp_path: Path) -> None:
    """Neither a new run, nor overwrite, nor resume took what is left of config.yaml or begun.json then."""
    (tmp_path / ".config.yaml.123").touch()
    with claimed(tmp_path, overwrite=False, resume=False):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    for name in ("config.yaml", ".begun.json.123"):
        (tmp_path / name).touch()
    assert begun_with(tmp_path) is None
    with pytest.raises(FileExistsError, match="is not empty"):
        check_free(tmp_path, overwrite=False, resume=False)


@pytest.mark.parametrize(
    ("marker", "remedy"),
    [
        ("config.yaml", "is not empty; choose another, or set resume or overwrite to true"),
        ("demo.yaml", "is not empty; choose another, or set overwrite to true"),  # opdf demo has no option resume
    ],
)
def test_what_is_said_of_a_folder_that_is_not_empty_can_be_done(marker: str, remedy: str, tmp_path: Path) -> None:
    """Of a folder that the command did not write, overwrite and resume were offered and then refused."""
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match=r"is not empty and was not written by this command; choose another$"):
        check_free(tmp_path, overwrite=False, resume=False, marker=marker)
    (tmp_path / marker).touch()
    with pytest.raises(FileExistsError, match=f"{remedy}$"):
        check_free(tmp_path, overwrite=False, resume=False, marker=marker)


def test_two_runs_of_one_process_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        claimed(tmp_path / "out", overwrite=False, resume=False),
        pytest.raises(FileExistsError, match=f"in use by process {os.getpid()}"),
        claimed(tmp_path / "out", overwrite=False, resume=False),
    ):
        pass


def test_an_output_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    with claimed(tmp_path / "out", overwrite=False, resume=False):
        (tmp_path / "out" / "config.yaml").touch()
    assert (tmp_path / "disk" / "config.yaml").exists()
    with claimed(tmp_path / "out", overwrite=False, resume=True):
        assert (tmp_path / "out").is_symlink()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    with pytest.raises(FileExistsError, match="nowhere is a link that leads nowhere"):
        run(digits(tmp_path / "nowhere" / "out"))


def test_what_a_link_in_an_overwritten_folder_leads_to_is_kept(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").touch()
    (tmp_path / "out" / "link").symlink_to(tmp_path / "precious")
    with claimed(tmp_path / "out", overwrite=True, resume=False):
        assert (tmp_path / "precious" / "thesis.txt").exists()


def test_a_read_only_place_is_refused(tmp_path: Path) -> None:
    place = read_only_folder()
    if place is None:
        pytest.skip("no read-only file system is mounted")
    with pytest.raises(PermissionError, match=f"cannot be written: {place} is read-only for you; choose another"):
        run(digits(place / "out"))
