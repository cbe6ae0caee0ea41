r"""Sets of feature vectors, weighted or not, prompt by prompt; what a metric says of them.

A row's weight is normalized within its prompt, and every prompt counts alike: row i of prompt g, of
G prompts, has the share :math:`w_i / \big( G \sum_{j \in g} w_j \big)`. Sets without prompts are
one law, whose rows are the independent units.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .. import weights
from ..schedules import working_dtype
from ..support import checks

__all__ = ["Figure", "Sample", "SampleLike"]


@dataclass(frozen=True)
class Figure:
    """A number that a metric found, with its standard error.

    Arguments:
        value: The number.
        error: Standard error of the value over the sampled units; NaN if they are too few.
        units: Number of these units: prompts, or rows of sets without prompts (for the Frechet
            distance blocks of rows).
        ess: Effective number of draws in the weighted set, the median over its prompts; of the
            poorer set if several are weighted, NaN if none is.
        by_group: The value of each prompt if the whole is their mean, for paired comparisons.
    """

    value: float
    error: float
    units: int
    ess: float
    by_group: Mapping[Hashable, float] = field(default_factory=dict, repr=False)


class Rows(NamedTuple):
    """Checked rows: features (N, D), log-weights (N,) if they are weighted, N groups if known."""

    features: Tensor
    log_weights: Tensor | None
    groups: tuple[Hashable, ...] | None


@dataclass(frozen=True, eq=False)
class Sample:
    r"""A set of feature vectors, on the CPU, in float32 or wider.

    Arguments:
        features: Feature vectors with shape (N, D), or numbers such as rewards with shape (N,).
        log_weights: Log-weights in nats, with shape (N,), up to a constant for each group; -inf is
            a weight of zero. Draws of a model with the log-weights :math:`r / \beta` stand for the
            tilted law. None is a set whose rows count alike.
        groups: Group that each row belongs to, such as its prompt. Groups are the units of
            standard errors: they are independent, rows of one need not be. None if all rows are
            independent draws of one law.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If the features are not finite or have another shape, there is not one
            log-weight or group for each row, a log-weight is NaN or inf, or all are -inf in a
            group.
    """

    features: Tensor
    log_weights: Tensor | None = None
    groups: Sequence[Hashable] | None = None

    def __post_init__(self) -> None:
        rows = read_rows(self.features, self.log_weights, self.groups)
        for name, value in rows._asdict().items():
            object.__setattr__(self, name, value)
        if rows.log_weights is not None:
            alive = torch.zeros(len(self.names), dtype=torch.bool)
            alive[self.index[rows.log_weights > -torch.inf]] = True
            dead = [name for name, one in zip(self.names, alive.tolist(), strict=True) if not one]
            if dead:
                where = "" if self.groups is None else f" in group {dead[0]!r}"
                raise ValueError(f"log_weights must not all be -inf, as they are{where}")

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def names(self) -> tuple[Hashable, ...]:
        """The groups, each once, in the order in which they appear; a single None without any."""

        return (None,) if self.groups is None else tuple(dict.fromkeys(self.groups))

    @cached_property
    def index(self) -> Tensor:
        """Place in `names` of the group of each row, int64, with shape (N,)."""

        if self.groups is None:
            return torch.zeros(len(self), dtype=torch.int64)
        place = {name: i for i, name in enumerate(self.names)}
        return torch.tensor([place[group] for group in self.groups], dtype=torch.int64)

    @cached_property
    def rows(self) -> dict[Hashable, Tensor]:
        """Numbers of the rows of each group, in their order, by group."""

        order = self.index.argsort(stable=True)
        sizes = torch.bincount(self.index, minlength=len(self.names)).tolist()
        return dict(zip(self.names, order.split(sizes), strict=True))

    @cached_property
    def shares(self) -> Tensor:
        """Share of each row in the law that is averaged over groups, float64, with shape (N,)."""

        shares = torch.empty(len(self), dtype=torch.float64)
        for rows in self.rows.values():
            shares[rows] = self._log_weights(rows).softmax(0) / len(self.names)
        return shares

    def ess(self) -> Tensor:
        """Effective number of draws of each group, float64, in the order of `names`."""

        return torch.stack([weights.ess(self._log_weights(rows)) for rows in self.rows.values()])

    def of(self, group: Hashable) -> "Sample":
        """Returns the rows of one group, as a set without groups.

        Raises:
            KeyError: If there is no such group.
        """

        rows = self.rows[group]
        log_weights = None if self.log_weights is None else self.log_weights[rows]
        return Sample(self.features[rows], log_weights)

    def resampled(self, n: int, generator: torch.Generator) -> "Sample":
        """Returns rows of each group that are drawn by their weights, unweighted.

        They are drawn without replacement: the more of the effective number of draws are taken,
        the more does the result lean towards rows of small weight.

        Arguments:
            n: Number of rows of each group.
            generator: Source of randomness, on the CPU.

        Raises:
            ValueError: If a group has fewer rows of positive weight.
        """

        checks.integer("n", n, 1)
        chosen = []
        for name, rows in self.rows.items():
            log_weights = self._log_weights(rows)
            most = int(log_weights.isfinite().sum())
            if n > most:
                where = "" if self.groups is None else f" of group {name!r}"
                raise ValueError(f"n must be at most {most}, the rows{where} with weight, got {n}")
            keys = log_weights + weights.gumbel((len(rows),), generator)
            chosen.append(rows[keys.topk(n).indices])
        order = torch.cat(chosen)
        groups = self.groups and [self.groups[i] for i in order.tolist()]
        return Sample(self.features[order], None, groups)

    def _log_weights(self, rows: Tensor) -> Tensor:
        if self.log_weights is None:
            return torch.zeros(len(rows), dtype=torch.float64)
        return self.log_weights[rows]


SampleLike = Sample | Tensor
"""A set, or the features of one whose rows are independent and count alike."""


def as_sample(name: str, value: SampleLike) -> Sample:
    """Returns a set, of itself or of its features.

    Arguments:
        name: Name of the argument, for messages.
        value: The set.

    Raises:
        TypeError: If it is neither a Sample nor a tensor of floating point.
        ValueError: If the features have another shape, or are not finite.
    """

    if isinstance(value, Sample):
        return value
    checks.instance(name, value, (Sample, Tensor), "a Sample or a tensor of features")
    _check_features(name, value)
    return Sample(value)


def read_rows(
    features: Tensor, log_weights: Tensor | None, groups: Sequence[Hashable] | None
) -> Rows:
    """Returns checked rows, on the CPU: features in float32 or wider, log-weights in float64.

    Arguments and errors are those of :class:`Sample`, but for log-weights that are all -inf.
    """

    _check_features("features", features)
    features = features.detach().to("cpu", working_dtype(features.dtype))
    features = features[:, None] if features.ndim == 1 else features
    if log_weights is not None:
        checks.tensor("log_weights", log_weights, (len(features),))
        log_weights = log_weights.detach().to("cpu", torch.float64)
        if not bool((log_weights < torch.inf).all()):
            raise ValueError("log_weights must be finite or -inf, got NaN or inf")
    if groups is not None:
        groups = tuple(groups.tolist() if isinstance(groups, Tensor) else groups)
        if len(groups) != len(features):
            raise ValueError(
                f"groups must hold one group per row, {len(features)}, got {len(groups)}"
            )
    return Rows(features, log_weights, groups)


def check_same_dimension(name: str, x: Sample, other: str, y: Sample) -> None:
    """Checks that two sets have features of one dimension.

    Raises:
        ValueError: If not; names both arguments.
    """

    if x.features.shape[1] != y.features.shape[1]:
        raise ValueError(
            f"{other} must have features of the dimension of {name}, {x.features.shape[1]}, "
            f"got {y.features.shape[1]}"
        )


def check_same_groups(name: str, x: Sample, other: str, y: Sample) -> None:
    """Checks that two sets have features of one dimension, and the same groups or none.

    Raises:
        ValueError: If not; names both arguments.
    """

    check_same_dimension(name, x, other, y)
    lacking = {name: set(y.names) - set(x.names), other: set(x.names) - set(y.names)}
    for which, missing in lacking.items():
        if missing:
            one = next(iter(missing))
            what = "groups" if one is None else f"the group {one!r}"
            raise ValueError(f"{name} and {other} must have the same groups, {which} lacks {what}")


def poorer_ess(*samples: Sample) -> float:
    """Returns what :class:`Figure` says of the effective number of draws."""

    medians = [float(s.ess().median()) for s in samples if s.log_weights is not None]
    return min(medians, default=float("nan"))


def _check_features(name: str, features: Tensor) -> None:
    one_number = isinstance(features, Tensor) and features.ndim == 1
    checks.states(name, features[:, None] if one_number else features, finite=True)
    if features.ndim > 2 or len(features) == 0:
        raise ValueError(
            f"{name} must have shape (N, D) or (N,) with a row at least, "
            f"got {tuple(features.shape)}"
        )
