"""What a user asks for: which matrices are over-parameterized, by how much, and what pulls them to a teacher."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from opdf.overparam.shapes import Factors, MPOShape, check, explicit, plan_shape

LR_SCALINGS = ("match-dense", "none")
PLACEMENTS = ("replicate", "owner")
PRECISIONS = ("float32", "tf32", "bf16")
PRESETS = ("blocks", "all-linear")
GAUGES = ("matched", "raw")
NORMALIZATIONS = ("relative", "mse")

LayerMap = str | Mapping[int, int] | Mapping[str, str]


@dataclass(frozen=True)
class OverParamConfig:
    """How to over-parameterize a model.

    Args:
        ones: number L of 1x1 sites between the two outer cores. 0 is the paper's SVD baseline. 3 when neither `scale`
            nor `shapes` says otherwise.
        scale: instead of `ones`, the wanted ratio of training to dense parameters of each matrix.
        shapes: explicit factors by name pattern, `{pattern: (row_factors, col_factors)}`; other matrices follow
            `ones` or `scale`. Rows are output features.
        targets: "blocks" takes the attention and feed-forward matrices of transformer blocks; "all-linear" every
            Linear, Conv1D and attention input projection that is not tied; or name patterns. A pattern is a module's
            full name with shell wildcards, or the end of it after a dot: "query", "*.layer.0.*", "conv1".
        exclude: name patterns to leave out.
        lr_scaling: "match-dense" scales the cores' learning rate so that a step moves every matrix about as far as the
            same optimizer would move it densely; "none" uses the group's rate on the cores, as the paper does.
        keep_products: keep the products of a step's contraction for the next step's gradient. That saves a seventh of
            the matrix products at L = 1 and a fifth at L = 3, and takes about the cores' size in memory. None keeps
            them on CPUs only.
        precision: of the products between cores: "float32"; "tf32", on GPUs that have it; or "bf16". Each product is
            rounded, in tf32 to 2^-11 and in bf16 to 2^-8 of the weight. Cores, moments and weights stay in float32.
            Float64 weights are not affected.
        placement: with several processes, "replicate" steps all cores on every one; "owner" gives each matrix's cores
            and moments to one, which steps them and sends the weight to the others.

    Raises:
        ValueError, TypeError: a field has a wrong value or type.
    """

    ones: int | None = None
    scale: float | None = None
    shapes: Mapping[str, Factors] | None = None
    targets: str | Sequence[str] = "blocks"
    exclude: Sequence[str] = ()
    lr_scaling: str = "match-dense"
    keep_products: bool | None = None
    precision: str = "float32"
    placement: str = "replicate"

    def __post_init__(self) -> None:
        _one_of("lr_scaling", self.lr_scaling, LR_SCALINGS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("placement", self.placement, PLACEMENTS)
        if isinstance(self.targets, str):
            _one_of("targets", self.targets, PRESETS, hint="or a list of name patterns")
        else:
            _names("targets", self.targets)
        object.__setattr__(self, "exclude", _names("exclude", self.exclude))
        if not isinstance(self.keep_products, bool | None):
            raise TypeError(f"keep_products is {self.keep_products!r}; give True, False or None")
        if self.shapes is not None and not isinstance(self.shapes, Mapping):
            raise TypeError(f"shapes is {self.shapes!r}; give {{pattern: (row_factors, col_factors)}}")
        check(self.ones, self.scale)
        shapes = self.shapes or {}
        _names("shapes", shapes)
        for pattern, factors in shapes.items():
            if not (_is_list(factors) and len(factors) == 2 and all(map(_is_list, factors))):
                raise ValueError(f"shapes[{pattern!r}] is {factors!r}; give (row_factors, col_factors)")
            explicit(factors)

    def plan(self, rows: int, cols: int, factors: Factors | None = None) -> MPOShape:
        """The shape of one matrix of `rows` x `cols`; `factors` are the explicit ones, when a pattern names it."""
        if factors is not None:
            return explicit(factors)
        return plan_shape(rows, cols, ones=self.ones, scale=self.scale)


@dataclass(frozen=True)
class Constraint:
    """The constraint loss (OPDF, equation 5): auxiliary cores of the student are pulled to the teacher's.

    Args:
        weight: factor of the loss.
        layer_map: which teacher block a student block follows. "last" takes the last of its group of teacher blocks,
            "first" the first. `{student block: teacher block}` and `{student name: teacher name}` of weights are
            explicit; matrices that they do not mention go without the constraint.
        gauge: "matched" rotates the teacher's bonds to the student's first; "raw" compares the cores as decomposed.
        normalize: "relative" sums |S - T|^2 / |T|^2 over auxiliary cores and matrices, so that weights of order 1
            matter; "mse" is equation 5: mean squared error, averaged over auxiliary cores and matrices. S and T are
            the student's and the teacher's cores.

    Raises:
        ValueError, TypeError: a field has a wrong value or type.
    """

    weight: float = 0.1
    layer_map: LayerMap = "last"
    gauge: str = "matched"
    normalize: str = "relative"

    def __post_init__(self) -> None:
        _one_of("gauge", self.gauge, GAUGES)
        _one_of("normalize", self.normalize, NORMALIZATIONS)
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float):
            raise TypeError(f"weight is {self.weight!r}; give a number, 0 or more")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight is {self.weight}; it must be a finite number, 0 or more")
        if self.layer_map not in ("last", "first") and not _is_map(self.layer_map):
            raise ValueError(
                f"layer_map is {self.layer_map!r}; expected 'last', 'first' or a mapping, of block numbers to block "
                "numbers or of names to names"
            )


def _names(field: str, patterns: object) -> tuple[str, ...]:
    """Name patterns, which are in a list, or are the keys of a mapping."""
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        raise TypeError(f"{field} is {patterns!r}; give a list of name patterns")
    found = tuple(patterns)
    for pattern in found:
        if not isinstance(pattern, str):
            raise TypeError(f"{field} holds {pattern!r}; give name patterns as strings")
    return found


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_map(value: object) -> bool:
    kinds = {type(entry) for pair in value.items() for entry in pair} if isinstance(value, Mapping) else set()
    return kinds in ({int}, {str})


def _one_of(name: str, value: object, allowed: Sequence[str], hint: str = "") -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))} {hint}".rstrip())
