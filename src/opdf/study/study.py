"""A study's configuration, resolved: each of its runs, and their results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from opdf.data import METADATA, PICTURES, Task, below, encode_rows, located
from opdf.files import digest_of
from opdf.job import (
    DistillConfig,
    Fit,
    Job,
    StudentConfig,
    UserError,
    build_objective,
    check_models,
    check_task,
    file_digests,
    fill,
    load,
    load_processor,
    load_teacher,
    merged,
    named_models,
    plain,
    prepare_data,
    versions,
)
from opdf.study.config import StudyConfig
from opdf.study.judge import OF_TOKENS, Judge, labels_of, raw_labels
from opdf.study.plan import Cell, Plan
from opdf.study.results import conclude
from opdf.study.store import Outcome, Store

OURS = {
    "output": "", "overwrite": "", "resume": "", "seed": ", and give seeds", "data.seed": ", and give seeds",
    "training.learning_rate": ", and give learning_rates", "training.save_strategy": "",
}  # fmt: skip
"""Options of a run that the study sets, and where the user can."""

SAME_ROWS = ("name", "task", "inputs", "label", "labels", "validation", "test", "drop_empty")
"""Options of data that decide which rows students are judged on, and by which labels."""

SAME_TOKENS = ("max_length", "pack", "answers_only")
"""Those that also decide on which tokens students are judged, where tokens have labels."""

TEST_LABELS = "test_labels"
"""A key in the facts of a run: the name of the labels that its answers are scored by, see `labels_digest`."""

EXAMPLE = "{KD: {}, OPDF: {overparam: {ones: 3}}}"


class Study:
    """A study, resolved.

    Args:
        config: the study's file.

    Attributes:
        plan: its runs.
        folder: its output folder.

    Raises:
        UserError: something in the configuration is unknown or wrong.
        ValueError: its lists are empty or repeat themselves, see `Plan`.
    """

    def __init__(self, config: StudyConfig) -> None:
        if not config.variants:
            raise UserError(f"variants is empty; name at least two, e.g. {EXAMPLE}")
        if config.workers < 1:
            raise UserError(f"workers is {config.workers}; give at least 1")
        self.options = config
        self.folder = Path(config.output)
        self._settings = dict(_settings(config))
        # Names are texts, as JSON has them: YAML reads the name 3 as a number.
        given = {str(name): changes or {} for name, changes in config.variants.items()}
        self._variants = {name: dict(_mapping(changes, f"variant {name!r}")) for name, changes in given.items()}
        timed_by = {name: changes.pop("as_long_as", None) for name, changes in self._variants.items()}
        self._timed_by = {name: None if other is None else str(other) for name, other in timed_by.items()}
        baseline = "" if config.baseline is None else str(config.baseline)
        self.plan = Plan(
            tuple(self._settings), tuple(self._variants), tuple(config.learning_rates), tuple(config.seeds),
            baseline or next(iter(self._variants)),
        )  # fmt: skip
        self.loaded = lru_cache(self._load)
        self._read = lru_cache(None)(lambda setting, variant: files_of(self.config(setting, variant)))
        for variant in self.plan.variants:
            self._check_time(variant)
            for setting in self.plan.settings:
                Job(self.config(setting, variant))
                self._check_same(setting, variant, SAME_ROWS)

    def config(self, setting: str, variant: str) -> DistillConfig:
        """What the runs of a variant on a setting have in common."""
        return fill(DistillConfig, self._given(setting, variant), f"variant {variant!r} of {setting!r}")

    def as_long_as(self, variant: str) -> str | None:
        """The variant whose time of training this one has; None if it has its own number of steps."""
        return self._timed_by[variant]

    def check(self) -> None:
        """Refuse data that cannot be read or judged, and variants whose models, constraint or objective do not fit.

        Raises:
            UserError: one of these.
        """
        teachers: dict[str, Any] = {}
        done, first = self.store.outcomes(), self.plan.seeds[0]
        for setting in self.plan.settings:
            self._check_size(setting)
            _, task = self.loaded(setting, first)
            for variant in self.plan.variants:
                config = self.config(setting, variant)
                job = Job(config)
                check_task(job, task)
                # A method that trains its teacher takes one without a head, which others would learn from.
                key = digest([setting, plain(config.teacher), job.objective.trains_teacher])
                if key not in teachers:
                    teachers[key] = load_teacher(job, task)
                check_start(setting, variant, check_models(job, task, teachers[key]))
                check_kind(config.data.name, task, probe=self.options.probe)
                if task.kind in OF_TOKENS:
                    self._check_tokens(setting, variant, task)
            if any((cell.setting, cell.seed) == (setting, first) for cell in done):
                self._labels(done, setting, first)

    def check_files(self, setting: str, variant: str) -> None:
        """Refuse to go on where files have changed since the runs that read them got their names.

        Raises:
            UserError: some have.
        """
        if files_of(self.config(setting, variant)) != self._read(setting, variant):
            raise UserError(
                f"files that {variant!r} of {setting!r} reads have changed since the sweep began; start it again, and "
                "the runs that read them are made anew"
            )

    @cached_property
    def store(self) -> Store:
        """The runs of the plan, done and missing."""
        return Store(self.folder / "runs", {cell: self._key(cell) for cell in self.plan.cells()})

    def results(self) -> dict[str, Any]:
        """The content of results.json.

        Raises:
            UserError: data have changed, so that the answers are not to these labels.
        """
        for setting in self.plan.settings:
            self.check_files(setting, self.plan.baseline)

        first, done = self.plan.seeds[0], self.store.outcomes()
        tasks = {setting: self.loaded(setting, first)[1] for setting in self.plan.settings}
        judges = {setting: Judge(task) for setting, task in tasks.items()}
        return {
            "plan": asdict(self.plan),
            "metrics": {setting: task.metric for setting, task in tasks.items()},
            "study": plain(self.options),
            "versions": versions(),
            **conclude(self.plan, done, partial(self._labels, done), judges),
        }

    def _labels(self, done: Mapping[Cell, Outcome], setting: str, seed: int) -> np.ndarray:
        """Of a setting's test split.

        Raises:
            UserError: they are not those of runs that are done. A set on the hub can change, and so can what cuts it.
        """
        raw, task = self.loaded(setting, seed)
        config = self.config(setting, self.plan.baseline)
        if task.kind in OF_TOKENS:
            found = labels_of(prepare_data(replace(config.data, seed=seed), config.teacher), "test")
        else:
            found = raw_labels(raw["test"], task)
        name = labels_digest(found)
        runs = [outcome for cell, outcome in done.items() if (cell.setting, cell.seed) == (setting, seed)]
        others = sum(outcome.facts.get(TEST_LABELS, name) != name for outcome in runs)
        if others:
            raise UserError(
                f"{others} of {len(runs)} runs on {setting!r} with seed {seed} answered other test rows than "
                f"{config.data.name} has now; bring back the data and the packages of then, or give another output"
            )
        return found

    def _load(self, setting: str, seed: int) -> tuple[Any, Task]:
        return load(replace(self.config(setting, self.plan.baseline).data, seed=seed))

    def _given(self, setting: str, variant: str) -> dict[str, Any]:
        """A run's configuration as the file has it, without defaults: when these change, it stays the same run."""
        given = merged(self._settings[setting], self._variants[variant])
        for key, remedy in OURS.items():
            *part, name = key.split(".")
            options = given.get(part[0]) if part else given
            if isinstance(options, dict) and name in options:
                where = f"variant {variant!r} of {setting!r}"
                raise UserError(f"{where}: {key} is set by the study itself; remove it{remedy}")
        return given

    def _key(self, cell: Cell) -> str:
        """A name for all that determines a run, and nothing else."""
        names = [cell.variant, *([other] if (other := self.as_long_as(cell.variant)) is not None else [])]
        given = [self._given(cell.setting, name) for name in names]
        files = [content for name in names for content in self._read(cell.setting, name)]
        return digest([given, cell.rate, cell.seed, self.options.probe, self.options.curve, *files])

    def time_key(self, setting: str, variants: Sequence[str]) -> str:
        """A name for what determines how long steps of some variants take."""
        configs = [self.config(setting, name) for name in variants]
        return digest([*map(plain, configs), *(content for config in configs for content in files_of(config))])

    def teacher_key(self, config: DistillConfig) -> str:
        """A name for what determines the data and the teacher of a run."""
        files = files_of(replace(config, student=StudentConfig()))  # students of other files may share it
        return digest([plain(config.data), plain(config.teacher), *files])

    def _check_tokens(self, setting: str, variant: str, task: Task) -> None:
        """Refuse a variant whose texts are cut into other tokens than the baseline's."""
        self._check_same(setting, variant, SAME_TOKENS)
        mine, theirs = (self.config(setting, name).teacher for name in (variant, self.plan.baseline))
        if mine == theirs:
            return
        rows = self.loaded(setting, self.plan.seeds[0])[0]["test"][:]
        how: dict[str, Any] = {"max_length": None, "answers_only": self.config(setting, variant).data.answers_only}
        one, other = (encode_rows(rows, task, load_processor(of, task), **how) for of in (mine, theirs))
        if one["labels"] != other["labels"]:  # also with one vocabulary, if one alone ends its texts, say
            name, its = (of.models[0] if of.models else of.model for of in (mine, theirs))
            raise UserError(
                f"variant {variant!r} of {setting!r}: its teacher {name} has another tokenizer than {its} of "
                f"{self.plan.baseline!r}, and scores of other tokens cannot be compared; give teachers of one family"
            )

    def _check_same(self, setting: str, variant: str, options: Sequence[str]) -> None:
        """Refuse a variant that would be judged on other rows than the baseline, or by other labels."""
        mine, theirs = (plain(self.config(setting, name).data) for name in (variant, self.plan.baseline))
        for name in options:
            if mine[name] != theirs[name]:
                raise UserError(
                    f"variant {variant!r} of {setting!r}: data.{name} is {mine[name]!r} and that of "
                    f"{self.plan.baseline!r} is {theirs[name]!r}; variants are compared on the same rows, so set it in "
                    "common or in tasks"
                )

    def _check_size(self, setting: str) -> None:
        """Refuse a size that the data do not have: they would stand there as more than they are.

        How many rows are left for training depends on the seed, since rows that say the same stay together.
        """
        if not self.options.train_sizes:
            return
        size = self._settings[setting]["data"]["train_limit"]
        rows, seed = min((len(self.loaded(setting, seed)[0]["train"]), seed) for seed in self.plan.seeds)
        if rows < size:
            raise UserError(
                f"train_sizes holds {size}, and {setting.removesuffix(f'/{size}')} has {rows} training examples with "
                f"seed {seed}; give sizes up to that"
            )

    def _check_time(self, variant: str) -> None:
        other, where = self.as_long_as(variant), f"variant {variant!r}: as_long_as"
        if other is None:
            return
        if other not in self._variants or self.as_long_as(other) is not None:
            own = [name for name in self._variants if self.as_long_as(name) is None]
            raise UserError(f"{where} is {other!r}; expected a variant with steps of its own: {', '.join(own)}")
        for key in ("max_steps", "num_train_epochs"):
            if key in (self._variants[variant].get("training") or {}):
                raise UserError(f"{where} sets the number of steps; remove training.{key}")


def check_kind(name: str, task: Task, *, probe: bool) -> None:
    """Refuse data whose answers a study cannot score.

    Args:
        name: of the data.
        task: of them.
        probe: whether a linear classifier gives the answers.

    Raises:
        UserError: it cannot.
    """
    if task.is_unlabelled:
        raise UserError(f"{name} has no labels, by which a study judges; name their column, or use opdf distill")
    if probe and not task.has_classes:
        raise UserError(
            f"probe is true and {name} is for {task.kind}; a linear classifier needs one class an example: leave it out"
        )


def check_start(setting: str, variant: str, fit: Fit) -> None:
    """Refuse a student that would not start as the others do; a single run trains it with a warning.

    Raises:
        UserError: no start was asked for, and the student cannot start from its teacher.
    """
    if fit.start.why_not:
        raise UserError(
            f"variant {variant!r} of {setting!r}: the student cannot start from its teacher: {fit.start.why_not}. If "
            "another start is meant, set student.start: random, or copy for kept blocks"
        )


def files_of(config: DistillConfig) -> list[dict[str, str]]:
    """Digests of the files of this machine that a run reads, a mapping for each path; embedded ones have none.

    When one changes, so do the runs. Of images in a folder it is their names and sizes.
    """
    data = [
        Path(located(n)) for n in (config.data.name, config.data.validation, config.data.test) if isinstance(n, str)
    ]
    models = [Path(name) for name in named_models(config).values() if name != "minilm"]
    found = [file_digests(path) for path in models if path.is_dir()]
    for path in data:
        if path.is_file():
            found.append({path.name: digest_of(path)})
        elif path.is_dir():
            found.append(_images_in(path))
    store = build_objective(config).cache
    if store is not None and (store / "teacher" / "config.json").is_file():  # then it is the teacher
        found.append(file_digests(store / "teacher"))
    return found


def _images_in(folder: Path) -> dict[str, str]:
    """Sizes of images and digests of their tables, by name. Other files are not read: file managers leave some."""
    found = {}
    for path in sorted(below(folder)):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            if path.name in METADATA:
                found[str(name)] = digest_of(path)
            elif path.suffix.lower() in PICTURES:
                found[str(name)] = str(path.stat().st_size)
    return found


def labels_digest(labels: np.ndarray) -> str:
    """A short name for the labels of a split."""
    return digest([str(labels.dtype), labels.shape, hashlib.sha256(labels.tobytes()).hexdigest()])


def digest(content: Any) -> str:
    """A short name for JSON content."""
    content = json.loads(json.dumps(content))  # with texts as keys: numbers, of classes say, have no order among texts
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _settings(study: StudyConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and configurations of tasks, one for every size if sizes are given."""
    for name, changes in study.tasks.items():
        given = merged(_mapping(study.common, "common"), _mapping(changes or {}, f"task {name!r}"))
        for size in study.train_sizes or ():
            yield f"{name}/{size}", merged(given, {"data": {"train_limit": size}})
        if not study.train_sizes:
            yield str(name), given


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where} is {value!r}; expected keys of a configuration such as data and student")
    return value
