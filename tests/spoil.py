"""Files with something done to them, for tests of readers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

BYTES = st.binary(min_size=1, max_size=8) | st.sampled_from([b'"BF16"', b'"F64"', b"[" * 2000, b"\xff", b"9" * 400])


@dataclass(frozen=True)
class Spoiling:
    """Bytes cut off, put in or written over at some place of a file."""

    how: str
    place: int
    extra: bytes

    def apply(self, path: Path) -> None:
        content = path.read_bytes()
        place = self.place % (len(content) + 1)
        rest = {"cut": b"", "insert": content[place:], "overwrite": content[place + len(self.extra) :]}[self.how]
        path.write_bytes(content[:place] + (b"" if self.how == "cut" else self.extra) + rest)


spoilings = st.builds(Spoiling, st.sampled_from(["cut", "insert", "overwrite"]), st.integers(0, 10_000), BYTES)
