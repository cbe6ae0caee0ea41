r"""Reward-weighted guidance: samples of :math:`p(x|y) \exp(r(x,y) / \beta)` from a frozen model."""

from . import toy
from .bank import Bank
from .estimators import (
    ConditionalExpectation,
    Estimate,
    ImportanceSampling,
    LearnedExpectation,
    LearnedShift,
    PlugIn,
    TargetESS,
    Tempered,
)
from .guidance import GuidedModel
from .models import DenoiserModel, Model, NoiseModel, ScoreModel, VelocityModel
from .noise_space import Selection, best_of_n, flow_map, pcn, soft_best_of_n
from .prediction import Prediction
from .samplers import DDIM, Heun, Sampler, Transition, UnreliableEstimate, sample
from .schedules import (
    CosineSchedule,
    DiscreteSchedule,
    RectifiedSchedule,
    Scales,
    Schedule,
    VESchedule,
    VPSchedule,
)
from .tilt import Tilt

__version__ = "0.1.0"

__all__ = [
    "DDIM",
    "Bank",
    "ConditionalExpectation",
    "CosineSchedule",
    "DenoiserModel",
    "DiscreteSchedule",
    "Estimate",
    "GuidedModel",
    "Heun",
    "ImportanceSampling",
    "LearnedExpectation",
    "LearnedShift",
    "Model",
    "NoiseModel",
    "PlugIn",
    "Prediction",
    "RectifiedSchedule",
    "Sampler",
    "Scales",
    "Schedule",
    "ScoreModel",
    "Selection",
    "TargetESS",
    "Tempered",
    "Tilt",
    "Transition",
    "UnreliableEstimate",
    "VESchedule",
    "VPSchedule",
    "VelocityModel",
    "__version__",
    "best_of_n",
    "flow_map",
    "pcn",
    "sample",
    "soft_best_of_n",
    "toy",
]
