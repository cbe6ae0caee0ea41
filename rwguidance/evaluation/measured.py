"""Numbers with their standard errors: how they compare, and how they are written."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["CLEAR", "Measured"]

CLEAR = 2.0
"""Number of standard errors from which on a difference counts as clear.

Of twenty comparisons without a difference, about one is called clear by chance.
"""


class Measured(NamedTuple):
    """A number and its standard error, NaN where there is none."""

    value: float
    error: float

    @classmethod
    def of(cls, row: Mapping[str, Any], name: str) -> "Measured":
        """Returns a figure of a row of :func:`~rwguidance.evaluation.figures.rows_of`.

        Arguments:
            row: The row.
            name: Name of the figure; one that the row lacks is NaN.
        """

        return cls(row.get(name, math.nan), row.get(f"{name} error", math.nan))

    @property
    def known(self) -> bool:
        """Whether there is a number."""

        return not math.isnan(self.value)

    def above(self, level: float) -> bool:
        """Whether the number is clearly above a level."""

        return self.value - level > CLEAR * self.error

    def below(self, level: float) -> bool:
        """Whether the number is clearly below a level."""

        return level - self.value > CLEAR * self.error

    def __str__(self) -> str:
        """Returns the number to two digits of its error, such as ``0.53 ± 0.04``."""

        if not self.known:
            return "-"
        if not 1e-9 * abs(self.value) < self.error < math.inf:  # none, or rounding
            return f"{self.value:.3g}"
        digits = min(max(0, 1 - math.floor(math.log10(self.error))), 9)
        return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"
