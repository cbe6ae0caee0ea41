"""Sets that come in parts, from loops and from other processes, for metrics that need all rows."""

from collections.abc import Callable, Hashable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ..support import checks
from .samples import Rows, Sample, read_rows

__all__ = ["Accumulator"]

T = TypeVar("T")


class Accumulator(Generic[T]):
    """Keeps the rows of a set until a metric of all of them is asked for.

    .. code-block:: python

        diversity = Accumulator(pairwise_distance)
        to_target = Accumulator(lambda x: energy_distance(x, target))

    Memory is that of the features, 4 N D bytes for float32, which :meth:`compute` doubles for a
    while. Where it is too much, give a metric prompt by prompt, and take the mean of the figures
    (:func:`rwguidance.statistics.mean_and_error`). The Frechet distance needs no rows, see
    :class:`rwguidance.metrics.Moments`. Parts of other processes are merged; an accumulator can
    be pickled if its metric can.

    Arguments:
        metric: Function of a :class:`rwguidance.metrics.Sample`.
    """

    def __init__(self, metric: Callable[[Sample], T]) -> None:
        checks.function("metric", metric)
        self.metric = metric
        self._parts: list[Rows] = []

    def __len__(self) -> int:
        return sum(len(part.features) for part in self._parts)

    def update(
        self,
        features: Tensor,
        log_weights: Tensor | None = None,
        groups: Sequence[Hashable] | None = None,
    ) -> None:
        """Adds rows. Arguments and exceptions are those of :class:`rwguidance.metrics.Sample`.

        A group may come in several parts, with log-weights up to the same constant.

        Raises:
            ValueError: If the dimension differs from that of earlier rows, or log-weights or groups
                are given and were not earlier, or the other way round.
        """

        self._add(read_rows(features, log_weights, groups))

    def merge(self, other: "Accumulator[T]") -> None:
        """Adds the rows of another process, after those that are here.

        Raises:
            TypeError: If the other is no Accumulator.
            ValueError: If the rows do not fit, as :meth:`update` says.
        """

        checks.instance("other", other, Accumulator, "an Accumulator")
        for part in list(other._parts):
            self._add(part)

    def compute(self) -> T:
        """Returns the metric of all rows.

        Raises:
            ValueError: If there are no rows, or as the metric does.
        """

        if not self._parts:
            raise ValueError("an accumulator must be given rows before its metric is asked for")
        features, log_weights, groups = zip(*self._parts, strict=True)
        whole = Sample(
            torch.cat(features),
            None if log_weights[0] is None else torch.cat(log_weights),
            None if groups[0] is None else [group for part in groups for group in part],
        )
        return self.metric(whole)

    def _add(self, part: Rows) -> None:
        if self._parts:
            first = self._parts[0]
            known, got = first.features.shape[1], part.features.shape[1]
            if known != got:
                raise ValueError(f"features must have {known} dimensions, got {got}")
            for name in ("log_weights", "groups"):
                if (getattr(first, name) is None) != (getattr(part, name) is None):
                    raise ValueError(f"{name} must be given with all rows or with none")
        self._parts.append(part)
