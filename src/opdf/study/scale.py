"""How scores are shown: in percent, and those of language models as perplexity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

WIDE = 3.0
"""Ratio of perplexities from which an axis is logarithmic."""


@dataclass(frozen=True)
class Scale:
    """Scores of a metric, of which higher is better, and what a reader sees of them.

    A score of perplexity is minus its logarithm. A point of it, a hundredth, is about 1 % of perplexity.
    """

    metric: str

    @property
    def of_perplexity(self) -> bool:
        return self.metric == "perplexity"

    @property
    def label(self) -> str:
        return self.metric if self.of_perplexity else f"{self.metric}, %"

    def score(self, value: float) -> float:
        """Of the metric's own value."""
        return -float(np.log(value)) if self.of_perplexity else value

    def shown(self, score: Any) -> Any:
        """Percent or perplexity, of a score or an array of scores."""
        return np.exp(-score) if self.of_perplexity else 100 * score

    def seen(self, shown: float) -> float:
        """The score of what is shown."""
        return -float(np.log(shown)) if self.of_perplexity else shown / 100

    def mean(self, scores: Any) -> str:
        return f"{self.shown(scores.mean()):.1f}"

    def mean_and_spread(self, scores: Any) -> str:
        """With the standard deviation of what is shown."""
        spread = f" ± {np.std(self.shown(scores), ddof=1):.2f}" if len(scores) > 1 else ""
        return f"{self.shown(scores.mean()):.2f}{spread}"

    def mark(self, axes: Axes, side: str) -> None:
        """Make the axis "x" or "y" logarithmic if perplexities on it are far apart."""
        axis = axes.xaxis if side == "x" else axes.yaxis
        low, high = sorted(axis.get_view_interval())
        if self.of_perplexity and low > 0 and high / low > WIDE:
            axes.set(**{f"{side}scale": "log"})
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:g}")
