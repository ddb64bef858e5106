"""Options of a command, from a YAML file and `--a.b value`, explained by --help."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import json
import re
import textwrap
import typing
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import docstring_parser
import yaml

from opdf.job import UserError, dataclass_of, fill, hints_of, load_yaml, read_yaml

Config = TypeVar("Config")

FILES = {"opdf distill": {"data", "teacher", "student"}, "opdf sweep": {"common", "tasks", "variants"}}
"""Commands that read files of their own, and keys by which such a file is known."""


def parse(argv: list[str], cls: type[Config], prog: str, description: str, positional: str = "") -> Config:
    """Options of a command as a dataclass. The first bare argument is the YAML file, or a field of `positional`.

    `positional` names fields, with spaces between. If the last one is a list, it takes all remaining bare arguments.

    Raises:
        UserError: an option is unknown or has the wrong type.
        FileNotFoundError: the YAML file does not exist.
    """
    if {"-h", "--help"} & set(argv):
        _help(cls, prog, description, positional).print_help()
        raise SystemExit(0)
    names = positional.split()
    several = bool(names) and _is_list(cls, names[-1])
    bare = list(itertools.takewhile(lambda word: word == "-" or not word.startswith("-"), argv))
    bare = bare if several else bare[: len(names) or 1]
    if len(bare) < len(names):
        which = "its first argument" if len(names) == 1 else "its first arguments"
        raise UserError(f"{prog} needs {' '.join(names).upper()} as {which}; see {prog} --help")
    given: dict[str, Any] = dict(zip(names, bare, strict=False))
    if several:
        given[names[-1]] = bare[len(names) - 1 :]
    elif bare and not names:
        given = read_yaml(bare[0])
        _check_command(given, cls, bare[0], prog)
    before = copy.deepcopy(given)
    _override(given, argv[len(bare) :])
    file = bare[0] if bare and not names else None
    try:
        found: Config = fill(cls, given, prog)
    except UserError as error:
        if file is not None:
            fill(cls, before, file)  # what is wrong may be the file's
        raise UserError(_as_option(str(error), prog)) from error
    return found


def _check_command(given: dict[str, Any], cls: type, file: str, prog: str) -> None:
    """Refuse the file of another command by that command's name; its keys would be unknown one by one."""
    for command, keys in FILES.items():
        found = sorted(keys & given.keys())
        if found and not keys & hints_of(cls).keys():
            raise UserError(f"{file} is a file for {command}, and {prog} has no {', '.join(found)}")


def _as_option(message: str, prog: str) -> str:
    """A message about a value that names the option as it is typed: `--overparam.ones is 'x'`."""
    found = re.match(rf"{re.escape(prog)}: ((?:\w+: )*\w+) (is|has) ", message)
    if found is None:
        return message
    return f"--{found[1].replace(': ', '.')} {found[2]} {message[found.end() :]}"


def _is_list(cls: type, field: str) -> bool:
    return typing.get_origin(hints_of(cls)[field]) is list


def _override(given: dict[str, Any], argv: list[str]) -> None:
    """Put `--a.b value`, `--a.b=value` and the switch `--a.b` into nested mappings; values are read as YAML."""
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"{word!r} is no option; options are written --name value")
        name, equals, text = word[2:].partition("=")
        if not equals:
            text = words.pop(0) if words and not words[0].startswith("--") else "true"
        *parents, last = name.replace("-", "_").split(".")
        place = given
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                place[parent] = {}
            place = place[parent]
        place[last] = _value(text)


def _value(text: str) -> Any:
    for read in (partial(json.loads, object_pairs_hook=_keys_once), load_yaml):
        try:
            value = read(text)
        except UserError:
            raise
        except (ValueError, RecursionError, yaml.YAMLError):
            continue
        # YAML takes what follows a # for a comment; columns have names such as "#1 String".
        plain = "#" in text and text.lstrip()[:1] not in ("'", '"')
        return text if plain and isinstance(value, str | None) else value
    return text


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON, which would keep the last value of a key that is given twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise UserError(f"key {key!r} is given twice, as {found[key]!r} and as {value!r}; give it once")
        found[key] = value
    return found


def at_least_one(config: Any, *names: str) -> None:
    """Refuse counts below 1; null leaves a count open."""
    for name in names:
        if (value := getattr(config, name)) is not None and value < 1:
            raise UserError(f"{name} is {value}; it must be at least 1")


def _help(cls: type, prog: str, description: str, positional: str) -> argparse.ArgumentParser:
    """A parser that only prints help: every option with its text from the docstring."""
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} {positional.upper() or '[CONFIG.yaml]'} [--option value ...]",
        description="\n\n".join(textwrap.fill(paragraph, 79) for paragraph in description.split("\n\n")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for title, options in _sections(cls, "", positional.split()):
        group = parser.add_argument_group(textwrap.fill(title, 79))
        for name, text in options:
            group.add_argument(f"--{name}", metavar="", help=text.replace("%", "%%"))
    return parser


def _sections(cls: type, prefix: str, positional: Sequence[str] = ()) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titles with options and what they do: a dataclass's own, then those of the dataclasses in it."""
    docs = docstring_parser.parse(cls.__doc__ or "")
    texts = {p.arg_name: " ".join((p.description or "").split()) for p in docs.params}
    own: list[tuple[str, str]] = []
    inner: list[tuple[str, list[tuple[str, str]]]] = []
    for item in dataclasses.fields(cls):
        nested = dataclass_of(hints_of(cls)[item.name])
        if nested:
            inner += _sections(nested, f"{prefix}{item.name}.")
        if item.name not in positional and (not nested or item.default is None):
            default = None if item.default is dataclasses.MISSING else item.default
            shown = "" if default in (None, (), "") else f" (default {json.dumps(default)})"
            own.append((f"{prefix}{item.name}", texts.get(item.name, "") + shown))
    return [((docs.short_description or "").rstrip("."), own), *inner]
