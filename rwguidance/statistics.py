r"""Means and their standard errors, over the unit that was sampled.

Pictures of one prompt share what the prompt does to them. If prompts were drawn, the error of a
mean is that over prompts: with :math:`\bar r_u` the mean of the values of unit u, of n units,

.. math:: \bar r = \frac1n \sum_u \bar r_u, \qquad
    \mathrm{SE}^2 = \frac{1}{n (n - 1)} \sum_u (\bar r_u - \bar r)^2.

Values within a unit may depend on each other in any way; units must be independent. What is no mean
has its error by the jackknife, from its values without each unit. Two methods on the same prompts
are compared by the differences of their means of a prompt.
"""

import math
from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Generator, Tensor

from .support import checks

__all__ = [
    "bootstrap_interval",
    "jackknife_error",
    "mean_and_error",
    "paired_difference",
    "ratio_and_error",
    "sign_test",
    "signed_rank_test",
    "win_rate",
]

Values = Tensor | Sequence[float]


def mean_and_error(values: Values, unit: Iterable[Hashable] | None = None) -> tuple[float, float]:
    r"""Returns the mean over units of their means, and its standard error.

    Arguments:
        values: Numbers, with shape (N,). NaN makes the results NaN.
        unit: The unit that each value belongs to, such as its prompt. None if every value is a unit
            of its own.

    Returns:
        The mean, which is NaN without values, and its standard error, which is NaN for fewer than
        two units, both in the unit of the values.

    Raises:
        ValueError: If the values are not of one axis, or there is not one unit for each of them.
    """

    means = _numbers("values", values)
    if unit is not None:
        means = _means_of_units(means, list(unit))
    n = len(means)
    mean = float(means.mean()) if n else math.nan
    error = float(means.std()) / math.sqrt(n) if n > 1 else math.nan
    return mean, error


def ratio_and_error(
    numerators: Values, denominators: Values, unit: Iterable[Hashable] | None = None
) -> tuple[float, float]:
    r"""Returns the ratio of two means, :math:`\hat r = \bar a / \bar b`, and its standard error.

    The error is that of the mean of :math:`(a - \hat r b) / \bar b` (linearization, or the delta
    method). With weights as denominators and weighted values as numerators, it is that of a
    self-normalized mean; with counts and sums of units, that of the mean over all their members.

    Arguments:
        numerators: The numbers a, with shape (N,).
        denominators: The numbers b, with shape (N,).
        unit: The unit that each pair belongs to, see :func:`mean_and_error`.

    Raises:
        ValueError: If the two are not of one axis and one length, or there is not one unit for each
            pair.
    """

    a, b = _numbers("numerators", numerators), _numbers("denominators", denominators)
    if len(a) != len(b):
        raise ValueError(f"denominators must be as many as numerators, {len(a)}, got {len(b)}")
    units = None if unit is None else list(unit)
    top, bottom = (mean_and_error(values, units)[0] for values in (a, b))
    ratio = top / bottom if bottom else math.nan
    return ratio, mean_and_error((a - ratio * b) / bottom, units)[1]


def jackknife_error(without: Values) -> float:
    r"""Returns the standard error of a statistic, from its values without each of n units.

    .. math:: \mathrm{SE}^2 = \frac{n - 1}{n} \sum_u (s_{-u} - \bar s)^2

    with :math:`\bar s` their mean. Of a mean it is the error of :func:`mean_and_error`. Blocks of
    units, equally large and chosen at random, may stand for units.

    Arguments:
        without: The values :math:`s_{-u}`, with shape (n,). NaN makes the result NaN.

    Returns:
        The error, which is NaN for fewer than two units.

    Raises:
        ValueError: If the values are not of one axis.

    References:
        | The Jackknife Estimate of Variance (Efron and Stein, 1981)
    """

    values = _numbers("without", without)
    n = len(values)
    return float(values.std()) * (n - 1) / math.sqrt(n) if n > 1 else math.nan


def paired_difference(
    after: Values, before: Values, unit: Iterable[Hashable] | None = None
) -> tuple[float, float]:
    """Returns the mean over units of the difference of pairs, and its standard error.

    Arguments:
        after: The values of one method, with shape (N,).
        before: The values of the other one, in the same order.
        unit: The unit that each pair belongs to, see :func:`mean_and_error`.

    Raises:
        ValueError: If the two are not of one axis and one length, or there is not one unit for each
            pair.
    """

    return mean_and_error(_differences(after, before, unit))


def win_rate(
    after: Values, before: Values, unit: Iterable[Hashable] | None = None
) -> tuple[float, float]:
    """Returns the mean over units of the share of pairs that `after` wins, and its standard error.

    A tie is half a win. Arguments and exceptions are those of :func:`paired_difference`.
    """

    a, b = _pair(after, before)
    return mean_and_error(
        torch.where(a.isnan() | b.isnan(), math.nan, ((a - b).sign() + 1) / 2), unit
    )


def sign_test(after: Values, before: Values, unit: Iterable[Hashable] | None = None) -> float:
    """Returns the two-sided p-value of the sign test: that units gain as often as they lose.

    Units whose difference is zero are left out. Arguments and exceptions are those of
    :func:`paired_difference`.

    Returns:
        The p-value in [0, 1], which is 1 without differences and NaN if one is NaN.
    """

    from scipy.stats import binomtest

    differences = _differences(after, before, unit)
    won, lost = int((differences > 0).sum()), int((differences < 0).sum())
    if bool(differences.isnan().any()):
        return math.nan
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def signed_rank_test(
    after: Values, before: Values, unit: Iterable[Hashable] | None = None
) -> float:
    """Returns the two-sided p-value of Wilcoxon's signed-rank test, of symmetry around zero.

    It looks at sizes of differences, too, and so finds smaller ones than :func:`sign_test`. Units
    whose difference is zero are left out. Arguments and exceptions are those of
    :func:`paired_difference`.

    Returns:
        The p-value in [0, 1], which is 1 without differences and NaN if one is NaN.
    """

    from scipy.stats import wilcoxon

    differences = _differences(after, before, unit)
    if bool(differences.isnan().any()):
        return math.nan
    differences = differences[differences != 0]
    return float(wilcoxon(differences.numpy()).pvalue) if len(differences) else 1.0


def bootstrap_interval(
    values: Values,
    unit: Iterable[Hashable] | None = None,
    *,
    generator: Generator,
    level: float = 0.95,
    resamples: int = 2000,
) -> tuple[float, float]:
    r"""Returns an interval of the mean over units, by the percentiles of resampled units.

    Of n units it is too short by a factor of about :math:`\sqrt{(n - 1) / n}`, and somewhat more
    for few, as normal intervals are.

    Arguments:
        values: Numbers, with shape (N,). NaN makes the results NaN.
        unit: The unit that each value belongs to, see :func:`mean_and_error`.
        generator: Source of the resampled units, on the CPU.
        level: Probability that the interval is to cover the mean.
        resamples: Number of sets of units that are drawn with replacement.

    Returns:
        The lower and the upper end, which are NaN for fewer than two units.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If the values are not of one axis, there is not one unit for each of them, or
            the level is not in (0, 1).
    """

    checks.instance("generator", generator, Generator, "a torch.Generator")
    checks.number("level", level, above=0, below=1)
    checks.integer("resamples", resamples, 1)
    means = _numbers("values", values)
    if unit is not None:
        means = _means_of_units(means, list(unit))
    n = len(means)
    if n < 2 or bool(means.isnan().any()):
        return math.nan, math.nan
    # One set of units at a time: all at once may be more than memory holds.
    drawn = [means[torch.randint(n, (n,), generator=generator)].mean() for _ in range(resamples)]
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.stack(drawn).quantile(ends).tolist()
    return low, high


def _pair(after: Values, before: Values) -> tuple[Tensor, Tensor]:
    a, b = _numbers("after", after), _numbers("before", before)
    if len(a) != len(b):
        raise ValueError(f"before must be as many as after, {len(a)}, got {len(b)}")
    return a, b


def _differences(after: Values, before: Values, unit: Iterable[Hashable] | None) -> Tensor:
    """Returns the mean difference of each unit."""

    a, b = _pair(after, before)
    return a - b if unit is None else _means_of_units(a - b, list(unit))


def _means_of_units(values: Tensor, unit: list[Hashable]) -> Tensor:
    """Returns the mean of the values of each unit, in the order in which the units appear."""

    if len(unit) != len(values):
        raise ValueError(f"unit must hold one unit per value, {len(values)}, got {len(unit)}")
    place = {key: i for i, key in enumerate(dict.fromkeys(unit))}
    index = torch.tensor([place[key] for key in unit], dtype=torch.int64)
    counts = torch.bincount(index, minlength=len(place))
    return values.new_zeros(len(place)).index_add(0, index, values) / counts


def _numbers(name: str, values: Values) -> Tensor:
    numbers = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
    if numbers.ndim != 1:
        raise ValueError(f"{name} must have shape (N,), got {tuple(numbers.shape)}")
    return numbers
