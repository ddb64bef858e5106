"""A study's file: what each of its runs is, which of them are the same runs, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.study.example import OPDF, STUDY, config

from jobs import bert, texts
from opdf.job import UserError, load
from opdf.job.options import fill, read_yaml
from opdf.study import Outcome, Study, StudyConfig, study as study_module
from opdf.study.runner import Runner
from opdf.study.study import labels_digest

FILES = sorted((Path(__file__).parents[2] / "studies").rglob("*.yaml"))
STUDIES = [path for path in FILES if "output" in read_yaml(str(path))]  # the others are what some of these begin with

WIDE = {"layers": None, "config": {"hidden_size": 18}}
PAIRS = {"digits": {"data": {"name": "digits"}}, "pairs": {"data": {"name": "nyt-pairs"}}}


def keys(folder: Path, **changes: Any) -> set[str]:
    """Of all runs of a study."""
    return set(Study(config(folder, **changes)).store.keys.values())


def test_what_does_not_change_a_run_does_not_change_its_key(tmp_path: Path) -> None:
    plain = keys(tmp_path)
    assert len(plain) == 2 * 2 * 2
    assert keys(tmp_path, variants={"ours": OPDF, "theirs": {}}) == plain
    assert keys(tmp_path, tasks={"numerals": {}}) == plain
    assert keys(tmp_path, learning_rates=[1e-2, 1e-3], seeds=[1, 0], workers=2, baseline="OPDF") == plain
    assert keys(tmp_path / "elsewhere") == plain


def test_names_that_are_numbers_are_texts_as_in_the_results(tmp_path: Path) -> None:
    numbers = {0: {"overparam": {"ones": 0}}, 1: {"overparam": {"ones": 1}, "as_long_as": 0}}
    study = Study(config(tmp_path, variants=numbers, tasks={2020: {}}, train_sizes=None))
    assert (study.plan.settings, study.plan.variants, study.plan.baseline) == (("2020",), ("0", "1"), "0")
    assert study.as_long_as("1") == "0"
    assert Study(config(tmp_path, variants=numbers, baseline="1")).plan.baseline == "1"


def test_classes_may_be_called_by_numbers_and_by_words(tmp_path: Path) -> None:
    weights = {"data": {"class_weights": {1: 2.0, "unknown": 0.5}}}
    assert len(keys(tmp_path, tasks={"task": weights})) == len(keys(tmp_path))


def test_a_larger_study_keeps_the_runs_and_a_smaller_one_has_a_part_of_them(tmp_path: Path) -> None:
    plain = keys(tmp_path)
    more: dict[str, Any] = {
        "variants": STUDY["variants"] | {"SVD": {"overparam": {"ones": 0}}},
        "tasks": STUDY["tasks"] | {"mnist": {"data": {"name": "mnist-5k"}, "teacher": {"config": {"image_size": 28}}}},
        "train_sizes": [64, 128], "learning_rates": [1e-3, 1e-2, 1e-1], "seeds": [0, 1, 2],
    }  # fmt: skip
    for name, value in more.items():
        assert plain < keys(tmp_path, **{name: value})
    assert plain < keys(tmp_path, **more)
    for name, value in {"variants": {"KD": {}}, "learning_rates": [1e-3], "seeds": [1]}.items():
        assert len(keys(tmp_path, **{name: value}) & plain) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"common": STUDY["common"] | {"training": {"max_steps": 5, "per_device_train_batch_size": 16}}},
        {"tasks": {"digits": {"data": {"max_length": 64}}}},
        {"variants": {"KD": {"objective": {"name": "hidden"}}, "OPDF": {"overparam": {"ones": 2}}}},
        {"train_sizes": [65]},
        {"learning_rates": [2e-3]},
        {"seeds": [2]},
        {"probe": True},
        {"curve": True},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_a_run_makes_it_another(tmp_path: Path, change: dict[str, Any]) -> None:
    assert not keys(tmp_path, **change) & keys(tmp_path)


def test_files_that_change_make_runs_and_teachers_others(tmp_path: Path) -> None:
    """An interrupted sweep that goes on has runs of one kind; the same content elsewhere is other runs, by its name."""
    teacher, rows = bert(tmp_path / "teacher"), texts(tmp_path / "rows.jsonl")
    images = {"data": {"name": str(tmp_path / "images")}}
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / name / "0.png")
    files = {
        "data": {"name": str(rows), "test": str(rows)},
        "teacher": {"model": str(tmp_path / "teacher"), "config": None},
    }

    def named() -> list[tuple[set[str], str]]:
        """Runs of a study and the name of its teacher: of texts, of images, and of an embedded set."""
        found = []
        for task in (files, images, {}):
            options = config(tmp_path, tasks={"task": task}, train_sizes=None)
            found.append((keys(tmp_path, tasks={"task": task}, train_sizes=None),
                          Study(options).teacher_key(Study(options).config("task", "KD"))))  # fmt: skip
        return found

    before = named()
    assert named() == before
    texts(rows, [(k + 1) % 2 for k in range(60)])
    relabelled = named()
    with torch.no_grad():
        teacher.classifier.bias += 1
    teacher.save_pretrained(tmp_path / "teacher")
    (tmp_path / "images" / "dog" / "0.png").rename(tmp_path / "images" / "cat" / "1.png")
    retaught = named()
    for old, new, changed in ((before, relabelled, [0]), (relabelled, retaught, [0, 1])):
        assert [k for k in range(3) if not old[k][0] & new[k][0]] == changed
        assert [k for k in range(3) if old[k] != new[k]] == changed


def test_the_files_of_each_of_several_teachers_make_runs_others(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("first", "second")]
    for name in names:
        last = bert(Path(name))
    files = {
        "data": {"name": str(texts(tmp_path / "rows.jsonl"))},
        "teacher": {"models": names, "config": None, "finetune": False},
    }
    study: dict[str, Any] = {"tasks": {"task": files}, "train_sizes": None}
    before = keys(tmp_path, **study)
    assert keys(tmp_path, **study) == before
    with torch.no_grad():
        last.classifier.bias += 1
    last.save_pretrained(names[1])
    assert not keys(tmp_path, **study) & before


def test_a_folder_of_images_is_other_data_when_its_table_is_and_not_when_a_file_manager_was_there(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("0.png", "1.png"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / name)

    def labelled(*labels: str) -> set[str]:
        rows = "".join(f"{k}.png,{label}\n" for k, label in enumerate(labels))
        (folder / "metadata.csv").write_text(f"file_name,label\n{rows}")
        return keys(tmp_path, tasks={"images": {"data": {"name": str(folder)}}}, train_sizes=None)

    before = labelled("cat", "dog")
    assert not before & labelled("dog", "cat")  # which is as long
    for left in (".DS_Store", "Thumbs.db"):
        (folder / left).write_text("icons")
    assert labelled("cat", "dog") == before


def test_images_behind_links_are_other_data_when_they_change(tmp_path: Path) -> None:
    """Of folders of splits and classes, which are read as if they were there."""
    apart, folder = tmp_path / "apart", tmp_path / "images"
    for name in ("cat", "dog"):
        (apart / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(apart / name / f"{name}.png")
        (folder / "own").mkdir(parents=True, exist_ok=True)
        (folder / "own" / name).symlink_to(apart / name)
    (folder / "train").symlink_to(folder / "own")
    (folder / "own" / "loop").symlink_to(folder)

    def named() -> set[str]:
        return keys(tmp_path, tasks={"images": {"data": {"name": str(folder)}}}, train_sizes=None)

    before = named()
    assert named() == before
    (apart / "dog" / "dog.png").rename(apart / "cat" / "dog.png")
    assert not named() & before


def of_texts(folder: Path, labels: list[Any] | None = None, **teacher: Any) -> dict[str, Any]:
    """A task of texts whose teacher is a folder."""
    bert(folder / "teacher", **teacher)
    return {
        "data": {"name": str(texts(folder / "rows.jsonl", labels))},
        "teacher": {"model": str(folder / "teacher"), "config": None},
    }


def test_students_of_other_files_share_a_teacher(tmp_path: Path) -> None:
    task = of_texts(tmp_path)
    bert(tmp_path / "student")
    variants = {"KD": {}, "pretrained": {"student": {"layers": None, "model": str(tmp_path / "student")}}}
    study = Study(config(tmp_path, tasks={"task": task}, train_sizes=None, variants=variants))
    assert len({study.teacher_key(study.config("task", variant)) for variant in variants}) == 1


def test_files_that_change_under_a_sweep_end_it(tmp_path: Path) -> None:
    """Else its runs would be kept as those of the old files, and old answers be scored by new labels."""
    study = Study(config(tmp_path, tasks={"task": of_texts(tmp_path)}, train_sizes=None))
    cell = next(iter(study.store.keys))
    texts(tmp_path / "rows.jsonl", [(k + 1) % 2 for k in range(60)])
    for work in (lambda: Runner(study).run(cell), study.results):
        with pytest.raises(UserError, match="files that 'KD' of 'task' reads have changed since the sweep began"):
            work()


def test_answers_to_other_test_rows_are_not_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set on the hub has no file whose change is seen, and another version can cut any set otherwise."""

    def study() -> Study:
        return Study(config(tmp_path, variants={"KD": {}}, learning_rates=[1e-3], seeds=[0]))

    truth = study()._labels({}, "digits/64", 0)
    facts = {"test_labels": labels_digest(truth)}
    study().store.work(lambda cell: Outcome(0.5, truth.tolist(), 1.0, 2, 1, facts))
    assert study().results()["seeds"] == {"digits/64": [0]}
    study().check()
    monkeypatch.setattr(study_module, "load", lambda data: load(replace(data, seed=data.seed + 1)))
    for work in (study().results, study().check):
        with pytest.raises(UserError, match="1 of 1 runs on 'digits/64' with seed 0 answered other test rows than dig"):
            work()


def test_a_teacher_beside_stored_outputs_is_shared_with_no_other_variant(tmp_path: Path) -> None:
    """Else which of the two teachers all variants learn from would depend on which variant comes first."""
    stored = {"objective": {"name": "sparse-logits", "options": {"store": str(tmp_path / "store")}}}
    study = Study(config(tmp_path, variants={"stored": stored, "KD": {}}))

    def teachers() -> int:
        return len({study.teacher_key(study.config("digits/64", variant)) for variant in ("stored", "KD")})

    assert teachers() == 1
    before = set(study.store.keys.values())
    (tmp_path / "store" / "teacher").mkdir(parents=True)
    (tmp_path / "store" / "teacher" / "config.json").write_text("{}")
    assert teachers() == 2
    again = keys(tmp_path, variants={"stored": stored, "KD": {}})
    assert len(before & again) == len(before) / 2  # those that learn from another teacher now are others


def test_a_probe_is_for_classes(tmp_path: Path) -> None:
    task = of_texts(tmp_path, [k / 2 for k in range(60)], num_labels=1)
    with pytest.raises(UserError, match=r"rows.jsonl is for regression; a linear classifier needs one class"):
        Study(config(tmp_path, tasks={"task": task}, train_sizes=None, probe=True)).check()


def test_a_run_for_anothers_time_depends_on_that_one(tmp_path: Path) -> None:
    def timed(other: dict[str, Any]) -> set[str]:
        variants = {"KD": other, "OPDF": OPDF, "OPDF, KD's time": OPDF | {"as_long_as": "KD"}}
        return keys(tmp_path, variants=variants, seeds=[0], learning_rates=[1e-3])

    assert len(timed({})) == 3
    assert len(timed({}) & timed({"objective": {"name": "hidden"}})) == 1  # OPDF with its own steps
    assert timed({}) >= keys(tmp_path, seeds=[0], learning_rates=[1e-3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {}}, "variants is empty"),
        ({"variants": {"KD": {"overparm": None}}}, "variant 'KD' of 'digits/64' has no option 'overparm'"),
        ({"variants": {"KD": {"seed": 3}}}, "seed is set by the study itself"),
        ({"variants": {"KD": {"data": {"seed": 3}}}}, "data.seed is set by the study itself; remove it, and"),
        (
            {"variants": {"KD": {"training": {"learning_rate": 1e-3}}}},
            "variant 'KD' of 'digits/64': training.learning_rate is set by the study itself; remove it, and give learn",
        ),
        (
            {"variants": {"KD": {}, "other": {"data": {"name": "mnist-5k"}}}},
            "variant 'other' of 'digits/64': data.name is 'mnist-5k' and that of 'KD' is 'digits'; variants are",
        ),
        ({"variants": {"KD": {}, "other": {"data": {"test": 0.5}}}}, "data.test is 0.5 and that of 'KD' is 0.2"),
        ({"variants": {"KD": {}, "odd": {"student": WIDE}}}, "variant 'odd' of 'digits/64': the student cannot start"),
        ({"variants": {"KD": {"data": 3}}}, "data is 3; expected a mapping"),
        ({"variants": {"KD": 3}}, "expected keys of a configuration"),
        ({"tasks": {"digits": 3}}, "task 'digits' is 3; expected keys of a configuration"),
        ({"variants": {"KD": {}, "OPDF": {"as_long_as": "kd"}}}, "as_long_as is 'kd'; expected a variant .*: KD$"),
        ({"variants": {"KD": {"as_long_as": "KD"}}}, "as_long_as is 'KD'; expected a variant with steps of its own"),
        (
            {"variants": {"KD": {}, "OPDF": {"as_long_as": "KD", "training": {"max_steps": 3}}}},
            "as_long_as sets the number of steps; remove training.max_steps",
        ),
        ({"baseline": "kd"}, "baseline is 'kd'"),
        ({"seeds": []}, "seeds is empty"),
        ({"train_sizes": [64, 5000]}, r"train_sizes holds 5000, and digits has 12\d\d training examples"),
        ({"learning_rates": [-1.0]}, "learning_rates holds -1.0; they are finite and above 0"),
        ({"workers": 0}, "workers is 0"),
        ({"sizes": [3]}, "no option 'sizes'"),
        ({"tasks": {"file": {"data": {"name": "none.csv"}}}}, "none.csv does not exist"),
        ({"tasks": PAIRS}, "objective.name is 'logits' and the task of nyt-pairs is 'similarity'"),
        ({"variants": {"KD": {}, "odd": {"overparam": {"targets": ["nothing"]}}}}, "matches no matrix"),
        ({"variants": {"KD": {}, "odd": {"student": {"layers": 5}}}}, "layers is 5"),
    ],
)
def test_bad_studies(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Study(config(tmp_path, **changes)).check()


def test_a_size_that_some_seed_does_not_have_is_refused(tmp_path: Path) -> None:
    """Rows that say the same stay together, so that seeds leave other numbers of them for training."""
    rows = [f'{{"text": "w{k if k < 20 else k // 10}", "label": {k % 2}}}' for k in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    task = {"texts": {"data": {"name": str(tmp_path / "rows.jsonl")}}}
    study = Study(config(tmp_path, tasks=task, train_sizes=[60]))
    (most, first), *_, (least, last) = sorted(
        ((len(study.loaded("texts/60", seed)[0]["train"]), seed) for seed in range(4)), reverse=True
    )
    assert least < most
    message = rf"train_sizes holds {most}, and texts has {least} training examples with seed {last}; give"
    with pytest.raises(UserError, match=message):
        Study(config(tmp_path, tasks=task, train_sizes=[most], seeds=[first, last])).check()


@pytest.mark.slow
@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_committed_studies_are_as_large_as_their_first_lines_say(path: Path) -> None:
    given = read_yaml(str(path))
    given["common"]["training"].pop("bf16", None)  # which a CPU may not have
    given["common"]["teacher"]["training"].pop("bf16", None)
    study = Study(fill(StudyConfig, given, path.name))
    said = re.search(r"(\d+) runs", path.read_text())
    assert said is not None
    assert len(study.store.keys) == int(said[1])


@pytest.mark.parametrize("order", [("KD", "LGTM"), ("LGTM", "KD")])
def test_an_untrained_teacher_is_for_the_method_that_trains_it_alone(tmp_path: Path, order: tuple[str, str]) -> None:
    bert(tmp_path / "bert").bert.save_pretrained(tmp_path / "bert")  # without its head
    methods: dict[str, Any] = {"KD": {}, "LGTM": {"objective": {"name": "lgtm"}}}
    common = {
        "data": {"name": str(texts(tmp_path / "data.jsonl"))}, "student": {"layers": 1, "start": "copy"},
        "teacher": {"model": str(tmp_path / "bert")},
    }  # fmt: skip
    study = {"common": common, "tasks": {"texts": {}}, "train_sizes": None}
    with pytest.raises(UserError, match="bert is not trained for this task"):
        Study(config(tmp_path, variants={name: methods[name] for name in order}, **study)).check()
    Study(config(tmp_path, variants={"LGTM": methods["LGTM"]}, **study)).check()
