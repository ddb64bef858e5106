"""What replaces a file or a folder is complete or absent."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from opdf.files import replacing, replacing_folder


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
