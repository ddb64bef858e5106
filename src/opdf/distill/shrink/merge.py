"""One branch of the student for several of the teacher's: heads and neurons of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from opdf.distill.shrink.branches import Branch
from opdf.distill.shrink.choose import choose_groups, choose_units, retold, units_of
from opdf.distill.shrink.matrices import Reader
from opdf.distill.shrink.moments import Moments
from opdf.distill.shrink.ridge import Affine

MOST = 12_288
"""Values among which to choose: their second moments take 1.2 GB in float64."""


@dataclass(frozen=True)
class Source:
    """A branch of the teacher that a branch of the student can be made from.

    Attributes:
        branch: of the teacher's block and the student's.
        reader: of what it reads, from the student's states.
        covariance: `[inner, inner]`, second moments of its inner values, where the student has fewer.
        outgoing: `[student width, inner]`, its output matrix in the student's coordinates.
    """

    branch: Branch
    reader: Reader
    covariance: Tensor | None
    outgoing: Tensor

    def start(self) -> Tensor:
        """Set the student's matrices but the output; returns a guess of that, `[student width, student inner]`."""
        return self.branch.start(self.reader, self.covariance, self.outgoing)


def start_from(
    sources: Sequence[Source], states: Sequence[Tensor], weights: Sequence[Tensor | None], constant: bool
) -> Tensor:
    """Set a student's matrices but the output, from the sources' heads or neurons that add most to the output.

    A student is made from each source. Of all their heads or neurons as many are chosen as one student has.

    Args:
        sources: in the order of the teacher's blocks. If there is no room for all, the last ones count.
        states: for each batch what the student's branch reads.
        weights: for each batch how much tokens count.
        constant: whether the output has a bias, so that a mean costs nothing.

    Returns:
        `[student width, student inner]`, a guess of the student's output matrix.
    """
    room = MOST // sources[-1].branch.student.weight.shape[1] or 1
    sources = sources[-room:]
    if len(sources) == 1:
        return sources[0].start()
    made = [_made(source) for source in sources]
    guess = torch.cat([guess for guess, _ in made], 1)
    moments = Moments(guess.shape[1], 0, states[0].device)
    for batch, (some, counts) in enumerate(zip(states, weights, strict=True)):
        inner = []
        for source, (_, matrices) in zip(sources, made, strict=True):
            _write(source.branch, matrices)
            inner.append(source.branch.student_inner(batch, some))
        values = torch.cat(inner, 1)
        moments.add(values, weights=counts)
    return _keep(sources[-1].branch, [matrices for _, matrices in made], moments.covariances(constant)[0], guess)


def _made(source: Source) -> tuple[Tensor, list[Affine]]:
    """The guess of the output, and copies of the matrices that read."""
    guess = source.start()
    affine = [matrix.affine for matrix in source.branch.reading]
    return guess, [Affine(value.weight.clone(), value.bias.clone()) for value in affine]


def _write(branch: Branch, matrices: Sequence[Affine]) -> None:
    for matrix, value in zip(branch.reading, matrices, strict=True):
        matrix.set(value)


def _keep(branch: Branch, made: Sequence[Sequence[Affine]], covariance: Tensor, guess: Tensor) -> Tensor:
    """Give the student the rows of the chosen units; returns the guess of the output for these."""
    size, units = branch.unit, guess.shape[1] // branch.unit
    count = units // len(made)
    if size == 1:
        chosen = choose_units(covariance, guess.norm(dim=0), count)
    else:
        chosen = choose_groups([covariance], [guess], size, count)

    def kept(parts: Sequence[Tensor]) -> Tensor:
        whole = torch.cat(list(parts))
        return whole.view(units, -1, *whole.shape[1:])[chosen].flatten(0, 1)

    matrices = zip(*made, strict=True)  # of one kind, from every source
    _write(branch, [Affine(kept([a.weight for a in some]), kept([a.bias for a in some])) for some in matrices])
    return guess @ retold(covariance, units_of(chosen, size))
