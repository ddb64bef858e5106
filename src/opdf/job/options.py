"""Options from YAML files and mappings, checked against dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from opdf.files import replacing
from opdf.job.config import DistillConfig
from opdf.job.errors import UserError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

DEEPEST = 50
"""Mappings and lists inside each other in a file; ours have four."""

MERGE = "tag:yaml.org,2002:merge"
"""What YAML takes the key << for, which stands for other keys."""


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML mapping of plain values, over the file that its key `base` names, if any.

    Raises:
        UserError: it is no such mapping, or uses YAML that configurations do not need, see `_Loader`.
        FileNotFoundError: the file, or one that it builds on, does not exist.
    """
    content = _read_mapping(path)
    seen = [Path(path).resolve()]
    while (base := content.pop("base", None)) is not None:
        if not isinstance(base, str):
            raise UserError(f"{path}: base is {base!r}; expected the name of a file")
        file = seen[-1].parent / base
        if file.resolve() in seen:
            raise UserError(f"{path}: base {base} leads back to itself")
        seen.append(file.resolve())
        content = merged(_read_mapping(str(file)), content)
    return content


def read_config(path: str) -> DistillConfig:
    """The configuration of a distillation from a YAML file, as `opdf distill` reads it.

    Raises:
        UserError: an option is unknown or has the wrong type, or the file is no YAML mapping of plain values.
        FileNotFoundError: the file, or one that it builds on, does not exist.
    """
    config: DistillConfig = fill(DistillConfig, read_yaml(path), path)
    return config


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`; mappings in both are merged, so that a file says only what it changes."""
    both = {k: merged(under[k], v) for k, v in over.items() if isinstance(v, dict) and isinstance(under.get(k), dict)}
    return under | over | both


def _read_mapping(path: str) -> dict[str, Any]:
    if path and Path(path).is_dir():
        from opdf.job.output import CONFIG  # loads torch, which reading options does without

        config = Path(path, CONFIG)
        remedy = f"name {config}" if config.is_file() else "if it holds data, give it as data.name"
        raise UserError(f"{path} is a folder and no configuration file; {remedy}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"configuration file {path} does not exist")
    hint = "" if Path(path).suffix in (".yaml", ".yml") else "; if it holds data, give it as data.name"
    try:
        content = load_yaml(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path} is not valid YAML{where}: {error.problem}{hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {getattr(error, 'reason', error)}{hint}") from error
    except ValueError as error:  # a date that does not exist, say
        raise UserError(f"{path} holds a value that YAML cannot read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no options; expected keys such as data and student{hint}")
    return content


class _Loader(yaml.SafeLoader):
    """Reads YAML's plain values.

    It refuses tags that make objects (as SafeLoader does), deep nesting, keys that are given twice, and aliases: with
    these, a few lines can stand for billions of values or contain themselves.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        problem = None
        if self.check_event(yaml.AliasEvent):
            problem = "aliases (*name) are not read; write the value out, or share a file by base:"
        elif self.depth == DEEPEST:
            problem = f"more than {DEEPEST} mappings and lists inside each other"
        if problem:
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: dict[Any, str] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # refused below, as no key of Python's
            # Read, 1 and true are one key, which would lose a value; as text, 1 and '1' are.
            forms = (key.value,) if key.tag == MERGE else (key.value, self.construct_object(key))
            if (first := next((seen[form] for form in forms if form in seen), None)) is not None:
                said = f"key {key.value!r} is given twice"
                said += "" if first == key.value else f", first as {first!r}; put quotes around the names of both"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
            seen |= dict.fromkeys(forms, key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads as the same: it quotes the text 3e-5."""


# YAML 1.1 reads 3e-5, which has no dot, as text.
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
    )


# It also reads yes, no, on and off as truth values, but save_strategy: no is text. Only true and false stay.
for _letter in "yYnNoO":
    _Loader.yaml_implicit_resolvers[_letter] = [
        (tag, pattern) for tag, pattern in _Loader.yaml_implicit_resolvers[_letter] if tag != "tag:yaml.org,2002:bool"
    ]


def load_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def yaml_of(config: Any) -> str:
    """A configuration as text that `load_yaml` reads as the same."""
    text: str = yaml.dump(plain(config), Dumper=_Dumper, sort_keys=False)
    return text


def write_yaml(config: Any, path: Path) -> None:
    """A configuration as a file that `parse` reads again."""
    with replacing(path) as scratch:
        scratch.write_text(yaml_of(config))


def fill(cls: type, options: Any, where: str) -> Any:
    """An instance of a class from a user's options, in which dataclasses are mappings.

    Args:
        cls: a dataclass, or a class with typed arguments.
        options: its fields or arguments by name.
        where: what the options are called in messages.

    Raises:
        UserError: the options are no mapping, or one is unknown or has the wrong type.
    """
    return cls(**typed(cls, options, where))


def typed(cls: type, options: Any, where: str) -> dict[str, Any]:
    """The options of a class with numbers in text read and types checked, see `fill`."""
    known = hints_of(cls)
    if not isinstance(options, dict):
        raise UserError(f"{where} is {clipped(options)}; expected a mapping of options such as {next(iter(known))}")
    for key in options:
        if key not in known:
            raise UserError(f"{where} has no option {key!r}{suggest(str(key), known)}")
    nested = {k: dataclass_of(known[k]) for k, v in options.items() if v is not None or not _may_be_null(known[k])}
    filled = {k: fill(inner, options[k], f"{where}: {k}") for k, inner in nested.items() if inner}
    return {k: filled[k] if k in filled else _typed_value(cls, k, v, where) for k, v in options.items()}


def _typed_value(cls: type, key: str, value: Any, where: str) -> Any:
    from jsonargparse import ArgumentError

    hint = hints_of(cls)[key]
    if isinstance(value, dict) and dict[str, Any] in _members(hint):
        return value  # checked where it is used; jsonargparse would read the texts in it as YAML
    if isinstance(value, str) and _is_text(hint):
        return value  # jsonargparse would read the text "null" as null, and "[a]" as a list
    if value is None and hint == dict[str, Any]:
        return {}  # "training:" with nothing behind it
    try:
        if value is None and not _may_be_null(hint):
            raise TypeError("null")
        return _reader(cls, key).parse_object({key: value})[key]
    except (ArgumentError, TypeError) as error:
        raise UserError(f"{where}: {key} is {clipped(value)}; expected {_described(hint)}") from error


@cache
def _reader(cls: type, key: str) -> ArgumentParser:
    """A reader of one argument of a class, so that an error is about that one. Making it takes 0.01 seconds."""
    from jsonargparse import ArgumentParser  # takes a tenth of a second, which --help need not wait for

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, skip=hints_of(cls).keys() - {key})
    return parser


@cache
def hints_of(cls: type) -> dict[str, Any]:
    if dataclasses.is_dataclass(cls):
        return typing.get_type_hints(cls)
    return {name: a.annotation for name, a in inspect.signature(cls, eval_str=True).parameters.items()}


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union; other types alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _is_text(hint: Any) -> bool:
    """Whether a text is valid as it is: beside texts there are at most null, lists and mappings."""
    others = [member for member in _members(hint) if member is not str]
    return len(others) < len(_members(hint)) and all(
        member is type(None) or typing.get_origin(member) in (list, dict) for member in others
    )


def _may_be_null(hint: Any) -> bool:
    return bool({Any, type(None)} & set(_members(hint)))


def dataclass_of(hint: Any) -> type | None:
    return next((m for m in _members(hint) if isinstance(m, type) and dataclasses.is_dataclass(m)), None)


KINDS = {
    bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null",
    list: "a list", tuple: "a list", Sequence: "a list", dict: "a mapping", Mapping: "a mapping",
}  # fmt: skip


PLURALS = {str: "texts", int: "integers"}


def _described(hint: Any) -> str:
    """A type in a user's words."""
    words = []
    for member in _members(hint):
        kind, items = typing.get_origin(member) or member, typing.get_args(member)
        of = f" of {PLURALS[items[0]]}" if items and items[0] in PLURALS else ""
        words.append(KINDS.get(kind, getattr(kind, "__name__", str(kind))) + of)
    return " or ".join(dict.fromkeys(words))


def clipped(value: Any) -> str:
    """A value in a message."""
    shown = "null" if value is None else repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def suggest(key: str, known: Any) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of a few."""
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known are {', '.join(known)}" if len(known) < 15 else f"; {len(known)} are known, see the documentation"


def plain(value: Any) -> Any:
    """A configuration as mappings, lists and plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if type(value).__module__ == "numpy" and value.ndim == 0:
        return value.item()
    return str(value) if isinstance(value, Path) else value
