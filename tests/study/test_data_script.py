"""studies/data.py on a few lines of each package's file, in their formats."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from transformers import AutoTokenizer

from scripts import script

TABLE = (
    "Category\tText\nd\tstring\nclass\t\n\n"
    'earn\tchampion "products" ch, approves\nacq\t\ncomp.graphics\t3d \u00e9 images\n'
)
NOUNS = (
    "  29 Princeton University and LICENSEE agrees to preserve same.  \n"
    "00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 | that which is perceived  \n"
    '00007846 18 n 06 person 0 | a human being; "there was too much for one person to do" | so  \n'
    "15113229 28 n 01 period 0 000 | an amount of time  \n"
)


def test_rows_of_the_packages(tmp_path: Path) -> None:
    data = script("studies/data.py")
    assert list(data.topics(TABLE)) == [
        ('champion "products" ch, approves', "earn"),
        ("3d \u00e9 images", "comp.graphics"),
    ]
    found = list(data.supersenses(NOUNS))
    assert found == [
        ("that which is perceived", "Tops"),
        ('a human being; "there was too much for one person to do" | so', "person"),
        ("an amount of time", "time"),
    ]
    assert len(data.SUPERSENSES) == 26
    assert list(data.TOKENIZERS.values()) == ["r8-train.csv", "supersenses.csv"]
    data.write(tmp_path / "rows.csv", found)
    assert list(pd.read_csv(tmp_path / "rows.csv").itertuples(index=False, name=None)) == found
    data.tokenizer(tmp_path / "tokens", tmp_path / "rows.csv")
    made = AutoTokenizer.from_pretrained(tmp_path / "tokens")
    assert made.decode(made("an amount of time")["input_ids"]) == "[CLS] an amount of time [SEP]"
