r"""Reward-weighted guidance: samples of :math:`p(x|y) \exp(r(x,y) / \beta)` from a frozen model."""

import importlib
from typing import TYPE_CHECKING, Any

from . import toy
from .backbone import Backbone, Generator
from .bank import Bank
from .estimators import (
    ConditionalExpectation,
    Estimate,
    ImportanceSampling,
    LearnedExpectation,
    LearnedShift,
    LeaveOneOut,
    LookAhead,
    PlugIn,
    TargetESS,
    Tempered,
)
from .guidance import GuidedModel
from .models import DenoiserModel, Model, NoiseModel, ScoreModel, VelocityModel
from .noise_space import Selection, best_of_n, flow_map, pcn, soft_best_of_n
from .particles import Particles, TwistedSMC
from .pooling import Pooled, pool
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
from .support.aliases import moved
from .tilt import Tilt

if TYPE_CHECKING:
    from . import backbones, generation, metrics, networks, rewards, store, testing, training

__version__ = "0.2.0"

__all__ = [
    "DDIM",
    "Backbone",
    "Bank",
    "ConditionalExpectation",
    "CosineSchedule",
    "DenoiserModel",
    "DiscreteSchedule",
    "Estimate",
    "Generator",
    "GuidedModel",
    "Heun",
    "ImportanceSampling",
    "LearnedExpectation",
    "LearnedShift",
    "LeaveOneOut",
    "LookAhead",
    "Model",
    "NoiseModel",
    "Particles",
    "PlugIn",
    "Pooled",
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
    "TwistedSMC",
    "UnreliableEstimate",
    "VESchedule",
    "VPSchedule",
    "VelocityModel",
    "__version__",
    "backbones",
    "best_of_n",
    "flow_map",
    "generation",
    "metrics",
    "networks",
    "pcn",
    "pool",
    "rewards",
    "sample",
    "soft_best_of_n",
    "store",
    "testing",
    "toy",
    "training",
]

_LAZY = (
    "backbones",
    "generation",
    "metrics",
    "networks",
    "rewards",
    "store",
    "testing",
    "training",
)
"""Subpackages that are imported when they are first asked for."""

moved("rwguidance.cli", "rwguidance.app.cli")
for _name in ("conditions", "files", "fingerprint", "memory", "outside", "randomness", "registry"):
    moved(f"rwguidance.{_name}", f"rwguidance.support.{_name}")
moved("rwguidance.generation.store", "rwguidance.store")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
