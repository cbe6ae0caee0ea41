r"""Training guidance networks: objectives and one loop, resumable bit for bit.

An objective draws from a bank and noises the draws, or draws from a generator of one or a few steps
(:mod:`.one_step`), and returns a loss; the loop knows nothing else.
Log-weights are centered per condition by :math:`\log \hat Z(y) = \log \frac1N \sum_i w_i` of the
bank, so every prompt trains on weights of mean one; a network for :math:`\log h_t` hence learns
:math:`\log h_t - \log \hat Z(y)`. The shift does not depend on that constant.
"""

from .calibration import Calibration, calibrate, guided_gain, tilted_gain
from .estimated import EstimatedShiftObjective, ShiftTarget
from .gradients import GradientObjective
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
from .one_step import NoiseObjective, OneStepObjective, OutputObjective
from .recipe import Recipe
from .strengths import StrengthsObjective

__all__ = [
    "Calibration",
    "Encoder",
    "EstimatedShiftObjective",
    "ExpectationObjective",
    "GradientObjective",
    "NoiseObjective",
    "NoisedBatch",
    "Objective",
    "OneStepObjective",
    "OutputObjective",
    "Recipe",
    "ShiftObjective",
    "ShiftTarget",
    "StrengthsObjective",
    "TimeSampler",
    "calibrate",
    "guided_gain",
    "tilted_gain",
    "train",
    "uniform_times",
]
