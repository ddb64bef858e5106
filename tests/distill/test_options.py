"""What every method makes of options that are something else than they should be."""

from __future__ import annotations

import inspect
import re
import typing
from typing import Any

import numpy as np
import pytest
from tests.distill.small import bert

from opdf.distill import METHODS, DistillationArguments, Ensemble
from opdf.distill.methods.dbkd import count_decisions, decision_logits
from opdf.distill.named import build_objective
from opdf.distill.options import LARGEST, POSITIVE, number, whole

WRONG: dict[str, tuple[Any, ...]] = {
    "float": ("2", True, None, [0.5], 0.5j),
    "float | None": ("2", True, [0.5]),
    "int": ("2", True, None, 1.5),
    "int | None": ("2", True, 1.5),
    "bool": ("false", 1, None),
    "list[float] | None": ("12", 1, ["1", 2], [True, 2], {0: 1}),
    "str | Pairs": (3, None, [1, 2], [("0", "1")], [(0, 1, 2)], [(True, 1)]),
}
"""By the annotation of an argument, what is refused by its type."""

ARGUMENTS = [
    pytest.param(kind, argument, id=f"{name}-{argument.name}")
    for name, kind in METHODS.items()
    for argument in inspect.signature(kind).parameters.values()
]


@pytest.mark.parametrize(("kind", "argument"), ARGUMENTS)
def test_what_is_of_another_type_is_refused_in_words(kind: type, argument: inspect.Parameter) -> None:
    """Python's own would name neither the argument nor its value; a text or True could also be taken for a number."""
    if "str" not in argument.annotation:
        assert argument.annotation in WRONG
    for value in WRONG.get(argument.annotation, ()):
        said = rf"^{argument.name}(\[0\])? is .*; (give|expected) "
        with pytest.raises(TypeError, match=said) as found:
            kind(**{argument.name: value})
        shown = value[0] if isinstance(value, list) and "[0]" in str(found.value) else value
        assert f" is {shown!r}; " in str(found.value)


@pytest.mark.parametrize(("kind", "argument"), ARGUMENTS)
def test_numbers_are_finite_and_kept_as_pythons_own(kind: type, argument: inspect.Parameter) -> None:
    """NumPy's cannot be written as JSON, so that a run's record would not tell one from another."""
    if argument.annotation.startswith("float"):
        for value in (float("nan"), float("inf"), np.float32("nan"), 10**400):
            with pytest.raises(ValueError, match=rf"^{argument.name} is {value}; it must be "):
                kind(**{argument.name: value})
        assert type(getattr(kind(**{argument.name: np.float32(0.5)}), argument.name)) is float
    elif argument.annotation.startswith("int"):
        options = {argument.name: np.int64(1)}
        assert type(getattr(kind(**options), argument.name)) is int


@pytest.mark.parametrize(("kind", "argument"), ARGUMENTS)
def test_names_are_one_of_a_few(kind: type, argument: inspect.Parameter) -> None:
    if argument.annotation.startswith("str") and argument.default:
        for value in ("nothing", ""):
            with pytest.raises(ValueError, match=rf"^{argument.name} is {value!r}; expected .*{argument.default}"):
                kind(**{argument.name: value})
        with pytest.raises((ValueError, TypeError), match=rf"^{argument.name} is \['x'\]; expected "):
            kind(**{argument.name: ["x"]})


def test_a_range_is_told() -> None:
    for least, most, value, said in (
        (POSITIVE, LARGEST, np.float32(0), "x is 0.0; it must be a finite number above 0"),
        (0, LARGEST, -1, "x is -1; it must be 0 or more, and finite"),
        (0, 1, 1.5, "x is 1.5; it must be from 0 to 1"),
        (POSITIVE, 1, 0, "x is 0; it must be above 0 and at most 1"),
        (-LARGEST, LARGEST, -np.inf, "x is -inf; it must be a finite number"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            number("x", value, least, most)
    assert [number("x", value, 0, 1) for value in (0, 1)] == [0, 1]
    assert whole("x", 10**30) == 10**30


def test_every_number_of_the_trainer_is_one() -> None:
    """The launcher sets local_rank."""
    found = []
    for name, kind in typing.get_type_hints(DistillationArguments).items():
        kinds = set(typing.get_args(kind)) or {kind}
        if kinds & {int, float} and str not in kinds and name != "local_rank":
            found.append(name)
            for value in ("4", True, [1]):
                with pytest.raises(TypeError, match=rf"^{name} is {re.escape(repr(value))}; give a"):
                    DistillationArguments("x", **{"eval_strategy": "epoch", name: value})
            if type(None) not in kinds:
                with pytest.raises(TypeError, match=f"^{name} is None; give a"):
                    DistillationArguments("x", **{name: None})
    assert {"eval_steps", "data_seed", "early_stopping_patience"} < set(found)
    with pytest.raises(ValueError, match="data_seed is 4294967296; it must be below"):
        DistillationArguments("x", data_seed=2**32)


def test_others_that_take_such_options() -> None:
    for act, error, message in (
        (lambda: Ensemble([bert(2)] * 2, "21"), TypeError, "weights is '21'; give a list of numbers"),
        (lambda: Ensemble([bert(2)] * 2, [True, 2]), TypeError, "weights[0] is True; give a number"),
        (lambda: Ensemble([bert(2)], 2), TypeError, "weights is 2; give a list of numbers"),
        (lambda: build_objective({"name": ["logits"]}), ValueError, "objective is ['logits']; expected one of logits"),
        (lambda: count_decisions(len, [], 2, lambda x, r: x, copies=1.5), TypeError, "copies is 1.5; give an integer"),
        (lambda: decision_logits([[1, 2]], pseudo_count="1"), TypeError, "pseudo_count is '1'; give a number"),
        (lambda: DistillationArguments("x", adam_beta1="0.9"), TypeError, "adam_beta1 is '0.9'; give a number"),
        (lambda: DistillationArguments("x", adam_epsilon="1e-8"), TypeError, "adam_epsilon is '1e-8'; give a number"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            act()
    assert type(DistillationArguments("x", seed=np.int64(3), use_cpu=True).seed) is int
