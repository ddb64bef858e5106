"""Conclude committed results again by today's rule for intervals: `python studies/conclude.py studies/results/*`.

Nothing is trained, and answers on test splits are not needed: see `opdf.study.results.conclude_again`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from opdf.files import replacing
from opdf.study import conclude_again, read_results

for folder in map(Path, sys.argv[1:]):
    results = read_results(folder)
    effects = conclude_again(results)
    for old, new in zip(results["effects"], effects, strict=True):
        if old["verdict"].split()[:2] != new["verdict"].split()[:2]:
            where = f"{folder.name}, {new['setting']}, {new['variant']} at {new['at']} rates"
            print(f"{where}: {old['verdict']} -> {new['verdict']}")
    with replacing(folder / "results.json") as scratch:
        scratch.write_text(json.dumps({**results, "effects": effects}, ensure_ascii=False, separators=(",", ":")))
