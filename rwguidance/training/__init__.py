r"""Training guidance networks on a bank: three objectives and one loop, resumable bit for bit.

An objective draws from the bank, noises the draws and returns a loss; the loop knows nothing else.
Log-weights are centered per condition by :math:`\log \hat Z(y) = \log \frac1N \sum_i w_i` of the
bank, so every prompt trains on weights of mean one; a network for :math:`\log h_t` hence learns
:math:`\log h_t - \log \hat Z(y)`. The shift does not depend on that constant.
"""

from .estimated import EstimatedShiftObjective, ShiftTarget
from .loop import train
from .objectives import (
    Encoder,
    ExpectationObjective,
    NoisedBatch,
    Objective,
    ShiftObjective,
    TimeSampler,
    uniform_times,
)

__all__ = [
    "Encoder",
    "EstimatedShiftObjective",
    "ExpectationObjective",
    "NoisedBatch",
    "Objective",
    "ShiftObjective",
    "ShiftTarget",
    "TimeSampler",
    "train",
    "uniform_times",
]
