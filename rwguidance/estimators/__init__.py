r"""Estimators of :math:`h_t(x_t) = E[w(x_0) | x_t]` and of the shift it causes."""

from .base import ConditionalExpectation, Estimate
from .importance import ImportanceSampling
from .kernels import Kernel, LeaveOneOut, TargetESS, Tempered
from .learned import LearnedExpectation, LearnedShift
from .look_ahead import LookAhead
from .plug_in import PlugIn

__all__ = [
    "ConditionalExpectation",
    "Estimate",
    "ImportanceSampling",
    "Kernel",
    "LearnedExpectation",
    "LearnedShift",
    "LeaveOneOut",
    "LookAhead",
    "PlugIn",
    "TargetESS",
    "Tempered",
]
