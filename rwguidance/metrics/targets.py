"""How far a method got towards the exactly tilted law."""

import math

import torch
from torch import Tensor

from ..statistics import jackknife_error
from ..support import checks
from .samples import Figure, Sample, check_same_groups

__all__ = ["share_of_target"]


def share_of_target(method: Sample, base: Sample, tilted: Sample) -> Figure:
    r"""Returns the share of the tilted law's gain in reward that a method reaches.

    .. math:: \frac{\sum_g (\bar r_{\mathrm{method}, g} - \bar r_{\mathrm{base}, g})}
        {\sum_g (\bar r_{\mathrm{tilted}, g} - \bar r_{\mathrm{base}, g})}

    is a ratio of means over groups g: zero for the base, one for the target, more if the method
    overshoots. The mean of a group of the tilted law is self-normalized, with a bias that falls
    like 1 / ESS towards the base, so that the share of a poor target is too large.

    Arguments:
        method: Rewards of the method's draws, one number per row, with their groups.
        base: Rewards of the model's draws, with the same groups.
        tilted: Rewards of draws of the model that no method has seen, weighted by
            :math:`r / \beta`, with the same groups.

    Returns:
        The share, with its error by the jackknife over groups.

    Raises:
        TypeError: If an argument is no Sample.
        ValueError: If a set has no groups, or other ones, or more than one number per row.
    """

    sets = {"method": method, "base": base, "tilted": tilted}
    for name, part in sets.items():
        checks.instance(name, part, Sample, "a Sample of rewards")
        if part.groups is None or part.features.shape[1] != 1:
            raise ValueError(f"{name} must be a Sample of one reward per row, with groups")
    for name, part in sets.items():
        check_same_groups("base", base, name, part)
    means = {name: _means(part, base) for name, part in sets.items()}
    gain, way = means["method"] - means["base"], means["tilted"] - means["base"]
    value, error = share_of_gains(gain, way)
    return Figure(value, error, len(gain), float(tilted.ess().median()))


def share_of_gains(gain: Tensor, way: Tensor) -> tuple[float, float]:
    """Returns the ratio of the sums of two gains, with its error by the jackknife over groups.

    It is NaN where the target gains nothing, and its error with fewer than two groups.

    Arguments:
        gain: Gain of the method in each group, with shape (G,).
        way: Gain of the tilted law in each group, with shape (G,).
    """

    ratio = lambda a, b: torch.where(b == 0, math.nan, a / b)
    value = float(ratio(gain.sum(), way.sum()))
    return value, jackknife_error(ratio(gain.sum() - gain, way.sum() - way))


def _means(x: Sample, like: Sample) -> Tensor:
    """Returns the mean of each group, in the order of the groups of `like`."""

    values = x.features.squeeze(1) * x.shares * len(x.names)
    means = values.new_zeros(len(x.names)).index_add_(0, x.index, values)
    place = {name: i for i, name in enumerate(x.names)}
    return means[[place[name] for name in like.names]]
