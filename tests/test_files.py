"""What replaces a file or a folder is complete or absent."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from opdf.files import empty, replacing, replacing_folder


class BrokenError(Exception):
    """What goes wrong while something is written."""


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with replacing(path) as scratch:
        scratch.write_text("one")
        assert not path.exists()
    with suppress(BrokenError), replacing(path) as scratch:
        scratch.write_text("half of tw")
        raise BrokenError
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text() == "one"


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    left = tmp_path / ".out.partial"  # of a process that was killed
    left.mkdir()
    (left / "old").touch()
    with replacing_folder(folder) as scratch:
        (scratch / "new").touch()
        assert not folder.exists()
    with suppress(BrokenError), replacing_folder(folder) as scratch:
        (scratch / "newer").touch()
        raise BrokenError
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["out", "out/new"]


def test_a_folder_that_was_left_half_empty_is_known_by_its_last_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was to take the place of another could not begin again: config.yaml had been the first to go."""

    def killed(*_: object) -> None:
        raise BrokenError

    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints").mkdir()
    names = [tmp_path / "config.yaml", tmp_path / "checkpoints"]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(names))  # a file system gives them in any order
    with monkeypatch.context() as patch, suppress(BrokenError):
        patch.setattr("opdf.files.shutil.rmtree", killed)
        empty(tmp_path, last="config.yaml")
    assert all(path.exists() for path in names)
    empty(tmp_path, last="config.yaml")
    assert not any(path.exists() for path in names)
