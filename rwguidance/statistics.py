r"""Means and their standard errors, over the unit that was sampled.

Pictures of one prompt share what the prompt does to them. If prompts were drawn, the error of a
mean is that over prompts: with :math:`\bar r_u` the mean of the values of unit u, of n units,

.. math:: \bar r = \frac1n \sum_u \bar r_u, \qquad
    \mathrm{SE}^2 = \frac{1}{n (n - 1)} \sum_u (\bar r_u - \bar r)^2.

Values within a unit may depend on each other in any way; units must be independent.
"""

import math
from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["mean_and_error", "ratio_and_error"]

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
