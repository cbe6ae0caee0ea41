r"""How much of another reward comes with the one that is aligned to.

With the gains :math:`a_g` of the reward that is aligned to and :math:`b_g` of another one over
those of the model, prompt by prompt,

.. math:: s = \sum_g b_g \Big/ \sum_g a_g

is the *slope*, in units of the other reward per unit of the one that is aligned to. The exactly
tilted law has a slope, too: a method whose slope is smaller earns its gain by other means.
"""

import torch
from torch import Tensor

from ..statistics import jackknife_error, mean_and_error, ratio_and_error
from .measured import Measured
from .results import Cell, Results

__all__ = ["gain_excess", "slope", "slope_excess", "target_slope"]


def slope(results: Results, cell: Cell, name: str) -> Measured:
    """Returns the slope of a reward in a cell, with its error over prompts.

    Arguments:
        results: The results.
        cell: One of their cells, other than the base.
        name: Name of the other reward.
    """

    return _slope(_gains(results, cell, name))


def target_slope(results: Results, nats: float, name: str) -> Measured:
    """Returns the slope of a reward under the tilted law, with its error over prompts.

    Arguments:
        results: The results.
        nats: Strength of the tilted law, one of those of the results.
        name: Name of the other reward.
    """

    return _slope(_target_gains(results, nats, name))


def slope_excess(results: Results, cell: Cell, nats: float, name: str) -> Measured:
    """Returns the slope of a reward in a cell less that under the tilted law.

    The error is that of the difference, by the jackknife over the prompts that have both.

    Arguments:
        results: The results.
        cell: One of their cells, other than the base.
        nats: Strength of the tilted law, one of those of the results.
        name: Name of the other reward.
    """

    gains = torch.cat([_gains(results, cell, name), _target_gains(results, nats, name)])
    gains = gains[:, gains.isfinite().all(0)]
    excess = lambda sums: sums[0] / sums[1] - sums[2] / sums[3]
    sums = gains.sum(1, keepdim=True)
    return Measured(float(excess(sums)), jackknife_error(excess(sums - gains)))


def gain_excess(results: Results, cell: Cell, nats: float, name: str) -> Measured:
    """Returns the gain of a reward in a cell less that under the tilted law, paired by prompt.

    Arguments:
        results: The results.
        cell: One of their cells, other than the base.
        nats: Strength of the tilted law, one of those of the results.
        name: Name of the other reward.
    """

    excess = (_gains(results, cell, name) - _target_gains(results, nats, name))[0]
    return Measured(*mean_and_error(excess[excess.isfinite()]))


def _slope(gains: Tensor) -> Measured:
    gains = gains[:, gains.isfinite().all(0)]
    return Measured(*ratio_and_error(*gains))


def _gains(results: Results, cell: Cell, name: str) -> Tensor:
    """Returns gains of another reward and of the aligned one over the base, with shape (2, P)."""

    return torch.stack([results.gains(cell, one) for one in (name, results.aligned)])


def _target_gains(results: Results, nats: float, name: str) -> Tensor:
    """Returns gains of the tilted law over the mean of its draws, with shape (2, P)."""

    means = results.targets[nats].means
    return torch.stack([means[one] - results.draw_means(one) for one in (name, results.aligned)])
