"""How scores are shown: in percent, and those of language models as perplexity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator

WIDE = 3.0
"""Ratio of perplexities from which an axis is logarithmic."""

MANY = 1000.0
"""Ratio from which such an axis has numbers at powers of ten alone."""

WORST = 1e6
"""Perplexity at which axes end. No vocabulary is as large, so that all tokens alike would be a better guess."""


def mean_of(scores: Any) -> float:
    """The mean; not a number if one score is none, which pandas would leave out."""
    return float(np.mean(np.asarray(scores, float)))


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
        """Percent or perplexity, of a score or an array of scores; beyond `WORST` all perplexities are the same."""
        return np.exp(np.minimum(-score, np.log(10 * WORST))) if self.of_perplexity else 100 * score

    def seen(self, shown: float) -> float:
        """The score of what is shown."""
        return -float(np.log(shown)) if self.of_perplexity else shown / 100

    def text(self, score: float) -> str:
        """What is shown, with one digit behind the point; of perplexities below 10, which differ by little, two."""
        shown = self.shown(score)
        if self.of_perplexity and shown > WORST:
            return f"> {WORST:,.0f}"
        return f"{shown:.2f}" if self.of_perplexity and shown < 10 else f"{shown:.1f}"

    def mean_and_spread(self, scores: Any) -> str:
        """With the standard deviation of what is shown."""
        shown = self.shown(mean_of(scores))
        if self.of_perplexity and shown > WORST:
            return self.text(mean_of(scores))
        spread = f" ± {np.std(np.asarray(self.shown(scores)), ddof=1):.2f}" if len(scores) > 1 else ""
        return f"{shown:.2f}{spread}"

    def visible(self, low: float, high: float) -> tuple[float, float]:
        """The part of a range of scores that an axis shows: without those beyond `WORST`, if any are better."""
        return (max(low, min(high, -float(np.log(WORST)))), high) if self.of_perplexity else (low, high)

    def mark(self, axes: Axes, side: str) -> None:
        """Make the axis "x" or "y" logarithmic if perplexities on it are far apart."""
        axis = axes.xaxis if side == "x" else axes.yaxis
        low, high = sorted(axis.get_view_interval())
        if self.of_perplexity and high > WIDE * low:  # far apart, a margin reaches below 0
            axes.set(**{f"{side}scale": "log"})
            low, high = sorted(axis.get_view_interval())
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < MANY * low else (1,)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter("{x:g}")
